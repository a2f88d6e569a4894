"""A tensor and its place: how the steps of a chain hand on the affine that the voxels have now."""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor


def affine_of(image: Tensor) -> np.ndarray:
    """The (4, 4) float64 affine, voxel index to RAS+ mm; the identity where the tensor has none."""
    affine = image.affine if isinstance(image, MetaTensor) else torch.eye(4)
    return affine.detach().cpu().numpy().astype(np.float64)


def plain(image: Tensor) -> Tensor:
    """The tensor without its metadata (no copy): arithmetic on it does not pass through MONAI's bookkeeping."""
    return image.as_tensor() if isinstance(image, MetaTensor) else image


def located(voxels: Tensor, affine: np.ndarray, like: Tensor) -> MetaTensor:
    """`voxels` at `affine`, with the other metadata of `like`."""
    meta = {key: value for key, value in like.meta.items() if key != "affine"} if isinstance(like, MetaTensor) else {}
    return MetaTensor(voxels, affine=torch.as_tensor(affine, dtype=torch.float64), meta=meta)
