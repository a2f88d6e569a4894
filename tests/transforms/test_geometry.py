"""Axis codes, corners, grid comparison and exact reorientation."""

from __future__ import annotations

import numpy as np
import phantoms
import pytest
from voxelwise.transforms.geometry import (
    ALL_AXIS_CODES,
    affine_difference,
    apply_affine,
    axis_codes,
    grid_difference,
    reorient_to,
    same_grid,
    shear,
)
from voxelwise.transforms.volume import Geometry

OBLIQUE = phantoms.oblique()


def test_axis_codes_of_plain_grids() -> None:
    assert axis_codes(np.eye(4)) == "RAS"
    assert axis_codes(np.diag([-1.0, -1.0, 2.0, 1.0])) == "LPS"
    assert len(set(ALL_AXIS_CODES)) == 48


@pytest.mark.parametrize("codes", ALL_AXIS_CODES)
def test_reorientation_moves_no_voxel(codes: str) -> None:
    """Each voxel keeps its value and its place, and the way back is exact."""
    array = phantoms.ramp((3, 4, 5))[np.newaxis]
    turned, affine = reorient_to(array, OBLIQUE, codes)
    assert axis_codes(affine) == codes
    assert np.shares_memory(turned, array)
    index = np.argwhere(turned[0] == array[0, 2, 1, 4])[0]
    np.testing.assert_allclose(apply_affine(affine, index), apply_affine(OBLIQUE, np.array([2, 1, 4])), atol=1e-12)
    back, affine_back = reorient_to(turned, affine, axis_codes(OBLIQUE))
    np.testing.assert_array_equal(back, array)
    np.testing.assert_allclose(affine_back, OBLIQUE, atol=1e-12)


def test_reorientation_refuses_what_is_no_orientation() -> None:
    with pytest.raises(ValueError, match="'RRS' are not an orientation"):
        reorient_to(np.zeros((1, 2, 2, 2)), np.eye(4), "RRS")
    with pytest.raises(ValueError, match="needs an array"):
        reorient_to(np.zeros((2, 2, 2)), np.eye(4), "RAS")
    with pytest.raises(ValueError, match="three finite axes"):
        axis_codes(np.zeros((4, 4)))


def test_grids_are_compared_at_their_corners() -> None:
    grid = Geometry((10, 10, 5), OBLIQUE)
    moved = OBLIQUE.copy()
    moved[:3, 3] += 0.05 * OBLIQUE[:3, 2]
    assert grid_difference(grid, Geometry((10, 10, 5), moved)) == pytest.approx(0.05)
    assert same_grid(grid, Geometry((10, 10, 5), moved))
    assert not same_grid(grid, Geometry((10, 10, 5), moved), tolerance_voxels=0.01)
    assert grid_difference(grid, Geometry((10, 10, 6), OBLIQUE)) == float("inf")
    assert affine_difference((2, 2, 2), OBLIQUE, np.full((4, 4), np.nan)) == float("inf")
    assert affine_difference((2, 2, 2), np.zeros((4, 4)), OBLIQUE) == float("inf")
    assert grid_difference(Geometry((4, 3), np.eye(4)), Geometry((4, 3), np.diag([1, 1, 9, 1]))) == 0  # one slice


def test_shear_is_zero_for_right_angles() -> None:
    assert shear(phantoms.AXIAL) == pytest.approx(0, abs=1e-12)
    tilted = phantoms.AXIAL.copy()
    tilted[1, 2] = 0.5
    assert shear(tilted) == pytest.approx(0.5 / np.hypot(0.5, 2.5))
