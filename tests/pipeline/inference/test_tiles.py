"""Tiles: cores divide the volume, tiles are aligned and hold their halos, and the plan keeps its limit."""

from __future__ import annotations

import math
from itertools import pairwise, product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from voxelwise.errors import CaseError, UsageError
from voxelwise.networks.base import SegmentationNetwork, SliceNetwork
from voxelwise.networks.registry import build_network
from voxelwise.pipeline.inference.halo import Halo, measure_halo
from voxelwise.pipeline.inference.tiles import Tiling, axis_tile, blended_ratio, plan_tiles


class Weighed(SegmentationNetwork):
    """Says what its activations take, and is never run."""

    def __init__(self, *, stride: int = 4, each: int = 100, around: int = 0, dims: int = 3) -> None:
        super().__init__(dims, 1, 2, stride=(stride,) * dims, receptive_field=(33,) * dims)
        self.each, self.around = each, around

    def activation_bytes(self, shape: Any, **options: Any) -> int:
        return self.each * math.prod(side + self.around for side in shape)


HALO = Halo((4, 4, 4), (18, 18, 18), (14, 14, 14))


def planned(shape: tuple[int, ...], limit: int, *, network: Weighed | None = None, **options: Any) -> Tiling:
    settings: dict[str, Any] = {"channels": 2, "limit_bytes": limit, **options}
    return plan_tiles([network or Weighed()], HALO, shape, **settings)


@given(
    length=st.integers(1, 400),
    count=st.integers(1, 12),
    step=st.sampled_from([1, 2, 4, 16]),
    before=st.integers(0, 40),
    after=st.integers(0, 40),
    mirrored=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_cores_divide_the_axis_and_tiles_hold_their_halos(
    length: int, count: int, step: int, before: int, after: int, mirrored: bool
) -> None:
    halo = Halo((step,), (before,), (after,))
    tiling = Tiling.of((length,), halo, (count,), tta_axes=(0,) if mirrored else ())
    cuts = tiling.cuts[0]
    assert (cuts[0], cuts[-1]) == (0, length)
    assert all(start < stop for start, stop in pairwise(cuts))
    assert tiling.counts[0] <= count
    for core, way in product(tiling.cores(0), (False, True)):
        start, stop = axis_tile(core, length, halo, 0, way)
        assert 0 <= start <= core[0] < core[1] <= stop <= length
        seen, near, far = (start, stop), core[0] - start, stop - core[1]
        if way:  # as the network sees it
            seen, near, far = (length - stop, length - start), stop - core[1], core[0] - start
        assert seen[0] % step == 0
        assert seen[1] == length or seen[1] % step == 0
        assert seen[0] == 0 or near >= before
        assert seen[1] == length or far >= after
        if not way and len(cuts) > 2:
            assert stop - start <= (length + (tiling.counts[0] - 1) * halo.shared[0]) / tiling.counts[0] + 2 * step


def test_tiles_of_an_even_volume_waste_nothing() -> None:
    tiling = Tiling.of((256, 128, 128), HALO, (3, 1, 1))
    assert tiling.cuts[0] == (0, 94, 170, 256)
    assert [tiling.tile((core, (0, 128), (0, 128)))[0] for core in tiling.cores(0)] == [
        slice(0, 108),
        slice(76, 184),
        slice(152, 256),
    ]
    assert tiling.largest == (108, 128, 128)
    assert tiling.computed == pytest.approx((108 + 108 + 104) / 256)
    assert (
        str(tiling)
        == "exact tiling: 3x1x1 tiles of up to 108x128x128 voxels, 1.25 voxels computed for each of the volume"
    )


def test_a_volume_that_fits_is_one_window() -> None:
    tiling = planned((61, 50, 43), 100 * 61 * 50 * 43)
    assert tiling.counts == (1, 1, 1)
    assert tiling.slab == 0
    assert str(tiling) == "exact tiling: the whole volume of 61x50x43 voxels in one window"


@pytest.mark.parametrize("around", [0, 40])
@pytest.mark.parametrize("shape", [(256, 128, 128), (128, 256, 64), (203, 187, 391), (500, 40, 40)])
@pytest.mark.parametrize("part", [0.7, 0.3, 0.12])
def test_the_plan_computes_least_of_all_that_keep_the_limit(shape: tuple[int, ...], part: float, around: int) -> None:
    network = Weighed(around=around)
    limit = int(network.activation_bytes(shape) * part) + network.activation_bytes((40, 40, 40))
    tiling = planned(shape, limit, network=network)
    assert needed(network, tiling) <= limit
    best = min(
        other.computed
        for counts in product(range(1, 9), repeat=3)
        for axis in range(3)
        if needed(network, other := Tiling.of(shape, HALO, counts, axis=axis)) <= limit
    )
    assert tiling.computed <= best + 1e-9
    assert 1 < tiling.computed < 8


def needed(network: Weighed, tiling: Tiling) -> int:
    return network.activation_bytes(tiling.largest) + 2 * 4 * tiling.slab


def test_cores_are_run_along_the_axis_whose_slab_holds_least() -> None:
    assert planned((60, 60, 400), 100 * 60 * 60 * 150).axis == 2
    tiling = planned((60, 200, 400), 100 * 60 * 100 * 150)
    assert tiling.slab == min(Tiling(tiling.shape, HALO, tiling.cuts, axis).slab for axis in range(3))


def test_scores_of_many_classes_count_against_the_limit() -> None:
    shape, limit = (200, 200, 200), 100 * 200 * 200 * 80
    few, many = planned(shape, limit, channels=2), planned(shape, limit, channels=200)
    assert 200 * 4 * many.slab + 100 * math.prod(many.largest) <= limit
    assert 200 * 4 * few.slab + 100 * math.prod(few.largest) > limit
    beside = planned(shape, limit, channels=200, slab_bytes=1 << 40)
    assert beside.computed == few.computed
    thin = planned(shape, limit, channels=200, slab_bytes=200 * 4 * 200 * 200 * 30)
    assert thin.slab <= 200 * 200 * 30


def test_mirrored_tiles_keep_the_limit_too() -> None:
    """A length that is no multiple of the stride moves the grid of the mirrored volume, and its tiles are longer."""
    shape, limit = (203, 61, 63), 100 * 110 * 61 * 63
    tiling = planned(shape, limit, tta_axes=(0, 1, 2))
    assert tiling.mirrors[0] == ()
    assert len(tiling.mirrors) == 8
    for mirror in tiling.mirrors:
        for core in product(*(tiling.cores(axis) for axis in range(3))):
            assert 100 * math.prod(side.stop - side.start for side in tiling.tile(core, mirror)) <= limit
    flat = planned((203, 61, 1), limit, tta_axes=(0, 2))
    assert flat.tta_axes == (0,)  # an axis of one voxel is not mirrored


def test_slices_are_cut_along_their_axis_where_that_costs_nothing() -> None:
    network = SliceNetwork(build_network("unet", 2, 1, 2, widths=(2, 4), norm="batch"), axis=1)
    shape = (120, 300, 100)
    limit = network.activation_bytes((120, 4, 100))
    tiling = plan_tiles([network], measure_halo([network]), shape, channels=2, limit_bytes=limit)
    assert (tiling.counts[0], tiling.counts[2]) == (1, 1)
    assert tiling.computed == 1
    assert (tiling.axis, tiling.slab) == (1, 0)


def test_no_tile_is_small_enough() -> None:
    with pytest.raises(
        UsageError, match=r"sees 18x18x18 voxels to each side.*use --tiling blend, or give more"
    ) as stop:
        planned((200, 200, 200), 100 * 30**3)
    assert "tiles of 36x36x36 or more" in str(stop.value)
    with pytest.raises(UsageError, match="the scores of a slab"):
        planned((200, 200, 200), 100 * 100**3, slab_bytes=1000)


def test_a_small_volume_is_done_whole_where_a_halo_would_be_larger_than_it() -> None:
    assert planned((30, 31, 32), 100 * 32**3).counts == (1, 1, 1)


def test_a_volume_smaller_than_the_network_takes_is_refused() -> None:
    network = Weighed()
    network.minimum_size = (16, 16, 16)
    with pytest.raises(CaseError, match="of 20x20x9 voxels is smaller than the network takes") as stop:
        planned((20, 20, 9), 1 << 30, network=network)
    assert stop.value.code == "too-small"


def test_what_blending_would_compute() -> None:
    assert blended_ratio((256, 128, 128), (96, 96, 96), 0.5) == pytest.approx(5 * 2 * 2 * 96**3 / (256 * 128 * 128))
    assert blended_ratio((48, 48, 48), (96, 96, 96), 0.5) == pytest.approx(8)
