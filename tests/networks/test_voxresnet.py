"""Facts of the two public builds: counts, reach of the trunk, depth, and what a second stage starts from."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from voxelwise.errors import UsageError
from voxelwise.networks.registry import count_parameters
from voxelwise.networks.voxresnet import VoxRes, VoxResNet

from .sight import seen

COUNTS = [
    (3, {}, 1_329_024),
    (7, {}, 1_332_480),
    (3, {"thin_kernel": False}, 1_789_824),
    (7, {"thin_kernel": False}, 1_793_280),
    (3, {"head": "deconv_full"}, 6_470_928),
    (7, {"head": "deconv_full"}, 6_474_384),
    (3, {"thin_kernel": False, "head": "deconv_full"}, 6_931_728),
    (7, {"thin_kernel": False, "head": "deconv_full"}, 6_935_184),
]


@pytest.mark.parametrize(("channels", "options", "count"), COUNTS)
def test_parameters(channels: int, options: dict[str, object], count: int) -> None:
    with torch.device("meta"):
        assert count_parameters(VoxResNet(3, channels, 4, **options)) == count
    assert f"{count:,}" in (VoxResNet.__doc__ or "") or channels == 7


@pytest.mark.parametrize("head", ["deconv_slim", "deconv_full"])
def test_five_outputs_of_the_images_size(head: str) -> None:
    with torch.device("meta"):
        network = VoxResNet(3, 3, 4, head=head)
        result = network(torch.empty(1, 3, 80, 80, 80))
        assert [tuple(side.shape) for side in result] == [(1, 4, 80, 80, 80)] * 5
        assert [side.shape[2] for side in network.trunk(torch.empty(1, 3, 80, 80, 80))] == [80, 40, 20, 10]


@torch.no_grad()
@pytest.mark.parametrize("head", ["deconv_slim", "deconv_full"])
def test_the_first_output_is_the_sum_of_the_others(head: str) -> None:
    network = VoxResNet(3, 1, 2, width=2, head=head)
    image = torch.randn(2, 1, 8, 8, 8)
    total, *each = network(image)
    torch.testing.assert_close(total, sum(each))
    assert not any(torch.equal(one, each[0]) for one in each[1:])
    assert isinstance(network.eval()(image), torch.Tensor)


@torch.no_grad()
def test_full_heads_are_clipped() -> None:
    network = VoxResNet(3, 1, 2, width=2, head="deconv_full").eval()
    nn.init.constant_(network.conv1b.weight, 1e3)
    enlarged = network.enlarged(torch.randn(1, 1, 8, 8, 8))
    assert all(side.min() >= 0 and side.max() <= 20 for side in enlarged)
    assert max(float(side.max()) for side in enlarged) == 20


def test_kernels_of_both_heads() -> None:
    slim, full = (VoxResNet(3, 1, 4, head=head, width=2) for head in ("deconv_slim", "deconv_full"))
    assert [up[0].kernel_size[0] for up in slim.up] == [3, 2, 4, 8]
    assert [up[0].out_channels for up in slim.up] == [4, 4, 4, 4]
    assert [up[0].kernel_size[0] for up in full.up] == [3, 4, 6, 10]
    assert [up[0].out_channels for up in full.up] == [2, 4, 4, 4]
    assert {conv.kernel_size for conv in full.classifiers.values()} == {(3, 3, 3)}
    assert {conv.kernel_size for conv in slim.head.convs.values()} == {(1, 1, 1)}


def test_thin_kernels_leave_the_last_axis_out() -> None:
    """The axis through the planes; in 2D there is none."""
    network = VoxResNet(3, 1, 2, width=1)
    modules = [module for level in network.residual for module in level]
    assert network.conv1b.kernel_size == (3, 3, 1)
    assert {module.branch[2].kernel_size for module in modules} == {(3, 3, 1)}
    assert {module.branch[5].kernel_size for module in modules} == {(3, 3, 3)}
    assert VoxResNet(2, 1, 2, width=1).conv1b.kernel_size == (3, 3)


def test_twenty_five_layers() -> None:
    layers = [module for module in VoxResNet(3, 1, 2, width=1).modules() if isinstance(module, nn.Conv3d)]
    up = [module for module in VoxResNet(3, 1, 2, width=1).modules() if isinstance(module, nn.ConvTranspose3d)]
    assert len(layers) + len(up) == 17 + 4 + 4


class _Deepest(nn.Module):
    def __init__(self, network: VoxResNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.network.trunk(image)[-1]


@pytest.mark.parametrize(("thin", "axis", "reach"), [(True, 0, 131), (True, 2, 73), (False, 2, 131)])
def test_the_deepest_map_sees(thin: bool, axis: int, reach: int) -> None:
    deepest = _Deepest(VoxResNet(3, 1, 2, width=1, thin_kernel=thin)).eval()
    size = [280 if index == axis else 8 for index in range(3)]
    first, last = seen(deepest, 1, size, axis)
    assert int((last - first)[17]) + 1 == reach


@torch.no_grad()
def test_a_silent_branch_makes_a_module_the_identity() -> None:
    module = VoxRes(3, 4, (3, 3, 1))
    nn.init.zeros_(module.branch[5].weight)
    nn.init.zeros_(module.branch[5].bias)
    image = torch.randn(1, 4, 6, 6, 6)
    assert torch.equal(module(image), image)


@torch.no_grad()
def test_a_second_stage_that_ignores_its_scores_is_the_first_stage() -> None:
    one, two = VoxResNet(3, 2, 3, width=2).eval(), VoxResNet(3, 5, 3, width=2).eval()
    weights = one.state_dict()
    weights["conv1a.weight"] = torch.cat((weights["conv1a.weight"], torch.zeros(2, 3, 3, 3, 3)), dim=1)
    two.load_state_dict(weights)
    image = torch.randn(1, 5, 16, 16, 8)
    torch.testing.assert_close(two(image), one(image[:, :2]))


def test_wrong_options() -> None:
    with pytest.raises(UsageError, match="unknown head of VoxResNet: 'slim'"):
        VoxResNet(3, 1, 2, head="slim")
