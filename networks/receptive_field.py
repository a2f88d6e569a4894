"""How far one output voxel sees, by interval arithmetic along one axis.

At every level voxel i sees the input voxels first(i) to last(i). Both repeat with the period of the network's total
stride, so one period says everything, for every position ("parity") of the output.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Reach:
    """What the voxels of one feature map see along one axis; each method is one layer and returns the next map.

    Args:
        period: total stride of the network.
        first: first input voxel seen, for the voxels of one period.
        last: last input voxel seen.
    """

    period: int
    first: np.ndarray
    last: np.ndarray

    @classmethod
    def of_input(cls, period: int) -> Reach:
        """Each voxel of the input sees itself."""
        return cls(period, np.arange(period), np.arange(period))

    @property
    def size(self) -> int:
        """Voxels seen, the largest over positions."""
        return int((self.last - self.first).max()) + 1

    def conv(self, kernel: int, stride: int = 1, dilation: int = 1) -> Reach:
        """A convolution or a pooling, padded by half its kernel, rounded down: 1 for a kernel of 3, 0 for one of 2."""
        starts = np.arange(len(self.first) // stride)[:, None] * stride - dilation * (kernel - 1) // 2
        return self._seen(starts + dilation * np.arange(kernel)[None, :])

    def up(self, stride: int) -> Reach:
        """A transposed convolution whose kernel is its stride, or nearest-neighbour interpolation."""
        return self._seen((np.arange(len(self.first) * stride) // stride)[:, None])

    def join(self, other: Reach) -> Reach:
        """A concatenation or a sum of two maps of the same size."""
        return Reach(self.period, np.minimum(self.first, other.first), np.maximum(self.last, other.last))

    def _seen(self, taps: np.ndarray) -> Reach:
        """The map whose voxel i sees what the voxels `taps[i]` of this one see."""
        turns, within = np.divmod(taps, len(self.first))
        first = self.first[within] + turns * self.period
        last = self.last[within] + turns * self.period
        return Reach(self.period, first.min(axis=1), last.max(axis=1))
