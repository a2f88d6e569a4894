"""Windows cover a grid, stay inside it, and share each voxel so that the shares sum to one."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.utils import dense_patch_slices
from voxelwise.errors import UsageError
from voxelwise.pipeline.inference.windows import WindowGrid, axis_starts, importance


@st.composite
def axes(draw: st.DrawFn) -> tuple[int, int, float]:
    length = draw(st.integers(1, 300))
    return length, draw(st.integers(1, length)), draw(st.floats(0, 0.99))


@given(axes())
@settings(max_examples=200, deadline=None)
def test_windows_cover_an_axis_and_stay_inside(axis: tuple[int, int, float]) -> None:
    length, patch, overlap = axis
    starts = axis_starts(length, patch, overlap)
    assert starts[0] == 0
    assert starts[-1] == length - patch
    assert all(0 < b - a <= patch for a, b in itertools.pairwise(starts))


def test_neighbours_overlap_by_what_was_asked_for() -> None:
    assert axis_starts(100, 40, 0.5) == [0, 20, 40, 60]
    assert axis_starts(100, 40, 0.0) == [0, 30, 60]
    assert axis_starts(40, 40, 0.5) == [0]


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.625, 0.99])
@pytest.mark.parametrize(("length", "patch"), [(100, 40), (97, 32), (33, 32), (32, 32), (20, 32), (7, 3)])
def test_steps_are_monais(length: int, patch: int, overlap: float) -> None:
    padded = max(length, patch)
    step = padded if patch == padded else max(1, int(patch * (1 - overlap)))
    wanted = [part.start for (part,) in dense_patch_slices((padded,), (patch,), (step,))]
    assert axis_starts(length, patch, overlap, stepped=True) == wanted


def test_starts_are_ordered_with_the_first_axis_slowest() -> None:
    starts = list(itertools.product(*WindowGrid.of((6, 4, 2), (4, 2, 2), 0.5).starts))
    assert starts == sorted(starts)
    assert starts[0] == (0, 0, 0)
    assert starts[-1] == (2, 2, 0)


@pytest.mark.parametrize("blending", ["gaussian", "gaussian_voxel", "constant", "centre"])
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.9])
def test_shares_of_all_windows_sum_to_one(blending: str, overlap: float) -> None:
    grid = WindowGrid.of((11, 7, 9), (4, 7, 3), overlap, blending)
    total = torch.zeros(grid.shape)
    for index in itertools.product(*(range(len(axis)) for axis in grid.starts)):
        total[grid.where(index)] += grid.weights(index)
    torch.testing.assert_close(total, torch.ones(grid.shape), rtol=0, atol=1e-6)


def test_importance_is_nnunets_gaussian() -> None:
    weights = importance(64)
    assert float(weights.max()) == 1.0
    assert float(weights.min()) > 0
    assert torch.equal(weights, weights.flip(0))
    assert float(weights[31 + 8] / weights[31]) == pytest.approx(
        float(torch.exp(torch.tensor(-0.5 * (7.5**2 - 0.5**2) / 64)))
    )


def test_wrong_windows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"overlap is the shared part of a window, from 0 to below 1; got 1"):
        WindowGrid.of((8, 8, 8), (4, 4, 4), 1.0)
    with pytest.raises(ValueError, match=r"windows \(9, 4, 4\) do not fit into a grid \(8, 8, 8\)"):
        WindowGrid.of((8, 8, 8), (9, 4, 4), 0.5)
    with pytest.raises(ValueError, match=r"do not fit into a grid"):
        WindowGrid.of((8, 8, 8), (4, 4), 0.5)
    with pytest.raises(UsageError, match=r"unknown blending 'gausian'; did you mean 'gaussian'"):
        importance(4, "gausian")


@pytest.mark.parametrize("length", [1, 7, 40])
def test_the_centre_of_a_gaussian(length: int) -> None:
    """The window's own, so that mirrored windows weigh the same, or the voxel where nnU-Net has it."""
    own, voxel = importance(length), importance(length, "gaussian_voxel")
    torch.testing.assert_close(own, own.flip(0))
    assert voxel.argmax() == length // 2
    assert torch.equal(voxel, own) == (length % 2 == 1)
