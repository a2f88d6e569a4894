"""Scores on a network's grid back to the grid of the source: all of them, for what needs more than the label.

The interpolation is that of restore.py: linear, scores beyond the last centre are those of it, and nothing is said of
voxels outside of the network's grid. Boxes are given to receivers and forgotten, so that neither grid holds all scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .lines import along, box_of, interpolated, lines_between
from .match import Box, Convention, cuts, reach
from .streamed import Streamed

NUMBERS = 1 << 20  # scores at a time, 4 MiB of float32
COPIES = 12  # of so many scores that are made on the way, those of two receivers included


class Receiver(Protocol):
    """What takes finished scores."""

    def take(self, where: tuple[slice, ...], scores: Tensor, inside: Tensor | None) -> None:
        """Scores (K, *box) of a box of the source grid; `inside` (*box) says which voxels they are of, None for all."""
        ...


class DenseRestoration(Streamed):
    """Scores of every source voxel that lies on the network's grid; each one is given once.

    Args:
        shape: of the network's grid.
        affine: of the network's grid.
        source_shape: (X, Y, Z); a picture has Z = 1.
        source_affine: of the source grid.
        receivers: of the scores.
        scores_of: what is interpolated (F, *S) to scores (K, *S); what is added are scores where it is left out.
        before: what is added to what is interpolated; the same where it is left out.
        device: where the scores are interpolated; where they lie when left out.
        numbers: scores looked at at a time.
        convention: what of the two grids agrees, as in `match.Match`.
        nearest: the network axis along which nothing is interpolated.

    Memory: `working_bytes` on the device.
    """

    def __init__(
        self,
        shape: Sequence[int],
        affine: np.ndarray,
        source_shape: Sequence[int],
        source_affine: np.ndarray,
        *,
        receivers: Sequence[Receiver],
        scores_of: Callable[[Tensor], Tensor] | None = None,
        before: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | None = None,
        numbers: int = NUMBERS,
        convention: Convention = "centres",
        nearest: int | None = None,
    ) -> None:
        super().__init__(
            shape,
            affine,
            source_shape,
            source_affine,
            scores_of=scores_of,
            device=device,
            convention=convention,
            nearest=nearest,
        )
        self.receivers, self.numbers = tuple(receivers), numbers
        self.before = (lambda values: values) if before is None else before

    @property
    def voxels(self) -> int:
        """Of a box, at most."""
        return max(8, self.numbers // self.classes)

    def count(self, values: Tensor) -> int:
        """Classes of what is added (F, *S)."""
        return super().count(self.before(values))

    def take(self, box: Box, values: Tensor) -> None:
        """Give out what a box says of the source."""
        values = self.before(values)
        if self.match.axes is not None:
            self._copy(box, values)
        elif (cells := self.cells(box)) is not None:
            self._interpolate(cells, values)

    def _give(self, where: Sequence[slice], scores: Tensor, inside: Tensor | None = None) -> None:
        for receiver in self.receivers:
            receiver.take(tuple(where), scores, inside)

    def _copy(self, box: Box, values: Tensor) -> None:
        """Give out scores of a grid that matches voxel by voxel."""
        assert self.match.axes is not None
        where, flipped = [slice(0, 0)] * 3, []
        for axis, (source_axis, sign) in enumerate(self.match.axes):
            # index in the box = sign * source index + offset
            offset = int(self.match.matrix[axis, 3]) - box[axis].start
            side = box[axis].stop - box[axis].start
            ends = sorted((sign * (0 - offset), sign * (side - 1 - offset)))
            low, high = max(ends[0], 0), min(ends[1], self.source_shape[source_axis] - 1)
            if low > high:
                return
            where[source_axis] = slice(low, high + 1)
            taken = sorted((sign * low + offset, sign * high + offset))
            values = values.narrow(axis + 1, taken[0], taken[1] - taken[0] + 1)
            flipped += [axis + 1] if sign < 0 else []
        scores = self.scores_of(values)
        order = np.argsort([source_axis for source_axis, _ in self.match.axes])
        self._give(where, (scores.flip(flipped) if flipped else scores).permute(0, *(1 + int(at) for at in order)))

    def _interpolate(self, cells: Box, values: Tensor) -> None:
        """Give out the source voxels that lie in cells."""
        if self.match.lines is not None:
            self._by_lines(cells, values, self.match.lines)
            return
        around = reach(self.match, self.shape, self.source_shape, cells)
        sides = [part.stop - part.start for part in around]
        if min(sides) <= 0:
            return
        for cut in cuts(sides, self.voxels, 0):
            where = [
                slice(whole.start + one.start, whole.start + one.stop) for whole, one in zip(around, cut, strict=True)
            ]
            self._by_points(values, where, cells)

    def _by_lines(self, cells: Box, values: Tensor, order: Sequence[int]) -> None:
        """The same where axes of the source run along those of the network's grid."""
        lines = lines_between(self.match, self.shape, self.source_shape, cells, values.device)
        if lines is None:
            return
        axes = [1 + order.index(source) for source in range(3)]
        for cut in cuts([len(line) for line in lines], self.voxels, 0):
            parts = [line.part(part) for line, part in zip(lines, cut, strict=True)]
            self._give(box_of(self.match, parts), self.scores_of(interpolated(values, parts).permute(0, *axes)))

    def _by_points(self, values: Tensor, where: Sequence[slice], cells: Box) -> None:
        """The same for axes that run across: a point is a weighted sum of eight rows of a table (voxels, F)."""
        size = tuple(part.stop - part.start for part in where)
        located = [along(self.match, self.shape, cells, where, axis, values.device) for axis in range(3)]
        inside = (located[0][2] & located[1][2] & located[2][2]).expand(size)
        if not bool(inside.any()):
            return
        points = inside.nonzero(as_tuple=True)
        planes, rows, columns = values.shape[1:]
        index = torch.zeros(1, 1, dtype=torch.long, device=values.device)
        weights = torch.ones(1, 1, device=values.device)
        strides = (rows * columns, columns, 1)
        for (corner, share, _), side, stride in zip(located, (planes, rows, columns), strides, strict=True):
            low, above = corner.expand(size)[points], share.expand(size)[points]
            ends = torch.stack([low, (low + 1).clamp(max=side - 1)], dim=1) * stride
            pair = torch.stack([1 - above, above], dim=1)
            index = (index.unsqueeze(2) + ends.unsqueeze(1)).flatten(1)
            weights = (weights.unsqueeze(2) * pair.unsqueeze(1)).flatten(1)
        table = values.flatten(1).T.contiguous()
        total = functional.embedding_bag(index, table, per_sample_weights=weights, mode="sum")
        found = self.scores_of(total.T.reshape(total.shape[1], -1, 1, 1))
        scores = torch.zeros((len(found), *size), device=values.device)
        scores[:, inside] = found.flatten(1)
        self._give(where, scores, inside)


def working_bytes(classes: int, features: int, numbers: int = NUMBERS) -> int:
    """What a restoration takes while it looks at one box, its receivers included, at most."""
    voxels = max(8, numbers // classes)
    return 4 * voxels * (COPIES * classes + 4 * features + 40)
