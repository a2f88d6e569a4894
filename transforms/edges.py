"""Grids whose edges agree: how many voxels, where they lie, and which axis is resampled on its own.

The convention of nnU-Net and of scikit-image's `resize`: n voxels become round(n * old / new), halves to the even
number, and share the extent of the old ones, so that the new spacing is nearly, and not exactly, the one asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

ANISOTROPIC = 3.0  # a spacing with a larger ratio has an axis that is resampled on its own


def with_own(spacing_mm: Sequence[float | None] | None, own_mm: Sequence[float]) -> tuple[float, ...]:
    """A plan's spacing for one image: its own where the plan has none."""
    wanted = (None,) * len(own_mm) if spacing_mm is None else spacing_mm
    return tuple(float(own if step is None else step) for step, own in zip(wanted, own_mm, strict=True))


def stated(spacing_mm: Sequence[float | None] | None) -> tuple[float, ...]:
    """A plan's spacing where no image is at hand: the finest that it has along an axis where it has none, else 1 mm."""
    wanted = spacing_mm or (None, None, None)
    given = [step for step in wanted if step is not None]
    return with_own(wanted, [min(given, default=1.0)] * len(wanted))


def grid_spacing(affine: np.ndarray) -> list[float]:
    """Spacing along each axis, as the single precision of a NIfTI header has it.

    Halves are halves: the columns of a turned affine of 0.75 mm are as long but for the last digits.
    """
    lengths: list[float] = np.linalg.norm(affine[:3, :3], axis=0).astype(np.float32).tolist()
    return lengths


def edges_shape(shape: Sequence[int], spacing_mm: Sequence[float], new_spacing_mm: Sequence[float]) -> tuple[int, ...]:
    """Voxels along each axis at the new spacing, at least one."""
    steps = zip(shape, spacing_mm, new_spacing_mm, strict=True)
    return tuple(max(1, round(float(old) / float(new) * size)) for size, old, new in steps)


def edges_affine(affine: np.ndarray, shape: Sequence[int], new_shape: Sequence[int]) -> np.ndarray:
    """The affine of as many voxels in the same extent."""
    ratio = np.asarray(shape, float) / np.asarray(new_shape, float)
    moved = np.array(affine, np.float64)
    moved[:3, 3] += moved[:3, :3] @ (ratio / 2 - 0.5)
    moved[:3, :3] *= ratio
    return moved


def edges_positions(size: int, new_size: int) -> np.ndarray:
    """Where the new voxels' centres lie among the old ones (`new_size`), some of them beyond the first and last."""
    positions: np.ndarray = (size / new_size) * (np.arange(new_size) + 0.5) - 0.5
    return positions


def separate_axis(separate: str, spacing_mm: Sequence[float], new_spacing_mm: Sequence[float]) -> int | None:
    """The coarse axis, which is resampled on its own; None where there is none, or more than one.

    Args:
        separate: always: the coarsest of the old grid; never; auto: that of the first of the two grids which is more
            than three times as coarse along one axis as along another.
        spacing_mm: of the grid resampled from.
        new_spacing_mm: of the one resampled to.
    """
    grids = {"always": [spacing_mm], "never": []}.get(separate)
    if grids is None:
        grids = [steps for steps in (spacing_mm, new_spacing_mm) if max(steps) / min(steps) > ANISOTROPIC]
    if not grids:
        return None
    coarse = [axis for axis, step in enumerate(grids[0]) if max(grids[0]) / step == 1]
    return coarse[0] if len(coarse) == 1 else None


def nearest_axis_back(
    resampling: Mapping[str, Any] | None, spacing_mm: Sequence[float | None] | None, source_mm: Sequence[float]
) -> int | None:
    """The axis along which scores go back to their image by nearest instead of linear interpolation, if any.

    Args:
        resampling: of a plan (`plan.get("resampling")`), None where it has the usual one.
        spacing_mm: of the plan, along the network's axes.
        source_mm: of the image, along the same axes.
    """
    if not resampling or resampling.get("kind") != "spline" or resampling.get("scores_order_separate", 0) != 0:
        return None
    return separate_axis(resampling.get("scores_separate", "auto"), with_own(spacing_mm, source_mm), source_mm)
