"""`evaluate`: label maps against references, scores per case and class, and their summary.

The output folder holds

    scores.csv     a row per case and class, then per case the means without and with background
    scores.json    the same rows, and which names had no partner
    summary.csv    per class, score and aggregation: value, median, 95 % interval, number of cases
    summary.json   the same, nested: aggregation -> class -> score
    cases/         the record of each case (confusion matrix, distances), from which a second run goes on
"""

from __future__ import annotations

import csv
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import CaseError, UsageError
from ...transforms.readers import read_volume
from ...transforms.volume import Entry
from ...transforms.writers import atomic_write, write_json
from ..manifest import Outcome, OutputFolder, digest_of
from .case_scores import SCORES, CaseScores, score_case, table_rows
from .pairs import Pairs, match
from .summary import RESAMPLES, nested, summarise

log = logging.getLogger(__name__)

SCORE_COLUMNS = ("case", "class", "name", "state", *SCORES, "voxel_accuracy")
SUMMARY_COLUMNS = (
    "class",
    "name",
    "score",
    "aggregation",
    "cases",
    "value",
    "median",
    "low",
    "high",
    "missed",
    "false",
)


def evaluate(
    predictions: Path | str,
    references: Path | str,
    *,
    out: Path | str,
    tolerance: float = 2.0,
    overwrite: bool = False,
    labels: Mapping[int, str] | None = None,
    seed: int = 0,
) -> Outcome:
    """Score label maps against references.

    Args:
        predictions: folder of label maps (volumes or pictures), or one file.
        references: folder of label maps, one file, or a data set whose labels are taken; matched by base name.
        out: folder for the tables.
        tolerance: how many mm apart surfaces may lie and still agree in surface Dice (pixels for pictures).
        overwrite: throw earlier results in `out` away.
        labels: label value -> name; by default what the data set of the references says, else the values found.
        seed: of the bootstrap intervals.

    Returns:
        The outcome; `facts` hold the mean foreground Dice over cases.

    Raises:
        UsageError: a place is missing, empty or holds no label map.
        NothingDoneError: no name is in both places.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise UsageError(f"--tolerance is {tolerance}, expected a distance in mm of 0 or more")
    pairs = match(Path(predictions), Path(references))
    classes = labels if labels is not None else pairs.labels
    if classes is not None:
        classes = {0: "background", **{value: classes[value] for value in sorted(classes)}}
    settings = {
        "tolerance_mm": tolerance,
        "seed": seed,
        "labels": None if classes is None else {str(value): name for value, name in classes.items()},
    }
    with OutputFolder(Path(out), "evaluate", settings, overwrite) as folder:
        (folder.out / "cases").mkdir(exist_ok=True)
        scores = _score_cases(folder, pairs, classes, tolerance)
        _note_unmatched(folder, pairs)
        if not scores:
            return folder.finish()
        if classes is None:
            found = sorted({value for case in scores for value in case.values})
            classes = {value: "background" if value == 0 else str(value) for value in found}
        dice = write_tables(folder.out, scores, classes, pairs, tolerance_mm=tolerance, seed=seed)
        return folder.finish(mean_foreground_dice=dice, cases=len(scores))


def _score_cases(
    folder: OutputFolder, pairs: Pairs, classes: Mapping[int, str] | None, tolerance_mm: float
) -> list[CaseScores]:
    """Score what no earlier run has scored; a case that cannot be is recorded and the others go on."""
    scores = []
    for number, (case, (prediction, reference)) in enumerate(pairs.pairs.items(), start=1):
        record = folder.out / "cases" / f"{case}.json"
        try:
            inputs = digest_of([prediction, reference])
            if folder.is_done(case, inputs):
                scores.append(CaseScores.from_json(json.loads(record.read_text(encoding="utf-8"))))
                continue
            started = time.monotonic()
            scored = score_case(
                case,
                read_volume(prediction),
                read_volume(reference),
                tolerance_mm=tolerance_mm,
                values=None if classes is None else list(classes),
            )
        except CaseError as error:
            folder.fail(case, [prediction, reference], error)
            log.warning("%s: stopped: %s", case, error)
            continue
        except OSError as error:
            reason = f"{error.filename or prediction}: cannot be read ({error.strerror}); check the file and its rights"
            folder.fail(case, [prediction, reference], CaseError(reason))
            log.warning("%s: stopped: %s", case, reason)
            continue
        write_json(record, scored.to_json())
        folder.record(case, [record], inputs, seconds=time.monotonic() - started)
        scores.append(scored)
        log.info("scored %d of %d: %s", number, len(pairs.pairs), case)
    return scores


def _note_unmatched(folder: OutputFolder, pairs: Pairs) -> None:
    for case in pairs.only_predicted:
        folder.note(case, Entry("no-reference", "there is a prediction and no reference of this name; not scored"))
    for case in pairs.only_referenced:
        folder.note(case, Entry("no-prediction", "there is a reference and no prediction of this name; not scored"))


def write_tables(
    out: Path,
    scores: Sequence[CaseScores],
    classes: Mapping[int, str],
    pairs: Pairs | None = None,
    *,
    tolerance_mm: float,
    seed: int = 0,
) -> float:
    """Write scores.csv, scores.json, summary.csv and summary.json; return the mean foreground Dice over cases."""
    rows = [row for case in scores for row in table_rows(case, classes)]
    summary = summarise(scores, classes, seed=seed)
    about = {
        "tolerance_mm": tolerance_mm,
        "labels": {str(value): name for value, name in classes.items()},
        "empty": "NaN (here null) is left out of means; see `state` and the counts of missed and false",
    }
    unmatched = {
        "only_predicted": [] if pairs is None else list(pairs.only_predicted),
        "only_referenced": [] if pairs is None else list(pairs.only_referenced),
    }
    interval = {"kind": "percentile bootstrap over cases", "level": 0.95, "resamples": RESAMPLES, "seed": seed}
    write_csv(out / "scores.csv", SCORE_COLUMNS, rows)
    write_json(out / "scores.json", {**about, **unmatched, "scores": [_without_nan(row) for row in rows]})
    write_csv(out / "summary.csv", SUMMARY_COLUMNS, summary)
    write_json(out / "summary.json", {**about, "cases": len(scores), "interval": interval, **nested(summary)})
    dice = [row for row in summary if row["class"] == "foreground" and row["score"] == "dice"]
    return float(dice[0]["value"])


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """A table with six significant digits; NaN and None are empty cells."""
    with atomic_write(path) as part, part.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _without_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
