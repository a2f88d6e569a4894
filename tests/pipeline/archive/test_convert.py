"""`convert`: volumes and sidecars, names, what is stopped, what a second run does."""

from __future__ import annotations

import csv
import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import phantoms
import pytest
from voxelwise.errors import CaseError, NoRoomError, UsageError
from voxelwise.pipeline.archive import convert as module
from voxelwise.pipeline.archive.convert import convert, stopped_by
from voxelwise.pipeline.archive.index import index
from voxelwise.pipeline.manifest import Outcome
from voxelwise.transforms.read_options import ReadOptions
from voxelwise.transforms.readers import Source


def volumes(out: Path) -> list[Path]:
    return sorted(out.glob("*.nii.gz"))


def tree(out: Path) -> dict[str, bytes]:
    """Every file that equal runs share, with its bytes."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name != "timings.json"
    }


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A CT and an MR series and a NIfTI file, with a note among them."""
    root = tmp_path / "archive"
    phantoms.ct_series(root / "CANARY^QUETZAL" / "ct", seed=1)
    phantoms.mr_series(root / "mr", seed=2)
    phantoms.nifti_file(root / "atlas.nii.gz")
    (root / "README.txt").write_text("an archive")
    return root


def test_volumes_and_sidecars(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = convert(archive, out)
    assert (len(outcome.done), outcome.exit_code, outcome.facts) == (3, 0, {"listed": 0, "rubbish": 1})
    assert "atlas" in outcome.done
    for path in volumes(out):
        sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
        image = nib.load(path)
        assert isinstance(image, nib.Nifti1Image)
        expected = phantoms.ramp() + (100 if sidecar["Modality"] == "MR" else 0)
        np.testing.assert_array_equal(np.asarray(image.dataobj), expected)
        np.testing.assert_allclose(image.affine, phantoms.AXIAL, atol=1e-5)
        assert sidecar["shape"] == [12, 10, 8]
        assert sidecar["spacing_mm"] == [0.7, 0.9, 2.5]
        assert (sidecar["repairs"], sidecar["notes"]) == ([], [])
    kvp = [json.loads(path.read_text()).get("KVP") for path in sorted(out.glob("case-*.json"))]
    assert sorted(kvp, key=str) == [120.0, None]


def test_nobody_is_named(archive: Path, tmp_path: Path) -> None:
    """Neither the patient nor any UID stands in an output, or in the name of one."""
    out = tmp_path / "out"
    convert(archive, out)
    for path in out.rglob("*"):
        text = path.name.encode() + path.read_bytes()
        assert b"CANARY" not in text.upper(), path
        assert phantoms.ROOT.encode() not in text, path


def test_one_broken_series_among_several(archive: Path, tmp_path: Path) -> None:
    broken = phantoms.ct_series(archive / "broken", seed=3)
    broken[3].unlink()
    (archive / "cut.nii.gz").write_bytes((archive / "atlas.nii.gz").read_bytes()[:300])
    outcome = convert(archive, tmp_path / "out")
    assert (len(outcome.done), len(outcome.failures), outcome.exit_code) == (3, 2, 3)
    with (tmp_path / "out" / "failures.csv").open(newline="") as stream:
        rows = {row["code"]: row for row in csv.DictReader(stream)}
    assert "cut.nii.gz" in {row["files"] for row in rows.values()}
    assert any("IM0004.dcm" in row["files"] and "broken" in row["message"] for row in rows.values())
    assert len(volumes(tmp_path / "out")) == 3


def test_the_only_one_is_broken(tmp_path: Path) -> None:
    bad = tmp_path / "bad.nii"
    bad.write_bytes(b"")
    outcome = convert(bad, tmp_path / "out")
    assert outcome.exit_code == 4
    assert "bad.nii" in outcome.failures[0].message
    assert not volumes(tmp_path / "out")


def test_nothing_usable(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("no image")
    assert convert(tmp_path / "in", tmp_path / "out").exit_code == 4
    assert "in: holds no volume" in caplog.text


@pytest.mark.parametrize(("make", "message"), [(False, "does not exist"), (True, "is empty")])
def test_missing_or_empty_input(tmp_path: Path, make: bool, message: str) -> None:
    if make:
        (tmp_path / "in").mkdir()
    with pytest.raises(UsageError, match=f"in {message}"):
        convert(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_same_command_again(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = convert(archive, out)
    before = {path: path.read_bytes() for path in out.iterdir() if path.name != "timings.json"}
    volumes(out)[0].unlink()
    second = convert(archive, out)
    assert (len(second.done), len(second.skipped)) == (1, 2)
    assert sorted((*second.done, *second.skipped)) == list(first.done)
    assert {path: path.read_bytes() for path in out.iterdir() if path.name != "timings.json"} == before


def test_other_settings_are_refused(archive: Path, tmp_path: Path) -> None:
    convert(archive, tmp_path / "out")
    with pytest.raises(UsageError, match=r"other settings \(name: null -> \"\{series\}\"\); use --overwrite"):
        convert(archive, tmp_path / "out", name="{series}")
    assert convert(archive, tmp_path / "out", name="{series}", overwrite=True).exit_code == 0


def test_what_was_made_of_other_files_is_not_replaced(tmp_path: Path) -> None:
    for folder, first in (("a", 0), ("b", 1)):
        phantoms.nifti_file(tmp_path / folder / "in" / "scan.nii.gz", phantoms.ramp() + np.int16(first))
    convert(tmp_path / "a" / "in", tmp_path / "out")
    before = (tmp_path / "out" / "scan.nii.gz").read_bytes()
    with pytest.raises(UsageError, match=r"scan.nii.gz was made of other files; use --overwrite or another folder"):
        convert(tmp_path / "b" / "in", tmp_path / "out")
    assert (tmp_path / "out" / "scan.nii.gz").read_bytes() == before


def test_a_salt_file_makes_ids_agree(archive: Path, tmp_path: Path) -> None:
    salt = tmp_path / "salt"
    salt.write_text("a salt of ours\n")
    first, second = (convert(archive, tmp_path / name, salt=salt) for name in ("one", "two"))
    assert first.done == second.done
    assert convert(archive, tmp_path / "three").done != first.done
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert {**one, "timings.json": b""} == {**two, "timings.json": b""}


def test_a_file_as_output(tmp_path: Path) -> None:
    source = phantoms.ct_series(tmp_path / "in")[0].parent
    outcome = convert(source, tmp_path / "scan.nii.gz")
    assert (outcome.done, outcome.exit_code) == (("scan",), 0)
    assert json.loads((tmp_path / "scan.json").read_text())["Modality"] == "CT"
    assert convert(source, tmp_path / "scan.nii.gz").skipped == ("scan",)


def test_a_file_as_output_of_several_volumes(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds 3 volumes, .*scan.nii.gz is one file; give a folder"):
        convert(archive, tmp_path / "scan.nii.gz")


@pytest.mark.parametrize(("out", "message"), [("", "is the input"), ("new", "lies inside the input")])
def test_nothing_is_written_over_what_is_read(archive: Path, out: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        convert(archive, archive / out)


def test_an_input_is_never_its_own_output(tmp_path: Path) -> None:
    path = phantoms.nifti_file(tmp_path / "scan.nii.gz")
    before = path.read_bytes()
    with pytest.raises(UsageError, match="is the input"):
        convert(path, path)
    assert path.read_bytes() == before


def test_two_volumes_of_one_name(tmp_path: Path) -> None:
    """Both are written, under names that their folders tell apart."""
    for number, folder in enumerate(("monday", "tuesday")):
        phantoms.nifti_file(tmp_path / "in" / folder / "Scan.nii.gz", phantoms.ramp() + np.int16(number))
    outcome = convert(tmp_path / "in", tmp_path / "out")
    assert (outcome.done, outcome.exit_code) == (("monday_Scan", "tuesday_Scan"), 0)
    for number, name in enumerate(outcome.done):
        image = nib.load(tmp_path / "out" / f"{name}.nii.gz")
        assert isinstance(image, nib.Nifti1Image)
        np.testing.assert_array_equal(np.asarray(image.dataobj), phantoms.ramp() + number)


def test_names_that_cannot_be_told_apart_stop_their_cases_alone(tmp_path: Path) -> None:
    for name in ("scan.nii.gz", "scan.nii", "manifest.nii.gz", "other.nii.gz"):
        phantoms.nifti_file(tmp_path / "in" / name)
    outcome = convert(tmp_path / "in", tmp_path / "out")
    assert (outcome.done, outcome.exit_code) == (("other",), 3)
    assert {failure.code for failure in outcome.failures} == {"name-clash"}
    assert len(outcome.failures) == 3
    assert not (tmp_path / "out" / "scan.nii.gz").exists()
    named = convert(tmp_path / "in", tmp_path / "named", name="{name}_{number}")
    assert (len(named.done), named.exit_code) == (4, 0)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"name": "{patient}{who}"}, r"unknown field \{who\}; use \{folder\}, \{path\}, \{name\}, \{series\}"),
        ({"layout": "dicom"}, "unknown --layout 'dicom'"),
        ({"format": "nrrd"}, "unknown --format 'nrrd'"),
        ({"layout": "bids", "name": "{series}"}, "names of --layout bids are fixed"),
        ({"scheduler": "tcp://10.0.0.7:8786"}, "a plain connection to another machine"),
        ({"scheduler": "tls://10.0.0.7:8786"}, "TLS needs --tls-config"),
        ({"options": ReadOptions(geometry=Path("nowhere.json"))}, "--geometry nowhere.json: cannot be read"),
    ],
)
def test_wrong_use_leaves_nothing_behind(archive: Path, tmp_path: Path, choice: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        convert(archive, tmp_path / "deep" / "out", **choice)
    assert not (tmp_path / "deep").exists()


def test_wrong_use_leaves_earlier_results_as_they_were(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(archive, out)
    before = {path: path.read_bytes() for path in out.iterdir()}
    (archive / "atlas.nii.gz").write_bytes((archive / "atlas.nii.gz").read_bytes()[:-9] + b"123456789")
    with pytest.raises(UsageError, match="was made of other files"):
        convert(archive, out)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_options_stand_in_the_manifest_and_bind(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(archive, out, options=ReadOptions(strict=True))
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["settings"]["options"] == {"strict": True}
    with pytest.raises(UsageError, match="other settings"):
        convert(archive, out)


def test_a_stopped_series_is_called_by_its_case_id(tmp_path: Path) -> None:
    """As `index` calls it, with the same salt."""
    salt = tmp_path / "salt"
    salt.write_text("a salt of ours")
    phantoms.ct_series(tmp_path / "in" / "a")[3].unlink()
    outcome = convert(tmp_path / "in", tmp_path / "out", salt=salt)
    (failure,) = outcome.failures
    assert failure.case.startswith("case-")
    assert failure.files[0] == "a/IM0000.dcm"
    listed = index(tmp_path / "in", db=tmp_path / "index.db", salt=salt)
    assert [one.case for one in listed.failures] == [failure.case]


def test_no_compression(archive: Path, tmp_path: Path) -> None:
    outcome = convert(archive, tmp_path / "out", format="nii")
    assert len(list((tmp_path / "out").glob("*.nii"))) == len(outcome.done) == 3
    assert not volumes(tmp_path / "out")


def test_one_worker_imports_no_dask(archive: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from voxelwise import convert; convert(sys.argv[1], sys.argv[2], workers=1); "
        "print(sorted({'dask', 'distributed', 'torch', 'monai', 'SimpleITK', 'itk'} & sys.modules.keys()))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(archive), str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_no_room(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first case stays, the run stops, nothing half-written is there, and the same call goes on."""
    write, calls = module.write_volume, []

    def full(path: Path, volume: object) -> str:
        calls.append(path)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, volume)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "write_volume", full)
    with pytest.raises(NoRoomError, match="no space left on the disk"):
        convert(archive, tmp_path / "out")
    monkeypatch.undo()
    assert len(volumes(tmp_path / "out")) == 1
    outcome = convert(archive, tmp_path / "out")
    assert (len(outcome.done), len(outcome.skipped), outcome.exit_code) == (2, 1, 0)


def test_any_error_of_a_reader_costs_its_case_alone(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = module.read_source

    def broken(source: Source, options: ReadOptions) -> object:
        if source.kind == "nifti":
            raise KeyError("CANARY^QUETZAL")
        return read(source, options)

    monkeypatch.setattr(module, "read_source", broken)
    outcome: Outcome = convert(archive, tmp_path / "out")
    assert (len(outcome.done), outcome.exit_code) == (2, 3)
    assert outcome.failures[0].message == "atlas.nii.gz: cannot be parsed (KeyError); the file is damaged, leave it out"


def test_every_refusal_names_a_file() -> None:
    files = ["a/scan.nii"]
    refusal = stopped_by(CaseError("a voxel is missing", "cut"), files)
    assert (str(refusal), refusal.code) == ("a/scan.nii: a voxel is missing", "cut")
    assert "Permission denied" in str(stopped_by(PermissionError(13, "Permission denied"), files))
    assert "more memory than there is" in str(stopped_by(MemoryError(), files))
    with pytest.raises(OSError, match="full"):
        stopped_by(OSError(errno.ENOSPC, "full"), files)


def test_a_volume_without_a_place_is_stopped(tmp_path: Path) -> None:
    path = phantoms.nifti_file(tmp_path / "scan.nii")
    content = bytearray(path.read_bytes())
    content[252:256] = bytes(4)  # qform_code, sform_code
    path.write_bytes(content)
    outcome = convert(path, tmp_path / "out")
    assert (outcome.exit_code, outcome.failures[0].code) == (4, "no-world-coordinates")
    assert "scan.nii: sform_code and qform_code are both 0" in outcome.failures[0].message


def test_metres_become_millimetres(tmp_path: Path) -> None:
    affine = np.diag([0.001, 0.001, 0.002, 1.0])
    path = phantoms.nifti_file(tmp_path / "scan.nii", affine=affine, xyzt_units=1)
    convert(path, tmp_path / "out.nii.gz")
    image = nib.load(tmp_path / "out.nii.gz")
    assert isinstance(image, nib.Nifti1Image)
    np.testing.assert_allclose(image.affine, np.diag([1.0, 1.0, 2.0, 1.0]), atol=1e-6)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert json.loads((tmp_path / "out.json").read_text())["repairs"][0]["code"] == "units"


def test_workers_do_the_same(archive: Path, tmp_path: Path) -> None:
    """The same bytes, manifest included, in whatever order the cases come."""
    salt = tmp_path / "salt"
    salt.write_text("a salt of ours\n")
    phantoms.ct_series(archive / "broken", seed=3)[3].unlink()
    one, two = (convert(archive, tmp_path / f"out{n}", salt=salt, workers=n) for n in (1, 2))
    assert (one.done, one.failures) == (two.done, two.failures)
    assert tree(tmp_path / "out1") == tree(tmp_path / "out2")
