"""Facts of the trunk: maps, names and numbers of torchvision."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models import resnet as theirs_resnet
from voxelwise.errors import UsageError
from voxelwise.networks.registry import count_parameters
from voxelwise.networks.resnet import ResNet, blocks_of, depth_of


def test_maps_of_resnet34() -> None:
    with torch.device("meta"):
        trunk = ResNet(2, 3, (3, 4, 6, 3), bottleneck=False)
        maps = trunk(torch.empty(1, 3, 256, 256))
    assert count_parameters(trunk) == 21_284_672
    assert [tuple(side.shape[1:3]) for side in maps] == [(64, 128), (64, 64), (128, 32), (256, 16), (512, 8)]
    assert trunk.widths == [64, 64, 128, 256, 512]


@pytest.mark.parametrize(("depth", "bottleneck"), [(34, False), (50, True)])
def test_names_are_those_of_torchvision(depth: int, bottleneck: bool) -> None:
    """And so are shapes, so that its weights fit; only the dense layer is not here."""
    with torch.device("meta"):
        ours = ResNet(2, 3, (3, 4, 6, 3), bottleneck=bottleneck).state_dict()
        theirs = models.get_model(f"resnet{depth}", weights=None).state_dict()
    assert {name: value.shape for name, value in ours.items()}.items() <= {
        name: value.shape for name, value in theirs.items()
    }.items()
    assert set(theirs) - set(ours) == {"fc.weight", "fc.bias"}


@torch.no_grad()
@pytest.mark.parametrize("bottleneck", [False, True])
def test_it_computes_what_torchvisions_does(bottleneck: bool) -> None:
    kind = theirs_resnet.Bottleneck if bottleneck else theirs_resnet.BasicBlock
    theirs = theirs_resnet.ResNet(kind, [1, 1, 1, 1], num_classes=3).eval()
    ours = ResNet(2, 3, (1, 1, 1, 1), bottleneck=bottleneck).eval()
    ours.load_state_dict(theirs.state_dict(), strict=False)
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(theirs.fc(ours(image)[-1].mean((2, 3))), theirs(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("step_first", [True, False])
def test_where_a_bottleneck_takes_its_step(step_first: bool) -> None:
    trunk = ResNet(2, 1, (1, 2, 1, 1), bottleneck=True, width=1, step_first=step_first)
    sizes: list[int] = []
    for block in trunk.layer2:
        block.conv1.register_forward_hook(lambda module, inputs, result: sizes.append(result.shape[-1]))
    trunk.eval()(torch.zeros(1, 1, 64, 64))
    assert sizes == ([8, 8] if step_first else [16, 8])


def test_the_last_stage_may_keep_its_size() -> None:
    trunk = ResNet(3, 1, (1, 1, 1, 2), bottleneck=True, width=1, dilated=True)
    assert [side.shape[-1] for side in trunk.eval()(torch.zeros(1, 1, 16, 16, 32))] == [16, 8, 4, 2, 2]
    assert {(block.conv2.stride, block.conv2.dilation) for block in trunk.layer4} == {((1,) * 3, (2,) * 3)}


def test_the_norm_is_an_option() -> None:
    kinds = {type(module) for module in ResNet(2, 1, (1, 1, 1, 1), bottleneck=False, width=8, norm="group").modules()}
    assert nn.GroupNorm in kinds
    assert nn.BatchNorm2d not in kinds


def test_names_and_depths() -> None:
    assert (depth_of("resnet50"), blocks_of(50)) == (50, ((3, 4, 6, 3), True))
    with pytest.raises(UsageError, match="unknown encoder 'resnet43'; did you mean 'resnet34'"):
        depth_of("resnet43")
    with pytest.raises(ValueError, match=r"one of \[18, 34, 50, 101\] layers here, got depth=33"):
        blocks_of(33)
