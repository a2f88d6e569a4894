"""Intensities: a fixed window (CT) or the image's own mean and deviation (MR and everything without a scale)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import MapTransform
from torch import Tensor

from .crop import nonzero_mask
from .located import affine_of, located, plain

EPSILON = 1e-8
OWN_RANGE = ("rescale_own", "rescale_nonzero")
OWN = ("zscore", "zscore_nonzero", "zscore_mask", *OWN_RANGE)  # by two numbers of the image itself
KINDS = ("none", "rescale", "window", *OWN)


def window(image: Tensor, low: float, high: float, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Clip to [low, high], then (value - mean) / std; shape kept, a new float32 tensor."""
    if low >= high:
        raise ValueError(f"a window needs low < high, got low={low:g}, high={high:g}")
    return _float_copy(image).clamp_(low, high).sub_(mean).div_(max(std, EPSILON))


def rescale(image: Tensor, low: float, high: float) -> Tensor:
    """[low, high] becomes [0, 1], values outside are clipped; shape kept, a new float32 tensor."""
    return window(image, low, high, low, high - low)


def rescale_own(image: Tensor, mean: float = 0.0, std: float = 1.0, *, nonzero: bool = False) -> Tensor:
    """The image's own range becomes [0, 1], then (value - mean) / std; a constant image 0; a new float32 tensor.

    With `nonzero` the range of its nonzero voxels does, and the others become what the mean of these becomes.
    """
    values = _float_copy(image)
    counted = values[values != 0] if nonzero else values
    if counted.numel() == 0:
        return values
    subtracted, divisor, fill = of_range(*counted.aminmax(), counted.mean(dtype=torch.float64), mean, std)
    return standardise(values, subtracted, divisor, nonzero=nonzero, fill=fill)


def of_range(low: Tensor, high: Tensor, middle: Tensor, mean: float, std: float) -> tuple[Tensor, Tensor, Tensor]:
    """What is subtracted and divided by where [low, high] becomes [0, 1] and then (value - mean) / std; what `middle`
    becomes."""
    width = (high - low).double()
    subtracted, divisor = low + mean * width, width * std
    return subtracted, divisor, (middle - subtracted) / divisor if width > 0 else torch.zeros_like(width)


def zscore(
    image: Tensor,
    *,
    nonzero: bool = False,
    inside: Tensor | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    """Mean 0 and deviation 1; a new float32 tensor.

    A constant image becomes 0 everywhere.

    Args:
        image: of any shape.
        nonzero: over its nonzero voxels, the others become 0.
        inside: over these voxels, the others keep their values.
        low: clips the result.
        high: clips the result.
    """
    values = _float_copy(image)
    counted = values[values != 0] if nonzero else values if inside is None else values[inside]
    if counted.numel() == 0:
        return values
    mean = counted.mean(dtype=torch.float64)
    std = (counted - mean.float()).square_().mean(dtype=torch.float64).sqrt()
    return standardise(values, mean, std, nonzero=nonzero, inside=inside, low=low, high=high)


def standardise(
    values: Tensor,
    mean: Tensor,
    std: Tensor,
    *,
    nonzero: bool = False,
    fill: Tensor | float = 0.0,
    inside: Tensor | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    """(values - mean) / std in place, 0 everywhere where the deviation is that of a constant; others as `zscore`, and
    with `nonzero` zeros become `fill`."""
    kept = values.clone() if inside is not None else None
    zero = values == 0 if nonzero else None
    if std <= EPSILON + 1e-7 * mean.abs():  # what float32 leaves of a constant
        values.zero_()
    else:
        values.sub_(mean.float()).div_(std.float())
    if zero is not None:
        values.masked_fill_(zero, float(fill))
    if kept is not None and inside is not None:
        torch.where(inside, values, kept, out=values)
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
            masked = any(values["kind"] == "zscore_mask" for values in self.channels)
            inside = nonzero_mask(voxels) if masked else None
            for channel, values in enumerate(self.channels):
                done[channel] = normalise(voxels[channel], **values, inside=inside)
            sample[key] = located(done, affine_of(image), image)
        return sample


def normalise(
    image: Tensor,
    kind: str,
    low: float | None = None,
    high: float | None = None,
    mean: float = 0.0,
    std: float = 1.0,
    inside: Tensor | None = None,
) -> Tensor:
    """One channel by the values of a plan; `inside` is the mask of zscore_mask, else where this channel is not 0."""
    if kind == "none":
        return _float_copy(image)
    if kind in OWN_RANGE:
        return rescale_own(image, mean, std, nonzero=kind == "rescale_nonzero")
    if kind == "zscore_mask":
        return zscore(image, inside=nonzero_mask(plain(image)[None]) if inside is None else inside)
    if kind in ("zscore", "zscore_nonzero"):
        return zscore(image, nonzero=kind == "zscore_nonzero", low=low, high=high)
    if kind not in KINDS:
        raise ValueError(f"unknown normalisation {kind!r} (there are: {', '.join(KINDS)})")
    if low is None or high is None:
        raise ValueError(f"{kind} needs low and high")
    return window(image, low, high, mean, std) if kind == "window" else rescale(image, low, high)


def _float_copy(image: Tensor) -> Tensor:
    return plain(image).to(torch.float32, copy=True)
