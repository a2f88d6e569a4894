"""Facts: counts, the shapes of the paper, and what a skip is for; test_smp.py holds it against the library's class."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from voxelwise.errors import UsageError
from voxelwise.networks.registry import count_parameters
from voxelwise.networks.resnet34_unet import ResNet34UNet
from voxelwise.networks.weights import transplant


@pytest.mark.parametrize(("dims", "channels", "count"), [(2, 3, 24_436_369), (2, 1, 24_430_097), (3, 3, 72_964_657)])
def test_parameters(dims: int, channels: int, count: int) -> None:
    with torch.device("meta"):
        assert count_parameters(ResNet34UNet(dims, channels, 1)) == count
    assert f"{count:,}" in (ResNet34UNet.__doc__ or "")


def test_shapes_of_the_paper() -> None:
    with torch.device("meta"):
        network = ResNet34UNet(2, 3, 1)
        shapes: list[tuple[int, int]] = []
        for stage in network.decoder:
            stage.register_forward_hook(lambda module, inputs, result: shapes.append(tuple(result.shape[1:3])))
        assert network(torch.empty(1, 3, 512, 512)).shape == (1, 1, 512, 512)
    assert shapes == [(256, 32), (128, 64), (64, 128), (32, 256), (16, 512)]
    assert [stage[0].conv.in_channels for stage in network.decoder] == [512 + 256, 256 + 128, 128 + 64, 64 + 64, 32]
    assert network.last.kernel_size == (3, 3)


@torch.no_grad()
def test_without_weights_of_its_skip_a_map_is_not_used() -> None:
    network = ResNet34UNet(2, 1, 1, width=4, depth=18).eval()
    image = torch.randn(1, 1, 64, 64)
    network.decoder[2][0].conv.weight[:, 2 * 4 :].zero_()  # what is joined with layer1
    kept: list[Tensor] = []
    block = network.encoder.layer2[0]
    block.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]) or (kept[0],))
    before = network(image)
    network.encoder.layer1.register_forward_hook(lambda module, inputs, result: result + 1)
    assert torch.equal(network(image), before)  # the rest of the encoder still gets the old map


def test_weights_of_torchvision_leave_no_layer_of_the_encoder_new() -> None:
    with torch.device("meta"):
        network = ResNet34UNet(2, 3, 1)
        report = transplant(network, models.resnet34(weights=None).state_dict())
    assert set(report.dropped) == {"fc.weight", "fc.bias"}
    assert not any(name.startswith("encoder.") for name in report.new)


def test_options() -> None:
    with torch.device("meta"):
        network = ResNet34UNet(3, 1, 2, width=8, depth=50, norm="group", activation="silu")
        assert network(torch.empty(1, 1, 33, 32, 32)).shape == (1, 2, 33, 32, 32)
    kinds = {type(module) for module in network.decoder.modules()}
    assert {nn.SiLU, nn.GroupNorm} <= kinds
    assert not kinds & {nn.ReLU, nn.BatchNorm3d}
    with pytest.raises(UsageError, match="unknown activation 'rleu'; did you mean 'relu'"):
        ResNet34UNet(2, 1, 2, activation="rleu")
    with pytest.raises(ValueError, match="got depth=33"):
        ResNet34UNet(2, 1, 2, depth=33)
