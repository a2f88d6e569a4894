"""What the demo found: one table of both answers, volumes in mL, a picture of each new subject, and the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from ...transforms.writers import write_text
from ..evaluation import report
from ..evaluation.evaluate import SCORE_COLUMNS, write_csv
from .anatomy import SAT, VAT
from .archive import Subject

NETWORK, RULES = "network", "rules"
FAT = {SAT: "SAT", VAT: "VAT"}
VOLUME_COLUMNS = (
    *("case", "method", "gaps", "thin", "sat_ml", "vat_ml", "vat_sat"),
    *("sat_reference_ml", "vat_reference_ml", "vat_sat_reference", "sat_error_percent", "vat_error_percent"),
)


@dataclass(frozen=True)
class Found:
    """The scores of one subject under one method, per class."""

    case: str
    method: str
    subject: Subject
    rows: Mapping[int, Mapping[str, Any]]

    def score(self, label: int, name: str) -> float:
        """One score of one class; NaN where there is none."""
        value = self.rows[label][name]
        return float("nan") if value is None else float(value)


def read_scores(folder: Path, method: str, subjects: Mapping[str, Subject]) -> list[Found]:
    """The scores that `evaluate` left in a folder."""
    rows = json.loads((folder / "scores.json").read_text(encoding="utf-8"))["scores"]
    by_case: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        if row["class"] in FAT:
            by_case.setdefault(row["case"], {})[row["class"]] = row
    return [Found(case, method, subjects[case], by_case[case]) for case in sorted(by_case)]


def write_scores(path: Path, found: Sequence[Found]) -> None:
    """Both methods in one table, case by case."""
    rows = [
        {**each.rows[label], "case": each.case, "method": each.method, "gaps": len(each.subject.gaps)}
        for each in sorted(found, key=lambda each: (each.case, each.method))
        for label in FAT
    ]
    write_csv(path, ("case", "method", "gaps", *SCORE_COLUMNS[1:-1]), rows)


def write_volumes(path: Path, found: Sequence[Found]) -> list[dict[str, Any]]:
    """SAT and VAT in mL and their ratio, measured and true."""
    rows = []
    for each in sorted(found, key=lambda each: (each.case, each.method)):
        measured = {label: each.score(label, "prediction_ml") for label in FAT}
        true = {label: each.score(label, "reference_ml") for label in FAT}
        row: dict[str, Any] = {"case": each.case, "method": each.method}
        row |= {"gaps": len(each.subject.gaps), "thin": "yes" if each.subject.thin else "no"}
        row |= {"sat_ml": measured[SAT], "vat_ml": measured[VAT], "vat_sat": _ratio(measured)}
        row |= {"sat_reference_ml": true[SAT], "vat_reference_ml": true[VAT], "vat_sat_reference": _ratio(true)}
        row |= {
            f"{name.lower()}_error_percent": each.score(label, "volume_error_percent") for label, name in FAT.items()
        }
        rows.append(row)
    write_csv(path, VOLUME_COLUMNS, rows)
    return rows


def figures(found: Sequence[Found]) -> dict[str, dict[str, Any]]:
    """The demo's claims in numbers: method -> mean Dice per class (all, with gaps, without), median volume error."""
    told = {}
    for method in (NETWORK, RULES):
        mine = [each for each in found if each.method == method]
        groups = {
            "all": mine,
            "gaps": [each for each in mine if each.subject.gaps],
            "closed": [each for each in mine if not each.subject.gaps],
        }
        told[method] = {
            f"dice_{group}": {name: _mean([each.score(label, "dice") for each in some]) for label, name in FAT.items()}
            for group, some in groups.items()
        }
        told[method]["median_volume_error_percent"] = {
            name: median(each.score(label, "volume_error_abs_percent") for each in mine) for label, name in FAT.items()
        }
    return told


def write_report(
    path: Path,
    found: Sequence[Found],
    volumes: Sequence[Mapping[str, Any]],
    pictures: Mapping[str, bytes],
    *,
    lead: str,
    facts: Sequence[tuple[str, str]],
    next_steps: str,
) -> None:
    """One page that holds everything."""
    cases = sorted({each.case: each.subject for each in found}.items())
    blocks = [
        report.contents(
            [("scores", "Scores"), ("volumes", "Volumes"), ("cases", "Pictures"), ("next", "Your own data")]
        ),
        report.section("What was done", [report.table(("step", "result"), facts)], anchor="done"),
        report.section("Scores on unseen subjects", _score_blocks(found), anchor="scores"),
        report.section("Volumes", _volume_blocks(volumes), anchor="volumes"),
        report.section("Pictures", _case_blocks(cases, pictures), anchor="cases"),
        report.section("Next: your own data", [report.commands(next_steps)], anchor="next"),
    ]
    write_text(path, report.page("voxelwise demo: subcutaneous and visceral fat on CT", blocks, lead=lead))


def _score_blocks(found: Sequence[Found]) -> list[str]:
    told = figures(found)
    words = {"all": "all", "closed": "muscle ring closed", "gaps": "gaps in the muscle ring"}
    means = [
        [method, words[group], *(told[method][f"dice_{group}"][name] for name in FAT.values())]
        for group in words
        for method in (NETWORK, RULES)
    ]
    each = [
        [one.case, _kind(one.subject), one.method]
        + [one.score(label, score) for label in FAT for score in ("dice", "surface_dice", "hd95_mm")]
        for one in sorted(found, key=lambda one: (one.case, one.method))
    ]
    columns = [f"{name} {score}" for name in FAT.values() for score in ("Dice", "surface Dice 2 mm", "HD95 mm")]
    return [
        report.paragraph(
            "SAT is the fat under the skin, VAT the fat around the organs. Both have the same Hounsfield units; what "
            "parts them is the muscle ring. The rules (fat threshold, then a watershed in each slice) are right where "
            "that ring is closed and leak where it has a gap. The network has learned where the ring would be."
        ),
        report.table(("method", "subjects", "SAT Dice", "VAT Dice"), means, caption="Mean Dice over unseen subjects"),
        report.table(
            ("case", "subject", "method", *columns),
            each,
            caption="Each unseen subject",
            digits=[None, None, None, 3, 3, 1, 3, 3, 1],
        ),
    ]


def _volume_blocks(volumes: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = ("case", "method", "SAT mL", "true", "error %", "VAT mL", "true", "error %", "VAT/SAT", "true")
    keys = (
        *("case", "method", "sat_ml", "sat_reference_ml", "sat_error_percent"),
        *("vat_ml", "vat_reference_ml", "vat_error_percent", "vat_sat", "vat_sat_reference"),
    )
    rows = [[row[key] for key in keys] for row in volumes]
    return [report.table(columns, rows, digits=[None, None, 0, 0, 1, 0, 0, 1, 2, 2])]


def _case_blocks(cases: Sequence[tuple[str, Subject]], pictures: Mapping[str, bytes]) -> list[str]:
    text = "Axial, coronal and sagittal planes of each subject, cut where network, reference and rules differ most."
    blocks = [report.paragraph(text, quiet=True)]
    for case, subject in cases:
        what = f"{case}: {_kind(subject)}"
        blocks.append(
            report.figure(pictures[case], text=f"Planes of {what} with label maps painted over", caption=what)
        )
    return blocks


def _kind(subject: Subject) -> str:
    widths = ", ".join(f"{gap.width_mm:.0f}" for gap in subject.gaps)
    ring = f"gap in the ring: {widths} mm" if widths else "ring closed"
    return f"very thin, {ring}" if subject.thin else ring


def _ratio(volumes: Mapping[int, float]) -> float:
    return volumes[VAT] / volumes[SAT] if volumes[SAT] else float("nan")


def _mean(values: Sequence[float]) -> float | None:
    return mean(values) if values else None
