"""Scores at the source voxels of a box where each source axis runs along one of the network's: a matrix an axis.

A voxel of the source lies in a cell of the network's grid and at a share of it along each axis. Interpolation along one
axis is a matrix with two numbers a row. As a product with all scores it does more arithmetic
than is needed and still takes a fraction of the time of gathering neighbours, which is bound by memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .match import EXACT_VOXELS, HALF_VOXELS, Box, Match, margins, positions, reach
from .spline import nearest_voxels


@dataclass(frozen=True, eq=False)
class Line:
    """Source voxels along one axis of the network.

    Args:
        source: which they are, of the source axis that runs along it.
        corner: (N), the voxel of the box in front of each, or the one that it lies on.
        share: (N), float32: how far each lies on the way to the next voxel, from 0 to 1.
        size: voxels of the box along the axis.
    """

    source: slice
    corner: Tensor
    share: Tensor
    size: int

    def __len__(self) -> int:
        return len(self.corner)

    def part(self, part: slice) -> Line:
        """Some of the source voxels."""
        start = self.source.start
        return Line(slice(start + part.start, start + part.stop), self.corner[part], self.share[part], self.size)

    @property
    def used(self) -> slice:
        """Voxels of the box that these source voxels lie between."""
        return slice(int(self.corner[0]), min(int(self.corner[-1]) + 2, self.size)) if self.rises else self._used_down

    @property
    def rises(self) -> bool:
        """Whether the source axis runs in the direction of the network's."""
        return len(self) < 2 or int(self.corner[0]) <= int(self.corner[-1])

    @property
    def _used_down(self) -> slice:
        return slice(int(self.corner[-1]), min(int(self.corner[0]) + 2, self.size))

    def matrix(self) -> Tensor:
        """(N, voxels used): how much of each voxel goes into each source voxel."""
        used = self.used
        near = self.corner - used.start
        far = (near + 1).clamp_(max=used.stop - used.start - 1)
        weights = torch.zeros(len(self), used.stop - used.start, device=self.share.device)
        rows = torch.arange(len(self), device=self.share.device)
        weights.index_put_((rows, near), 1 - self.share, accumulate=True)
        return weights.index_put_((rows, far), self.share, accumulate=True)


def lines_between(
    match: Match, shape: Sequence[int], source_shape: Sequence[int], cells: Box, device: torch.device
) -> list[Line] | None:
    """For each axis of the network the source voxels that lie in these cells; None where there are none.

    Args:
        match: of the two grids, whose axes run along each other.
        shape: of the network's grid.
        source_shape: of the source.
        cells: cell i of an axis reaches from centre i to centre i + 1; an axis of one voxel has one cell.
        device: of what is returned.
    """
    assert match.lines is not None
    around = reach(match, shape, source_shape, cells)
    if min(part.stop - part.start for part in around) <= 0:
        return None
    lines = []
    for axis, source_axis in enumerate(match.lines):
        corner, share, inside = (one.flatten() for one in along(match, shape, cells, around, axis, device))
        held = inside.nonzero()[:, 0]
        if not len(held):
            return None
        part = slice(int(held[0]), int(held[-1]) + 1)
        start = around[source_axis].start
        size = 1 if shape[axis] == 1 else cells[axis].stop - cells[axis].start + 1
        lines.append(Line(slice(start + part.start, start + part.stop), corner[part], share[part], size))
    return lines


def interpolated(values: Tensor, lines: Sequence[Line]) -> Tensor:
    """Values (F, *box) at the source voxels of three lines: (F, *points), axes as those of the box."""
    used = (slice(None), *(line.used for line in lines))
    values = values[used]
    # what makes an axis shorter comes first
    for axis in sorted(range(3), key=lambda axis: len(lines[axis]) / values.shape[axis + 1]):
        matrix = lines[axis].matrix()
        if axis == 2:
            values = values @ matrix.T
        elif axis == 1:
            values = matrix @ values
        else:
            values = (matrix @ values.flatten(2)).unflatten(2, values.shape[2:])
    return values


def box_of(match: Match, lines: Sequence[Line]) -> tuple[slice, ...]:
    """Where the source voxels of three lines are in the source."""
    assert match.lines is not None
    return tuple(lines[match.lines.index(source)].source for source in range(3))


def along(
    match: Match, shape: Sequence[int], cells: Box, where: Sequence[slice], axis: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Of source voxels along one axis of the network: the cell, from the first one asked for on, the share of it, and
    whether the voxel belongs to the cells that were asked for. An axis on which nothing depends has length 1."""
    row, size, asked = match.matrix[axis], shape[axis], cells[axis]
    position = positions(row, where, device)
    below, above = margins(row, match.convention)
    inside = (position >= -below) & (position <= size - 1 + above)
    position = position.clamp_(0, size - 1)
    if axis == match.nearest:
        planes = _planes(match, size, where, axis, device)
        position = position.add_(0.5 + HALF_VOXELS).floor_().clamp_(max=size - 1) if planes is None else planes
    number = position.floor().long().clamp_(max=max(size - 2, 0))
    inside &= (number >= asked.start) & (number < asked.stop)
    share = position.sub_(number).float()
    return number.sub_(asked.start).clamp_(0, asked.stop - asked.start - 1), share, inside


def _planes(match: Match, size: int, where: Sequence[slice], axis: int, device: torch.device) -> Tensor | None:
    """The plane of a network's axis that is nearest to source voxels, where its grid has the edges of a box of the
    source; else None.

    Counted as the box was resampled, along the source and in double precision: a voxel in the middle between two planes
    has the one that rounding gives it there.
    """
    row = match.matrix[axis]
    if match.convention != "edges" or np.count_nonzero(row[:3]) != 1:
        return None
    source_axis = int(np.abs(row[:3]).argmax())
    step, ahead = abs(float(row[source_axis])), bool(row[source_axis] > 0)
    side, first = size / step, 0.5 - ((row[3] if ahead else size - 1 - row[3]) + 0.5) / step  # of the box
    if max(abs(round(side) - side), abs(round(first) - first)) > EXACT_VOXELS:
        return None
    numbers = np.arange(where[source_axis].start, where[source_axis].stop) - round(first)
    planes = nearest_voxels(size, round(side))[numbers.clip(0, round(side) - 1)]
    shape = [1, 1, 1]
    shape[source_axis] = -1
    return torch.from_numpy(planes if ahead else size - 1 - planes).to(device, torch.float64).reshape(shape)
