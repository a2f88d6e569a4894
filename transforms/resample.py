"""Another spacing: linear for images, nearest for label maps, one axis after the other.

Convention: the first voxel centres agree (as in MONAI's Spacing and SimpleITK), n voxels become round(n * old / new),
halves down, and beyond the last centre its value goes on. There is no smoothing before an axis is made coarser: what is
thinner than a new voxel may be missed, as with the libraries named. An axis that shrinks comes before one that grows,
so that the others have less to do. A sheared grid (a tilted gantry) is put on a straight one.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform
from torch import Tensor
from torch.nn import functional

from ..errors import CaseError
from .edges import with_own
from .geometry import apply_affine, corner_voxels, shear
from .located import affine_of, located, plain

MAX_VOXELS = 2**30
MAX_SHEAR = 1e-3
ROOM_OF_HALVES = 1e-3  # voxels
UNCHANGED = 1e-3  # spacings that differ by less than one part in a thousand are the same


def resampled_shape(
    shape: Sequence[int], spacing_mm: Sequence[float], new_spacing_mm: Sequence[float], *, span: bool = False
) -> tuple[int, ...]:
    """Voxels along each axis at the new spacing, at least one.

    With `span` they are those between the first centre and the last, as MONAI's Spacing has it.

    Halves go down with room for rounding, so that 280 voxels of 0.6875 mm are 192 of 1 mm whichever way a header has
    rounded its spacing: the same scan from DICOM and from NIfTI is one grid.
    """
    return tuple(
        size if _same(old, new) else _counted(size, old / new, span)
        for size, old, new in zip(shape, spacing_mm, new_spacing_mm, strict=True)
    )


def _counted(size: int, ratio: float, span: bool) -> int:
    return round((size - 1) * ratio + 1) if span else max(1, math.ceil(size * ratio - 0.5 - ROOM_OF_HALVES))


def resample(
    image: Tensor,
    spacing_mm: Sequence[float],
    new_spacing_mm: Sequence[float],
    *,
    nearest: bool = False,
    span: bool = False,
) -> Tensor:
    """(C, X, Y, Z) at another spacing.

    Returns:
        float32 by linear interpolation; with `nearest` the dtype is kept. The same tensor where no axis changes.
    """
    axes = resampled_positions(image.shape[1:], spacing_mm, new_spacing_mm, span=span)
    if nearest:
        shape = resampled_shape(image.shape[1:], spacing_mm, new_spacing_mm, span=span)
        for axis in sorted(range(3), key=lambda axis: shape[axis] / image.shape[axis + 1]):
            positions = axes[axis]
            if positions is not None:
                image = image.index_select(axis + 1, positions.add(0.5).long().clamp_(max=image.shape[axis + 1] - 1))
        return image
    return interpolate(image, axes)


def resampled_positions(
    shape: Sequence[int], spacing_mm: Sequence[float], new_spacing_mm: Sequence[float], *, span: bool = False
) -> list[Tensor | None]:
    """Where the new voxels of each axis lie among the old ones, rising; None for an axis that does not change."""
    counts = resampled_shape(shape, spacing_mm, new_spacing_mm, span=span)
    return [
        None if _same(old, new) else torch.arange(count, dtype=torch.float64).mul_(new / old).clamp_(0, size - 1)
        for size, count, old, new in zip(shape, counts, spacing_mm, new_spacing_mm, strict=True)
    ]


def interpolate(image: Tensor, axes: Sequence[Tensor | None]) -> Tensor:
    """(C, X, Y, Z) at positions along each axis, all of it where there are none, by linear interpolation; float32."""
    if all(positions is None for positions in axes):
        return image.float()
    sides = [
        size if positions is None else len(positions) for size, positions in zip(image.shape[1:], axes, strict=True)
    ]
    interpolated = torch.empty(image.shape[0], *sides)
    for old, new in zip(image, interpolated, strict=True):
        _linear_planes(old, new, axes)
    return interpolated


def _linear_planes(old: Tensor, new: Tensor, axes: Sequence[Tensor | None]) -> None:
    """Fill `new` (X, Y, Z), one plane at a time so that all between stays in the processor's cache."""
    in_plane = [
        (axis, _operator(positions, old.shape[axis + 1], dense=axis == 1))
        for axis, positions in enumerate(axes[1:])
        if positions is not None
    ]
    in_plane.sort(key=lambda entry: new.shape[entry[0] + 1] / old.shape[entry[0] + 1])

    def squeeze(plane: Tensor) -> Tensor:
        for axis, operator in in_plane:
            if axis == 1:
                plane = plane @ operator[0]
            else:
                below, above, weight = operator
                plane = plane.index_select(0, below).lerp_(plane.index_select(0, above), weight)
        return plane

    if axes[0] is None:
        for index in range(len(new)):
            new[index] = squeeze(old[index].float())
        return
    below, above, weights = (column.flatten().tolist() for column in _operator(axes[0], old.shape[0], dense=False))
    shrinks = new.shape[0] < old.shape[0]
    done: dict[int, Tensor] = {}
    for index in range(len(new)):
        ends = (below[index], above[index])
        if shrinks:
            new[index] = squeeze(torch.lerp(old[ends[0]].float(), old[ends[1]].float(), weights[index]))
        else:
            done = {end: done[end] if end in done else squeeze(old[end].float()) for end in ends}
            torch.lerp(done[ends[0]], done[ends[1]], weights[index], out=new[index])


def _operator(positions: Tensor, size: int, *, dense: bool) -> tuple[Tensor, ...]:
    """Below, above and weight of each position; `dense`: the same as one matrix, which suits neighbours in memory."""
    below = positions.long().clamp_(max=max(size - 2, 0))
    above = (below + 1).clamp_(max=size - 1)
    weight = (positions - below).float()
    if not dense:
        return below, above, weight[:, None]
    matrix = torch.zeros(size, len(positions))
    columns = torch.arange(len(positions))
    matrix.index_put_((below, columns), 1 - weight, accumulate=True)
    matrix.index_put_((above, columns), weight, accumulate=True)
    return (matrix,)


def straighten(
    image: Tensor, affine: np.ndarray, spacing_mm: Sequence[float], *, nearest: bool = False
) -> tuple[Tensor, np.ndarray]:
    """A sheared grid on one with right angles that holds it all.

    The first two axes keep their plane, the third becomes perpendicular to it. What the old grid did not cover gets the
    image's lowest value, 0 in a label map.
    """
    first = affine[:3, 0] / np.linalg.norm(affine[:3, 0])
    second = affine[:3, 1] - first * (first @ affine[:3, 1])
    second /= np.linalg.norm(second)
    third = np.cross(first, second)
    third *= np.sign(third @ affine[:3, 2])
    matrix = np.stack([first, second, third], axis=1)
    corners = apply_affine(affine, corner_voxels(tuple(image.shape[1:]))) @ matrix  # mm along the new axes
    low, high = corners.min(0), corners.max(0)
    shape = [int(np.floor(extent / step + 1e-6)) + 1 for extent, step in zip(high - low, spacing_mm, strict=True)]
    check_size(shape)
    new_affine = np.eye(4)
    new_affine[:3, :3] = matrix * np.asarray(spacing_mm)
    new_affine[:3, 3] = matrix @ low
    back = np.linalg.inv(affine) @ new_affine  # new voxel -> old voxel
    sizes = np.array(image.shape[1:], float)
    scale, shift = 2 / np.maximum(sizes - 1, 1), -np.ones(3)
    theta = np.zeros((3, 4))  # new voxel -> grid_sample's -1..1, x last axis first
    theta[:, :3] = (scale[:, None] * back[:3, :3])[::-1]
    theta[:, 3] = (scale * back[:3, 3] + shift)[::-1]
    floor = 0 if nearest else float(image.min())
    source = (image.float() - floor)[None]
    grids = torch.meshgrid(*(torch.arange(size, dtype=torch.float64) for size in shape[1:]), indexing="ij")
    planes = []
    for index in range(shape[0]):  # plane by plane: the coordinates of a whole volume would be three volumes
        voxels = torch.stack([torch.full_like(grids[0], index), *grids, torch.ones_like(grids[0])], dim=-1)
        at = (voxels @ torch.from_numpy(theta).T).float()[None, None]
        mode = "nearest" if nearest else "bilinear"
        planes.append(functional.grid_sample(source, at, mode=mode, padding_mode="zeros", align_corners=True)[0])
    straight = torch.cat(planes, dim=1) + floor
    return (straight.to(image.dtype) if nearest else straight), new_affine


class Resample(MapTransform):
    """Images (linear) and label maps (nearest) at one spacing, sheared grids straightened.

    Args:
        keys: of (C, X, Y, Z).
        spacing_mm: None, for all axes or for one, keeps the image's own.
        label_keys: those of `keys` that hold label maps.
        span: as in `resampled_shape`.
        max_voxels: a larger result is refused before it is made.
    """

    def __init__(
        self,
        keys: Sequence[str],
        spacing_mm: Sequence[float | None] | None = None,
        *,
        label_keys: Sequence[str] = (),
        span: bool = False,
        max_voxels: int = MAX_VOXELS,
    ) -> None:
        super().__init__(keys)
        self.spacing_mm = None if spacing_mm is None else tuple(spacing_mm)
        self.label_keys, self.span, self.max_voxels = tuple(label_keys), span, max_voxels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample at the new spacing.

        Raises:
            CaseError: the result would have more than `max_voxels` voxels.
        """
        sample = dict(data)
        for key in self.keys:
            voxels, affine = plain(data[key]), affine_of(data[key])
            spacing = np.linalg.norm(affine[:3, :3], axis=0)
            target = with_own(self.spacing_mm, spacing)
            check_size(resampled_shape(voxels.shape[1:], spacing, target, span=self.span), self.max_voxels)
            nearest = key in self.label_keys
            if shear(affine) > MAX_SHEAR:
                voxels, affine = straighten(voxels, affine, target, nearest=nearest)
            else:
                voxels = resample(voxels, spacing, target, nearest=nearest, span=self.span)
                affine = affine.copy()
                affine[:3, :3] *= [
                    1 if _same(old, new) else new / old for old, new in zip(spacing, target, strict=True)
                ]
            sample[key] = located(voxels, affine, data[key])
        return sample


def _same(old: float, new: float) -> bool:
    return abs(old / new - 1) < UNCHANGED


def check_size(shape: Sequence[int], limit: int = MAX_VOXELS) -> None:
    """Refuse a resampled image that would be larger than a limit (`too-large`)."""
    if prod(shape) > limit:
        raise CaseError(
            f"resampled it would have {' x '.join(map(str, shape))} = {prod(shape):,} voxels, the limit is "
            f"{limit:,}; set a "
            "coarser spacing_mm in the plan, or leave the case out",
            "too-large",
        )
