"""`index`: the inventory of an archive."""

from __future__ import annotations

import csv
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import phantoms
import pytest
from voxelwise.errors import UsageError
from voxelwise.pipeline.archive import index as module
from voxelwise.pipeline.archive.convert import convert
from voxelwise.pipeline.archive.index import COLUMNS, index
from voxelwise.pipeline.manifest import Outcome


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    root = tmp_path / "archive"
    phantoms.ct_series(root / "ct", seed=1, BodyPartExamined="ABDOMEN")
    phantoms.mr_series(root / "mr", phantoms.ramp((6, 5, 3)) + 100, seed=2)
    broken = phantoms.ct_series(root / "broken", seed=3)
    broken[3].unlink()
    return root


def rows(outcome: Outcome) -> list[dict[str, object]]:
    return [dict(zip(COLUMNS, row, strict=True)) for row in outcome.facts["volumes"]]


def test_each_volume_has_a_row(archive: Path, tmp_path: Path) -> None:
    outcome = index(archive, db=tmp_path / "index.db")
    assert (len(outcome.done), len(outcome.failures), outcome.exit_code) == (2, 1, 3)
    found = {row["place"]: row for row in rows(outcome)}
    ct = found["ct"]
    assert (ct["verdict"], ct["modality"], ct["shape"], ct["slices"]) == ("usable", "CT", "12x10x8", 8)
    assert (ct["spacing_mm"], ct["orientation"], ct["body_part"], ct["files"]) == ("0.7x0.9x2.5", "LPS", "ABDOMEN", 8)
    assert found["broken"]["verdict"] == "stopped"
    assert "broken" in str(found["broken"]["reason"])


def test_the_file_holds_every_instance_and_no_patient(archive: Path, tmp_path: Path) -> None:
    index(archive, db=tmp_path / "index.db")
    with closing(sqlite3.connect(tmp_path / "index.db")) as base:
        instances = dict(base.execute("SELECT path, volume FROM instances"))
    assert instances.keys() == {p.relative_to(archive).as_posix() for p in archive.rglob("*.dcm")}
    assert len(set(instances.values())) == 3
    content = (tmp_path / "index.db").read_bytes()
    assert b"CANARY" not in content.upper()
    assert phantoms.ROOT.encode() not in content
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_tree_that_did_not_change_is_not_read_again(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = index(archive, db=tmp_path / "index.db")
    monkeypatch.setattr(module, "find_sources", None)
    assert index(archive, db=tmp_path / "index.db") == first
    monkeypatch.undo()
    phantoms.ct_series(archive / "new", seed=9)
    again = index(archive, db=tmp_path / "index.db")
    assert set(first.done) < set(again.done)


def test_a_file_that_changed_is_read_again(archive: Path, tmp_path: Path) -> None:
    index(archive, db=tmp_path / "index.db")
    file = archive / "mr" / "IM0001.dcm"
    content, state = file.read_bytes(), file.stat()
    file.write_bytes(content[:400])
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert len(index(archive, db=tmp_path / "index.db").done) == 1


def test_choosing_and_exporting(archive: Path, tmp_path: Path) -> None:
    db = tmp_path / "index.db"
    assert [row["modality"] for row in rows(index(archive, db=db, modality="mr,PT"))] == ["MR"]
    chosen = index(archive, db=db, min_slices=5, export=tmp_path / "table.csv")
    assert [row["place"] for row in rows(chosen)] == ["ct"]
    with (tmp_path / "table.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [(row["place"], row["spacing_mm"]) for row in table] == [("ct", "0.7x0.9x2.5")]


def test_ids_agree_with_those_of_convert(archive: Path, tmp_path: Path) -> None:
    salt = tmp_path / "salt"
    salt.write_text("a salt of ours\n")
    indexed = index(archive, db=tmp_path / "index.db", salt=salt)
    assert set(indexed.done) == set(convert(archive, tmp_path / "out", salt=salt).done)


def test_ids_stay_when_the_archive_grows(archive: Path, tmp_path: Path) -> None:
    first = index(archive, db=tmp_path / "index.db")
    phantoms.mr_series(archive / "new", seed=9)
    assert set(first.done) < set(index(archive, db=tmp_path / "index.db").done)


def test_wrong_use(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere does not exist"):
        index(tmp_path / "nowhere")
    (tmp_path / "letter.db").write_text("dear all, " * 100)
    with pytest.raises(UsageError, match=r"--db .*letter.db: is there and is no index of voxelwise; give another name"):
        index(archive, db=tmp_path / "letter.db")
    index(archive, db=tmp_path / "index.db")
    with pytest.raises(UsageError, match=r"is the index of .*archive; delete it or give another name"):
        index(archive / "ct", db=tmp_path / "index.db")


def test_an_empty_archive_is_wrong_use(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty is empty"):
        index(tmp_path / "empty", db=tmp_path / "index.db")
    assert not (tmp_path / "index.db").exists()


def test_archive_stages_load_no_torch() -> None:
    code = "import sys, voxelwise.pipeline.archive.index, voxelwise.pipeline.archive.convert;"
    code += "print(sorted({'torch', 'monai', 'itk', 'SimpleITK'} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
