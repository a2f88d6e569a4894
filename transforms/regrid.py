"""Voxels put on another grid by their place in the world: exactly where only axes turn, by interpolation elsewhere."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import map_coordinates

from .geometry import affine_difference
from .volume import Geometry

TOLERANCE_VOXELS = 0.1
TIE = 1e-6  # a voxel half-way between two goes to the lower one, whatever the last bit of the affine says


def turned_onto(array: np.ndarray, affine: np.ndarray, target: Geometry) -> np.ndarray | None:
    """An array whose axes are permuted and flipped so that it lies on another grid; no voxel is changed.

    Args:
        array: (X, Y, Z).
        affine: of the array.
        target: the grid that is wanted.

    Returns:
        A view of the array, or None where it does not lie on that grid (corners within 0.1 voxel).
    """
    step = steps_between(target.affine, affine)
    turn = signed_permutation(step[:3, :3])
    if turn is None:
        return None
    order = [int(np.flatnonzero(turn[:, axis])[0]) for axis in range(3)]
    flips = [turn[old, axis] < 0 for axis, old in enumerate(order)]
    turned = array.transpose(order)[tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)]
    if turned.shape != tuple(target.shape):
        return None
    exact = np.eye(4)
    exact[:3, :3] = turn
    for axis, (old, flip) in enumerate(zip(order, flips, strict=True)):
        exact[old, 3] = turned.shape[axis] - 1 if flip else 0
    apart = affine_difference(tuple(target.shape), target.affine, np.asarray(affine, dtype=np.float64) @ exact)
    return turned if apart <= TOLERANCE_VOXELS else None


def resampled_onto(
    array: np.ndarray,
    affine: np.ndarray,
    target: Geometry,
    *,
    nearest: bool = False,
    outside: float = 0,
    transform: np.ndarray | None = None,
) -> tuple[np.ndarray, float]:
    """An array on another grid, by world position; a voxel whose centre lies in no voxel of the array gets `outside`.

    Args:
        array: (X, Y, Z).
        affine: of the array.
        target: the grid that is wanted.
        nearest: the dtype is kept and no value is made that was not there; else linear, float32.
        transform: (4, 4), a place in the world of `target` -> the place in the world of the array; identity where None.

    Returns:
        The array, and the share of its voxels that lie outside.

    Memory: the result, and the coordinates of one plane.
    """
    step = steps_between(target.affine, affine, transform)
    size = np.array(array.shape, dtype=np.float64)
    shape = (int(target.shape[0]), int(target.shape[1]), int(target.shape[2]))
    result = np.full(shape, outside, dtype=array.dtype if nearest else np.float32)
    first, second = np.meshgrid(*(np.arange(count) for count in shape[:2]), indexing="ij")
    in_plane = step[:3, 0, None] * first.reshape(1, -1) + step[:3, 1, None] * second.reshape(1, -1) + step[:3, 3, None]
    missed = 0
    for plane in range(shape[2]):
        voxels = in_plane + step[:3, 2, None] * plane
        inside = np.all((voxels >= -0.5 - TIE) & (voxels <= size[:, None] - 0.5 + TIE), axis=0)
        missed += int((~inside).sum())
        if not inside.any():
            continue
        at = np.clip(voxels[:, inside], 0, size[:, None] - 1)
        if nearest:
            values = array[tuple(np.floor(at + (0.5 - TIE)).astype(np.intp))]
        else:
            values = map_coordinates(array, at, order=1, mode="nearest", output=np.float32)
        flat = np.full(shape[0] * shape[1], outside, dtype=result.dtype)
        flat[inside] = values
        result[..., plane] = flat.reshape(shape[:2])
    return result, missed / max(result.size, 1)


def steps_between(target: np.ndarray, source: np.ndarray, transform: np.ndarray | None = None) -> np.ndarray:
    """The (4, 4) matrix from a voxel of `target` to the voxel of `source` at the same place in the world."""
    world = np.asarray(target, dtype=np.float64)
    if transform is not None:
        world = np.asarray(transform, dtype=np.float64) @ world
    return np.linalg.solve(np.asarray(source, dtype=np.float64), world)


def signed_permutation(matrix: np.ndarray) -> np.ndarray | None:
    """The whole matrix nearest to this one, if each row has at most one 1 or -1 and each column exactly one."""
    whole = np.rint(matrix)
    ones = np.abs(whole)
    if np.abs(matrix - whole).max() > 0.1 or ones.max() != 1 or np.any(ones.sum(0) != 1) or np.any(ones.sum(1) > 1):
        return None
    return whole
