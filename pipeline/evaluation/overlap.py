"""Scores that are counted voxel by voxel: Dice, IoU, F1, sensitivity, precision, specificity, accuracy, volumes.

All of them follow from one confusion matrix of whole numbers, so a score per case and a score pooled over the data set
are the same formula on the matrix of a case and on the sum of the matrices. The formulas are MONAI's
(`compute_confusion_matrix_metric`); the counting is ours, because MONAI counts in float32, where a background of more
than 16.7 million voxels rounds away the errors of a small organ.

What an empty reference or prediction gives, per class ("state" in the tables):

    state     reference  prediction   Dice, IoU, F1   sensitivity  precision  specificity  surface Dice  HD95
    both      there      there        the score       the score    the score  the score    the score     the score
    missed    there      empty        0               0            NaN        1            0             NaN
    false     empty      there        0               NaN          0          the score    0             NaN
    absent    empty      empty        NaN             NaN          NaN        1            NaN           NaN

NaN is left out of a mean, and every mean is given with the number of values in it. So a class that is rightly not
predicted neither raises nor lowers a mean, a class that is wrongly found or lost pulls Dice to 0 (MONAI's default
leaves "false" out, which flatters), and the distances, which would be infinite, are told by the counts of "missed"
and "false" beside them.
"""

from __future__ import annotations

import numpy as np
import torch
from monai.metrics import compute_confusion_matrix_metric

# score -> the name that MONAI's formula goes by
OVERLAP_SCORES = {
    "dice": "f1 score",
    "iou": "threat score",
    "f1": "f1 score",
    "sensitivity": "sensitivity",
    "precision": "precision",
    "specificity": "specificity",
    "accuracy": "accuracy",
}


def confusion_matrix(prediction: np.ndarray, reference: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Count the voxels of every pair of classes.

    Args:
        prediction: label map, whole numbers.
        reference: label map of the same shape.
        values: the label values, sorted; every value in the two maps must be one of them.

    Returns:
        (K, K) int64, true class along rows, predicted class along columns.

    Memory: one plane of the first axis at a time.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"the shapes differ: prediction {prediction.shape}, reference {reference.shape}")
    classes = len(values)
    matrix = np.zeros(classes * classes, dtype=np.int64)
    for predicted, true in zip(prediction, reference, strict=True):
        pairs = np.searchsorted(values, true) * classes + np.searchsorted(values, predicted)
        matrix += np.bincount(pairs.ravel(), minlength=classes * classes)
    return matrix.reshape(classes, classes)


def spread(matrix: np.ndarray, values: np.ndarray, all_values: np.ndarray) -> np.ndarray:
    """Widen the matrix of a case to all classes of a data set; classes that the case has not are rows of zeros."""
    wide = np.zeros((len(all_values), len(all_values)), dtype=np.int64)
    where = np.searchsorted(all_values, values)
    wide[np.ix_(where, where)] = matrix
    return wide


def counts(matrix: np.ndarray) -> np.ndarray:
    """True positives, false positives, true negatives, false negatives of each class.

    Shape:
        matrix: (..., K, K), true class along rows.
        returns: (..., K, 4) int64.
    """
    true_positive = np.diagonal(matrix, axis1=-2, axis2=-1)
    false_positive = matrix.sum(axis=-2) - true_positive
    false_negative = matrix.sum(axis=-1) - true_positive
    total = matrix.sum(axis=(-2, -1))[..., None]
    true_negative = total - true_positive - false_positive - false_negative
    return np.stack([true_positive, false_positive, true_negative, false_negative], axis=-1)


def overlap_scores(numbers: np.ndarray) -> dict[str, np.ndarray]:
    """Each score of `OVERLAP_SCORES` from the counts; NaN where it would be 0/0.

    Shape:
        numbers: (..., 4) as `counts` gives them.
        returns: name -> (...,) float64.
    """
    table = torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.float64))
    flat = table.reshape(-1, 4)
    return {
        score: compute_confusion_matrix_metric(formula, flat).reshape(table.shape[:-1]).numpy()
        for score, formula in OVERLAP_SCORES.items()
    }


def voxel_accuracy(matrix: np.ndarray) -> np.ndarray:
    """Share of voxels with the right class, over all classes at once; (..., K, K) -> (...,)."""
    total = matrix.sum(axis=(-2, -1)).astype(np.float64)
    right = np.trace(matrix, axis1=-2, axis2=-1)
    return np.divide(right, total, out=np.full(total.shape, np.nan), where=total > 0)


def states(matrix: np.ndarray) -> list[str]:
    """Per class whether reference and prediction have it: both, missed, false or absent."""
    names = {(True, True): "both", (True, False): "missed", (False, True): "false", (False, False): "absent"}
    there = zip(matrix.sum(axis=1) > 0, matrix.sum(axis=0) > 0, strict=True)
    return [names[bool(true), bool(predicted)] for true, predicted in there]


def volumes(matrix: np.ndarray, voxel_ml: float) -> dict[str, np.ndarray]:
    """Volume of each class in mL: reference, prediction, prediction minus reference.

    The error is given in percent of the reference too, NaN where that is empty.
    """
    reference, prediction = matrix.sum(axis=-1), matrix.sum(axis=-2)
    error = prediction - reference
    percent = np.divide(100.0 * error, reference, out=np.full(error.shape, np.nan), where=reference > 0)
    return {
        "reference_ml": reference * voxel_ml,
        "prediction_ml": prediction * voxel_ml,
        "volume_error_ml": error * voxel_ml,
        "volume_error_percent": percent,
    }
