"""`voxelwise index` on the command line: a table that a person reads, JSON, filters, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import phantoms
import pytest
from voxelwise.pipeline.archive.database import COLUMNS
from voxelwise.scripts import index as module
from voxelwise.scripts.index import table_lines
from voxelwise.scripts.main import main

FIELDS = {
    "id": "case-0123456789ab",
    "verdict": "usable",
    "kind": "dicom",
    "modality": "CT",
    "use": "3D",
    "files": 111,
    "shape": "512x512x111",
    "spacing_mm": "0.703x0.703x2.5",
    "place": "p",
}
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "archive"
    phantoms.ct_series(root / "good", seed=1)
    phantoms.ct_series(root / "bad", seed=2)[3].unlink()
    phantoms.mr_series(root / "a folder" / "with a long name" / "below another one of that kind" / "mr", seed=3)
    phantoms.nifti_file(root / "labelsTr" / "a.nii.gz")
    (root / "notes").write_text("plain\n")
    return root


def shown(capsys: Capture) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_the_table_tells_each_volume_and_their_number(archive: Path, capsys: Capture) -> None:
    assert main(["index", str(archive), "--show"]) == 3
    lines = shown(capsys)
    assert lines[0].split() == ["id", "verdict", "what", "use", "shape", "spacing", "mm", "files", "place", "why"]
    rows = {line.split()[0]: line for line in lines[2:] if line.startswith("case-")}
    good = next(line for line in rows.values() if "usable" in line and "CT" in line)
    assert good.split()[1:] == ["usable", "CT", "3D", "12x10x8", "0.7x0.9x2.5", "8", "good"]
    assert any("label map?" in line for line in rows.values())
    bad = next(line for line in rows.values() if "stopped" in line)
    assert "missing-slice: " in bad
    assert len(rows) == 5
    assert [line.split() for line in lines[-3:]] == [
        ["3", "usable", "1", "MR,", "1", "CT,", "1", "nifti"],
        ["1", "stopped", "1", "missing-slice"],
        ["1", "listed", "1", "other"],
    ]
    assert (archive.parent / "voxelwise-index.db").exists()


def test_json_is_one_document(archive: Path, capsys: Capture) -> None:
    assert main(["index", str(archive), "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert {row["verdict"] for row in told["facts"]["volumes"]} == {"usable", "stopped", "listed"}
    assert told["counts"] == {"in": 4, "done": 3, "skipped": 0, "stopped": 1}
    assert main(["index", str(archive), "--json", "--modality", "ct", "--verdict", "usable"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert [(row["modality"], row["repairs"]) for row in told["facts"]["volumes"]] == [("CT", [])]


def test_filters_and_export(archive: Path, capsys: Capture) -> None:
    words = ["index", str(archive), "--show", "--quiet", "--modality", "MR,CT", "--min-slices", "8"]
    assert main([*words, "--export", "cases.csv"]) == 3
    assert [line.split()[2] for line in shown(capsys) if line.startswith("case-")] == ["MR", "CT"]
    table = (archive.parent / "cases.csv").read_text().splitlines()
    assert len(table) == 3
    assert not any("good" in line or "folder" in line for line in table)
    assert main([*words, "--verdict", "fine"]) == 2
    assert main([*words[:4], "--modality", "PT"]) == 3
    assert "nothing to show" in capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 120, 200])
def test_a_line_is_no_wider_than_the_terminal(width: int) -> None:
    """Each row tells verdict, place and reason on every width; on a wide one nothing is cut."""
    place = "patients/0001/study one/series 12 thin slices soft tissue"
    reason = "/archive/patients: between slices 12 and 13 lie 5.0 mm, elsewhere 2.5 mm"
    stopped = {"verdict": "stopped", "code": "missing-slice", "use": None, "shape": None, "spacing_mm": None}
    rows = [{**FIELDS, **stopped, "place": place, "reason": reason}, {**FIELDS, "place": place}]
    lines = list(table_lines([tuple(row.get(column) for column in COLUMNS) for row in rows], width))
    assert max(map(len, lines)) <= width
    assert all("soft tissue" in line for line in lines[2:])
    assert "missing-slice" in lines[2]
    if width == 200:
        assert lines[2].endswith("missing-slice: between slices 12 and 13 lie 5.0 mm, elsewhere 2.5 mm")


def test_the_table_holds_no_list_of_its_rows(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """An archive of any size is shown from its file: rows are asked for again, and never all kept."""
    at_once = []

    class Row(dict[str, Any]):
        alive = 0

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            Row.alive += 1
            at_once.append(Row.alive)

        def __del__(self) -> None:
            Row.alive -= 1

    volumes = [tuple(FIELDS.get(column) for column in COLUMNS)] * 500
    monkeypatch.setattr(module, "as_rows", lambda them: (Row(zip(COLUMNS, one, strict=True)) for one in them))
    module.print_table(volumes)
    assert shown(capsys)[-1].split() == ["500", "usable", "500", "CT"]
    assert max(at_once) <= 3
