"""The step of a chain that resamples by splines, as nnU-Net's plans ask for it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform
from torch import Tensor

from .edges import edges_affine, edges_shape, grid_spacing, separate_axis, with_own
from .located import affine_of, located, plain
from .resample import MAX_VOXELS, check_size
from .spline import Spline, apply_spline, nearest_voxels, spline


class SplineResample(MapTransform):
    """Images by splines, label maps by nearest, at one spacing; the edges of the grids agree.

    A sheared grid stays sheared: only the spacing of its axes counts.

    Args:
        keys: of (C, X, Y, Z).
        spacing_mm: None, for all axes or for one, keeps the image's own.
        label_keys: those of `keys` that hold label maps.
        separate: whether a coarse axis is resampled on its own, see `edges.separate_axis`.
        order: of the splines, 0 to 3.
        order_separate: of the spline along such an axis.
        max_voxels: a larger result is refused before it is made.
    """

    def __init__(
        self,
        keys: Sequence[str],
        spacing_mm: Sequence[float | None] | None = None,
        *,
        label_keys: Sequence[str] = (),
        separate: str = "auto",
        order: int = 3,
        order_separate: int = 0,
        max_voxels: int = MAX_VOXELS,
    ) -> None:
        super().__init__(keys)
        self.spacing_mm = None if spacing_mm is None else tuple(spacing_mm)
        self.label_keys, self.max_voxels = tuple(label_keys), max_voxels
        self.separate, self.order, self.order_separate = separate, order, order_separate

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample at the new spacing.

        Raises:
            CaseError: the result would have more than `max_voxels` voxels.
        """
        sample = dict(data)
        for key in self.keys:
            voxels = plain(data[key])
            way, affine = self.way(voxels.shape[1:], affine_of(data[key]))
            if not way.unchanged:
                voxels = _nearest(voxels, way) if key in self.label_keys else _splined(voxels, way)
            sample[key] = located(voxels, affine, data[key])
        return sample

    def way(self, shape: Sequence[int], affine: np.ndarray) -> tuple[Spline, np.ndarray]:
        """The resampling of a grid, and the affine of the new one.

        Raises:
            CaseError: the result would have more than `max_voxels` voxels.
        """
        spacing = grid_spacing(affine)
        target = with_own(self.spacing_mm, spacing)
        new_shape = edges_shape(shape, spacing, target)
        check_size(new_shape, self.max_voxels)
        separate = separate_axis(self.separate, spacing, target)
        way = spline(shape, new_shape, separate=separate, order=self.order, along=self.order_separate)
        return way, edges_affine(affine, shape, new_shape)


def _splined(image: Tensor, way: Spline) -> Tensor:
    done = torch.empty(len(image), *way.new_shape)
    for channel, volume in enumerate(image):
        done[channel] = apply_spline(way, volume)
    return done


def _nearest(labels: Tensor, way: Spline) -> Tensor:
    for axis, (size, new_size) in enumerate(zip(labels.shape[1:], way.new_shape, strict=True)):
        if size != new_size:
            labels = labels.index_select(axis + 1, torch.from_numpy(nearest_voxels(size, new_size)))
    return labels
