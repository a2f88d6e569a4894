"""Crop to what is not zero, as skull-stripped and masked images allow it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform
from scipy.ndimage import label
from torch import Tensor

from .located import affine_of, located, plain


def nonzero_box(image: Tensor) -> tuple[slice, slice, slice] | None:
    """The smallest box that holds every voxel that is not 0 in some channel of (C, X, Y, Z); None where all are 0."""
    occupied = image.ne(0).any(0)
    box = []
    for axis in range(3):
        lines = occupied.flatten(1).any(1) if axis == 0 else occupied.any(0).any(2 - axis)
        where = lines.nonzero().flatten()
        if not len(where):
            return None
        box.append(slice(int(where[0]), int(where[-1]) + 1))
    return box[0], box[1], box[2]


def nonzero_mask(image: Tensor) -> Tensor:
    """Where some channel of (C, X, Y, Z) is not 0, and what it encloses; bool (X, Y, Z).

    Memory: five bytes a voxel.
    """
    return torch.from_numpy(fill_holes(image.ne(0).any(0).numpy()))


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """A bool mask (X, Y, Z) with every part of its outside that no side of the volume touches."""
    parts, count = label(~mask)
    outside = np.zeros(count + 1, bool)
    for axis in range(parts.ndim):
        outside[np.take(parts, [0, -1], axis)] = True
    outside[0] = False
    filled: np.ndarray = ~outside[parts]
    return filled


def crop(image: Tensor, affine: np.ndarray, box: tuple[slice, slice, slice]) -> tuple[Tensor, np.ndarray]:
    """The box (a view) and its affine."""
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ np.array([side.start for side in box], float)
    return image[:, box[0], box[1], box[2]], moved


class CropNonzero(MapTransform):
    """All keys cropped to the nonzero box of the image; an image of zeros is kept whole."""

    def __init__(self, keys: Sequence[str], decided_by: str = "image") -> None:
        super().__init__(keys)
        self.decided_by = decided_by

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the cropped sample."""
        box = nonzero_box(plain(data[self.decided_by]))
        sample = dict(data)
        if box is None:
            return sample
        for key in self.keys:
            voxels, affine = crop(plain(data[key]), affine_of(data[key]), box)
            sample[key] = located(voxels, affine, data[key])
        return sample
