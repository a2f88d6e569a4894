"""Stitched windows: constant in, constant out; the same labels however the windows are batched, cut or headed."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from voxelwise.errors import CaseError
from voxelwise.networks.base import SegmentationNetwork, SliceNetwork
from voxelwise.networks.registry import build_network
from voxelwise.pipeline.inference.scorer import NetworkScorer, blended_head
from voxelwise.pipeline.inference.stitch import blend, padded_window, padding_before, score_planes, segment, stream_axis
from voxelwise.pipeline.inference.windows import WindowGrid


class Pointwise(SegmentationNetwork):
    """Logits of a voxel are its own values times fixed numbers: what comes out of any window is known."""

    def __init__(self, in_channels: int = 1, out_channels: int = 2, *, features: int | None = None) -> None:
        super().__init__(3, in_channels, out_channels, stride=(1, 1, 1), receptive_field=(1, 1, 1))
        self.inner = nn.Identity() if features is None else nn.Conv3d(in_channels, features, 1)
        self.head = nn.Conv3d(features or in_channels, out_channels, 1)
        self.seen = 0

    def body(self, image: Tensor) -> Tensor:
        self.seen += len(image)
        result: Tensor = self.inner(image)
        return result


def all_scores(network: Any, image: Tensor, **options: Any) -> Tensor:
    """The planes put together; their slices follow one another."""
    networks = [network] if isinstance(network, nn.Module) else network
    scorer = NetworkScorer([one.eval() for one in networks], tta_axes=options.pop("tta_axes", ()))
    planes = [(where, scores.clone()) for where, scores in score_planes(scorer, image, **options)]
    assert [where.start for where, _ in planes] == [0, *(where.stop for where, _ in planes[:-1])]
    axis = options.get("axis", 0)
    assert planes[-1][0].stop == image.shape[axis + 1]
    return torch.cat([scores for _, scores in planes], dim=1).movedim(1, axis + 1)


@st.composite
def grids(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], float]:
    patch = draw(st.tuples(*[st.integers(1, 6)] * 3))
    shape = tuple(side + draw(st.integers(0, 5)) for side in patch)
    return shape, patch, draw(st.sampled_from([0.0, 0.25, 0.5, 0.75]))


@given(
    grids(),
    st.sampled_from(["gaussian", "constant", "centre"]),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
)
@settings(max_examples=40, deadline=None)
def test_ones_in_ones_out(
    grid: tuple[tuple[int, ...], tuple[int, ...], float], blending: str, dtype: torch.dtype
) -> None:
    """Blending weights cancel everywhere, corners included, whatever type windows come in."""
    windows = WindowGrid.of(*grid, blending)
    indices = itertools.product(*(range(len(axis)) for axis in windows.starts))
    patches = ((index, torch.ones(2, *windows.patch, dtype=dtype)) for index in indices)
    slabs = [sums.clone() for _, sums in blend(patches, windows)]
    torch.testing.assert_close(torch.cat(slabs, dim=1), torch.ones(2, *windows.shape), rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 9, 2), (8, 8, 8), (9, 8, 7), (13, 17, 8)])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.9])
def test_a_pointwise_network_gives_its_own_values_back(shape: tuple[int, ...], overlap: float) -> None:
    """Also where the image is smaller than the patch: padded, and cropped back exactly."""
    torch.manual_seed(0)
    network, image = Pointwise(out_channels=3), torch.randn(1, *shape)
    with torch.no_grad():
        wanted = network(image[None])[0]
    scores = all_scores(network, image, patch=(8, 8, 8), overlap=overlap)
    torch.testing.assert_close(scores, wanted, rtol=0, atol=1e-5)
    labels = segment(network, image, patch=(8, 8, 8), overlap=overlap)
    assert labels.dtype == torch.uint8
    assert labels.shape == shape
    assert torch.equal(labels.long(), scores.max(dim=0).indices)


def test_with_centre_weights_a_voxel_is_of_the_nearest_window_alone() -> None:
    grid = WindowGrid.of((10, 4, 5), (4, 4, 4), 0.5, "centre")
    assert grid.starts == ((0, 2, 4, 6), (0,), (0, 1))
    patches = [
        ((row, 0, column), torch.full((1, 4, 4, 4), 10.0 * row + column)) for row in range(4) for column in range(2)
    ]
    owners = torch.cat([sums.clone() for _, sums in blend(patches, grid)], dim=1)[0, :, 0]
    rows = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3, 3, 3])  # the first window at a tie
    columns = torch.tensor([0, 0, 0, 1, 1])
    assert torch.equal(owners, 10.0 * rows[:, None] + columns)


@pytest.mark.parametrize("blending", ["gaussian", "constant", "centre"])
def test_parts_of_the_cross_section_are_those_of_the_whole(blending: str) -> None:
    torch.manual_seed(1)
    network, image = build_network("unet", 3, 1, 3, widths=(4, 8)), torch.randn(1, 13, 11, 12)
    options: dict[str, Any] = {"patch": (8, 8, 8), "blending": blending}
    wanted = all_scores(network, image, **options)
    part = (slice(3, 9), slice(5, 12))
    found = all_scores(network, image, part=part, **options)
    torch.testing.assert_close(found, wanted[:, :, part[0], part[1]], rtol=0, atol=1e-5)


def test_images_smaller_than_the_patch_are_padded_with_zeros_around() -> None:
    before = padding_before((3, 9, 2), (8, 8, 8))
    assert before == (2, 0, 3)
    window = padded_window(torch.ones(1, 3, 9, 2), (slice(0, 8), slice(1, 9), slice(0, 8)), before)
    assert window.shape == (1, 8, 8, 8)
    assert window.sum() == 3 * 8 * 2
    assert torch.equal(window[:, 2:5, :, 3:5], torch.ones(1, 3, 8, 2))


def test_the_head_after_blending_gives_the_same_scores() -> None:
    torch.manual_seed(0)
    network, image = Pointwise(1, 9, features=3), torch.randn(1, 11, 9, 10)
    with torch.no_grad():
        wanted = network(image[None])[0]
    for count, channels in ((1, 3), (2, 6), (3, 9)):  # three have no fewer features than classes
        networks = [network] * count
        assert NetworkScorer(networks).channels == channels
        assert (blended_head(networks) is None) == (count == 3)
        torch.testing.assert_close(all_scores(networks, image, patch=(6, 6, 6)), wanted, rtol=0, atol=1e-5)
    assert blended_head([Pointwise(1, 2, features=3)]) is None


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_streamed_axis_does_not_matter(axis: int) -> None:
    torch.manual_seed(1)
    network = build_network("unet", 3, 1, 3, widths=(4, 8))
    image = torch.randn(1, 13, 6, 11)
    wanted = all_scores(network, image, patch=(8, 8, 8))
    torch.testing.assert_close(all_scores(network, image, patch=(8, 8, 8), axis=axis), wanted, rtol=0, atol=1e-5)


def test_the_axis_of_the_smallest_slab_is_streamed() -> None:
    assert stream_axis((512, 512, 800), (96, 96, 96)) == 2
    assert stream_axis((512, 512, 800), (96, 96, 192)) == 0
    assert stream_axis((64, 64, 64), (64, 64, 64)) == 0
    assert stream_axis((512, 400, 30), (512, 400, 1)) == 2


def test_the_band_is_one_window_deep() -> None:
    """What is given out at a time never exceeds a patch along the first axis, whatever the volume's length."""
    network = Pointwise()
    scorer = NetworkScorer([network])
    sizes = [scores.shape[1] for _, scores in score_planes(scorer, torch.zeros(1, 64, 6, 6), patch=(8, 6, 6))]
    assert max(sizes) <= 8
    assert sum(sizes) == 64


@pytest.mark.parametrize("window_batch", [1, 3, 100])
def test_window_batches_do_not_change_the_labels(window_batch: int) -> None:
    torch.manual_seed(1)
    network = build_network("unet", 3, 1, 3, widths=(4, 8))
    image = torch.randn(1, 13, 10, 11)
    wanted = segment(network, image, patch=(8, 8, 8))
    assert torch.equal(segment(network, image, patch=(8, 8, 8), window_batch=window_batch), wanted)
    assert len(wanted.unique()) > 1


def test_mirroring_makes_the_labels_turn_with_the_image() -> None:
    torch.manual_seed(2)
    network = build_network("unet", 3, 1, 3, widths=(4, 8))
    image = torch.randn(1, 8, 8, 8)
    options: dict[str, Any] = {"patch": (8, 8, 8), "tta_axes": (0, 2)}
    scores = all_scores(network, image, **options)
    turned = all_scores(network, image.flip(1, 3), **options).flip(1, 3)
    torch.testing.assert_close(scores, turned, rtol=0, atol=1e-5)
    assert not torch.allclose(scores, all_scores(network, image, patch=(8, 8, 8)), atol=1e-3)


def test_mirroring_sees_each_window_once_for_each_combination() -> None:
    network = Pointwise()
    segment(network, torch.zeros(1, 8, 8, 1), patch=(8, 8, 1), tta_axes=(0, 1, 2))
    assert network.seen == 4  # an axis of one voxel is not mirrored


def test_several_networks_are_averaged() -> None:
    torch.manual_seed(3)
    first, second = Pointwise(), Pointwise()
    image = torch.randn(1, 6, 6, 6)
    each = [all_scores(network, image, patch=(4, 4, 4)) for network in (first, second)]
    together = all_scores([first, second], image, patch=(4, 4, 4))
    torch.testing.assert_close(together, (each[0] + each[1]) / 2, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="at least one network"):
        segment([], image, patch=(4, 4, 4))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_network_predicts_volumes_slice_by_slice(axis: int) -> None:
    torch.manual_seed(4)
    network = SliceNetwork(build_network("unet", 2, 1, 9, widths=(4, 8)), axis=axis)
    image = torch.randn(1, 7, 6, 5)
    patch = [8, 8, 8]
    patch[axis] = 1
    labels = segment(network, image, patch=patch, window_batch=2)
    slice_ = image.select(axis + 1, 3)
    again = segment(network, slice_.unsqueeze(axis + 1), patch=patch)
    assert torch.equal(labels.select(axis, 3), again.select(axis, 0))


def test_more_than_256_classes_are_uint16() -> None:
    labels = segment(Pointwise(1, 300), torch.randn(1, 4, 4, 4), patch=(4, 4, 4))
    assert labels.dtype == torch.uint16


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_stop_the_case(value: float) -> None:
    network = Pointwise()
    assert isinstance(network.head, nn.Conv3d)
    with torch.no_grad():
        network.head.weight[0] = value
    with pytest.raises(CaseError, match="the network gave NaN or inf") as stop:
        segment(network, torch.ones(1, 4, 4, 4), patch=(4, 4, 4))
    assert stop.value.code == "non-finite"


def test_training_mode_comes_back() -> None:
    network = build_network("unet", 3, 1, 2, widths=(4, 4, 8), deep_supervision=2).train()
    segment(network, torch.zeros(1, 8, 8, 8), patch=(8, 8, 8))
    assert network.training


def test_an_image_without_channels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"is \(C, X, Y, Z\), got shape \(8, 8, 8\)"):
        segment(Pointwise(), torch.zeros(8, 8, 8), patch=(8, 8, 8))


@pytest.mark.gpu
def test_gpu_labels_are_those_of_the_cpu() -> None:
    torch.manual_seed(5)
    network = build_network("unet", 3, 1, 4, widths=(8, 16, 32)).eval()
    image = torch.randn(1, 48, 40, 44)
    options: dict[str, Any] = {"patch": (32, 32, 32), "tta_axes": (0,), "precision": "float32"}
    wanted = segment(network, image, **options)
    found = segment(network.cuda(), image, device="cuda:0", window_batch=4, **options)
    assert float((found == wanted).float().mean()) >= 0.9999
