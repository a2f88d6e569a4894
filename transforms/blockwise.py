"""A preprocessing chain box by box: the prepared voxels that are asked for, from the stored ones, and none kept.

The chain of a case holds up to three float32 copies of the volume at once. Its usual steps need none: axes turned and
boxes cropped are views, a resampled voxel depends on the stored ones around it, and a normalised one on itself and at
most on two numbers of the whole image. What is asked for is what the chain gives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from monai.transforms import Compose

from .boxes import BlockwiseImage, StoredImage
from .chains import CheckImage
from .crop import CropNonzero, fill_holes
from .edges import with_own
from .geometry import reorient_to, shear
from .loading import LoadVolume, to_tensor
from .located import plain
from .reorient import Orient
from .resample import MAX_SHEAR, Resample, check_size, resampled_positions, resampled_shape
from .spline_resample import SplineResample
from .splined import SplinedImage
from .volume import Volume
from .window import Normalise


def blockwise(chain: Compose, volume: Volume, key: str = "image") -> BlockwiseImage | None:
    """A chain on a volume box by box; None where one of its steps needs the whole image at once.

    Raises:
        CaseError: what the chain itself refuses.
    """
    stored = volume.array if volume.array.ndim == 4 else volume.array[..., np.newaxis]
    image: BlockwiseImage | None = StoredImage(stored, np.asarray(volume.geometry.affine, np.float64))
    for step in chain.transforms:
        take = STEPS.get(type(step))
        image = take(step, image, volume, key) if take is not None and isinstance(image, StoredImage) else None
    return image


def _checked(step: CheckImage, image: StoredImage, volume: Volume, key: str) -> StoredImage:
    # of whole numbers the shape alone is looked at
    floats = volume.array.dtype.kind == "f"
    seen = to_tensor(volume) if floats else torch.zeros((len(image.stored), 1, 1, image.stored.shape[-1]))
    channels = len(plain(step({key: seen})[key]))
    if channels == len(image.stored):
        return image
    return replace(image, stored=np.broadcast_to(image.stored, (channels, *image.stored.shape[1:])))


def _turned(step: Orient, image: StoredImage, volume: Volume, key: str) -> StoredImage | None:
    if image.resampled or image.normalisations:
        return None
    stored, affine = reorient_to(image.stored, image.affine, step.orientation)
    return replace(image, stored=stored, affine=affine)


def _cropped(step: CropNonzero, image: StoredImage, volume: Volume, key: str) -> StoredImage | None:
    if image.resampled or image.normalisations:
        return None
    box = nonzero_box(image)
    if box is None:
        return image
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.array([side.start for side in box], float)
    inside = (slice(None), *box)
    return replace(image, stored=image.stored[inside], affine=affine)


def nonzero_box(image: StoredImage) -> list[slice] | None:
    """As that of `crop`, slab by slab."""
    lines = [np.zeros(size, bool) for size in image.stored.shape[1:]]
    for box in image.slabs():
        occupied = (image.stored[box] != 0).any(0)
        for axis in range(3):
            others = tuple(other for other in range(3) if other != axis)
            lines[axis][box[axis + 1]] |= occupied.any(others)
    ends = [np.flatnonzero(line)[[0, -1]].tolist() for line in lines if line.any()]
    return [slice(first, last + 1) for first, last in ends] if len(ends) == 3 else None


def _resampled(step: Resample, image: StoredImage, volume: Volume, key: str) -> StoredImage | None:
    if image.resampled or image.normalisations or shear(image.affine) > MAX_SHEAR:
        return None
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
    target = with_own(step.spacing_mm, spacing)
    check_size(resampled_shape(image.stored.shape[1:], spacing, target, span=step.span), step.max_voxels)
    axes = resampled_positions(image.stored.shape[1:], spacing, target, span=step.span)
    affine = image.affine.copy()
    affine[:3, :3] *= [1 if axis is None else new / old for axis, old, new in zip(axes, spacing, target, strict=True)]
    return replace(image, affine=affine, axes=tuple(axes))


def _splined(step: SplineResample, image: StoredImage, volume: Volume, key: str) -> BlockwiseImage | None:
    if image.resampled:
        return None
    way, affine = step.way(image.stored.shape[1:], image.affine)
    return replace(image, affine=affine) if way.unchanged else SplinedImage(image, affine, way)


def _normalised(step: Normalise, image: StoredImage, volume: Volume, key: str) -> StoredImage | None:
    if image.normalisations:
        return None
    if len(image.stored) != len(step.channels):
        raise ValueError(f"{key} has {len(image.stored)} channels, {len(step.channels)} normalisations were given")
    inside = None
    if any(values["kind"] == "zscore_mask" for values in step.channels):
        if image.resampled:
            return None
        inside = fill_holes(nonzero_voxels(image))
    return replace(image, normalisations=tuple(step.channels), inside=inside)


def nonzero_voxels(image: StoredImage) -> np.ndarray:
    """Where some channel is not 0; bool (X, Y, Z)."""
    mask = np.empty_like(image.stored[0], bool)
    for box in image.slabs():
        mask[box[1:]] = (image.stored[box] != 0).any(0)
    return mask


STEPS: dict[type, Callable[..., BlockwiseImage | None]] = {
    LoadVolume: lambda step, image, volume, key: image,
    CheckImage: _checked,
    Orient: _turned,
    CropNonzero: _cropped,
    Resample: _resampled,
    SplineResample: _splined,
    Normalise: _normalised,
}
