"""Arithmetic on affines and grids: axis codes, corners, comparison, exact reorientation.

An affine takes a voxel index (i, j, k, 1) to a place (R, A, S, 1) in mm, as in NIfTI. Nothing here touches a file.
"""

from __future__ import annotations

from itertools import permutations, product

import numpy as np

from .volume import Geometry

AXIS_NAMES = (("L", "R"), ("P", "A"), ("I", "S"))
ALL_AXIS_CODES = tuple(
    "".join(AXIS_NAMES[axis][side] for axis, side in zip(order, sides, strict=True))
    for order in permutations(range(3))
    for sides in product((0, 1), repeat=3)
)
SHEAR_LIMIT = 1e-3


def closest_axes(affine: np.ndarray) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """For each array axis the world axis that it runs along, and the sign.

    Each world axis is taken once: of all assignments the one with the largest sum of cosines, so that an oblique grid
    at 45 degrees still gets a proper permutation.
    """
    matrix = np.asarray(affine, dtype=np.float64)[:3, :3]
    lengths = np.linalg.norm(matrix, axis=0)
    if not np.all(np.isfinite(matrix)) or np.any(lengths == 0):
        raise ValueError(f"an affine needs three finite axes longer than 0 mm, got lengths {lengths.tolist()}")
    cosines = matrix / lengths
    best = max(permutations(range(3)), key=lambda order: sum(abs(cosines[order[axis], axis]) for axis in range(3)))
    signs = tuple(-1 if cosines[best[axis], axis] < 0 else 1 for axis in range(3))
    return best, signs


def axis_codes(affine: np.ndarray) -> str:
    """Where the array axes point to, such as "RAS" or "LPI"."""
    world, signs = closest_axes(affine)
    return "".join(AXIS_NAMES[axis][sign > 0] for axis, sign in zip(world, signs, strict=True))


def apply_affine(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (..., 3) through a (4, 4) affine."""
    matrix = np.asarray(affine, dtype=np.float64)
    return np.asarray(points, dtype=np.float64) @ matrix[:3, :3].T + matrix[:3, 3]


def corner_voxels(shape: tuple[int, ...]) -> np.ndarray:
    """Indices (8, 3) of the corner voxels; a picture counts as one slice."""
    last = [*(size - 1 for size in shape), 0, 0, 0][:3]
    return np.array(list(product(*((0, end) for end in last))), dtype=np.float64)


def affine_difference(shape: tuple[int, ...], first: np.ndarray, second: np.ndarray) -> float:
    """How far the corner voxels of two affines lie apart, in voxels of the first; inf where one gives no grid."""
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if not (np.all(np.isfinite(first)) and np.all(np.isfinite(second))):
        return float("inf")
    corners = corner_voxels(shape)
    apart = apply_affine(second, corners) - apply_affine(first, corners)
    try:
        voxels = np.linalg.solve(first[:3, :3], apart.T)
    except np.linalg.LinAlgError:
        return float("inf")
    return float(np.abs(voxels).max())


def grid_difference(a: Geometry, b: Geometry) -> float:
    """How far two grids lie apart at their corners, in voxels of the first; inf where the shapes differ."""
    return float("inf") if tuple(a.shape) != tuple(b.shape) else affine_difference(a.shape, a.affine, b.affine)


def same_grid(a: Geometry, b: Geometry, tolerance_voxels: float = 0.1) -> bool:
    """Whether two grids have one shape and lie within `tolerance_voxels` of each other at every corner."""
    return grid_difference(a, b) <= tolerance_voxels


def shear(affine: np.ndarray) -> float:
    """The largest cosine between two array axes: 0 for right angles."""
    matrix = np.asarray(affine, dtype=np.float64)[:3, :3]
    unit = matrix / np.linalg.norm(matrix, axis=0)
    return float(np.abs(unit.T @ unit - np.eye(3)).max())


def reorient_to(array: np.ndarray, affine: np.ndarray, codes: str) -> tuple[np.ndarray, np.ndarray]:
    """Permute and flip the axes so that they point to `codes` as nearly as the grid allows; no voxel is changed.

    Args:
        array: (C, X, Y, Z).
        affine: of the array.
        codes: such as "RAS".

    Returns:
        A view of the array, and its affine.
    """
    if codes not in ALL_AXIS_CODES:
        raise ValueError(
            f"axis codes {codes!r} are not an orientation; expected one letter each of LR, PA and IS, such as 'RAS'"
        )
    if array.ndim != 4:
        raise ValueError(f"reorient_to needs an array (C, X, Y, Z), got shape {array.shape}")
    world, signs = closest_axes(affine)
    wanted = [next(axis for axis, names in enumerate(AXIS_NAMES) if letter in names) for letter in codes]
    order = [world.index(axis) for axis in wanted]
    flipped = [
        signs[axis] != (1 if letter == AXIS_NAMES[world[axis]][1] else -1)
        for axis, letter in zip(order, codes, strict=True)
    ]
    turned = array.transpose(0, *(axis + 1 for axis in order))
    step = np.zeros((4, 4))
    step[3, 3] = 1
    for new, (old, flip) in enumerate(zip(order, flipped, strict=True)):
        step[old, new] = -1 if flip else 1
        step[old, 3] = array.shape[old + 1] - 1 if flip else 0
    ways = tuple(slice(None, None, -1) if flip else slice(None) for flip in (False, *flipped))
    return turned[ways], np.asarray(affine, dtype=np.float64) @ step
