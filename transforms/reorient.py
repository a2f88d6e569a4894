"""Axes permuted and flipped to point where the plan wants them; no voxel changes its value or its place."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform
from torch import Tensor

from .geometry import axis_codes, reorient_to
from .located import affine_of, located, plain


def reorient(image: Tensor, affine: np.ndarray, codes: str) -> tuple[Tensor, np.ndarray]:
    """(C, X, Y, Z) with axes that point to `codes` as nearly as the grid allows, and its affine."""
    if axis_codes(affine) == codes:
        return image, affine
    moved, new_affine = reorient_to(image.numpy(), affine, codes)
    return torch.from_numpy(np.ascontiguousarray(moved)), new_affine


class Orient(MapTransform):
    """`reorient` on images and label maps."""

    def __init__(self, keys: Sequence[str], orientation: str) -> None:
        super().__init__(keys)
        self.orientation = orientation

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with its axes in order."""
        sample = dict(data)
        for key in self.keys:
            voxels, affine = reorient(plain(data[key]), affine_of(data[key]), self.orientation)
            sample[key] = located(voxels, affine, data[key])
        return sample
