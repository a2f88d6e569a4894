"""Two aggregations that differ and are named, with intervals that hold what they should."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from voxelwise.pipeline.evaluation.case_scores import CaseScores, table_rows
from voxelwise.pipeline.evaluation.summary import MEAN_OVER_CASES, POOLED, nested, summarise

CLASSES = {0: "background", 1: "organ", 2: "lesion"}


def case(name: str, confusion: list[list[int]], hd95: float | None = 1.0) -> CaseScores:
    surface = {str(value): {"hd95_mm": hd95, "surface_dice": 0.5} for value in range(1, len(confusion))}
    return CaseScores(name, tuple(range(len(confusion))), tuple(map(tuple, confusion)), 0.001, surface)


def found(rows: list[dict[str, Any]], label: int | str, score: str, aggregation: str) -> dict[str, Any]:
    (row,) = [row for row in rows if (row["class"], row["score"], row["aggregation"]) == (label, score, aggregation)]
    return row


def test_mean_over_cases_and_pooled_differ() -> None:
    small, large = case("a", [[90, 0], [9, 1]]), case("b", [[0, 0], [0, 900]])
    rows = summarise([small, large], {0: "background", 1: "organ"})
    mean = found(rows, 1, "dice", MEAN_OVER_CASES)
    assert mean["value"] == pytest.approx((2 / 11 + 1) / 2)
    assert mean["median"] == pytest.approx((2 / 11 + 1) / 2)
    assert found(rows, 1, "dice", POOLED)["value"] == pytest.approx(2 * 901 / (901 + 910))
    assert found(rows, "all", "voxel_accuracy", POOLED)["value"] == pytest.approx(991 / 1000)
    assert found(rows, "all", "voxel_accuracy", MEAN_OVER_CASES)["value"] == pytest.approx((0.91 + 1) / 2)


def test_mean_iou_with_and_without_background() -> None:
    one = case("a", [[80, 5, 0], [5, 10, 0], [0, 0, 0]])
    rows = summarise([one], CLASSES)
    background, organ = 80 / 90, 10 / 20
    assert found(rows, "all", "iou", POOLED)["value"] == pytest.approx((background + organ) / 2)
    assert found(rows, "foreground", "iou", POOLED)["value"] == pytest.approx(organ)
    assert math.isnan(found(rows, 2, "iou", MEAN_OVER_CASES)["value"])
    assert found(rows, 2, "iou", MEAN_OVER_CASES)["cases"] == 0


def test_a_lost_class_is_counted_and_its_distance_left_out() -> None:
    cases = [case("a", [[9, 0], [0, 3]], hd95=2.0), case("b", [[9, 0], [3, 0]], hd95=None)]
    rows = summarise(cases, {0: "background", 1: "organ"})
    distance = found(rows, 1, "hd95_mm", MEAN_OVER_CASES)
    assert (distance["value"], distance["cases"], distance["missed"], distance["false"]) == (2.0, 1, 1, 0)
    assert found(rows, 1, "dice", MEAN_OVER_CASES)["value"] == pytest.approx(0.5)


def test_interval_is_seeded_and_about_right() -> None:
    rng = np.random.default_rng(5)
    cases = [case(f"c{i}", [[100, 0], [int(miss), 100 - int(miss)]]) for i, miss in enumerate(rng.integers(5, 60, 40))]
    labels = {0: "background", 1: "organ"}
    first, again, other = (
        found(summarise(cases, labels, seed=seed), 1, "sensitivity", MEAN_OVER_CASES) for seed in (0, 0, 1)
    )
    assert first == again
    assert (first["low"], first["high"]) != (other["low"], other["high"])
    values = [row["sensitivity"] for one in cases for row in table_rows(one, labels) if row["class"] == 1]
    half = 1.96 * np.std(values, ddof=1) / np.sqrt(len(values))
    assert first["low"] == pytest.approx(np.mean(values) - half, abs=0.01)
    assert first["high"] == pytest.approx(np.mean(values) + half, abs=0.01)


def test_one_case_has_no_interval() -> None:
    row = found(summarise([case("a", [[5, 1], [1, 5]])], {0: "background", 1: "organ"}), 1, "dice", MEAN_OVER_CASES)
    assert math.isnan(row["low"])
    tree = nested([row])
    assert tree["mean_over_cases"]["1"]["dice"]["low"] is None
    assert tree["mean_over_cases"]["1"]["dice"]["value"] == pytest.approx(10 / 12)


def test_cases_of_different_classes_share_one_table() -> None:
    rows = table_rows(case("a", [[5, 0], [0, 5]]), CLASSES)
    assert [row["class"] for row in rows] == [0, 1, 2, "foreground", "all"]
    assert [row["state"] for row in rows[:3]] == ["both", "both", "absent"]
    assert rows[3]["dice"] == 1.0
    assert math.isnan(rows[3]["volume_error_ml"])
    assert rows[4]["voxel_accuracy"] == 1.0


def test_record_survives_json() -> None:
    one = case("a", [[5, 0], [0, 5]], hd95=None)
    assert CaseScores.from_json(one.to_json()) == one
