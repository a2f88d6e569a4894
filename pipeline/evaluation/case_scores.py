"""The scores of one case: two label maps in, a record of plain values out, and a table row per class from the record.

The record keeps the confusion matrix, so that tables, means and pooled scores are made from records alone, whichever
classes the other cases turn out to have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...errors import CaseError
from ...transforms.geometry import grid_difference, same_grid
from ...transforms.labels import whole_labels
from ...transforms.volume import Volume
from .overlap import OVERLAP_SCORES, confusion_matrix, counts, overlap_scores, spread, states, volumes, voxel_accuracy
from .surface import surface_scores

SURFACE_SCORES = ("hd95_mm", "surface_dice")
VOLUME_SCORES = ("reference_ml", "prediction_ml", "volume_error_ml", "volume_error_percent", "volume_error_abs_percent")
SCORES = (*OVERLAP_SCORES, *SURFACE_SCORES, *VOLUME_SCORES)


@dataclass(frozen=True)
class CaseScores:
    """What was counted and measured in one case.

    Args:
        case: its name.
        values: label values that occur in either map, sorted, 0 always among them.
        confusion: voxels of each pair of classes, true class along rows.
        voxel_ml: volume of a voxel in mL; None for a picture, which has no volumes and distances in pixels.
        surface: label value (as text) -> hd95_mm and surface_dice; None stands for NaN. The background has none.
    """

    case: str
    values: tuple[int, ...]
    confusion: tuple[tuple[int, ...], ...]
    voxel_ml: float | None
    surface: Mapping[str, Mapping[str, float | None]]

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `from_json` takes them."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> CaseScores:
        """The record that `to_json` wrote."""
        return cls(
            case=str(record["case"]),
            values=tuple(int(value) for value in record["values"]),
            confusion=tuple(tuple(int(number) for number in row) for row in record["confusion"]),
            voxel_ml=None if record["voxel_ml"] is None else float(record["voxel_ml"]),
            surface={str(value): dict(scores) for value, scores in record["surface"].items()},
        )

    def wide_confusion(self, values: Sequence[int]) -> np.ndarray:
        """The confusion matrix over the classes of a whole data set."""
        matrix = np.array(self.confusion, dtype=np.int64)
        return spread(matrix, np.array(self.values), np.array(values))


def score_case(
    case: str, prediction: Volume, reference: Volume, *, tolerance_mm: float, values: Sequence[int] | None = None
) -> CaseScores:
    """Compare a label map with its reference.

    Args:
        case: name for the record and for messages.
        prediction: one channel of whole numbers; what is whole within 1e-3 is rounded, as training does.
        reference: the same, on the same grid.
        tolerance_mm: of surface Dice.
        values: the values that may occur; None accepts any.

    Raises:
        CaseError: the grids differ, or a map holds something that is not a label.
    """
    _check_grids(case, prediction, reference)
    predicted = _labels(case, "prediction", prediction, values)
    true = _labels(case, "reference", reference, values)
    found = np.union1d(np.union1d(np.unique(predicted), np.unique(true)), [0]).astype(np.int64)
    spacing = reference.geometry.spacing_mm
    surface = {
        str(value): {
            name: None if math.isnan(score) else score
            for name, score in surface_scores(predicted == value, true == value, spacing, tolerance_mm).items()
        }
        for value in found.tolist()
        if value != 0
    }
    return CaseScores(
        case=case,
        values=tuple(found.tolist()),
        confusion=tuple(tuple(row) for row in confusion_matrix(predicted, true, found).tolist()),
        voxel_ml=abs(float(np.linalg.det(reference.geometry.affine[:3, :3]))) / 1000.0
        if reference.geometry.has_world
        else None,
        surface=surface,
    )


def class_scores(scores: CaseScores, values: Sequence[int]) -> tuple[list[str], dict[str, np.ndarray]]:
    """State of each class, and name of a score -> its value for each class (NaN where there is none)."""
    matrix = scores.wide_confusion(values)
    table = overlap_scores(counts(matrix))
    for name in SURFACE_SCORES:
        found = [scores.surface.get(str(value), {}).get(name) for value in values]
        table[name] = np.array([math.nan if value is None else value for value in found], dtype=np.float64)
    table.update(volumes(matrix, math.nan if scores.voxel_ml is None else scores.voxel_ml))
    table["volume_error_abs_percent"] = np.abs(table["volume_error_percent"])
    return states(matrix), table


def table_rows(scores: CaseScores, classes: Mapping[int, str]) -> list[dict[str, Any]]:
    """Rows of scores.csv: one per class, then the means without ("foreground") and with background ("all").

    Args:
        scores: of one case.
        classes: label value -> name, the background (0) first.
    """
    values = list(classes)
    names, table = class_scores(scores, values)
    rows: list[dict[str, Any]] = [
        {
            "case": scores.case,
            "class": value,
            "name": classes[value],
            "state": names[index],
            **{score: float(table[score][index]) for score in SCORES},
            "voxel_accuracy": math.nan,
        }
        for index, value in enumerate(values)
    ]
    foreground = [index for index, value in enumerate(values) if value != 0]
    every = list(range(len(values)))
    for word, chosen in (("foreground", foreground), ("all", every)):
        # volumes of classes do not average to anything: their means stay empty, and distances have no background
        averaged = [*OVERLAP_SCORES, *SURFACE_SCORES] if word == "foreground" else list(OVERLAP_SCORES)
        means = {score: mean_of(table[score][chosen]) if score in averaged else math.nan for score in SCORES}
        accuracy = float(voxel_accuracy(scores.wide_confusion(values))) if word == "all" else math.nan
        rows.append(
            {"case": scores.case, "class": word, "name": word, "state": "", **means, "voxel_accuracy": accuracy}
        )
    return rows


def mean_of(values: np.ndarray) -> float:
    """Mean of the numbers among the values; NaN where there is none."""
    numbers = values[~np.isnan(values)]
    return float(numbers.mean()) if numbers.size else math.nan


def _check_grids(case: str, prediction: Volume, reference: Volume) -> None:
    found, expected = prediction.geometry, reference.geometry
    if found.shape != expected.shape:
        raise CaseError(
            f"{case}: the prediction has the shape {found.shape}, its reference {expected.shape}; both must lie on one "
            "grid: predict on the image that the reference was drawn on",
            "grid-differs",
        )
    if found.has_world and expected.has_world and not same_grid(found, expected, 0.1):
        raise CaseError(
            f"{case}: prediction and reference have the same shape, but their voxels lie "
            f"{grid_difference(found, expected):.2f} voxels apart (0.1 is accepted); predict on the image that the "
            "reference was drawn on, or correct the affine of one of them",
            "grid-differs",
        )


def _labels(case: str, which: str, volume: Volume, values: Sequence[int] | None) -> np.ndarray:
    if volume.channels != 1:
        raise CaseError(f"{case}: the {which} has {volume.channels} channels, a label map has one", "not-a-label-map")
    labels = whole_labels(volume.array[0], f"{case}: the {which}")[0].astype(np.int64)
    if values is not None:
        odd = sorted(set(np.unique(labels).tolist()) - set(values) - {0})
        if odd:
            raise CaseError(
                f"{case}: the {which} holds the value {odd[0]}, the labels are {', '.join(map(str, values))}; correct "
                "the map or the list of labels",
                "label-value",
            )
    return labels
