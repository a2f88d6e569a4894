"""Scores at source voxels by a matrix for each axis: the same as interpolating point by point."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from voxelwise.transforms import restore
from voxelwise.transforms.lines import interpolated, lines_between
from voxelwise.transforms.match import match_grids
from voxelwise.transforms.restore import restore_labels

SIDES = st.tuples(*[st.integers(1, 7)] * 3)


@st.composite
def grids(draw: st.DrawFn) -> tuple[tuple[int, ...], np.ndarray, tuple[int, ...], np.ndarray]:
    """A network's grid, and a source with permuted, flipped axes at other spacings."""
    shape = draw(SIDES)
    steps = np.array(draw(st.tuples(*[st.sampled_from([0.3, 0.7, 1.0, 1.6, 2.9])] * 3)))
    order = draw(st.permutations(range(3)))
    source_shape = [max(1, round(shape[axis] / steps[axis])) for axis in range(3)]
    affine = np.eye(4)
    affine[:3, :3] = np.diag(steps)
    for axis in range(3):
        if draw(st.booleans()):
            affine[axis, 3] = (source_shape[axis] - 1) * steps[axis]
            affine[axis, axis] *= -1
    return shape, np.eye(4), tuple(source_shape[axis] for axis in order), affine[:, [*order, 3]]


@settings(deadline=None, max_examples=60)
@given(grids=grids(), seed=st.integers(0, 99))
def test_a_matrix_an_axis_gives_what_points_give(grids: tuple, seed: int) -> None:
    shape, affine, source_shape, source_affine = grids
    match = match_grids(shape, affine, source_shape, source_affine)
    scores = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))
    cells = [slice(0, max(1, side - 1)) for side in shape]
    lines = lines_between(match, shape, source_shape, cells, torch.device("cpu"))
    assert lines is not None
    assert match.lines is not None
    found = interpolated(scores, lines).permute(0, *(1 + match.lines.index(axis) for axis in range(3)))
    where = tuple(lines[match.lines.index(axis)].source for axis in range(3))
    voxels = np.stack([*np.meshgrid(*(np.arange(part.start, part.stop) for part in where), indexing="ij")])
    points = np.tensordot(match.matrix[:, :3], voxels, 1) + match.matrix[:, 3, None, None, None]
    for one, channel in zip(found, scores, strict=True):
        wanted = map_coordinates(channel.numpy().astype(np.float64), points, order=1, mode="nearest")
        np.testing.assert_allclose(one.numpy(), wanted, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(grids=grids(), seed=st.integers(0, 99), classes=st.sampled_from([2, 3, 9]), regions=st.booleans())
def test_rough_scores_get_the_same_labels(grids: tuple, seed: int, classes: int, regions: bool) -> None:
    shape, affine, source_shape, source_affine = grids
    scores = torch.randn(classes, *shape, generator=torch.Generator().manual_seed(seed))
    planes = [(slice(at, at + 1), scores[:, at : at + 1]) for at in range(shape[0])]
    found = []
    for share in (0.0, 2.0):  # all boxes are rough, or none
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(restore, "ROUGH_SHARE", share)
            found.append(restore_labels(planes, shape, affine, source_shape, source_affine, regions=regions))
    assert (found[0] != found[1]).mean() <= 0.01  # ties in float32


def test_smooth_scores_are_not_interpolated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "interpolated", lambda *_: pytest.fail("all scores were interpolated"))
    ramp = torch.linspace(-1, 1, 12)[:, None, None].expand(12, 12, 12)
    planes = [(slice(0, 12), torch.stack([ramp, -ramp]))]
    labels = restore_labels(planes, (12, 12, 12), np.eye(4), (24, 24, 24), np.diag([0.5, 0.5, 0.5, 1]))
    assert set(np.unique(labels[:10])) == {1}
    assert set(np.unique(labels[14:])) == {0}
