"""Distances between surfaces: MONAI's figures, and boxes whose answer is known, on anisotropic grids."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy.ndimage import gaussian_filter
from voxelwise.pipeline.evaluation.surface import surface_scores

SPACING = (1.0, 2.0, 5.0)


def box() -> np.ndarray:
    mask = np.zeros((20, 20, 20), dtype=bool)
    mask[5:15, 5:15, 5:15] = True
    return mask


@pytest.mark.parametrize("shape", [(20, 22, 12), (30, 25)])
def test_equal_to_monai(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(len(shape))
    for _ in range(3):
        field = gaussian_filter(rng.normal(size=shape), 2)
        prediction = field > 0.02
        reference = gaussian_filter(field + 0.03 * rng.normal(size=shape), 1) > 0.02
        spacing = rng.uniform(0.5, 5, len(shape)).tolist()
        hot = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, reference)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # MONAI warns about an argument of its own
            distance = compute_hausdorff_distance(*hot, include_background=True, percentile=95, spacing=spacing)
            dice = compute_surface_dice(*hot, [1.5], include_background=True, spacing=spacing, use_subvoxels=True)
        ours = surface_scores(prediction, reference, spacing, 1.5)
        assert ours["hd95_mm"] == pytest.approx(float(distance), rel=1e-5)
        assert ours["surface_dice"] == pytest.approx(float(dice), rel=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shifted_box_is_one_voxel_away_in_mm(axis: int) -> None:
    assert surface_scores(np.roll(box(), 1, axis), box(), SPACING, 2.0)["hd95_mm"] == pytest.approx(SPACING[axis])


@pytest.mark.parametrize(("axis", "face_mm2"), [(0, 1000), (1, 500), (2, 200)])
def test_surface_dice_weighs_by_area(axis: int, face_mm2: float) -> None:
    """Below a voxel of tolerance the two faces across the shift are wrong, and only they (edges: a few per cent)."""
    found = surface_scores(np.roll(box(), 1, axis), box(), SPACING, 0.49 * SPACING[axis])["surface_dice"]
    assert found == pytest.approx(1 - 2 * face_mm2 / 3400, abs=0.03)


def test_tolerance_of_exactly_one_voxel_counts() -> None:
    spacing = (0.7, 0.7, 2.1)
    assert surface_scores(np.roll(box(), 3, 0), box(), spacing, 3 * 0.7)["surface_dice"] == pytest.approx(1.0)


@pytest.mark.parametrize("shape", [(20, 20, 1), (1, 20, 20), (20, 20)])
def test_single_slices_have_outlines(shape: tuple[int, ...]) -> None:
    """Seen in three dimensions every voxel of a single slice is surface, and a shift would cost nothing inside."""
    mask = np.zeros((20, 20), dtype=bool)
    mask[5:15, 5:15] = True
    scores = surface_scores(np.roll(mask, 4, 1).reshape(shape), mask.reshape(shape), [1.0] * len(shape), 1.0)
    flat = surface_scores(np.roll(mask, 4, 1), mask, (1.0, 1.0), 1.0)
    assert scores == flat
    assert scores["hd95_mm"] == 4.0


def test_a_line_of_voxels_still_has_scores() -> None:
    mask = np.zeros((9, 1, 1), dtype=bool)
    mask[3:6] = True
    assert surface_scores(mask, mask, SPACING, 1.0) == {"hd95_mm": 0.0, "surface_dice": 1.0}


def test_empty_masks_give_what_is_documented() -> None:
    empty = np.zeros_like(box())
    for pair, dice in (((empty, box()), 0.0), ((box(), empty), 0.0), ((empty, empty), math.nan)):
        scores = surface_scores(*pair, SPACING, 2.0)
        assert math.isnan(scores["hd95_mm"])
        np.testing.assert_equal(scores["surface_dice"], dice)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="masks of one shape and a spacing for each axis are needed"):
        surface_scores(box(), box()[1:], SPACING, 1.0)
    with pytest.raises(ValueError, match=r"tolerance_mm=-1.0 must be 0 or more"):
        surface_scores(box(), box(), SPACING, -1.0)
