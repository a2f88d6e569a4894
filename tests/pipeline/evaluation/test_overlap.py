"""Overlap scores against counts by hand, MONAI's own metrics, and the documented answers for empty maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice, compute_iou
from voxelwise.pipeline.evaluation.overlap import (
    confusion_matrix,
    counts,
    overlap_scores,
    spread,
    states,
    volumes,
    voxel_accuracy,
)

VALUES = np.array([0, 1, 2])


def two_maps(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 3, (7, 6, 5)), rng.integers(0, 3, (7, 6, 5))


def test_counts_add_up_to_the_volume() -> None:
    prediction, reference = two_maps()
    matrix = confusion_matrix(prediction, reference, VALUES)
    for value in VALUES:
        assert matrix[value].sum() == (reference == value).sum()
        assert matrix[:, value].sum() == (prediction == value).sum()
    assert np.array_equal(counts(matrix).sum(axis=-1), [prediction.size] * 3)


def test_dice_and_iou_are_monais() -> None:
    prediction, reference = two_maps(1)
    table = overlap_scores(counts(confusion_matrix(prediction, reference, VALUES)))
    hot = [
        torch.nn.functional.one_hot(torch.from_numpy(each), 3).movedim(-1, 0)[None] for each in (prediction, reference)
    ]
    np.testing.assert_allclose(table["dice"], compute_dice(*hot)[0], rtol=1e-6)
    np.testing.assert_allclose(table["iou"], compute_iou(*hot)[0], rtol=1e-6)


def test_definitions() -> None:
    """Section "losses and metrics" of the survey: specificity is TN/(TN+FP), F1 is Dice, IoU is F1/(2-F1)."""
    table = {name: float(score) for name, score in overlap_scores(np.array([6, 2, 20, 4])).items()}
    assert table["sensitivity"] == pytest.approx(6 / 10)
    assert table["precision"] == pytest.approx(6 / 8)
    assert table["specificity"] == pytest.approx(20 / 22)
    assert table["accuracy"] == pytest.approx(26 / 32)
    assert table["f1"] == table["dice"] == pytest.approx(2 * 0.6 * 0.75 / 1.35)
    assert table["iou"] == pytest.approx(table["f1"] / (2 - table["f1"]))


def test_counts_stay_exact_where_float32_rounds() -> None:
    """512 x 512 x 1000 voxels of background: three false positives stay three."""
    matrix = np.array([[262_144_000, 3], [0, 7]], dtype=np.int64)
    assert counts(matrix)[1].tolist() == [7, 3, 262_144_000, 0]
    assert overlap_scores(counts(matrix))["precision"][1] == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("prediction", "reference", "state", "expected"),
    [
        ([1, 0], [1, 0], "both", {"dice": 1.0, "iou": 1.0, "sensitivity": 1.0, "precision": 1.0, "specificity": 1.0}),
        (
            [0, 0],
            [1, 0],
            "missed",
            {"dice": 0.0, "iou": 0.0, "sensitivity": 0.0, "precision": np.nan, "specificity": 1.0},
        ),
        (
            [1, 0],
            [0, 0],
            "false",
            {"dice": 0.0, "iou": 0.0, "sensitivity": np.nan, "precision": 0.0, "specificity": 0.5},
        ),
        (
            [0, 0],
            [0, 0],
            "absent",
            {"dice": np.nan, "iou": np.nan, "sensitivity": np.nan, "precision": np.nan, "specificity": 1.0},
        ),
    ],
)
def test_empty_maps_give_what_is_documented(
    prediction: list[int], reference: list[int], state: str, expected: dict[str, float]
) -> None:
    matrix = confusion_matrix(np.array([prediction]), np.array([reference]), np.array([0, 1]))
    assert states(matrix)[1] == state
    table = overlap_scores(counts(matrix))
    for name, value in expected.items():
        np.testing.assert_equal(float(table[name][1]), value)


def test_spread_keeps_the_counts() -> None:
    prediction, reference = two_maps(2)
    matrix = confusion_matrix(prediction * 5, reference * 5, VALUES * 5)
    wide = spread(matrix, VALUES * 5, np.array([0, 3, 5, 7, 10]))
    assert wide[np.ix_([0, 2, 4], [0, 2, 4])].tolist() == matrix.tolist()
    assert wide.sum() == matrix.sum()


def test_voxel_accuracy_is_the_trace() -> None:
    assert voxel_accuracy(np.array([[5, 1], [2, 8]])) == pytest.approx(13 / 16)
    assert np.isnan(voxel_accuracy(np.zeros((2, 2), dtype=np.int64)))


def test_volumes() -> None:
    table = volumes(np.array([[90, 5, 0], [0, 40, 0], [0, 3, 0]]), voxel_ml=0.01)
    np.testing.assert_allclose(table["reference_ml"], [0.95, 0.4, 0.03])
    np.testing.assert_allclose(table["volume_error_ml"], [-0.05, 0.08, -0.03])
    np.testing.assert_allclose(table["volume_error_percent"], [-100 * 5 / 95, 20.0, -100.0])
    assert np.isnan(volumes(np.array([[9, 1], [0, 0]]), 1.0)["volume_error_percent"][1])


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"the shapes differ: prediction \(2, 2\), reference \(2, 3\)"):
        confusion_matrix(np.zeros((2, 2), int), np.zeros((2, 3), int), VALUES)
