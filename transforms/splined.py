"""A prepared image resampled by splines box by box: each box is made of the normalised voxels that it depends on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .boxes import BlockwiseImage, Box, StoredImage, slabs, slowest_axis
from .spline import Ranges, Spline, apply_spline, ranges_of

SLAB_VOXELS = 1 << 24  # of the source: neighbouring slabs share some 24 of its planes


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

        Memory: the box, and that of the source with some 12 voxels around it.
        """
        box = [slice(*part.indices(size)[:2]) for part, size in zip(where[1:], self.shape[1:], strict=True)]
        result = torch.empty(len(self.source.stored), *(max(0, part.stop - part.start) for part in box))
        if result.numel() == 0:
            return result
        self._find_ranges()
        old, way = self.way.part(box)
        for channel, values in enumerate(self.source.box((slice(None), *old), order="K")):
            ranges = self.ranges.get(channel)
            if ranges is not None and way.separate is not None:
                ranges = ranges[0][old[way.separate]], ranges[1][old[way.separate]]
            result[channel] = apply_spline(way, values, ranges)
        return result

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
