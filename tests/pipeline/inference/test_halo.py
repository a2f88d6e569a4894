"""What a cut costs, measured: held against what every network declares, and against layers whose reach is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from voxelwise.errors import UsageError
from voxelwise.networks.base import SegmentationNetwork, SliceNetwork
from voxelwise.networks.registry import NETWORKS, build_network
from voxelwise.pipeline.inference.halo import Halo, check_bounded, measure_halo

BOUNDED = [
    name
    for name in NETWORKS
    if name not in ("deeplabv3plus", "monai", "unetr", "swin_unetr", "mednext")  # these see the whole window
]


class Shifted(SegmentationNetwork):
    """Sees the voxel `before` places in front of it and that `after` behind it, and none between; zeros around."""

    def __init__(self, before: int, after: int, *, says: int | None = None, swallows: bool = False) -> None:
        size = before + after + 1 if says is None else says
        super().__init__(2, 1, 2, stride=(1, 1), receptive_field=(size, 1))
        self.before, self.after, self.swallows = before, after, swallows

    def forward_aligned(self, image: Tensor) -> Tensor:
        around = nn.functional.pad(image, (0, 0, self.before, self.after))
        length = image.shape[2]
        total = around[:, :, :length] + around[:, :, self.before + self.after :][:, :, :length]
        return (total.nan_to_num() if self.swallows else total).expand(-1, 2, -1, -1)


def bounded(name: str, dims: int = 2, channels: int = 1, classes: int = 3) -> SegmentationNetwork:
    """A small network of the registry, with batch norm where its own norm looks at the whole window."""
    options: dict[str, Any] = dict(NETWORKS[name].small)
    network = build_network(name, dims, channels, classes, **options)
    return build_network(name, dims, channels, classes, **options, norm="batch") if network.window_global else network


@pytest.mark.parametrize(("before", "after"), [(0, 0), (3, 1), (0, 9), (40, 0)])
def test_each_side_of_a_cut_is_measured(before: int, after: int) -> None:
    halo = measure_halo([Shifted(before, after)])
    assert halo == Halo(stride=(1, 1), before=(before, 0), after=(after, 0))
    assert halo.shared == (before + after, 0)


@pytest.mark.parametrize("name", BOUNDED)
def test_both_sides_together_are_what_the_network_declares(name: str) -> None:
    network = bounded(name)
    assert network.receptive_field is not None
    halo = measure_halo([network])
    assert halo.stride == network.stride
    for size, step, before, after in zip(network.receptive_field, halo.stride, halo.before, halo.after, strict=True):
        assert size - 1 - 2 * (step - 1) <= before + after <= size - 1 + step - 1


def test_positions_that_see_differently_far_are_told_apart() -> None:
    """One convolution of side 3 at half the resolution: even voxels see 2 to the left and 3 to the right, odd 3 and 2.

    Of logits behind an aligned cut, two see past it, of those in front of it two as well.
    """
    network = build_network("cen", 2, 1, 2, width=2, kernel=1)
    assert measure_halo([network]) == Halo((2, 2), (0, 0), (0, 0))  # it sees its own pair and nothing else
    network = build_network("unet", 2, 1, 2, widths=(2, 2), norm="batch")
    halo = measure_halo([network])
    assert (halo.before, halo.after) == ((8, 8), (6, 6))


def test_thin_kernels_and_slices_have_a_halo_for_each_axis() -> None:
    thin = measure_halo([build_network("voxresnet", 3, 1, 2, width=2)])
    assert thin.before == (72, 72, 40)
    flat = bounded("unet")
    halo = measure_halo([flat])
    sliced = measure_halo([SliceNetwork(flat, axis=1)])
    assert sliced.stride == (halo.stride[0], 1, halo.stride[1])
    assert sliced.before == (halo.before[0], 0, halo.before[1])
    assert sliced.shared == (halo.shared[0], 0, halo.shared[1])


def test_several_networks_are_served_together() -> None:
    first, second = bounded("unet"), bounded("cen")
    halo, one, other = measure_halo([first, second]), measure_halo([first]), measure_halo([second])
    assert halo.stride == (4, 4)
    assert halo.before == tuple(max(sides) for sides in zip(one.before, other.before, strict=True))
    assert halo.after == tuple(max(sides) for sides in zip(one.after, other.after, strict=True))


def test_a_layer_that_swallows_nan_leaves_the_declared_size() -> None:
    assert measure_halo([Shifted(3, 1, swallows=True)]) == Halo((1, 1), (4, 0), (4, 0))


def test_a_network_that_sees_farther_than_it_says_is_found_out() -> None:
    assert measure_halo([Shifted(6, 6, says=5)]).before == (6, 0)
    network = bounded("resnet34_unet")
    network.receptive_field = (5, 5)
    with pytest.raises(UsageError, match=r"ResNet34UNet declares that a logit sees 5 voxels along axis 0, and it sees"):
        measure_halo([network])


def test_measuring_leaves_the_network_as_it_was() -> None:
    network = bounded("unet").train()
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    measure_halo([network])
    assert network.training
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("name", "options", "layer"),
    [
        ("unet", {"widths": (2, 4)}, r"UNet .*\(instance norm, layer encoder\.0\.0\.norm\)"),
        ("segresnet", {"width": 8}, r"SegResNet .*\(group norm, layer net\."),
        ("deeplabv3plus", {"width": 4, "encoder": "resnet18"}, r"\(pooling over the whole window, layer "),
        ("swin_unetr", {"width": 12, "window": 3}, r"SwinUNETR .*\(attention, layer "),
    ],
)
def test_networks_that_see_the_whole_window_are_refused(name: str, options: dict[str, Any], layer: str) -> None:
    network = build_network(name, 2, 1, 2, **options)
    with pytest.raises(UsageError, match=layer) as stop:
        check_bounded(network)
    assert "use --tiling blend" in str(stop.value)


@pytest.mark.gpu
def test_the_halo_measured_on_a_gpu_is_that_of_the_cpu() -> None:
    for name in ("unet", "vnet", "fcn8s", "highresnet"):
        network = bounded(name)
        halo = measure_halo([network])
        assert measure_halo([network.cuda()]) == halo
