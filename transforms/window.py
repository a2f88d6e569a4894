"""Intensities: a fixed window (CT) or the image's own mean and deviation (MR and everything without a scale)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import MapTransform
from torch import Tensor

from .located import affine_of, located, plain

EPSILON = 1e-8


def window(image: Tensor, low: float, high: float, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Clip to [low, high], then (value - mean) / std; shape kept, a new float32 tensor."""
    if low >= high:
        raise ValueError(f"a window needs low < high, got low={low:g}, high={high:g}")
    return _float_copy(image).clamp_(low, high).sub_(mean).div_(max(std, EPSILON))


def rescale(image: Tensor, low: float, high: float) -> Tensor:
    """[low, high] becomes [0, 1], values outside are clipped; shape kept, a new float32 tensor."""
    return window(image, low, high, low, high - low)


def zscore(image: Tensor, *, nonzero: bool = False, low: float | None = None, high: float | None = None) -> Tensor:
    """Mean 0 and deviation 1 over the image, or over its nonzero voxels (the others become 0); a new float32 tensor.

    A constant image becomes 0 everywhere. `low` and `high` clip the result.
    """
    values = _float_copy(image)
    inside = values != 0 if nonzero else None
    counted = values if inside is None else values[inside]
    if counted.numel() == 0:
        return values.zero_()
    mean = counted.mean(dtype=torch.float64)
    std = (counted - mean.float()).square_().mean(dtype=torch.float64).sqrt()
    return standardise(values, mean, std, inside=inside, low=low, high=high)


def standardise(
    values: Tensor,
    mean: Tensor,
    std: Tensor,
    *,
    inside: Tensor | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    """(values - mean) / std in place, 0 outside of `inside`; 0 everywhere where the deviation is that of a constant."""
    if std <= EPSILON + 1e-7 * mean.abs():  # what float32 leaves of a constant
        return values.zero_()
    values.sub_(mean.float()).div_(std.float())
    if inside is not None:
        values.mul_(inside)
    return values if low is None and high is None else values.clamp_(low, high)


class Normalise(MapTransform):
    """One normalisation a channel on the images under `keys`; label maps are left alone.

    Args:
        keys: of images (C, X, Y, Z).
        channels: for each channel the plan's values (kind, low, high, mean, std), see `normalise`.
    """

    def __init__(self, keys: Sequence[str], channels: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(keys)
        self.channels = [dict(values) for values in channels]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with float32 images."""
        sample = dict(data)
        for key in self.keys:
            image = data[key]
            voxels = plain(image)
            if len(voxels) != len(self.channels):
                raise ValueError(f"{key} has {len(voxels)} channels, {len(self.channels)} normalisations were given")
            done = torch.empty(voxels.shape, dtype=torch.float32)
            for channel, values in enumerate(self.channels):
                done[channel] = normalise(voxels[channel], **values)
            sample[key] = located(done, affine_of(image), image)
        return sample


def normalise(
    image: Tensor, kind: str, low: float | None = None, high: float | None = None, mean: float = 0.0, std: float = 1.0
) -> Tensor:
    """One channel by the values of a plan."""
    if kind in ("zscore", "zscore_nonzero"):
        return zscore(image, nonzero=kind == "zscore_nonzero", low=low, high=high)
    if low is None or high is None:
        raise ValueError(f"{kind} needs low and high")
    if kind == "window":
        return window(image, low, high, mean, std)
    if kind == "rescale":
        return rescale(image, low, high)
    raise ValueError(f"unknown normalisation {kind!r} (there are: rescale, window, zscore, zscore_nonzero)")


def _float_copy(image: Tensor) -> Tensor:
    return plain(image).to(torch.float32, copy=True)
