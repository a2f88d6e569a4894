"""Facts of the paper and of the released network, at their own width, traced on the meta device."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from voxelwise.errors import UsageError
from voxelwise.networks.registry import count_parameters
from voxelwise.networks.vnet import VNet

from .sight import seen


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


def test_shapes_of_the_paper() -> None:
    with torch.device("meta"):
        network = VNet(3, 1, 2)
        shapes: list[tuple[int, ...]] = []
        for stage in (*network.left, *network.right, network.before_head):
            stage.register_forward_hook(lambda module, inputs, result: shapes.append(tuple(result.shape[1:])))
        network(torch.empty(1, 1, 128, 128, 64))
    assert shapes == [
        (16, 128, 128, 64), (32, 64, 64, 32), (64, 32, 32, 16), (128, 16, 16, 8), (256, 8, 8, 4),
        (256, 16, 16, 8), (128, 32, 32, 16), (64, 64, 64, 32), (32, 128, 128, 64), (2, 128, 128, 64),
    ]  # fmt: skip


@pytest.mark.parametrize(("variant", "reaches"), [("paper", {532, 548}), ("release", {476, 492})])
def test_receptive_field(variant: str, reaches: set[int]) -> None:
    """Measured in front of the head, it depends on the voxel's position; the largest is what is declared."""
    network = VNet(2, 1, 2, variant=variant, width=1, head_kernel=1).eval()
    first, last = seen(network, 1, (1152, 16), 0)
    assert set((last - first + 1)[576:592].tolist()) == reaches
    assert network.receptive_field == (max(reaches),) * 2


def test_receptive_fields_as_the_paper_counts_them() -> None:
    """Of every stage; a transposed convolution adds one voxel of the finer map. No other depths give these numbers."""
    network, reach, jump = VNet(2, 1, 2, width=1), 1, 1
    reaches = []
    for level, stage in enumerate(network.left):
        if level:
            reach, jump = reach + jump, 2 * jump
        reach += 4 * jump * len(stage.convs)
        reaches.append(reach)
    for stage in network.right:
        jump //= 2
        reach += jump + 4 * jump * len(stage.convs)
        reaches.append(reach)
    assert reaches == [5, 22, 72, 172, 372, 476, 528, 546, 551]


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
