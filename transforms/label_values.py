"""The values of a label map as whole numbers, counted, and held against a list; numpy alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import CaseError

WHOLE_WITHIN = 1e-3


def whole_labels(labels: np.ndarray, where: str = "label map") -> tuple[np.ndarray, bool]:
    """Label values as whole numbers, and whether some had to be rounded (within 1e-3).

    Raises:
        CaseError: values that are not whole, negative or above 65535; the message counts them.
    """
    rounded = False
    if labels.dtype.kind not in "iub":
        nearest = np.rint(labels)
        with np.errstate(invalid="ignore"):
            wrong = ~(np.abs(labels - nearest) <= WHOLE_WITHIN)  # NaN counts as wrong
        if wrong.any():
            examples = ", ".join(f"{value:g}" for value in np.unique(labels[wrong])[:4])
            raise CaseError(
                f"{where}: {int(wrong.sum())} voxels hold values that are not whole ({examples}); a label map "
                "holds one "
                "whole number a class, correct it or leave the case out",
                "label-not-whole",
            )
        rounded = bool((labels != nearest).any())
        labels = nearest
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    if low < 0 or high > 65535:
        raise CaseError(f"{where}: label values run from {low} to {high}, expected 0 to 65535", "label-out-of-range")
    return labels.astype(np.uint8 if high < 256 else np.uint16, copy=False), rounded


def label_counts(labels: np.ndarray) -> dict[int, int]:
    """Voxels of each value that is there (whole numbers from 0)."""
    counts = np.bincount(labels.ravel())
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def class_numbers(labels: np.ndarray, values: Sequence[int], where: str = "label map") -> np.ndarray:
    """Label values as class numbers, the place of each value in `values`; uint8, or uint16 above 256 classes.

    Raises:
        CaseError: a value that is not among `values`.
    """
    counts = label_counts(labels)
    unknown = [value for value in counts if value not in values]
    if unknown:
        found = ", ".join(f"{value} ({counts[value]} voxels)" for value in unknown[:4])
        raise CaseError(
            f"{where}: found the label value {found}, expected {', '.join(map(str, values))}; correct the label "
            "map or the "
            "list of labels, or leave the case out",
            "label-unknown",
        )
    table = np.zeros(max(counts, default=0) + 1, np.uint8 if len(values) <= 256 else np.uint16)
    for number, value in enumerate(values):
        if value < len(table):
            table[value] = number
    return table[labels]
