"""2.5D: each slice with its neighbours as channels, made when a box is asked for.

A network of slices that takes C * k channels sees k slices at a time: of channels (c0, c1, ...) the k slices of c0 come
first, from the one furthest below to the one furthest above. Beyond the ends the last slice is repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def neighbours(image: Any, axis: int, slices: int) -> Any:
    """The image itself where a network sees one slice at a time, else `WithNeighbours`."""
    return image if slices == 1 else WithNeighbours(image, axis, slices)


class WithNeighbours:
    """An image (C, X, Y, Z) as one of (C * slices, X, Y, Z); a tensor, a numpy array, or what gives boxes of such.

    Args:
        image: that is asked for boxes.
        axis: spatial axis that slices are stacked along.
        slices: odd: a slice and as many of its neighbours to each side.
    """

    def __init__(self, image: Any, axis: int, slices: int) -> None:
        if slices < 1 or slices % 2 == 0:
            raise ValueError(f"slices is an odd number, a slice and its neighbours; got {slices}")
        self.image, self.axis, self.slices = image, axis, slices

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels and voxels along each axis."""
        return (int(self.image.shape[0]) * self.slices, *(int(side) for side in self.image.shape[1:]))

    def __getitem__(self, where: Sequence[slice]) -> Any:
        """The voxels (C * slices, *box) of a box, all channels of it."""
        reach, length = self.slices // 2, self.shape[self.axis + 1]
        box = [slice(*part.indices(size)[:2]) for part, size in zip(where[1:], self.shape[1:], strict=True)]
        part = box[self.axis]
        low, high = max(0, part.start - reach), min(length, part.stop + reach)
        box[self.axis] = slice(low, high)
        around = (slice(None), *box)
        voxels = self.image[around]
        numbers = np.arange(part.start, part.stop) + np.arange(-reach, reach + 1)[:, None]
        wanted = numbers.clip(0, length - 1) - low
        if isinstance(voxels, Tensor):
            shifted = [voxels.index_select(self.axis + 1, torch.from_numpy(row)) for row in wanted]
            return torch.stack(shifted, dim=1).flatten(0, 1)
        shifted = [np.take(voxels, row, axis=self.axis + 1) for row in wanted]
        return np.stack(shifted, axis=1).reshape(-1, *shifted[0].shape[1:])
