"""One volume aligned to another: a motion that is known is found, the same one every time."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from voxelwise.errors import CaseError
from voxelwise.transforms.geometry import apply_affine
from voxelwise.transforms.register import register
from voxelwise.transforms.regrid import resampled_onto
from voxelwise.transforms.volume import Geometry

SHAPE = (32, 28, 24)
AFFINE = np.array([[-1.5, 0, 0, 20], [0, -1.5, 0, 25], [0, 0, 2.0, -20], [0, 0, 0, 1]])


def head() -> np.ndarray:
    """A few smooth balls."""
    rng = np.random.default_rng(3)
    image = np.zeros(SHAPE)
    for _ in range(12):
        image[tuple(rng.integers(6, size - 6) for size in SHAPE)] = rng.uniform(300, 900)
    return gaussian_filter(image, 2.5).astype(np.float32)


def motion(kind: str) -> np.ndarray:
    """A turn of 4 degrees and a shift of some mm; affine: stretched by 4 % as well."""
    angle = np.deg2rad(4)
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix[:3, 3] = [2.0, -1.5, 3.0]
    if kind == "affine":
        matrix[:3, 0] *= 1.04
    return matrix


@pytest.mark.parametrize("kind", ["rigid", "affine"])
def test_a_known_motion_is_found(kind: str) -> None:
    """The matrix that comes back undoes the one that was put in, within half a voxel, and is the same every time."""
    fixed, geometry = head(), Geometry(SHAPE, AFFINE)
    truth = motion(kind)  # place in the moving world -> place in the fixed one
    moving, _ = resampled_onto(fixed, AFFINE, geometry, transform=truth)
    moving = 1000 - moving  # another contrast, as another modality has
    found = register(moving, geometry, fixed, geometry, kind)
    inner = apply_affine(AFFINE, np.array(list(np.ndindex(3, 3, 3))) * 6.0 + 8)
    off = np.linalg.norm(apply_affine(truth @ found, inner) - inner, axis=-1)
    assert off.max() < 0.75
    if kind == "affine":
        np.testing.assert_array_equal(found, register(moving, geometry, fixed, geometry, kind))


def test_what_is_refused() -> None:
    """Nothing to align by, a sheared grid, volumes apart, an unknown word."""
    fixed, geometry = head(), Geometry(SHAPE, AFFINE)
    with pytest.raises(CaseError, match="a channel is constant"):
        register(np.zeros(SHAPE), geometry, fixed, geometry)
    sheared = AFFINE.copy()
    sheared[1, 2] = 0.5
    with pytest.raises(CaseError, match="its grid is sheared"):
        register(fixed, Geometry(SHAPE, sheared), fixed, geometry)
    far = AFFINE.copy()
    far[:3, 3] += 1000
    with pytest.raises(CaseError, match="the volumes do not overlap"):
        register(fixed, Geometry(SHAPE, far), fixed, geometry)
    with pytest.raises(ValueError, match="expected one of rigid, affine"):
        register(fixed, geometry, fixed, geometry, "elastic")
