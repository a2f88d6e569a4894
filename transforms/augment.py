"""Intensity augmentation of training patches: noise, blur, brightness, contrast, low resolution, gamma.

The list and its order are nnU-Net's (Isensee et al., Nature Methods 2021, supplement), the strengths are a plan's. Each
class draws from its own random state, which the caller seeds for every sample from (seed, step, slot in the batch); the
arithmetic is a plain function.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, MapTransform, Randomizable
from torch import Tensor
from torch.nn import functional

from .patches import DrawPatch


def blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (C, X, Y, Z) with `sigma` in voxels; axes of one voxel stay."""
    radius = max(1, int(3 * sigma + 0.5))
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    blurred = image[:, None]
    for axis in range(3):
        if image.shape[axis + 1] == 1:
            continue
        shape, padding = [1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]
        shape[axis + 2] = len(kernel)
        padding[2 * (2 - axis)] = padding[2 * (2 - axis) + 1] = radius
        blurred = functional.conv3d(functional.pad(blurred, padding, mode="replicate"), kernel.reshape(shape))
    return blurred[:, 0]


def low_resolution(image: Tensor, factor: float) -> Tensor:
    """Down by `factor` (nearest) and back (linear), as an image of coarser voxels would look."""
    size = image.shape[1:]
    coarse = [max(1, round(n * factor)) if n > 1 else 1 for n in size]
    small = functional.interpolate(image[None], coarse, mode="nearest-exact")
    return functional.interpolate(small, size, mode="trilinear", align_corners=False)[0]


def gamma(image: Tensor, exponent: float, invert: bool) -> Tensor:
    """Gamma curve on the channel's own range, mean and standard deviation kept; `invert` bends the dark end instead."""
    signed = -image if invert else image
    axes = (1, 2, 3)
    mean, deviation = signed.mean(axes, keepdim=True), signed.std(axes, keepdim=True)
    low = signed.amin(axes, keepdim=True)
    span = (signed.amax(axes, keepdim=True) - low).clamp_min(1e-7)
    bent = ((signed - low) / span) ** exponent * span + low
    bent = (bent - bent.mean(axes, keepdim=True)) / bent.std(axes, keepdim=True).clamp_min(1e-7) * deviation + mean
    return -bent if invert else bent


def contrast(image: Tensor, factor: float) -> Tensor:
    """Stretch about the channel's mean, kept within the channel's range."""
    axes = (1, 2, 3)
    mean = image.mean(axes, keepdim=True)
    low, high = image.amin(axes, keepdim=True), image.amax(axes, keepdim=True)
    return torch.minimum(torch.maximum((image - mean) * factor + mean, low), high)


class _Sometimes(Randomizable, MapTransform):
    """Applies `change` to the image with a probability; the state advances by the same draws in either case."""

    def __init__(self, probability: float) -> None:
        MapTransform.__init__(self, ["image"])
        self.probability = probability

    def change(self, image: Tensor) -> Tensor:
        """Draw and apply."""
        raise NotImplementedError

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        if self.R.rand() >= self.probability:
            return dict(data)
        return {**data, "image": self.change(data["image"])}


class Noise(_Sometimes):
    """Gaussian noise with a standard deviation drawn from [0, `deviation`]."""

    def __init__(self, deviation: float, probability: float) -> None:
        super().__init__(probability)
        self.deviation = deviation

    def change(self, image: Tensor) -> Tensor:
        """Draw and add."""
        generator = np.random.Generator(np.random.PCG64(self.R.randint(2**31)))
        noise = torch.from_numpy(generator.standard_normal(image.shape, dtype=np.float32))
        return image + noise * self.R.uniform(0, self.deviation)


class Blur(_Sometimes):
    """Gaussian blur with sigma drawn from `sigma` (low, high), in voxels."""

    def __init__(self, sigma: Sequence[float], probability: float) -> None:
        super().__init__(probability)
        self.sigma = (float(sigma[0]), float(sigma[1]))

    def change(self, image: Tensor) -> Tensor:
        """Draw and blur."""
        return blur(image, self.R.uniform(*self.sigma))


class Brightness(_Sometimes):
    """Multiply by a factor drawn from [1 - `range`, 1 + `range`]."""

    def __init__(self, range: float, probability: float) -> None:
        super().__init__(probability)
        self.range = range

    def change(self, image: Tensor) -> Tensor:
        """Draw and multiply."""
        return image * self.R.uniform(1 - self.range, 1 + self.range)


class Contrast(_Sometimes):
    """Stretch about the mean by a factor drawn from [1 - `range`, 1 + `range`]."""

    def __init__(self, range: float, probability: float) -> None:
        super().__init__(probability)
        self.range = range

    def change(self, image: Tensor) -> Tensor:
        """Draw and stretch."""
        return contrast(image, self.R.uniform(1 - self.range, 1 + self.range))


class LowResolution(_Sometimes):
    """Simulate coarser voxels; the factor is drawn from [`low`, 1]."""

    def __init__(self, low: float, probability: float) -> None:
        super().__init__(probability)
        self.low = low

    def change(self, image: Tensor) -> Tensor:
        """Draw and resample."""
        return low_resolution(image, self.R.uniform(self.low, 1))


class Gamma(_Sometimes):
    """Gamma curve with an exponent drawn log-uniformly from [1 / (1 + g), 1 + g], a quarter of the time on the
    inverted image."""

    def __init__(self, gamma: float, probability: float) -> None:
        super().__init__(probability)
        self.gamma = gamma

    def change(self, image: Tensor) -> Tensor:
        """Draw and bend."""
        exponent = math.exp(self.R.uniform(-1, 1) * math.log1p(self.gamma))
        return gamma(image, exponent, invert=self.R.rand() < 0.25)


# augmentation is a chain too: stored as names and arguments, built by name from this dictionary
STEPS: dict[str, Any] = {
    "DrawPatch": DrawPatch,
    "Noise": Noise,
    "Blur": Blur,
    "Brightness": Brightness,
    "Contrast": Contrast,
    "LowResolution": LowResolution,
    "Gamma": Gamma,
}


def augmentation_steps(
    patch: Sequence[int],
    *,
    spacing_mm: Sequence[float | None] | None,
    mirror_axes: Sequence[int],
    strength: Mapping[str, float],
) -> list[dict[str, Any]]:
    """The augmentation chain of a plan as names and arguments.

    Args:
        patch: three sizes in voxels.
        spacing_mm: of the grid that the patches are drawn from.
        mirror_axes: the axes that the plan allows to be mirrored.
        strength: the plan's `augmentation` values; a missing or zero probability leaves the step out.
    """

    def value(name: str) -> float:
        return float(strength.get(name, 0.0))

    steps: list[dict[str, Any]] = [
        {
            "name": "DrawPatch",
            "args": {
                "patch": list(patch),
                "spacing_mm": list(spacing_mm) if spacing_mm else None,
                "mirror_axes": list(mirror_axes),
                "rotation_degrees": value("rotation_degrees"),
                "rotation_probability": value("rotation_probability"),
                "scale": value("scale"),
                "scale_probability": value("scale_probability"),
            },
        },
        {"name": "Noise", "args": {"deviation": value("noise"), "probability": value("noise_probability")}},
        {
            "name": "Blur",
            "args": {"sigma": [0.5, max(0.5, value("blur_sigma"))], "probability": value("blur_probability")},
        },
        {"name": "Brightness", "args": {"range": value("brightness"), "probability": value("brightness_probability")}},
        {"name": "Contrast", "args": {"range": value("contrast"), "probability": value("contrast_probability")}},
        {
            "name": "LowResolution",
            "args": {"low": value("low_resolution") or 1.0, "probability": value("low_resolution_probability")},
        },
        {"name": "Gamma", "args": {"gamma": value("gamma"), "probability": value("gamma_probability")}},
    ]
    return [step for step in steps if step["name"] == "DrawPatch" or step["args"]["probability"] > 0]


def build_augmentation(steps: Sequence[Mapping[str, Any]]) -> Compose:
    """The MONAI chain that `augmentation_steps` describes."""
    return Compose([STEPS[step["name"]](**step["args"]) for step in steps])
