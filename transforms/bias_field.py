"""N4 bias-field correction of MR: the slow shading of the coil is estimated on a coarse grid and divided out.

Tustison et al., IEEE TMI 2010, through SimpleITK, which is loaded only when a plan asks for this step.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform

from .located import affine_of, located, plain


def correct_bias_field(
    image: np.ndarray, spacing_mm: Sequence[float], *, shrink: int = 4, iterations: Sequence[int] = (50, 50, 50)
) -> np.ndarray:
    """One channel (X, Y, Z) without its bias field, float32; values up to 0 and constant images stay as they are.

    Args:
        image: values where larger is brighter; only those above 0 are corrected.
        spacing_mm: of the three axes.
        shrink: the field is estimated on every n-th voxel of the axes that have at least 4 n of them.
        iterations: at most so many on each level.
    """
    import SimpleITK as sitk  # a large library that only plans with this step need

    values = np.ascontiguousarray(image, dtype=np.float32)
    bright = values > 0
    if bright.sum() < 64 or np.ptp(values[bright]) == 0 or min(values.shape) < 2:
        return values.copy()
    scale = float(values[bright].mean())  # N4 works on logarithms: far from 1 its histogram loses the tissue
    full = sitk.GetImageFromArray((values / scale).T)
    full.SetSpacing([float(step) for step in spacing_mm])
    mask = sitk.GetImageFromArray(bright.T.astype(np.uint8))
    mask.CopyInformation(full)
    factors = [shrink if size >= 4 * shrink else 1 for size in values.shape]
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([int(count) for count in iterations])
    n4.Execute(sitk.Shrink(full, factors), sitk.Shrink(mask, factors))
    field = sitk.GetArrayFromImage(sitk.Exp(n4.GetLogBiasFieldAsImage(full))).T
    corrected = np.where(bright & (field > 0), values / np.where(field > 0, field, 1), values)
    return np.ascontiguousarray(corrected, dtype=np.float32)


class CorrectBiasField(MapTransform):
    """`correct_bias_field` on each channel of the images under `keys`."""

    def __init__(self, keys: Sequence[str], shrink: int = 4) -> None:
        super().__init__(keys)
        self.shrink = shrink

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with float32 images."""
        sample = dict(data)
        for key in self.keys:
            affine = affine_of(data[key])
            spacing = np.linalg.norm(affine[:3, :3], axis=0)
            channels = [
                correct_bias_field(channel, spacing, shrink=self.shrink) for channel in plain(data[key]).numpy()
            ]
            sample[key] = located(torch.from_numpy(np.stack(channels)), affine, data[key])
        return sample
