"""Which class has the largest score between the voxel centres of a grid, without interpolating all scores.

A cell has eight centres at its corners, and inside it scores are interpolated linearly. What follows is exact and
leaves little to compute:

* A class that is the largest at all corners is the largest everywhere inside.
* Where the corners name two classes, and no third one is above the lesser of the two at any corner, the sign of the
  difference of the two decides: eight numbers a cell.
* Elsewhere among two classes, no third one wins at a point where the larger of the two is at least what the second
  best scores of the corners come to there.

All scores are interpolated at the points that are left, few where scores are smooth.

Scores of regions that may overlap are looked at one by one: a voxel belongs to the last region whose score is above 0.
What is above 0 at all corners of a cell is so inside, and what is nowhere above 0 is nowhere so inside, so a cell whose
corners agree on the last region has it everywhere here too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

POINTS = 1 << 16  # looked at at a time
NUMBERS = 1 << 18  # scores interpolated at a time, 1 MiB


class Cells:
    """The cells of a box of scores.

    Args:
        scores: (K, X, Y, Z), finite. An axis of one voxel has one cell, without extent.

    Attributes:
        codes: per cell the class that all of it has, or -1 - its number where the corners differ; int32.
    """

    def __init__(self, scores: Tensor) -> None:
        top = top_class(scores)
        few = top.to(torch.int16 if len(scores) < 32768 else torch.int32)
        low, high = over_corners(few, torch.minimum), over_corners(few, torch.maximum)
        self.codes = low.int()
        mixed = (low != high).nonzero(as_tuple=True)
        if not len(mixed[0]):
            return
        below, above = low[mixed].long(), high[mixed].long()
        # of the voxels at these corners alone a table is made, one column each
        corners = _corners(mixed, top.shape)
        voxels, corners = _numbered(corners, top.numel())
        table, tops = _columns(scores, voxels), top.flatten()[voxels][None]
        del top, few, low, high
        lower, upper = table[below[:, None], corners], table[above[:, None], corners]
        largest = table.gather(0, tops)
        second = table.scatter_(0, tops, -torch.inf).amax(0)[corners]
        table.scatter_(0, tops, largest)
        named = tops[0, corners]
        two = ((named == below[:, None]) | (named == above[:, None])).all(dim=1)
        sure = two & (torch.minimum(lower, upper) >= second).all(dim=1)
        order = torch.where(sure, 0, torch.where(two, 1, 2)).argsort(stable=True)
        number = torch.empty_like(order)
        number[order] = torch.arange(len(order), device=order.device)
        self.codes[mixed] = -1 - number.int()
        self._sure, self._two = int(sure.sum()), int(two.sum())  # of the cells in order, so many are of either kind
        pairs, rest = order[: self._two], order[self._sure :]
        self._pair = torch.stack([below[pairs], above[pairs]], dim=1)
        self._difference = (lower - upper)[pairs]
        self._bound = (second - upper)[order[self._sure : self._two]]
        voxels, self._corners = _numbered(corners[rest], table.shape[1])
        self._rows = table.index_select(1, voxels).T.contiguous()

    def classes(self, cells: Tensor, shares: Sequence[Tensor]) -> Tensor:
        """The class of the largest score at points, the lower one at a tie.

        Args:
            cells: (P), the number of the cell that each lies in.
            shares: three of (P), float32: how far each lies along an axis, from 0 at the near corners to 1.
        """
        found = torch.empty_like(cells)
        for first in range(0, len(cells), POINTS):
            part = slice(first, first + POINTS)
            found[part] = self._classes(cells[part], [share[part] for share in shares])
        return found

    def _classes(self, cells: Tensor, shares: Sequence[Tensor]) -> Tensor:
        paired = cells.clamp(max=self._two - 1) if self._two else cells
        if not self._two:
            return self._in_full(cells, shares)
        lead = _between(self._difference[paired], shares)
        found = self._pair[paired, (lead < 0).long()]
        left = (cells >= self._sure).nonzero()[:, 0]
        if not len(left):
            return found
        numbers, parts = cells[left], [share[left] for share in shares]
        open_ = torch.ones(len(left), dtype=torch.bool, device=cells.device)
        if self._two > self._sure:
            bound = _between(self._bound[numbers.clamp(max=self._two - 1) - self._sure], parts)
            open_ = (numbers >= self._two) | (lead[left].clamp(min=0) <= bound)
        left, numbers, parts = left[open_], numbers[open_], [share[open_] for share in parts]
        found[left] = self._in_full(numbers, parts)
        return found

    def _in_full(self, cells: Tensor, shares: Sequence[Tensor]) -> Tensor:
        found = torch.empty_like(cells)
        step = max(1, NUMBERS // self._rows.shape[1])
        for first in range(0, len(cells), step):
            part = slice(first, first + step)
            corners = self._corners[cells[part] - self._sure]
            found[part] = _at_points(self._rows, corners, [share[part] for share in shares]).max(dim=1).indices
        return found


class RegionCells:
    """The cells of a box of scores of regions that may overlap.

    Args:
        scores: (R, X, Y, Z), finite, each above 0 where its region is. An axis of one voxel has one cell.

    Attributes:
        codes: per cell the number of the last region that all of it has, 0 for none; or -1 - its number where the
            corners differ; int32.
    """

    def __init__(self, scores: Tensor) -> None:
        last = last_region(scores)
        low, high = over_corners(last, torch.minimum), over_corners(last, torch.maximum)
        self.codes = low.int()
        mixed = (low != high).nonzero(as_tuple=True)
        if not len(mixed[0]):
            return
        voxels, self._corners = _numbered(_corners(mixed, last.shape), last.numel())
        self._rows = _columns(scores, voxels).T.contiguous()
        self.codes[mixed] = -1 - torch.arange(len(mixed[0]), dtype=torch.int32, device=scores.device)

    def classes(self, cells: Tensor, shares: Sequence[Tensor]) -> Tensor:
        """The number of the last region at points, 0 for none; arguments as those of `Cells.classes`."""
        found = torch.empty_like(cells)
        step = max(1, min(POINTS, NUMBERS // self._rows.shape[1]))
        for first in range(0, len(cells), step):
            part = slice(first, first + step)
            total = _at_points(self._rows, self._corners[cells[part]], [share[part] for share in shares])
            found[part] = last_region(total.T).long()
        return found


def top_class(scores: Tensor) -> Tensor:
    """The class (*S) of the largest score (K, *S), the lower one at a tie; max is far faster than argmax on a CPU."""
    if len(scores) == 2:
        return (scores[1] > scores[0]).long()  # five times as fast again
    return scores.max(dim=0).indices


def decided(scores: Tensor, *, regions: bool = False) -> Tensor:
    """What voxels (*S) are by their scores (K, *S): their top class, or of regions the number of the last one."""
    return last_region(scores) if regions else top_class(scores)


def last_region(scores: Tensor) -> Tensor:
    """The number (*S), from 1, of the last region whose score (R, *S) is above 0, and 0 where there is none; int16."""
    found = torch.zeros(scores.shape[1:], dtype=torch.int16, device=scores.device)
    for number, score in enumerate(scores, start=1):
        found.masked_fill_(score > 0, number)
    return found


def over_corners(values: Tensor, take: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Per cell the smallest or largest of its corners' values."""
    for axis, size in enumerate(values.shape):
        if size > 1:
            values = take(values.narrow(axis, 0, size - 1), values.narrow(axis, 1, size - 1))
    return values


def _corners(cells: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """The voxels (M, 8) at the corners of cells, numbered through a box of that shape; the last axis runs fastest."""
    found = torch.zeros(1, 1, dtype=torch.long, device=cells[0].device)
    for at, size in zip(cells, shape, strict=True):
        ends = torch.stack([at, (at + 1).clamp(max=size - 1)], dim=1)
        found = (found.unsqueeze(2) * size + ends.unsqueeze(1)).flatten(1)
    return found


def _columns(scores: Tensor, voxels: Tensor) -> Tensor:
    """Scores (K, U) of voxels that are numbered through the box; of a part of a larger tensor nothing else is read."""
    shape, steps = scores.shape[1:], scores.stride()[1:]
    offsets, rest = torch.zeros_like(voxels), voxels
    for size, step in zip(reversed(shape), reversed(steps), strict=True):
        offsets += rest % size * step
        rest = rest // size
    span = 1 + sum((size - 1) * step for size, step in zip(shape, steps, strict=True))
    return scores.as_strided((len(scores), span), (scores.stride(0), 1)).gather(1, offsets.expand(len(scores), -1))


def _numbered(voxels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The voxels that are named, rising, and instead of each its place among these."""
    used = torch.zeros(count, dtype=torch.bool, device=voxels.device)
    used[voxels.flatten()] = True
    named = used.nonzero()[:, 0]
    place = torch.empty(count, dtype=torch.int32, device=voxels.device)
    place[named] = torch.arange(len(named), dtype=torch.int32, device=voxels.device)
    return named, place[voxels].long()


def _at_points(rows: Tensor, corners: Tensor, shares: Sequence[Tensor]) -> Tensor:
    """Scores (P, K): a point is a weighted sum of eight rows, which is what `embedding_bag` computes in one pass."""
    weights = torch.ones(1, 1, device=rows.device)
    for share in shares:
        pair = torch.stack([1 - share, share], dim=1)
        weights = (weights.unsqueeze(2) * pair.unsqueeze(1)).flatten(1)
    return functional.embedding_bag(corners, rows, per_sample_weights=weights, mode="sum")


def _between(values: Tensor, shares: Sequence[Tensor]) -> Tensor:
    """Values (P, 8) of corners, interpolated linearly."""
    for share in reversed(shares):
        pairs = values.unflatten(1, (-1, 2))
        values = torch.lerp(pairs[..., 0], pairs[..., 1], share[:, None])
    return values[:, 0]
