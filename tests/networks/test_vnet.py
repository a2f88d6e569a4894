"""Facts of the paper and of the released network, at their own width, traced on the meta device."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from voxelwise.errors import UsageError
from voxelwise.networks.registry import count_parameters
from voxelwise.networks.vnet import VNet


@pytest.mark.parametrize(
    ("options", "count"),
    [({}, 65_183_258), ({"head_kernel": 1}, 65_175_314), ({"variant": "release"}, 61_982_682)],
)
def test_parameters_and_shape(options: dict[str, object], count: int) -> None:
    with torch.device("meta"):
        network = VNet(3, 1, 2, **options)
        logits = network(torch.empty(1, 1, 128, 128, 64))
    assert count_parameters(network) == count
    assert f"{count:,}" in (VNet.__doc__ or "")
    assert logits.shape == (1, 2, 128, 128, 64)


@pytest.mark.parametrize(("variant", "reach"), [("paper", 548), ("release", 492)])
def test_receptive_field(variant: str, reach: int) -> None:
    """The larger of the two measured ones, 532 or 548 (paper) and 476 or 492 (release), by position."""
    network = VNet(2, 1, 2, variant=variant, width=1, head_kernel=1)
    assert network.receptive_field == (reach, reach)


def test_stages_of_the_paper() -> None:
    network = VNet(2, 1, 2, width=1)
    assert [len(stage.convs) for stage in network.left] == [1, 2, 3, 3, 3]
    assert [len(stage.convs) for stage in network.right] == [3, 3, 2, 1]
    assert [stage.convs[0].out_channels for stage in network.left] == [1, 2, 4, 8, 16]
    assert [stage.convs[0].out_channels for stage in network.right] == [16, 8, 4, 2]


def test_there_is_no_norm_and_no_dropout() -> None:
    kinds = {type(module) for module in VNet(3, 1, 2, width=1).modules() if not list(module.children())}
    assert kinds - {nn.Identity} == {nn.Conv3d, nn.ConvTranspose3d, nn.PReLU}


def test_a_silent_last_convolution_makes_a_stage_the_identity() -> None:
    """The stage learns a residual: what it starts from is added before its last PReLU."""
    network = VNet(2, 1, 2, width=4)
    for stage in (*network.left[1:], *network.right):
        nn.init.zeros_(stage.convs[-1].weight)
        nn.init.zeros_(stage.convs[-1].bias)
        nn.init.ones_(stage.activations[-1].weight)
        width = stage.convs[-1].out_channels
        image = torch.randn(1, width, 8, 8)
        torch.testing.assert_close(stage(image, image), image)


@torch.no_grad()
def test_the_first_residual_is_the_image_repeated_or_projected() -> None:
    network = VNet(2, 2, 2, width=4)
    assert network.tiles == 2
    for parameter in network.left[0].convs.parameters():
        nn.init.zeros_(parameter)
    nn.init.ones_(network.left[0].activations[0].weight)
    image = torch.randn(1, 2, 16, 16)
    torch.testing.assert_close(network.left[0](image, image.repeat(1, 2, 1, 1)), torch.cat((image, image), dim=1))
    assert isinstance(VNet(2, 3, 2, width=4).project, nn.Conv2d)


def test_wrong_options() -> None:
    with pytest.raises(UsageError, match="unknown variant of V-Net: 'papr'; did you mean 'paper'"):
        VNet(3, 1, 2, variant="papr")
    with pytest.raises(ValueError, match=r"kernels are odd.*kernel=4"):
        VNet(3, 1, 2, kernel=4)
