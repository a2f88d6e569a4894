"""Scores on a network's grid back to the grid of the source, as labels.

Two grids are matched by their affines alone. Where the network's grid is a crop of the source's with axes permuted or
flipped, labels are copied voxel by voxel. Otherwise scores are interpolated linearly and the largest one wins. A cell
whose eight corners agree has that class everywhere inside, whatever the other scores are, so scores are interpolated
in the other cells alone (a few per cent of them). Scores are taken box by box as they are finished: neither grid ever
holds all of them, and the labels are equal to those of doing it at once. Where scores are a linear head of fewer
features, the features are taken and interpolated, and the head is applied to one box at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .match import Box, Match, margins, match_grids, positions, reach

CHUNK_NUMBERS = 1 << 23  # scores at a time, 32 MiB of float32
BLOCK_SHARE, POINTS_SHARE = 1 / 16, 1 / 128  # of it: voxels of the source, points to interpolate at a time


@torch.inference_mode()
def restore_labels(
    planes: Iterable[tuple[slice, Tensor]],
    shape: Sequence[int],
    affine: np.ndarray,
    source_shape: Sequence[int],
    source_affine: np.ndarray,
) -> np.ndarray:
    """Labels on the source grid, of planes of scores on a network's grid.

    Args:
        planes: (which planes of the first axis, their scores (K, planes, Y, Z)), from the first to the last.
        shape: of the network's grid.
        affine: of the network's grid.
        source_shape: (X, Y, Z); a picture has Z = 1.
        source_affine: of the source grid.

    Returns:
        Classes (X, Y, Z), uint8, or uint16 with more than 256 classes; 0 where the source lies outside of the
        network's grid.

    Memory: the labels, the planes of one chunk, and one plane more.
    """
    restoration = Restoration(shape, affine, source_shape, source_affine)
    for where, scores in planes:
        restoration.add(where, scores)
    return restoration.labels


class Restoration:
    """A label map on the source grid that is filled as scores are finished.

    Args:
        shape: of the network's grid.
        affine: of the network's grid.
        source_shape: (X, Y, Z); a picture has Z = 1.
        source_affine: of the source grid.
        scores_of: what is added (F, *S) to scores (K, *S), linear; what is added are scores where it is left out.
        device: where the scores are looked at; where they lie when left out.
        chunk_numbers: scores looked at at a time.

    Memory: the labels, and `working_bytes` on the device.
    """

    def __init__(
        self,
        shape: Sequence[int],
        affine: np.ndarray,
        source_shape: Sequence[int],
        source_affine: np.ndarray,
        *,
        scores_of: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | None = None,
        chunk_numbers: int = CHUNK_NUMBERS,
    ) -> None:
        self.shape, self.source_shape = tuple(shape), tuple(source_shape)
        self.match = match_grids(shape, affine, source_shape, source_affine)
        self.scores_of = (lambda values: values) if scores_of is None else scores_of
        self.device, self.chunk_numbers = device, chunk_numbers
        self._labels: np.ndarray | None = None
        self._classes = 0
        self._last: tuple[int, list[slice], Tensor] | None = None  # the last plane, its number, its cross-section

    @property
    def labels(self) -> np.ndarray:
        """Classes (X, Y, Z), uint8, or uint16 with more than 256 classes; 0 where nothing was added."""
        if self._labels is None:
            raise ValueError("there are no planes of scores to restore")
        return self._labels

    @property
    def neighbours(self) -> int:
        """Voxels that parts of the cross-section must share with the next one: 1 where scores are interpolated."""
        return 0 if self.match.axes is not None else 1

    @torch.inference_mode()
    def add(self, where: slice, values: Tensor, part: Sequence[slice] | None = None) -> None:
        """Label what lies between these planes, and between them and the planes that came before.

        Args:
            where: which planes of the first axis; those of one part come from the first to the last.
            values: (F, planes, *cross-section).
            part: of the cross-section, that the values cover; the whole one when left out.
        """
        rest = [slice(0, side) for side in self.shape[1:]] if part is None else list(part)
        if self.neighbours and self._last is not None and self._last[:2] == (where.start - 1, rest):
            both = torch.cat([self._last[2], values[:, :1]], dim=1)
            self._add([slice(where.start - 1, where.start + 1), *rest], both)
        self._add([where, *rest], values)
        if self.neighbours:
            self._last = (where.stop - 1, rest, values[:, -1:].clone())

    def _add(self, box: Box, values: Tensor) -> None:
        if not self._classes:
            self._classes = len(self.scores_of(self._moved(values[:, :1, :1, :1])))
            self._labels = np.zeros(self.source_shape, np.uint8 if self._classes <= 256 else np.uint16)
        sides = [part.stop - part.start for part in box]
        for cut in cuts(sides, max(1, self.chunk_numbers // self._classes), self.neighbours):
            taken = (slice(None), *cut)
            part = self._moved(values[taken])
            top = _top(self.scores_of(part))
            inside = [
                slice(whole.start + one.start, whole.start + one.stop) for whole, one in zip(box, cut, strict=True)
            ]
            if self.match.axes is not None:
                _copy(self.labels, top, [side.start for side in inside], self.match)
            else:
                self._interpolate(inside, part, top)

    def _moved(self, values: Tensor) -> Tensor:
        return values if self.device is None else values.to(self.device)

    def _interpolate(self, box: Box, values: Tensor, top: Tensor) -> None:
        """Label the source voxels whose cell of the network's grid has its corners in this box.

        Cell i of an axis reaches from centre i to centre i + 1; an axis of one voxel has one cell.
        """
        cells = [
            slice(side.start, side.stop if size == 1 else side.stop - 1)
            for side, size in zip(box, self.shape, strict=True)
        ]
        if any(side.stop <= side.start for side in cells):
            return
        agreed = _agreed(top, self._classes)
        around = reach(self.match, self.shape, self.source_shape, cells)
        sides = [part.stop - part.start for part in around]
        if min(sides) <= 0:
            return
        table: Tensor | None = None
        for cut in cuts(sides, max(1, int(self.chunk_numbers * BLOCK_SHARE)), 0):
            where = [
                slice(whole.start + one.start, whole.start + one.stop) for whole, one in zip(around, cut, strict=True)
            ]
            at, corner, inside = self._located(where, cells, values.device)
            size = tuple(part.stop - part.start for part in where)
            found = agreed[corner[0], corner[1], corner[2]].expand(size)
            inside = inside.expand(size)
            mixed = ((found < 0) & inside).nonzero(as_tuple=True)
            if len(mixed[0]):
                found = found.clone()
                table = values.flatten(1).T.contiguous() if table is None else table
                shares = [(one - low).expand(size)[mixed].float() for one, low in zip(at, corner, strict=True)]
                below = [part.expand(size)[mixed] for part in corner]
                found[mixed] = self._top_between(table, tuple(values.shape[1:]), below, shares).to(found.dtype)
            view = self.labels[tuple(where)]
            np.copyto(view, found.cpu().numpy().astype(view.dtype), where=inside.cpu().numpy())

    def _located(
        self, where: Sequence[slice], cells: Box, device: torch.device
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Coordinates of source voxels and the cells that they lie in, from the first cell of a box on; which of the
        voxels belong to its cells."""
        at, corner, inside = [], [], torch.ones((1, 1, 1), dtype=torch.bool, device=device)
        for row, size, box in zip(self.match.matrix, self.shape, cells, strict=True):
            position = positions(row, where, device)
            below, above = margins(row)
            inside = inside & (position >= -below) & (position <= size - 1 + above)
            position = position.clamp_(0, size - 1)
            number = position.floor().long().clamp_(max=max(size - 2, 0))
            inside = inside & (number >= box.start) & (number < box.stop)
            at.append(position.sub_(box.start))
            corner.append(number.sub_(box.start).clamp_(0, box.stop - box.start - 1))
        return at, corner, inside

    def _top_between(
        self, table: Tensor, size: tuple[int, ...], corners: Sequence[Tensor], shares: Sequence[Tensor]
    ) -> Tensor:
        """Class of the largest score at points of a box, interpolated linearly.

        A point is a weighted sum of eight rows of a table (voxels, F), which is what `embedding_bag` computes in one
        pass.
        """
        planes, rows, columns = size
        top = torch.empty(len(corners[0]), dtype=torch.long, device=table.device)
        step = max(1, int(self.chunk_numbers * POINTS_SHARE))
        for first in range(0, len(top), step):
            part = slice(first, first + step)
            index = torch.zeros(1, 1, dtype=torch.long, device=table.device)
            weights = torch.ones(1, 1, device=table.device)
            for corner, above, side, stride in zip(
                corners, shares, (planes, rows, columns), (rows * columns, columns, 1), strict=True
            ):
                low = corner[part]
                ends = torch.stack([low, (low + 1).clamp(max=side - 1)], dim=1) * stride
                pair = torch.stack([1 - above[part], above[part]], dim=1)
                index = (index.unsqueeze(2) + ends.unsqueeze(1)).flatten(1)
                weights = (weights.unsqueeze(2) * pair.unsqueeze(1)).flatten(1)
            total = functional.embedding_bag(index, table, per_sample_weights=weights, mode="sum")
            top[part] = _top(self.scores_of(total.T.reshape(total.shape[1], -1, 1, 1))).flatten()
        return top


def working_bytes(classes: int, features: int, chunk_numbers: int = CHUNK_NUMBERS, *, interpolated: bool = True) -> int:
    """What a restoration takes beside the labels while it looks at one chunk, at most."""
    voxels = max(1, chunk_numbers // classes)
    points = max(1, int(chunk_numbers * POINTS_SHARE))
    scores = 8 * classes * voxels + (40 + 12 * features) * voxels  # the head's result may be put in order once more
    if not interpolated:
        return scores
    block = 110 * max(1, int(chunk_numbers * BLOCK_SHARE))
    return scores + block + points * (8 * classes + 8 * features + 200)


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


def _top(scores: Tensor) -> Tensor:
    return scores.max(dim=0).indices


def _copy(labels: np.ndarray, top: Tensor, origin: Sequence[int], match: Match) -> None:
    """Put the classes of a box of a grid that matches voxel by voxel where they belong."""
    assert match.axes is not None
    block = top.cpu().numpy().astype(labels.dtype)
    target: list[slice] = [slice(None)] * 3
    for axis, (source_axis, sign) in enumerate(match.axes):
        offset = int(match.matrix[axis, 3]) - origin[axis]  # index in the box = sign * source index + offset
        ends = sorted((sign * (0 - offset), sign * (block.shape[axis] - 1 - offset)))
        low, high = max(ends[0], 0), min(ends[1], labels.shape[source_axis] - 1)
        if low > high:
            return
        target[source_axis] = slice(low, high + 1)
        taken = sorted((sign * low + offset, sign * high + offset))
        block = np.take(block, range(taken[0], taken[1] + 1)[::sign], axis=axis)
    order = np.argsort([source_axis for source_axis, _ in match.axes])
    labels[tuple(target)] = block.transpose(order)


def _agreed(top: Tensor, classes: int) -> Tensor:
    """Per cell the class that all its corners have, -1 where they differ."""
    agreed = top.to(torch.int16 if classes < 32768 else torch.int32)
    for axis, size in enumerate(top.shape):
        if size > 1:
            low, high = agreed.narrow(axis, 0, size - 1), agreed.narrow(axis, 1, size - 1)
            agreed = torch.where(low == high, low, -1)
    return agreed
