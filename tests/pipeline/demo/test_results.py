"""Tables and report of the demo from scores that are known."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
from voxelwise.pipeline.demo.anatomy import SAT, VAT, Gap
from voxelwise.pipeline.demo.archive import Subject
from voxelwise.pipeline.demo.results import (
    NETWORK,
    RULES,
    Found,
    figures,
    write_report,
    write_scores,
    write_volumes,
)


def subject(name: str, gaps: int) -> Subject:
    holes = tuple(Gap(0.0, 5.0, 50.0, 20.0) for _ in range(gaps))
    return Subject(name, Path(name), "1.2", Path("x"), True, False, holes)


def row(label: int, dice: float, measured: float, true: float) -> dict[str, Any]:
    error = 100 * (measured - true) / true
    return {
        "class": label,
        "name": "SAT" if label == SAT else "VAT",
        "state": "both",
        "dice": dice,
        "surface_dice": 0.9,
        "hd95_mm": None,
        "prediction_ml": measured,
        "reference_ml": true,
        "volume_error_percent": error,
        "volume_error_abs_percent": abs(error),
    }


@pytest.fixture
def found() -> list[Found]:
    return [
        Found(case, method, subject(case, gaps), {SAT: row(SAT, dice, 90.0, 100.0), VAT: row(VAT, dice, 55.0, 50.0)})
        for case, gaps in (("case-a", 0), ("case-b", 2))
        for method, dice in ((NETWORK, 0.95), (RULES, 0.97 - 0.2 * gaps))
    ]


def test_figures(found: list[Found]) -> None:
    told = figures(found)
    assert told[NETWORK]["dice_all"]["SAT"] == pytest.approx(0.95)
    assert told[RULES]["dice_closed"]["VAT"] == pytest.approx(0.97)
    assert told[RULES]["dice_gaps"]["VAT"] == pytest.approx(0.57)
    assert told[NETWORK]["median_volume_error_percent"] == pytest.approx({"SAT": 10.0, "VAT": 10.0})


def test_tables(found: list[Found], tmp_path: Path) -> None:
    write_scores(tmp_path / "scores.csv", found)
    volumes = write_volumes(tmp_path / "volumes.csv", found)
    assert volumes[0]["vat_sat"] == pytest.approx(55 / 90)
    with (tmp_path / "volumes.csv").open(newline="") as stream:
        first = next(csv.DictReader(stream))
    assert (first["case"], first["method"], first["sat_error_percent"]) == ("case-a", "network", "-10")
    with (tmp_path / "scores.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(line["case"], line["method"], line["class"]) for line in rows][:4] == [
        ("case-a", "network", "1"),
        ("case-a", "network", "2"),
        ("case-a", "rules", "1"),
        ("case-a", "rules", "2"),
    ]
    assert math.isnan(found[0].score(SAT, "hd95_mm"))


def test_report_names_every_case(found: list[Found], tmp_path: Path) -> None:
    volumes = write_volumes(tmp_path / "volumes.csv", found)
    pictures = dict.fromkeys(("case-a", "case-b"), b"\x89PNG")
    write_report(
        tmp_path / "report.html", found, volumes, pictures, lead="x", facts=[("index", "8")], next_steps="voxelwise\n"
    )
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "gap in the ring: 5, 5 mm" in page
    assert page.count("<table>") == 4
