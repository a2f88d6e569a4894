"""`index`: the inventory of an archive."""

from __future__ import annotations

import csv
import os
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from contextlib import closing
from pathlib import Path

import numpy as np
import phantoms
import pytest
from pydicom.uid import SecondaryCaptureImageStorage
from voxelwise.errors import FolderInUseError, NoRoomError, UnsafeInputError, UsageError
from voxelwise.pipeline.archive import database, looking, scan
from voxelwise.pipeline.archive import index as index_module
from voxelwise.pipeline.archive.catalogue import Catalogue
from voxelwise.pipeline.archive.convert import convert
from voxelwise.pipeline.archive.index import COLUMNS, index
from voxelwise.pipeline.manifest import Outcome
from voxelwise.transforms.read_options import ReadOptions


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    root = tmp_path / "archive"
    phantoms.ct_series(root / "ct", seed=1, BodyPartExamined="ABDOMEN")
    phantoms.mr_series(root / "mr", phantoms.ramp((6, 5, 3)) + 100, seed=2)
    broken = phantoms.ct_series(root / "broken", seed=3)
    broken[3].unlink()
    return root


def dump(path: Path) -> list[str]:
    """Everything in a database, in order."""
    with closing(sqlite3.connect(path)) as base:
        return list(base.iterdump())


def salt_file(folder: Path) -> Path:
    path = folder / "salt"
    path.write_text("a salt of ours\n")
    return path


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
        instances = dict(base.execute("SELECT path, series FROM instances"))
        assert base.execute("SELECT count(*) FROM touched").fetchone() == (0,)
        assert base.execute("SELECT value FROM meta WHERE key = 'finished'").fetchone() == ("1",)
    assert instances.keys() == {p.relative_to(archive).as_posix() for p in archive.rglob("*.dcm")}
    assert len(set(instances.values())) == 3
    content = (tmp_path / "index.db").read_bytes()
    for canary in (b"CANARY", b"QUETZAL", b"19610412", b"20260102", phantoms.ROOT.encode()):
        assert canary not in content.upper()
    assert {path.name for path in tmp_path.iterdir()} == {"archive", "index.db"}


def test_names_are_kept_where_they_are_asked_for(archive: Path, tmp_path: Path) -> None:
    index(archive, db=tmp_path / "index.db", options=ReadOptions(phi=True))
    with closing(sqlite3.connect(tmp_path / "index.db")) as base:
        names = dict(base.execute("SELECT value, count(*) FROM phi WHERE key = 'PatientName' GROUP BY value"))
    assert names == {"Canary^Quetzal": 18}
    index(archive, db=tmp_path / "index.db")
    with closing(sqlite3.connect(tmp_path / "index.db")) as base:
        assert base.execute("SELECT count(*) FROM phi").fetchone() == (0,)
    assert b"CANARY" not in (tmp_path / "index.db").read_bytes().upper()


def test_a_tree_that_did_not_change_is_not_read_again(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = archive.stat()
    first = index(archive, db=tmp_path / "index.db")
    before = dump(tmp_path / "index.db")
    monkeypatch.setattr(looking, "look_into", None)
    monkeypatch.setattr(looking, "group_series", None)
    assert index(archive, db=tmp_path / "index.db") == first
    assert dump(tmp_path / "index.db") == before
    monkeypatch.undo()
    phantoms.ct_series(archive / "new", seed=9)
    again = index(archive, db=tmp_path / "index.db")
    assert set(first.done) < set(again.done)
    shutil.rmtree(archive / "new")
    os.utime(archive, ns=(state.st_atime_ns, state.st_mtime_ns))
    index(archive, db=tmp_path / "index.db")
    assert dump(tmp_path / "index.db") == before


def test_a_file_that_changed_is_read_again(archive: Path, tmp_path: Path) -> None:
    index(archive, db=tmp_path / "index.db")
    file = archive / "mr" / "IM0001.dcm"
    content, state = file.read_bytes(), file.stat()
    file.write_bytes(content[:400])
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert len(index(archive, db=tmp_path / "index.db").done) == 1
    file.write_bytes(content)
    assert len(index(archive, db=tmp_path / "index.db").done) == 2


def test_the_number_of_workers_changes_nothing(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "BATCH", 8)
    salt = salt_file(tmp_path)
    phantoms.nifti_file(archive / "a.nii.gz")
    (archive / "x.dcm").write_bytes(b"")
    index(archive, db=tmp_path / "one.db", salt=salt)
    index(archive, db=tmp_path / "two.db", salt=salt, workers=2)
    assert dump(tmp_path / "one.db") == dump(tmp_path / "two.db")


def test_files_that_cannot_be_read_stop_their_series_alone(archive: Path, tmp_path: Path) -> None:
    """A 0-byte file between the slices of one series leaves the other series of the folder alone."""
    for letter, seed in (("a", 5), ("b", 6)):
        phantoms.ct_series(archive / "two", seed=seed, names=[f"{letter}{k:03d}" for k in range(8)])
    (archive / "two" / "a003").rename(archive / "two" / "a009")
    (archive / "two" / "a003").write_bytes(b"")
    found = rows(index(archive, db=tmp_path / "index.db"))
    two = {row["verdict"]: row for row in found if row["place"] == "two"}
    assert (two["stopped"]["code"], two["stopped"]["files"], two["usable"]["files"]) == ("empty-file", 9, 8)
    (archive / "two" / "a003").unlink()
    found = rows(index(archive, db=tmp_path / "index.db"))
    assert [row["verdict"] for row in found if row["place"] == "two"] == ["usable", "usable"]


def test_one_series_in_several_folders_is_one_volume(tmp_path: Path) -> None:
    files = phantoms.ct_series(tmp_path / "archive" / "a")
    (tmp_path / "archive" / "b").mkdir()
    for file in files[4:]:
        file.rename(tmp_path / "archive" / "b" / file.name)
    shutil.copytree(tmp_path / "archive" / "a", tmp_path / "archive" / "copy")
    (row,) = rows(index(tmp_path / "archive", db=tmp_path / "index.db"))
    assert (row["verdict"], row["shape"], row["files"]) == ("usable", "12x10x8", 12)
    assert "duplicate-files" in str(row["repairs"])
    with Catalogue(tmp_path / "index.db") as catalogue:
        (source,) = catalogue.sources()
    assert {file.parent.name for file in source.files} == {"a", "b", "copy"}


def test_series_of_one_slice_each_are_stopped_until_they_are_grouped_otherwise(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    root = tmp_path / "archive"
    phantoms.ct_series(root, SeriesInstanceUID=lambda k: phantoms.uid(rng))
    (row,) = rows(index(root, db=tmp_path / "index.db"))
    assert (row["verdict"], row["code"], row["files"]) == ("stopped", "scrambled-uids", 8)
    assert "--group-by" in str(row["reason"])
    options = ReadOptions(group_by=("StudyInstanceUID", "SeriesNumber"))
    (row,) = rows(index(root, db=tmp_path / "index.db", options=options))
    assert (row["verdict"], row["shape"]) == ("usable", "12x10x8")
    index(root, db=tmp_path / "index.db")
    for file in sorted(root.iterdir())[2:]:
        file.unlink()
    assert [row["verdict"] for row in rows(index(root, db=tmp_path / "index.db"))] == ["usable", "usable"]


def test_links_and_odd_names(archive: Path, tmp_path: Path) -> None:
    """Links are listed and not followed, a loop ends, and any name that a file may have is taken."""
    outside = phantoms.nifti_file(tmp_path / "outside.nii.gz")
    (archive / "loop").symlink_to(archive)
    (archive / "out.nii.gz").symlink_to(outside)
    (archive / "inside").symlink_to(archive / "ct")
    names = [
        b"new\nline.nii",
        b"-dash.nii",
        b"\xff\xfe.nii",
        b"back\\slash.nii",
        b"n" * 251 + b".nii",
        "\u00e9 \u4e2d.nii".encode(),
    ]
    for name in names:
        phantoms.nifti_file(archive / os.fsdecode(name))
    outcome = index(archive, db=tmp_path / "index.db")
    listed = {str(row["place"]): str(row["reason"]) for row in rows(outcome) if row["verdict"] == "listed"}
    assert listed.keys() == {"loop", "out.nii.gz", "inside"}
    assert ["loop" in listed["loop"], "out of" in listed["out.nii.gz"], "own place" in listed["inside"]] == [True] * 3
    with Catalogue(tmp_path / "index.db") as catalogue:
        kept = [source.files[0] for source in catalogue.sources() if source.kind == "nifti"]
    assert {os.fsencode(file.name) for file in kept} == set(names)
    assert all(file.is_file() for file in kept)
    before = dump(tmp_path / "index.db")
    index(archive, db=tmp_path / "index.db")
    assert dump(tmp_path / "index.db") == before


def test_a_file_that_changes_while_it_is_read_is_read_once_more(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = archive / "mr" / "IM0001.dcm"
    real, times = looking.look_into, []

    def look_into(path: Path, *arguments: object, **options: object) -> object:
        if path == file and len(times) < limit:
            times.append(1)
            os.utime(path, ns=(len(times), len(times)))
        return real(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(looking, "look_into", look_into)
    limit = 1
    found = {row["place"]: row for row in rows(index(archive, db=tmp_path / "once.db"))}
    assert found["mr"]["verdict"] == "usable"
    limit = 9
    found = {row["place"]: row for row in rows(index(archive, db=tmp_path / "twice.db"))}
    assert (found["mr"]["verdict"], found["mr"]["code"]) == ("stopped", "changed")
    assert found["ct"]["verdict"] == "usable"
    limit = 0
    found = {row["place"]: row for row in rows(index(archive, db=tmp_path / "twice.db"))}
    assert found["mr"]["verdict"] == "usable"


def test_files_that_arrive_are_taken_in(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = phantoms.ct_series(tmp_path / "elsewhere", seed=11)
    late = archive / "late"
    late.mkdir()
    for file in files[:4]:
        shutil.move(file, late)
    real = scan.Scan.look

    def look(self: scan.Scan, targets: object) -> None:
        real(self, targets)  # type: ignore[arg-type]
        for file in files[4:]:
            if file.exists():
                shutil.move(file, late)

    monkeypatch.setattr(scan.Scan, "look", look)
    found = {row["place"]: row for row in rows(index(archive, db=tmp_path / "index.db"))}
    assert (found["late"]["verdict"], found["late"]["files"]) == ("usable", 8)


def test_verify_says_what_it_had_to_compare_with(
    archive: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        index(archive, db=tmp_path / "index.db", verify=True)
        index(archive, db=tmp_path / "index.db", verify=True)
    first, second = (record.args for record in caplog.records if "had none and have one now" in record.getMessage())
    assert first[0] == 0
    assert first[1] > 0
    assert second == (first[1], 0)


def test_verify_finds_what_size_and_time_hide(archive: Path, tmp_path: Path) -> None:
    db = tmp_path / "index.db"
    phantoms.nifti_file(archive / "a.nii")
    assert len(index(archive, db=db, verify=True).failures) == 1
    for file in (archive / "ct" / "IM0003.dcm", archive / "a.nii"):
        content, state = bytearray(file.read_bytes()), file.stat()
        content[-1] ^= 1
        file.write_bytes(content)
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert len(index(archive, db=db).failures) == 1
    for _ in range(2):
        found = {row["place"]: row["code"] for row in rows(index(archive, db=db, verify=True, verdict="stopped"))}
        assert found == {"broken": "missing-slice", "ct": "content-changed", "a.nii": "content-changed"}
    assert len(index(archive, db=db).failures) == 3
    (archive / "a.nii").touch()
    content = bytearray((archive / "ct" / "IM0003.dcm").read_bytes())
    state = (archive / "ct" / "IM0003.dcm").stat()
    content[-1] ^= 1
    (archive / "ct" / "IM0003.dcm").write_bytes(content)
    os.utime(archive / "ct" / "IM0003.dcm", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert len(index(archive, db=db, verify=True).failures) == 1


def test_choosing_and_exporting(archive: Path, tmp_path: Path) -> None:
    db = tmp_path / "index.db"
    assert [row["modality"] for row in rows(index(archive, db=db, modality="mr,PT"))] == ["MR"]
    chosen = index(archive, db=db, min_slices=5, export=tmp_path / "table.csv")
    assert [row["place"] for row in rows(chosen)] == ["ct"]
    with (tmp_path / "table.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [(row["modality"], row["spacing_mm"], row["use"]) for row in table] == [("CT", "0.7x0.9x2.5", "3D")]
    index(archive, db=db, export=tmp_path / "table.csv")
    assert str(tmp_path) not in (tmp_path / "table.csv").read_text()
    assert "IM0" not in (tmp_path / "table.csv").read_text()
    assert [row["verdict"] for row in rows(index(archive, db=db, verdict="stopped"))] == ["stopped"]
    with pytest.raises(UsageError, match="--verdict good: expected one or several of usable, stopped, listed"):
        index(archive, db=db, verdict="good")


def test_a_database_inside_the_archive_is_not_indexed(archive: Path) -> None:
    index(archive, db=archive / "index.db")
    before = dump(archive / "index.db")
    index(archive, db=archive / "index.db")
    assert dump(archive / "index.db") == before
    assert "index.db" not in "".join(before)


def test_two_runs_on_one_database_are_refused(archive: Path, tmp_path: Path) -> None:
    index(archive, db=tmp_path / "index.db")
    with closing(sqlite3.connect(tmp_path / "index.db", isolation_level=None)) as base:
        base.execute("BEGIN EXCLUSIVE")
        with pytest.raises(FolderInUseError, match="another run works on it"):
            index(archive, db=tmp_path / "index.db")


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


def test_messages_name_files_whose_names_are_no_text(archive: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(b"\xff")
    phantoms.ct_series(archive / odd, seed=21)[3].unlink()
    (archive / "ct" / f"IM{odd}.dcm").write_bytes(b"no header")
    (archive / f"{odd}.nii").write_bytes(b"cut")
    found = rows(index(archive, db=tmp_path / "index.db", verdict="stopped"))
    assert {row["code"] for row in found} == {"missing-slice", "not-dicom", "unknown-format"}
    assert all("\\udcff" in str(row["reason"]) for row in found if row["place"] != "broken")


def test_a_database_or_table_that_cannot_be_written_is_wrong_use(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"--db .*the folder .*nowhere does not exist; make it or give another name"):
        index(archive, db=tmp_path / "nowhere" / "index.db")
    for wrong in (tmp_path / "nowhere" / "table.csv", tmp_path):
        with pytest.raises(UsageError, match=r"--export .*: give the name of a file in a folder that is there"):
            index(archive, db=tmp_path / "index.db", export=wrong)
    assert not (tmp_path / "index.db").exists()
    monkeypatch.setattr(index_module, "opened", lambda path: limited(path, 4))
    with pytest.raises(NoRoomError, match=r"--db .*: no space left on the disk; make room and run the same command"):
        index(archive, db=tmp_path / "index.db")
    monkeypatch.undo()
    index(archive, db=tmp_path / "index.db")
    index(archive, db=tmp_path / "other.db", salt=salt_file(tmp_path))


def limited(path: Path, pages: int) -> sqlite3.Connection:
    """A database on a disk that is soon full."""
    base = database.opened(path)
    base.execute(f"PRAGMA max_page_count = {pages}")
    return base


def test_an_unsafe_archive_leaves_nothing(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("../up.nii", b"")
    with pytest.raises(UnsafeInputError, match="leads out"):
        index(tmp_path / "a.zip", db=tmp_path / "index.db")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_ids_agree_with_those_of_convert_whatever_the_uids(tmp_path: Path) -> None:
    """UIDs of an odd form, none at all, files without a series, and a zip archive given alone."""
    tree, salt = tmp_path / "tree", salt_file(tmp_path)
    nameless = {"SOPClassUID": SecondaryCaptureImageStorage, "SeriesInstanceUID": None, "SOPInstanceUID": None}
    phantoms.ct_series(tree / "odd", seed=1, SeriesInstanceUID="12345")
    phantoms.ct_series(tree / "part", seed=2, SeriesInstanceUID="7", EchoTime=1.5)
    for number in range(2):
        phantoms.ct_series(tree / f"picture{number}", phantoms.ramp((6, 5, 1)), **nameless)
    phantoms.nifti_file(tree / "sub" / "a.nii.gz")
    phantoms.ct_series(tree / "gap", seed=3)[3].unlink()
    with zipfile.ZipFile(tmp_path / "tree.zip", "w") as packed:
        for file in sorted(tree.rglob("*.*")):
            packed.write(file, file.relative_to(tree).as_posix())
    for number, root in enumerate((tree, tmp_path / "tree.zip")):
        indexed = index(root, db=tmp_path / f"{number}.db", salt=salt)
        converted = convert(root, tmp_path / f"out{number}", salt=salt, name="{series}")
        assert {case.removeprefix("case-") for case in indexed.done} == set(converted.done)
        assert len(converted.done) == 5
        assert [one.case for one in indexed.failures] == [one.case for one in converted.failures]
