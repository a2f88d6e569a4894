"""What the base class does for everybody; the contract itself is in test_contract.py."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from voxelwise.networks.base import SegmentationNetwork, SliceNetwork, crop, pad_far
from voxelwise.networks.unet import UNet


class Headless(SegmentationNetwork):
    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int) -> None:
        reach = (3,) * spatial_dims
        super().__init__(spatial_dims, in_channels, out_channels, stride=(2,) * spatial_dims, receptive_field=reach)
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward_aligned(self, image: Tensor) -> Tensor:
        result: Tensor = self.conv(image)
        return result


def test_a_network_without_a_head() -> None:
    network = Headless(2, 1, 3)
    assert network(torch.zeros(1, 1, 5, 4)).shape == (1, 3, 5, 4)
    assert network.head is None
    with pytest.raises(ValueError, match="Headless has no head"):
        network.features(torch.zeros(1, 1, 4, 4))
    sliced = SliceNetwork(network)
    assert sliced.head is None
    with pytest.raises(ValueError, match="Headless has no head"):
        sliced.features(torch.zeros(1, 1, 4, 4, 2))


def test_padding_repeats_the_edge_and_cropping_undoes_it() -> None:
    image = torch.arange(6.0).view(1, 1, 2, 3)
    padded = pad_far(image, (4, 4))
    assert padded[0, 0].tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]
    assert torch.equal(crop(padded, (2, 3)), image)
    assert pad_far(image, (2, 3)) is image


def test_too_small_a_window() -> None:
    network = Headless(2, 1, 3)
    network.minimum_size = (8, 8)
    with pytest.raises(ValueError, match=r"at least \(8, 8\) voxels, got \(8, 7\); use a larger window"):
        network(torch.zeros(1, 1, 8, 7))


@pytest.mark.parametrize(
    ("sizes", "message"), [((4, 1, 2), "2 or 3 spatial dims, got spatial_dims=4"), ((2, 0, 2), "got in_channels=0")]
)
def test_wrong_sizes(sizes: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet(*sizes)


@torch.no_grad()
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_predicted_as_the_2d_network_does(axis: int) -> None:
    network = UNet(2, 2, 3, widths=(4, 6)).eval()
    sliced = SliceNetwork(network, axis)
    assert sliced.stride == tuple(1 if index == axis else 2 for index in range(3))
    assert (sliced.window_global, sliced.moves_with_image) == (network.window_global, network.moves_with_image)
    image = torch.randn(2, 2, 5, 6, 7)
    for position in range(image.shape[2 + axis]):
        expected = network(image.select(2 + axis, position))
        alone = sliced(image.narrow(2 + axis, position, 1)).squeeze(2 + axis)
        torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sliced(image).select(2 + axis, position), expected, rtol=1e-4, atol=1e-5)


def test_a_slice_network_holds_each_weight_once() -> None:
    network = UNet(2, 1, 2, widths=(4, 6))
    sliced = SliceNetwork(network)
    assert len(list(sliced.parameters())) == len(list(network.parameters()))
    assert set(sliced.state_dict()) == {f"network.{name}" for name in network.state_dict()}


@torch.no_grad()
def test_the_head_of_a_copied_slice_network_is_its_own() -> None:
    sliced = SliceNetwork(UNet(2, 1, 2, widths=(4, 6))).eval()
    copied = copy.deepcopy(sliced)
    nn.init.zeros_(copied.network.head.weight)
    image = torch.randn(1, 1, 4, 4, 2)
    assert sliced.head is not None
    assert copied.head is not None
    torch.testing.assert_close(sliced.head(sliced.features(image)), sliced(image))
    assert not torch.equal(copied.head(copied.features(image)), sliced(image))


def test_a_slice_network_wraps_2d_networks_alone() -> None:
    with pytest.raises(ValueError, match="wraps a 2D network, got one with spatial_dims=3"):
        SliceNetwork(UNet(3, 1, 2, widths=(4, 6)))
    with pytest.raises(ValueError, match="axis is 0, 1 or 2, got 3"):
        SliceNetwork(UNet(2, 1, 2, widths=(4, 6)), 3)
