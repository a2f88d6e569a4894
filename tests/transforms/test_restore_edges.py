"""Grids whose edges agree: labels are those of skimage's `resize` on the whole volume, whatever the ratio and the order
of the axes, and however the scores come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from skimage.transform import resize
from torch import Tensor
from voxelwise.transforms.dense import DenseRestoration
from voxelwise.transforms.match import margins, match_grids
from voxelwise.transforms.restore import Restoration, restore_labels

CLASSES = 4
CLEAR = 1e-4  # scores that are nearer to each other are a tie


@dataclass(frozen=True)
class Grids:
    """A source, the box of it that a network's grid was made of, and that grid, turned and mirrored.

    Args:
        shape: of the network's grid.
        affine: of it.
        source_shape: of the source.
        source_affine: of it.
        box: of the source.
        order: for each network axis the source axis along it.
        flipped: network axes that run against the source.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    source_shape: tuple[int, ...]
    source_affine: np.ndarray
    box: tuple[slice, ...]
    order: tuple[int, ...]
    flipped: tuple[int, ...]

    def in_place(self, values: np.ndarray) -> np.ndarray:
        """(K, *shape) with the axes as those of the source."""
        turned = np.flip(values, [axis + 1 for axis in self.flipped])
        return turned.transpose(0, *(1 + self.order.index(axis) for axis in range(3)))


def grids_of(
    shape: Sequence[int],
    inside: Sequence[int],
    around: Sequence[tuple[int, int]] = ((0, 0),) * 3,
    order: Sequence[int] = (0, 1, 2),
    flipped: Sequence[int] = (),
) -> Grids:
    """A network's grid of `shape` that was made of a box of `inside` voxels of a source with some around it."""
    source_shape = tuple(low + side + high for side, (low, high) in zip(inside, around, strict=True))
    turn = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    source = np.eye(4)
    source[:3, :3], source[:3, 3] = turn @ np.diag([0.7, 1.3, 2.9]), (15.0, -7.0, 3.0)
    into = np.zeros((4, 4))  # from the network's voxels to those of the source
    into[3, 3] = 1
    for axis, source_axis in enumerate(order):
        step = inside[source_axis] / shape[axis]
        first = around[source_axis][0] - 0.5 + step / 2
        last = first + (shape[axis] - 1) * step
        into[source_axis, axis] = -step if axis in flipped else step
        into[source_axis, 3] = last if axis in flipped else first
    box = tuple(slice(low, low + side) for side, (low, _) in zip(inside, around, strict=True))
    return Grids(tuple(shape), source @ into, source_shape, source, box, tuple(order), tuple(flipped))


@st.composite
def drawn_grids(draw: st.DrawFn) -> Grids:
    """Ratios from a quarter to eight."""
    inside = draw(st.tuples(*[st.integers(1, 16)] * 3))
    around = draw(st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 3))
    order = draw(st.permutations([0, 1, 2]))
    flipped = draw(st.sets(st.integers(0, 2)))
    shape = [draw(st.integers(max(1, inside[axis] // 4), min(20, 8 * inside[axis]))) for axis in order]
    return grids_of(shape, inside, around, order, sorted(flipped))


def scores_for(grids: Grids, seed: int = 0) -> Tensor:
    return torch.randn(CLASSES, *grids.shape, generator=torch.Generator().manual_seed(seed)) * 3


def resized(values: np.ndarray, shape: Sequence[int], nearest: int | None) -> np.ndarray:
    """(K, *S) by skimage; along the axis `nearest` the values of the nearest plane, as scipy rounds coordinates."""
    between = list(shape)
    if nearest is not None:
        between[nearest] = values.shape[nearest + 1]
    planes = np.stack([resize(one, between, 1, mode="edge", anti_aliasing=False) for one in values])
    if nearest is None:
        return planes
    old, new = between[nearest], shape[nearest]
    at = list(np.meshgrid(*(np.arange(side, dtype=float) for side in shape), indexing="ij"))
    at[nearest] = old / new * (at[nearest] + 0.5) - 0.5
    return np.stack([map_coordinates(one, np.array(at), order=0, mode="nearest") for one in planes])


def whole(grids: Grids, scores: Tensor, nearest: int | None = None) -> np.ndarray:
    """The definition: all scores on the grid of the source (K, *source_shape), NaN outside of the box."""
    found = np.full((len(scores), *grids.source_shape), np.nan)
    sides = [part.stop - part.start for part in grids.box]
    values = grids.in_place(scores.double().numpy())
    found[(slice(None), *grids.box)] = resized(values, sides, None if nearest is None else grids.order[nearest])
    return found


def streamed(
    grids: Grids, scores: Tensor, depth: int, *, parts: bool = False, exact: bool = False
) -> Iterator[tuple[slice, Tensor, list[slice]]]:
    """The scores in slabs, and in two parts of the cross-section, which share a row where they are interpolated."""
    sections = [[slice(0, side) for side in grids.shape[1:]]]
    if parts and grids.shape[1] > 2:
        middle = grids.shape[1] // 2
        ends = (slice(0, middle + (0 if exact else 1)), slice(middle, grids.shape[1]))
        sections = [[end, slice(0, grids.shape[2])] for end in ends]
    for part in sections:
        for first in range(0, grids.shape[0], depth):
            where = slice(first, min(first + depth, grids.shape[0]))
            yield where, scores[:, where, part[0], part[1]], part


def restored(
    grids: Grids,
    scores: Tensor,
    depth: int = 3,
    *,
    nearest: int | None = None,
    parts: bool = False,
    regions: bool = False,
    chunk: int = 4000,
) -> np.ndarray:
    restoration = Restoration(
        grids.shape,
        grids.affine,
        grids.source_shape,
        grids.source_affine,
        convention="edges",
        nearest=nearest,
        regions=regions,
        chunk_numbers=chunk,
    )
    exact = restoration.match.axes is not None
    for where, values, part in streamed(grids, scores, depth, parts=parts, exact=exact):
        restoration.add(where, values, part)
    return restoration.labels


def assert_labels(found: np.ndarray, scores: np.ndarray) -> None:
    """Equal to the largest score but for ties, and 0 outside."""
    outside = np.isnan(scores[0])
    assert not found[outside].any()
    best = np.sort(scores[:, ~outside], axis=0)
    clear = best[-1] - best[-2] > CLEAR
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(found[~outside][clear], scores[:, ~outside].argmax(0)[clear])


@settings(max_examples=12, deadline=None)
@given(grids=drawn_grids(), depth=st.integers(1, 20), nearest=st.sampled_from([None, 0, 1, 2]), parts=st.booleans())
def test_labels_are_those_of_resizing_all_scores(grids: Grids, depth: int, nearest: int | None, parts: bool) -> None:
    scores = scores_for(grids)
    found = restored(grids, scores, depth, nearest=nearest, parts=parts)
    assert_labels(found, whole(grids, scores, nearest))


@settings(max_examples=8, deadline=None)
@given(grids=drawn_grids(), depth=st.integers(1, 20), nearest=st.sampled_from([None, 0, 1, 2]), parts=st.booleans())
def test_all_scores_are_those_of_resizing(grids: Grids, depth: int, nearest: int | None, parts: bool) -> None:
    """Each voxel of the box is given once, and none outside."""
    scores = scores_for(grids, 1)
    kept, count = np.full((CLASSES, *grids.source_shape), np.nan), np.zeros(grids.source_shape, int)

    class Kept:
        def take(self, where: tuple[slice, ...], scores: Tensor, inside: Tensor | None) -> None:
            assert inside is None
            count[where] += 1
            kept[(slice(None), *where)] = scores.numpy()

    sink = DenseRestoration(
        grids.shape,
        grids.affine,
        grids.source_shape,
        grids.source_affine,
        receivers=[Kept()],
        numbers=900,
        convention="edges",
        nearest=nearest,
    )
    for where, values, part in streamed(grids, scores, depth, parts=parts, exact=sink.match.axes is not None):
        sink.add(where, values, part)
    wanted = whole(grids, scores, nearest)
    np.testing.assert_array_equal(count, ~np.isnan(wanted[0]))
    np.testing.assert_allclose(kept, wanted, atol=1e-4)


@settings(max_examples=10, deadline=None)
@given(grids=drawn_grids(), depth=st.integers(1, 20), nearest=st.sampled_from([None, 0, 1, 2]), parts=st.booleans())
def test_regions_are_those_of_resizing_all_scores(grids: Grids, depth: int, nearest: int | None, parts: bool) -> None:
    """A voxel has the number of the last region whose score is above 0 there."""
    scores = scores_for(grids, 2)
    wanted = whole(grids, scores, nearest)
    found = restored(grids, scores, depth, nearest=nearest, parts=parts, regions=True)
    inside = ~np.isnan(wanted[0])
    assert not found[~inside].any()
    clear = inside & (np.nan_to_num(np.abs(wanted), nan=1).min(0) > CLEAR)
    last = np.zeros(grids.source_shape, int)
    for number, score in enumerate(wanted, start=1):
        last[np.nan_to_num(score) > 0] = number
    np.testing.assert_array_equal(found[clear], last[clear])


HALVES = [(20, 10), (30, 10), (8, 20), (7, 5), (9, 9), (12, 5), (2, 11), (33, 18), (23, 26), (11, 30), (44, 24)]


@pytest.mark.parametrize("flipped", [(), (0,)])
@pytest.mark.parametrize(("old", "new"), HALVES)
def test_planes_in_the_middle_between_two_have_that_of_scipy(old: int, new: int, flipped: tuple[int, ...]) -> None:
    """Its coordinates, counted along the source in double precision, lie just below the middle or in it."""
    grids = grids_of((new, 4, 3), (old, 3, 2), ((1, 2), (0, 0), (0, 1)), flipped=flipped)
    scores = scores_for(grids, 3)
    assert_labels(restored(grids, scores, 2, nearest=0), whole(grids, scores, 0))


@pytest.mark.parametrize("convention", ["centres", "edges"])
def test_one_class_covers_exactly_the_box(convention: str) -> None:
    """At every ratio; where the first centres agree, a grid that is far coarser leaves the ends to chance."""
    for ratio in (0.2, 0.45, 0.5, 1.0, 1.7, 6.0):
        inside = (10, 9, 8)
        grids = grids_of([max(1, round(side * ratio)) for side in inside], inside, ((2, 3),) * 3)
        scores = torch.stack([torch.zeros(grids.shape), torch.ones(grids.shape)])
        box = np.zeros(grids.source_shape, bool)
        box[grids.box] = True
        if convention == "edges":
            np.testing.assert_array_equal(restored(grids, scores) == 1, box)
    assert margins(np.array([0.4, 0, 0, 0])) != margins(np.array([0.4, 0, 0, 0]), "edges") == (0.5, 0.5)


def test_oblique_grids_take_the_nearest_plane_too() -> None:
    """Where axes run across, each voxel has its own coordinate; along `nearest` it is rounded."""
    affine = np.array([[1.4, 0, 0, -1], [0, 1.4, 0.4, -2], [0, 0, 3.1, 0], [0, 0, 0, 1.0]])
    shape, source_shape, source = (9, 8, 5), (11, 12, 13), np.diag([1.0, 1.1, 1.2, 1.0])
    scores = torch.randn(CLASSES, *shape, generator=torch.Generator().manual_seed(5))
    match = match_grids(shape, affine, source_shape, source, convention="edges", nearest=2)
    voxels = np.stack(np.meshgrid(*(np.arange(size) for size in source_shape), indexing="ij"))
    places = np.einsum("ij,jxyz->ixyz", match.matrix[:, :3], voxels) + match.matrix[:, 3].reshape(3, 1, 1, 1)
    sizes = np.array(shape).reshape(3, 1, 1, 1)
    outside = ~((places >= -0.5) & (places <= sizes - 0.5)).all(0)
    places = places.clip(0, sizes - 1)
    places[2] = np.floor(places[2] + 0.5)
    wanted = np.stack([map_coordinates(one.double().numpy(), places, order=1) for one in scores])
    wanted[:, outside] = np.nan
    planes = [(slice(at, min(at + 2, 9)), scores[:, at : at + 2]) for at in range(0, 9, 2)]
    found = restore_labels(planes, shape, affine, source_shape, source, convention="edges", nearest=2)
    assert_labels(found, wanted)
