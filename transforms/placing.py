"""In which cells of a network's grid the voxels of a source lie, and where in them.

Where each axis of the source runs along one of the network's, three lines of coordinates say all of it. Otherwise
(oblique or sheared grids) there is one coordinate for each voxel and axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from .lines import along, box_of, lines_between
from .match import Box, Match, cuts, reach


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
    if match.lines is None:
        around = reach(match, shape, source_shape, cells)
        if min(part.stop - part.start for part in around) > 0:
            yield from _anyhow(match, shape, cells, values, around, voxels)
        return
    lines = lines_between(match, shape, source_shape, cells, values.device)
    if lines is None:
        return
    for cut in cuts([len(line) for line in lines], voxels, 0):
        parts = [line.part(part) for line, part in zip(lines, cut, strict=True)]
        found = values
        for axis in (2, 1, 0):
            found = found.index_select(axis, parts[axis].corner)
        shares = tuple(line.share[_spread(axis)].expand(found.shape) for axis, line in enumerate(parts))
        yield Block(box_of(match, parts), match.lines, found, None, shares)


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


def _spread(axis: int) -> tuple[slice | None, ...]:
    """What makes a line along an axis one of three axes."""
    return tuple(slice(None) if at == axis else None for at in range(3))
