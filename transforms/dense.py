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

from .match import Box, cuts, reach
from .placing import along
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
        scores_of: what is added (F, *S) to scores (K, *S), linear; what is added are scores where it is left out.
        device: where the scores are interpolated; where they lie when left out.
        numbers: scores looked at at a time.

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
        device: torch.device | None = None,
        numbers: int = NUMBERS,
    ) -> None:
        super().__init__(shape, affine, source_shape, source_affine, scores_of=scores_of, device=device)
        self.receivers, self.numbers = tuple(receivers), numbers
        # for each source axis the network axis that alone depends on it, and itself; None where axes run across
        lines = self.match.lines
        self._along = None if lines is None else tuple((lines.index(source), source) for source in range(3))

    @property
    def voxels(self) -> int:
        """Of a box, at most."""
        return max(8, self.numbers // self.classes)

    def take(self, box: Box, values: Tensor) -> None:
        """Give out what a box says of the source."""
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
        around = reach(self.match, self.shape, self.source_shape, cells)
        if min(part.stop - part.start for part in around) <= 0:
            return
        if self._along is not None:
            around = [self._belonging(axis, source, around, cells) for axis, source in self._along]
        sides = [part.stop - part.start for part in around]
        if min(sides) <= 0:
            return
        for cut in cuts(sides, self.voxels, 0):
            where = [
                slice(whole.start + one.start, whole.start + one.stop) for whole, one in zip(around, cut, strict=True)
            ]
            if self._along is not None:
                self._give(where, self.scores_of(self._by_axes(values, where, cells)))
            else:
                self._by_points(values, where, cells)

    def _belonging(self, axis: int, source: int, around: Sequence[slice], cells: Box) -> slice:
        """Voxels of a source axis that lie in these cells of a network axis that it runs along."""
        _, _, inside = along(self.match, self.shape, cells, around, axis, torch.device("cpu"))
        found = inside.flatten().nonzero()
        first = around[source].start
        return slice(first + int(found[0]), first + int(found[-1]) + 1) if len(found) else slice(0, 0)

    def _by_axes(self, values: Tensor, where: Sequence[slice], cells: Box) -> Tensor:
        """What is interpolated for a box of the source (F, *box) whose axes run along those of the network's grid."""
        assert self._along is not None
        for axis, _ in self._along:
            corner, share, _ = along(self.match, self.shape, cells, where, axis, values.device)
            low = corner.flatten()
            high = (low + 1).clamp(max=values.shape[axis + 1] - 1)
            size = [1, 1, 1, 1]
            size[axis + 1] = -1
            lower, upper = values.index_select(axis + 1, low), values.index_select(axis + 1, high)
            values = torch.lerp(lower, upper, share.reshape(size))
        return values.permute(0, *(axis + 1 for axis, _ in self._along))

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
