"""A prepared image resampled by splines box by box: each box is made of the normalised voxels that it depends on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .boxes import BlockwiseImage, Box, StoredImage, slabs, slowest_axis
from .spline import BEYOND, Ranges, Spline, apply_spline, ranges_of

SLAB_VOXELS = 1 << 23  # of the source: neighbouring slabs share some 24 of its planes
AROUND = 2 * BEYOND  # voxels of the source around a box that it depends on as well
SOURCE_BYTES, MADE_BYTES = 16, 8  # a voxel of a channel: of the source while it is normalised; made axis by axis


@dataclass(frozen=True, eq=False)
class SplinedImage(BlockwiseImage):
    """Voxels that are normalised first and resampled by splines then.

    Args:
        source: normalised, on the grid of the volume.
        affine: of the prepared image.
        way: from the source's grid.
        ranges: that each channel is clipped to, found when they are first needed.
    """

    source: StoredImage
    affine: np.ndarray
    way: Spline
    ranges: dict[int, Ranges] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels and voxels along each axis."""
        return (len(self.source.stored), *self.way.new_shape)

    @property
    def resampled(self) -> bool:
        """Voxels are interpolated."""
        return True

    def __getitem__(self, where: Box) -> Tensor:
        """The voxels (C, *box) of a box, float32, of all channels.

        Memory: the box, and `working_bytes`: one channel of the source with some 12 voxels around it.
        """
        box = [slice(*part.indices(size)[:2]) for part, size in zip(where[1:], self.shape[1:], strict=True)]
        result = torch.empty(len(self.source.stored), *(max(0, part.stop - part.start) for part in box))
        if result.numel() == 0:
            return result
        self._find_ranges()
        old, way = self.way.part(box)
        for channel in range(len(result)):
            ranges = self.ranges.get(channel)
            if ranges is not None and way.separate is not None:
                ranges = ranges[0][old[way.separate]], ranges[1][old[way.separate]]
            result[channel] = apply_spline(way, self.source.channel(channel, old), ranges)
        return result

    def working_bytes(self, sides: Sequence[int] | None = None) -> int:
        """What is made on the way to a box of these sides, or to all voxels at once, beside the box, at most."""
        if sides is None:
            box = next(iter(self._slabs()))
            sides = [part.indices(size)[1] for part, size in zip(box[1:], self.shape[1:], strict=True)]
            slab = 4 * math.prod((len(self.source.stored), *sides))  # before it is put where it belongs
            return slab + self.working_bytes(sides)
        new = [min(side, size) for side, size in zip(sides, self.shape[1:], strict=True)]
        old = [
            min(size, math.ceil(side * size / resampled) + AROUND)
            for side, size, resampled in zip(new, self.source.shape[1:], self.shape[1:], strict=True)
        ]
        made = math.prod(max(pair) for pair in zip(new, old, strict=True))  # one axis after the other
        return max(SOURCE_BYTES * math.prod(old), 4 * math.prod(old) + MADE_BYTES * made)

    def whole(self) -> Tensor:
        """All voxels at once.

        Memory: the result, and a slab.
        """
        result = torch.empty(self.shape)
        for box in self._slabs():
            result[box] = self[box]
        return result

    def _slabs(self) -> Iterator[Box]:
        across = max(math.prod(self.shape) / math.prod(self.source.shape), 1e-3)
        return slabs(self.shape, slowest_axis(self.source.stored), round(SLAB_VOXELS * min(1.0, across)))

    def _find_ranges(self) -> None:
        if not self.way.clips or self.ranges:
            return
        separate = self.way.separate
        found = []
        for box in self.source.slabs():
            found.append([ranges_of(values, separate) for values in self.source.box(box, order="K")])
        side_by_side = separate is not None and slowest_axis(self.source.stored) == separate
        for channel in range(len(self.source.stored)):
            lows, highs = zip(*(slab[channel] for slab in found), strict=True)
            if side_by_side:
                self.ranges[channel] = torch.cat(lows), torch.cat(highs)
            else:
                self.ranges[channel] = torch.stack(lows).amin(0), torch.stack(highs).amax(0)
