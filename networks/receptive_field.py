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

    def conv(self, kernel: int, stride: int = 1, dilation: int = 1, padding: int | None = None) -> Reach:
        """A convolution or a pooling.

        Padded by half its kernel without `padding`, rounded down: 1 for a kernel of 3, 0 for one of 2.
        """
        before = dilation * (kernel - 1) // 2 if padding is None else padding
        starts = np.arange(len(self.first) // stride)[:, None] * stride - before
        return self._seen(starts + dilation * np.arange(kernel)[None, :])

    def convs(self, kernel: int, times: int) -> Reach:
        """Convolutions of stride 1, one behind the other."""
        seen = self
        for _ in range(times):
            seen = seen.conv(kernel)
        return seen

    def up(self, stride: int, kernel: int | None = None, padding: int = 0) -> Reach:
        """A transposed convolution, its kernel the stride by default; that is nearest-neighbour interpolation too."""
        below = np.arange(len(self.first) * stride) + padding
        spread = (stride if kernel is None else kernel) - 1
        return self._seen(np.stack((-((spread - below) // stride), below // stride), axis=1))

    def linear(self, stride: int) -> Reach:
        """Linear interpolation to `stride` (even) times the size, voxel centres kept (align_corners=False)."""
        return self.up(stride, 2 * stride, stride // 2)

    def crop(self, offset: int) -> Reach:
        """The map without its first `offset` voxels."""
        return self._seen((np.arange(len(self.first)) + offset)[:, None])

    def join(self, other: Reach) -> Reach:
        """A concatenation or a sum of two maps of the same size."""
        return Reach(self.period, np.minimum(self.first, other.first), np.maximum(self.last, other.last))

    def _seen(self, taps: np.ndarray) -> Reach:
        """The map whose voxel i sees what the voxels `taps[i]` of this one see."""
        turns, within = np.divmod(taps, len(self.first))
        first = self.first[within] + turns * self.period
        last = self.last[within] + turns * self.period
        return Reach(self.period, first.min(axis=1), last.max(axis=1))
