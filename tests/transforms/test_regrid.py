"""Voxels on another grid: exact where only axes turn, true to the place in the world elsewhere."""

from __future__ import annotations

import numpy as np
import phantoms
import pytest
from voxelwise.transforms.geometry import ALL_AXIS_CODES, apply_affine, reorient_to
from voxelwise.transforms.regrid import resampled_onto, turned_onto
from voxelwise.transforms.volume import Geometry


@pytest.mark.parametrize("codes", ALL_AXIS_CODES)
def test_turning_back_gives_the_same_voxels(codes: str) -> None:
    """Each of the 48 orientations comes back bit for bit, oblique grids too."""
    array, affine = phantoms.ramp((4, 5, 6)), phantoms.oblique()
    turned, own = reorient_to(array[np.newaxis], affine, codes)
    back = turned_onto(turned[0], own, Geometry(array.shape, affine))
    assert back is not None
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("change", ["shift", "shape", "spacing", "turn"])
def test_another_grid_is_not_taken(change: str) -> None:
    """A grid that is more than 0.1 voxel off, or has other sides, is none."""
    array, affine = phantoms.ramp((4, 5, 6)), phantoms.oblique()
    target, shape = affine.copy(), array.shape
    if change == "shift":
        target[:3, 3] += 0.11 * affine[:3, 0]
    elif change == "shape":
        shape = (4, 5, 5)
    elif change == "spacing":
        target[:3, 0] *= 1.05
    else:
        target[:3, :3] = phantoms.AXIAL[:3, :3]
    assert turned_onto(array, affine, Geometry(shape, target)) is None
    target = affine.copy()
    target[:3, 3] += 0.09 * affine[:3, 0]
    assert turned_onto(array, affine, Geometry(array.shape, target)) is not None


def test_linear_values_stay_at_their_place() -> None:
    """An image that is linear in the world is the same function of the world on any grid."""
    source = phantoms.oblique((1.0, 1.2, 2.0))
    places = apply_affine(source, np.moveaxis(np.indices((20, 18, 12)), 0, -1))
    image = (places @ [2.0, -1.0, 0.5] + 7).astype(np.float32)
    target = source @ np.diag([0.7, 0.8, 0.9, 1.0])
    target[:3, 3] += source[:3, :3] @ [3.3, 4.1, 2.2]
    geometry = Geometry((10, 9, 7), target)
    moved, outside = resampled_onto(image, source, geometry)
    wanted = apply_affine(target, np.moveaxis(np.indices((10, 9, 7)), 0, -1)) @ [2.0, -1.0, 0.5] + 7
    np.testing.assert_allclose(moved, wanted, atol=1e-3)
    assert outside == 0


def test_outside_is_filled_and_counted() -> None:
    """What no voxel covers gets the value that was given; half a voxel beyond the last centre still belongs to it."""
    array = np.full((4, 4, 4), 5, dtype=np.int16)
    affine = np.eye(4)
    affine[:3, 3] = [-2.5, 0.5, 0]
    moved, outside = resampled_onto(array, np.eye(4), Geometry((4, 4, 4), affine), nearest=True, outside=-9)
    assert moved.dtype == np.int16
    assert outside == 0.5
    np.testing.assert_array_equal(moved[:2], -9)
    np.testing.assert_array_equal(moved[2:], 5)


def test_nearest_makes_no_new_value_and_a_transform_is_used() -> None:
    """A label map shifted by two voxels through a transform."""
    array = np.zeros((6, 6, 6), dtype=np.uint8)
    array[3, 3, 3] = 7
    transform = np.eye(4)
    transform[0, 3] = 2
    moved, _ = resampled_onto(array, np.eye(4), Geometry((6, 6, 6), np.eye(4)), nearest=True, transform=transform)
    assert moved[1, 3, 3] == 7
    assert moved.sum() == 7
