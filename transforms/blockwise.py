"""A preprocessing chain box by box: the prepared voxels that are asked for, from the stored ones, and none kept.

The chain of a case holds up to three float32 copies of the volume at once. Its usual steps need none: axes turned and
boxes cropped are views, a resampled voxel depends on the stored ones around it, and a normalised one on itself and at
most on two numbers of the whole image, which are summed up slab by slab. What is asked for is what the chain gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose
from torch import Tensor

from .chains import CheckImage
from .crop import CropNonzero
from .geometry import reorient_to, shear
from .loading import LoadVolume, to_tensor
from .located import plain
from .reorient import Orient
from .resample import MAX_SHEAR, Resample, check_size, interpolate, resampled_positions, resampled_shape
from .volume import Volume
from .window import Normalise, normalise, standardise

SLAB_VOXELS = 1 << 22
Moments = tuple[Tensor, Tensor]  # mean and deviation, float64


@dataclass(frozen=True, eq=False)
class BlockwiseImage:
    """A prepared image (C, X, Y, Z) whose voxels are made when they are asked for.

    Args:
        stored: (C, X, Y, Z), views of the volume's array, axes turned and cropped.
        affine: of the prepared image.
        axes: where the prepared voxels of each axis lie among the stored ones; None where they are the same.
        normalisations: values of the plan for each channel; empty before that step.
        moments: of the channels that are normalised by their own; found when they are first needed.
    """

    stored: np.ndarray
    affine: np.ndarray
    axes: tuple[Tensor | None, ...] = (None, None, None)
    normalisations: tuple[Mapping[str, Any], ...] = ()
    moments: dict[int, Moments] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels and voxels along each axis."""
        sides = zip(self.stored.shape[1:], self.axes, strict=True)
        return (len(self.stored), *(size if axis is None else len(axis) for size, axis in sides))

    @property
    def resampled(self) -> bool:
        """Whether voxels are interpolated."""
        return any(axis is not None for axis in self.axes)

    def __getitem__(self, where: tuple[slice, ...]) -> Tensor:
        """The voxels (C, *box) of a box, float32, of all channels."""
        result = self._interpolated(self.stored, where[1:])
        for channel, values in enumerate(result):
            self._normalise(channel, values)
        return result

    def whole(self) -> Tensor:
        """All voxels at once, interpolated once.

        Memory: the result, and a slab.
        """
        result = torch.empty(self.shape)
        for box in self.slabs():
            result[box] = self._interpolated(self.stored, box[1:])
        for channel, values in enumerate(result):
            if self._by_moments(channel):
                self._find_moments(channel, partial(self._slabs_of, values))
            for box in self.slabs():
                self._normalise(channel, values[box[1:]])
        return result

    def slabs(self) -> Iterator[tuple[slice, ...]]:
        """Boxes that make up the image, along the axis whose stored planes lie one behind the other."""
        axis = int(np.argmax(np.abs(self.stored.strides[1:])))
        depth = max(1, SLAB_VOXELS * self.shape[axis + 1] // math.prod(self.shape))
        for first in range(0, self.shape[axis + 1], depth):
            box = [slice(None)] * 4
            box[axis + 1] = slice(first, first + depth)
            yield tuple(box)

    def _slabs_of(self, values: Tensor) -> Iterator[Tensor]:
        return (values[box[1:]] for box in self.slabs())

    def _interpolated(self, stored: np.ndarray, where: Sequence[slice]) -> Tensor:
        """A box of stored channels (C, *box) before they are normalised."""
        box = [slice(*part.indices(size)[:2]) for part, size in zip(where, self.shape[1:], strict=True)]
        taken: list[slice] = [slice(None), *box]
        places: list[Tensor | None] = [None] * 3
        for at, (axis, part, size) in enumerate(zip(self.axes, box, stored.shape[1:], strict=True)):
            if axis is not None and part.stop > part.start:
                low, high = int(axis[part.start]), min(int(axis[part.stop - 1]) + 2, size)
                taken[at + 1], places[at] = slice(low, high), axis[part] - low
        view = stored[tuple(taken)]
        if all(place is None for place in places):
            with np.errstate(over="ignore"):
                return torch.from_numpy(view.astype(np.float32, order="C"))
        return interpolate(torch.from_numpy(np.ascontiguousarray(view)), places)

    def _by_moments(self, channel: int) -> bool:
        return bool(self.normalisations) and self.normalisations[channel]["kind"] in ("zscore", "zscore_nonzero")

    def _normalise(self, channel: int, values: Tensor) -> None:
        """Normalise voxels of a channel in place."""
        if not self.normalisations:
            return
        given = self.normalisations[channel]
        if not self._by_moments(channel):
            values.copy_(normalise(values, **given))
            return
        if channel not in self.moments:
            one = self.stored[channel : channel + 1]
            self._find_moments(channel, lambda: (self._interpolated(one, box[1:])[0] for box in self.slabs()))
        inside = values != 0 if given["kind"] == "zscore_nonzero" else None
        mean, std = self.moments[channel]
        standardise(values, mean, std, inside=inside, low=given.get("low"), high=given.get("high"))

    def _find_moments(self, channel: int, slabs: Callable[[], Iterable[Tensor]]) -> None:
        """Mean and deviation of a channel, of its nonzero voxels where the plan says so; 0 where there are none."""
        nonzero = self.normalisations[channel]["kind"] == "zscore_nonzero"

        def mean_of(term: Callable[[Tensor], Tensor]) -> Tensor:
            total, count = torch.zeros((), dtype=torch.float64), 0
            for slab in slabs():
                values = slab[slab != 0] if nonzero else slab
                total += term(values).sum(dtype=torch.float64)
                count += values.numel()
            return total / max(count, 1)

        mean = mean_of(lambda values: values)
        self.moments[channel] = mean, mean_of(lambda values: (values - mean.float()).square_()).sqrt()


def blockwise(chain: Compose, volume: Volume, key: str = "image") -> BlockwiseImage | None:
    """A chain on a volume box by box; None where one of its steps needs the whole image at once.

    Raises:
        CaseError: what the chain itself refuses.
    """
    stored = volume.array if volume.array.ndim == 4 else volume.array[..., np.newaxis]
    image: BlockwiseImage | None = BlockwiseImage(stored, np.asarray(volume.geometry.affine, np.float64))
    for step in chain.transforms:
        take = STEPS.get(type(step))
        image = None if take is None or image is None or image.normalisations else take(step, image, volume, key)
    return image


def _checked(step: CheckImage, image: BlockwiseImage, volume: Volume, key: str) -> BlockwiseImage:
    # of whole numbers the shape alone is looked at
    floats = volume.array.dtype.kind == "f"
    seen = to_tensor(volume) if floats else torch.zeros((len(image.stored), 1, 1, image.stored.shape[-1]))
    channels = len(plain(step({key: seen})[key]))
    if channels == len(image.stored):
        return image
    return replace(image, stored=np.broadcast_to(image.stored, (channels, *image.stored.shape[1:])))


def _turned(step: Orient, image: BlockwiseImage, volume: Volume, key: str) -> BlockwiseImage | None:
    if image.resampled:
        return None
    stored, affine = reorient_to(image.stored, image.affine, step.orientation)
    return replace(image, stored=stored, affine=affine)


def _cropped(step: CropNonzero, image: BlockwiseImage, volume: Volume, key: str) -> BlockwiseImage | None:
    if image.resampled:
        return None
    box = nonzero_box(image)
    if box is None:
        return image
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.array([side.start for side in box], float)
    inside = (slice(None), *box)
    return replace(image, stored=image.stored[inside], affine=affine)


def nonzero_box(image: BlockwiseImage) -> list[slice] | None:
    """As that of `crop`, slab by slab."""
    lines = [np.zeros(size, bool) for size in image.stored.shape[1:]]
    for box in image.slabs():
        occupied = (image.stored[box] != 0).any(0)
        for axis in range(3):
            others = tuple(other for other in range(3) if other != axis)
            lines[axis][box[axis + 1]] |= occupied.any(others)
    ends = [np.flatnonzero(line)[[0, -1]].tolist() for line in lines if line.any()]
    return [slice(first, last + 1) for first, last in ends] if len(ends) == 3 else None


def _resampled(step: Resample, image: BlockwiseImage, volume: Volume, key: str) -> BlockwiseImage | None:
    if image.resampled or shear(image.affine) > MAX_SHEAR:
        return None
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
    target = tuple(spacing) if step.spacing_mm is None else step.spacing_mm
    check_size(resampled_shape(image.stored.shape[1:], spacing, target), step.max_voxels)
    axes = resampled_positions(image.stored.shape[1:], spacing, target)
    affine = image.affine.copy()
    affine[:3, :3] *= [1 if axis is None else new / old for axis, old, new in zip(axes, spacing, target, strict=True)]
    return replace(image, affine=affine, axes=tuple(axes))


def _normalised(step: Normalise, image: BlockwiseImage, volume: Volume, key: str) -> BlockwiseImage:
    if len(image.stored) != len(step.channels):
        raise ValueError(f"{key} has {len(image.stored)} channels, {len(step.channels)} normalisations were given")
    return replace(image, normalisations=tuple(step.channels))


STEPS: dict[type, Callable[..., BlockwiseImage | None]] = {
    LoadVolume: lambda step, image, volume, key: image,
    CheckImage: _checked,
    Orient: _turned,
    CropNonzero: _cropped,
    Resample: _resampled,
    Normalise: _normalised,
}
