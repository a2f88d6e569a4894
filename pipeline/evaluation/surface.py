"""Scores of surfaces in mm: the 95th percentile of the Hausdorff distance, and surface Dice at a tolerance.

Both stand on MONAI's `get_mask_edges` and `get_surface_distance` and equal its `compute_hausdorff_distance` (boundary
voxels, centre to centre) and `compute_surface_dice(use_subvoxels=True)` (Nikolov et al., 2018: surface elements
weighted by their area, so that thick slices count for what they are). They are called piece by piece, because the two
calls warn about an argument of their own, search the whole volume for the structure once more, and cannot take a
percentile of more than 16.7 million distances.

As in MONAI, the border of the volume counts as surface where a structure runs through it, in both masks alike.
An axis of one voxel (a picture, a single slice) is left out: the surface is then a line.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics import get_mask_edges, get_surface_distance


def surface_scores(
    prediction: np.ndarray, reference: np.ndarray, spacing_mm: Sequence[float], tolerance_mm: float
) -> dict[str, float]:
    """HD95 in mm and surface Dice of one structure.

    Args:
        prediction: mask, bool, two or three axes.
        reference: mask of the same shape.
        spacing_mm: voxel size along each axis.
        tolerance_mm: how far apart two surfaces may be and still count as the same.

    Returns:
        `hd95_mm` and `surface_dice`; what an empty mask gives is told in `overlap.py`.
    """
    if prediction.shape != reference.shape or len(spacing_mm) != prediction.ndim:
        raise ValueError(
            f"masks of one shape and a spacing for each axis are needed, got shapes {prediction.shape} and "
            f"{reference.shape}, spacing {tuple(spacing_mm)}"
        )
    if not tolerance_mm >= 0:
        raise ValueError(f"tolerance_mm={tolerance_mm} must be 0 or more")
    there = bool(prediction.any()), bool(reference.any())
    if there != (True, True):
        return {"hd95_mm": float("nan"), "surface_dice": float("nan") if there == (False, False) else 0.0}

    kept = [axis for axis, size in enumerate(prediction.shape) if size > 1]
    if len(kept) < 2:  # a line of voxels: keep two axes, the surface of a plane figure is still defined
        kept = sorted(np.argsort(prediction.shape)[-2:].tolist())
    shape = tuple(prediction.shape[axis] for axis in kept)
    spacing = [float(spacing_mm[axis]) for axis in kept]
    predicted, true = _crop(prediction.reshape(shape), reference.reshape(shape))
    return {
        "hd95_mm": _hausdorff(predicted, true, spacing),
        "surface_dice": _surface_dice(predicted, true, spacing, tolerance_mm),
    }


def _crop(prediction: np.ndarray, reference: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Both masks cut to the box around their union, with one empty voxel on every side."""
    union = prediction | reference
    box = []
    for axis in range(union.ndim):
        planes = np.flatnonzero(union.any(axis=tuple(other for other in range(union.ndim) if other != axis)))
        box.append(slice(int(planes[0]), int(planes[-1]) + 1))
    cut = tuple(box)
    return torch.from_numpy(np.pad(prediction[cut], 1)), torch.from_numpy(np.pad(reference[cut], 1))


def _hausdorff(prediction: torch.Tensor, reference: torch.Tensor, spacing: list[float]) -> float:
    """The larger of the two directed 95th percentiles."""
    predicted, true = get_mask_edges(prediction, reference, crop=False)
    there = np.asarray(get_surface_distance(predicted, true, spacing=spacing))
    back = np.asarray(get_surface_distance(true, predicted, spacing=spacing))
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def _surface_dice(
    prediction: torch.Tensor, reference: torch.Tensor, spacing: list[float], tolerance_mm: float
) -> float:
    """Share of the area of both surfaces that lies within the tolerance of the other one."""
    predicted, true, predicted_areas, true_areas = get_mask_edges(prediction, reference, crop=False, spacing=spacing)
    there = np.asarray(get_surface_distance(predicted, true, spacing=spacing))
    back = np.asarray(get_surface_distance(true, predicted, spacing=spacing))
    of_prediction = np.asarray(predicted_areas[predicted], dtype=np.float64)
    of_reference = np.asarray(true_areas[true], dtype=np.float64)
    limit = tolerance_mm * (1 + 1e-6)  # distances are float32: three voxels of 0.7 mm are within 2.1 mm
    within = of_prediction[there <= limit].sum() + of_reference[back <= limit].sum()
    return float(within / (of_prediction.sum() + of_reference.sum()))
