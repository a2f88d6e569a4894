"""How the voxels of a source grid lie on a network's grid: which ones, where, and how far beyond its edges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import torch
from torch import Tensor

EXACT_VOXELS = 0.01  # corners closer than this lie on voxel centres
SNAP_VOXELS = 1e-3  # a term that moves a coordinate by less than this over the whole grid is rounding
HALF_VOXELS = 1e-6  # what lies this near to the middle between two centres is in it, and belongs to the upper one
Axis = tuple[int, int]  # an axis of the source, and its direction
Box = Sequence[slice]  # of the network's grid
Convention = Literal["centres", "edges"]  # what of the two grids agrees


@dataclass(frozen=True, eq=False)
class Match:
    """From voxels of the source to coordinates on the network's grid.

    Args:
        matrix: (3, 4), terms that are rounding set to 0.
        axes: for each network axis the source axis and its direction, where the grids match voxel by voxel; else None.
        convention: how the network's grid was made of the source's: their first voxel centres agree, or the edges of
            both are those of the same box.
        nearest: the network axis along which the value of the nearest plane is taken, and nothing interpolated.
    """

    matrix: np.ndarray
    axes: tuple[Axis, ...] | None
    convention: Convention = "centres"
    nearest: int | None = None

    @property
    def lines(self) -> tuple[int, ...] | None:
        """For each network axis the source axis that runs along it; None where one does not run along another."""
        along = self.matrix[:, :3] != 0
        if not (np.array_equal(along.sum(0), [1, 1, 1]) and np.array_equal(along.sum(1), [1, 1, 1])):
            return None
        return tuple(int(row.argmax()) for row in along)


def match_grids(
    shape: Sequence[int],
    affine: np.ndarray,
    source_shape: Sequence[int],
    source_affine: np.ndarray,
    *,
    convention: Convention = "centres",
    nearest: int | None = None,
) -> Match:
    """How voxels of a source grid lie on a network's grid.

    Exactness is judged in voxels at the corners of the source grid, not in mm.

    Args:
        shape: of the network's grid.
        affine: of the network's grid.
        source_shape: (X, Y, Z).
        source_affine: of the source grid.
        convention: as in `Match`.
        nearest: as in `Match`.

    Raises:
        ValueError: an affine that cannot be inverted.
    """
    try:
        matrix = (np.linalg.inv(np.asarray(affine, np.float64)) @ np.asarray(source_affine, np.float64))[:3]
    except np.linalg.LinAlgError:
        raise ValueError(
            f"the affine of the network's grid cannot be inverted: {np.asarray(affine).tolist()}"
        ) from None
    last = np.asarray(source_shape, np.float64) - 1
    turned = np.rint(matrix)
    permutes = np.array_equal(np.abs(turned[:, :3]).sum(0), [1, 1, 1]) and np.array_equal(
        np.abs(turned[:, :3]).sum(1), [1, 1, 1]
    )
    if permutes:
        away = np.abs(matrix - turned) @ np.array([*np.maximum(last, 1), 1])
        if away.max() <= EXACT_VOXELS:
            axes = tuple((int(np.abs(row).argmax()), int(row[np.abs(row).argmax()])) for row in turned[:, :3])
            return Match(turned, axes, convention, nearest)
    matrix = matrix.copy()
    matrix[:, :3][np.abs(matrix[:, :3]) * np.maximum(last, 1) < SNAP_VOXELS] = 0
    return Match(matrix, None, convention, nearest)


def positions(row: np.ndarray, where: Sequence[slice], device: torch.device) -> Tensor:
    """One network coordinate of source voxels; an axis that it does not depend on has length 1."""
    position = torch.full((1, 1, 1), float(row[3]), dtype=torch.float64, device=device)
    for axis, part in enumerate(where):
        if row[axis] != 0:
            steps = torch.arange(part.start, part.stop, dtype=torch.float64, device=device) * float(row[axis])
            size = [1, 1, 1]
            size[axis] = -1
            position = position + steps.reshape(size)
    return position


def margins(row: np.ndarray, convention: Convention = "centres") -> tuple[float, float]:
    """How far before the first and behind the last centre of the network's grid its last value still holds, in its
    voxels.

    Where edges agree, the grid ends with its voxels, half of one beyond its centres, and so does what it was made of.

    Otherwise resampling makes round(n * old / new) voxels whose first centre is that of the source, so the last centres
    of the source may lie up to 1.5 - step voxels behind the last one, and the next voxel of the source, if it was
    cropped, a step before the first; of voxels counted from centre to centre up to half a voxel behind it. A grid that
    was straightened is up to one voxel short.
    """
    if convention == "edges":
        return 0.5, 0.5
    step = float(np.abs(row[:3]).sum())
    if np.count_nonzero(row[:3]) > 1:
        return 0.5, 1.0
    return 0.5 * min(step, 1.0), max(1.5 - step, 0.49) + EXACT_VOXELS


def reach(match: Match, shape: Sequence[int], source_shape: Sequence[int], cells: Box) -> list[slice]:
    """A box of source voxels that holds all that may belong to these cells."""
    # the first and the last cell also take what lies before and behind the grid
    ends = [
        (side.start if side.start > 0 else -2.0, side.stop if side.stop < size - 1 else size + 1.0)
        for side, size in zip(cells, shape, strict=True)
    ]
    if match.nearest is not None:  # a plane is nearest to what lies half a voxel before and behind it
        low_end, high_end = ends[match.nearest]
        ends[match.nearest] = (low_end - 0.5, high_end + 0.5)
    corners = np.array(list(product(*ends)), np.float64) - match.matrix[:, 3]
    try:
        reached = np.linalg.solve(match.matrix[:, :3], corners.T).T
    except np.linalg.LinAlgError:
        return [slice(0, size) for size in source_shape]
    low = np.ceil(reached.min(0) - SNAP_VOXELS).astype(int)
    high = np.floor(reached.max(0) + SNAP_VOXELS).astype(int) + 1
    return [
        slice(max(0, int(a)), max(0, min(size, int(b)))) for a, b, size in zip(low, high, source_shape, strict=True)
    ]


def cuts(sides: Sequence[int], voxels: int, shared: int) -> Iterator[tuple[slice, ...]]:
    """Boxes of about equal sides and at most so many voxels that cover a box; neighbours share `shared` voxels."""
    pieces = [1] * len(sides)
    room = list(sides)
    while np.prod(room, dtype=np.int64) > voxels and max(room) > 1 + shared:
        axis = room.index(max(room))
        pieces[axis] += 1
        room[axis] = -(-(sides[axis] - shared) // pieces[axis]) + shared
    starts = [range(0, max(side - shared, 1), max(one - shared, 1)) for side, one in zip(sides, room, strict=True)]
    for at in product(*starts):
        yield tuple(slice(first, min(first + one, side)) for first, one, side in zip(at, room, sides, strict=True))
