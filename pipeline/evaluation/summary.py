"""From the scores of cases to the scores of a data set, in two ways that both have a name.

"mean over cases" scores each case and averages; every subject counts the same. "pooled" adds up the confusion matrices
of all cases and scores the sum, as if they were one volume; every voxel counts the same. The two differ, most of all
for small structures.

Intervals are 95 % percentile bootstrap intervals over cases (seeded, so that they come out the same again); with one
case there is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .case_scores import SCORES, SURFACE_SCORES, CaseScores, class_scores, mean_of
from .overlap import OVERLAP_SCORES, counts, overlap_scores

MEAN_OVER_CASES = "mean over cases"
POOLED = "pooled"
RESAMPLES = 2000


def summarise(cases: Sequence[CaseScores], classes: Mapping[int, str], *, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of summary.csv: per class, then "foreground" (without background) and "all" (with it); per score.

    A row holds the value (a mean or a pooled score), the median over cases, the interval (low, high), the number of
    cases whose score is not NaN, and in how many cases the class was missed or falsely found.
    """
    values = list(classes)
    scored = [class_scores(case, values) for case in cases]
    stacked = {score: np.stack([table[score] for _, table in scored]) for score in SCORES}  # (cases, classes)
    numbers = np.stack([counts(case.wide_confusion(values)) for case in cases])  # (cases, classes, 4)
    weights = _resampled(len(cases), seed)
    rows = []
    for index, value in enumerate(values):
        lost = {word: sum(found[index] == word for found, _ in scored) for word in ("missed", "false")}
        head = {"class": value, "name": classes[value], **lost}
        names = SCORES if value != 0 else [score for score in SCORES if score not in SURFACE_SCORES]
        rows += [_mean_row(head, score, stacked[score][:, index], weights) for score in names]
        rows += _pooled_rows(head, numbers[:, [index]], weights)
    foreground = [index for index, value in enumerate(values) if value != 0]
    for word, chosen in (("foreground", foreground), ("all", list(range(len(values))))):
        head = {"class": word, "name": word, "missed": None, "false": None}
        names = (*OVERLAP_SCORES, *SURFACE_SCORES) if word == "foreground" else tuple(OVERLAP_SCORES)
        for score in names:
            per_case = np.array([mean_of(case[chosen]) for case in stacked[score]])
            rows.append(_mean_row(head, score, per_case, weights))
        rows += _pooled_rows(head, numbers[:, chosen], weights)
        if word == "all":
            rows += _voxel_accuracy_rows(head, numbers, weights)
    return rows


def nested(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """The rows of `summarise` as aggregation -> class -> score -> numbers, for summary.json (None for NaN)."""
    tree: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for row in rows:
        kept = {}
        for key in ("value", "median", "low", "high", "cases", "missed", "false"):
            number = row[key]
            kept[key] = None if isinstance(number, float) and math.isnan(number) else number
        tree.setdefault(row["aggregation"].replace(" ", "_"), {}).setdefault(str(row["class"]), {})[row["score"]] = kept
    return tree


def _resampled(cases: int, seed: int) -> np.ndarray:
    """How often each case is drawn in each resample, (resamples, cases)."""
    draws = np.random.default_rng([seed, 1]).integers(0, cases, size=(RESAMPLES, cases))
    weights = np.zeros((RESAMPLES, cases))
    np.add.at(weights, (np.arange(RESAMPLES)[:, None], draws), 1.0)
    return weights


def _interval(resampled: np.ndarray, cases: int) -> dict[str, float]:
    drawn = resampled[~np.isnan(resampled)]
    if cases < 2 or not drawn.size:
        return {"low": math.nan, "high": math.nan}
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"low": float(low), "high": float(high)}


def _mean_row(head: Mapping[str, Any], score: str, per_case: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    there = ~np.isnan(per_case)
    kept, drawn = per_case[there], weights[:, there]
    total = drawn.sum(axis=1)
    means = np.divide(drawn @ kept, total, out=np.full(len(weights), np.nan), where=total > 0)
    return {
        **head,
        "score": score,
        "aggregation": MEAN_OVER_CASES,
        "cases": int(there.sum()),
        "value": mean_of(per_case),
        "median": float(np.median(kept)) if kept.size else math.nan,
        **_interval(means, kept.size),
    }


def _pooled_rows(head: Mapping[str, Any], numbers: np.ndarray, weights: np.ndarray) -> list[dict[str, Any]]:
    """Scores of the summed counts; over several classes their mean (for IoU with background: the usual mIoU)."""
    cases, classes, _ = numbers.shape
    once = overlap_scores(numbers.sum(axis=0))
    again = overlap_scores((weights @ numbers.reshape(cases, -1)).reshape(-1, classes, 4))
    return [
        {
            **head,
            "score": score,
            "aggregation": POOLED,
            "cases": cases,
            "value": mean_of(once[score]),
            "median": math.nan,
            **_interval(_rowwise_mean(again[score]), cases),
        }
        for score in OVERLAP_SCORES
    ]


def _voxel_accuracy_rows(head: Mapping[str, Any], numbers: np.ndarray, weights: np.ndarray) -> list[dict[str, Any]]:
    right = numbers[:, :, 0].sum(axis=1).astype(np.float64)
    total = numbers[:, 0].sum(axis=1).astype(np.float64)
    pooled = {
        **head,
        "score": "voxel_accuracy",
        "aggregation": POOLED,
        "cases": len(numbers),
        "value": float(right.sum() / total.sum()),
        "median": math.nan,
        **_interval((weights @ right) / (weights @ total), len(numbers)),
    }
    return [_mean_row(head, "voxel_accuracy", right / total, weights), pooled]


def _rowwise_mean(table: np.ndarray) -> np.ndarray:
    there = ~np.isnan(table)
    number = there.sum(axis=1)
    return np.divide(np.where(there, table, 0).sum(axis=1), number, out=np.full(len(table), np.nan), where=number > 0)
