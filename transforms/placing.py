"""In which cells of a network's grid the voxels of a source lie, and where in them.

Where each axis of the source runs along one of the network's, three lines of coordinates say all of it. Otherwise
(oblique or sheared grids) there is one coordinate for each voxel and axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .match import Box, Match, cuts, margins, positions, reach


@dataclass(frozen=True, eq=False)
class Block:
    """Voxels of the source.

    Args:
        where: they are, in the source.
        order: of the axes of what follows: axes of the source.
        found: a value of the cell that each lies in.
        inside: which of them lie in the cells that were asked for; all where None.
        shares: for each axis of the network, how far each voxel lies along its cell, from 0 to 1; float32, and
            expanded where it does not depend on an axis.
    """

    where: tuple[slice, ...]
    order: tuple[int, ...]
    found: Tensor
    inside: Tensor | None
    shares: tuple[Tensor, ...]


def blocks(
    match: Match, shape: Sequence[int], source_shape: Sequence[int], cells: Box, values: Tensor, voxels: int
) -> Iterator[Block]:
    """The source voxels that lie in cells, so many at a time at most.

    Args:
        match: of the two grids.
        shape: of the network's grid.
        source_shape: of the source.
        cells: cell i of an axis reaches from centre i to centre i + 1; an axis of one voxel has one cell.
        values: of the cells, one each.
        voxels: at a time.
    """
    around = reach(match, shape, source_shape, cells)
    if min(part.stop - part.start for part in around) <= 0:
        return
    order = match.lines
    if order is None:
        yield from _anyhow(match, shape, cells, values, around, voxels)
        return
    lines: list[tuple[slice, Tensor, Tensor]] = []  # for each axis of the network: of the source, cells, shares
    for axis, source_axis in enumerate(order):
        corner, share, inside = (one.flatten() for one in along(match, shape, cells, around, axis, values.device))
        held = inside.nonzero()[:, 0]
        if not len(held):
            return
        first, last = int(held[0]), int(held[-1]) + 1
        start = around[source_axis].start
        lines.append((slice(start + first, start + last), corner[first:last], share[first:last]))
    for cut in cuts([len(share) for _, _, share in lines], voxels, 0):
        found, shares = values, []
        where = [slice(0, 1)] * 3
        for axis, (part, (source, corner, share)) in reversed(list(enumerate(zip(cut, lines, strict=True)))):
            found = found.index_select(axis, corner[part])
            size = [1, 1, 1]
            size[axis] = -1
            shares.append(share[part].reshape(size))
            where[order[axis]] = slice(source.start + part.start, source.start + part.stop)
        yield Block(tuple(where), order, found, None, tuple(share.expand(found.shape) for share in reversed(shares)))


def _anyhow(
    match: Match, shape: Sequence[int], cells: Box, values: Tensor, around: Sequence[slice], voxels: int
) -> Iterator[Block]:
    for cut in cuts([part.stop - part.start for part in around], voxels, 0):
        where = tuple(
            slice(whole.start + one.start, whole.start + one.stop) for whole, one in zip(around, cut, strict=True)
        )
        size = tuple(part.stop - part.start for part in where)
        axes = [along(match, shape, cells, where, axis, values.device) for axis in range(3)]
        inside = (axes[0][2] & axes[1][2] & axes[2][2]).expand(size)
        found = values[axes[0][0], axes[1][0], axes[2][0]].expand(size)
        yield Block(where, (0, 1, 2), found, inside, tuple(share.expand(size) for _, share, _ in axes))


def along(
    match: Match, shape: Sequence[int], cells: Box, where: Sequence[slice], axis: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Of source voxels along one axis of the network: the cell, from the first one asked for on, the share of it, and
    whether the voxel belongs to the cells that were asked for. An axis on which nothing depends has length 1."""
    row, size, asked = match.matrix[axis], shape[axis], cells[axis]
    position = positions(row, where, device)
    below, above = margins(row)
    inside = (position >= -below) & (position <= size - 1 + above)
    position = position.clamp_(0, size - 1)
    number = position.floor().long().clamp_(max=max(size - 2, 0))
    inside &= (number >= asked.start) & (number < asked.stop)
    share = position.sub_(number).float()
    return number.sub_(asked.start).clamp_(0, asked.stop - asked.start - 1), share, inside
