"""`convert` when things break: kills, full disks, read errors, odd names; nothing is lost and nothing half is seen."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import phantoms
import pytest
from voxelwise.errors import FolderInUseError, NoRoomError, UsageError
from voxelwise.pipeline.archive.convert import convert
from voxelwise.scripts.main import main

SALT = "a salt of ours\n"
WRITERS = ("write", "fsync", "replace", "mkdir", "link")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Three cases."""
    root = tmp_path / "archive"
    phantoms.ct_series(root / "ct", seed=1)
    phantoms.mr_series(root / "mr", seed=2)
    phantoms.nifti_file(root / "atlas.nii.gz")
    (tmp_path / "salt").write_text(SALT)
    return root


def tree(out: Path) -> dict[str, str]:
    """Every file that equal runs share, hidden ones too, by its checksum."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "timings.json"
    }


def check_whole(out: Path) -> None:
    """What is visible is whole: volumes can be read to their end, JSON can be parsed."""
    for path in out.rglob("*"):
        if path.name.startswith("."):
            continue
        if path.name.endswith(".nii.gz"):
            image = nib.load(path)
            assert isinstance(image, nib.Nifti1Image)
            np.asarray(image.dataobj)
        elif path.suffix == ".json":
            json.loads(path.read_text())


ROUNDS = """
import json, os, random, signal, sys, time
from pathlib import Path
from voxelwise import convert
from voxelwise.transforms.readers import read_source  # every import is done before the first fork
import pydicom.pixels

archive, box, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])

def started(out):
    child = os.fork()
    if child == 0:
        try:
            convert(archive, out, salt=box / "salt", layout="bids")
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return child

begun = time.monotonic()
os.waitpid(started(box / "unbroken"), 0)
whole = time.monotonic() - begun
rng = random.Random(11)
hits = 0
for number in range(kills):
    child = started(box / f"out{number}")
    # the first one is hit whatever else the machine does
    time.sleep(rng.uniform(0.0, 1.1) * whole if number else 0.02 * whole)
    os.kill(child, signal.SIGKILL)
    hits += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    (box / f"out{number}.seen").write_text("\\n".join(map(str, (box / f"out{number}").rglob("*"))))
    if os.waitpid(started(box / f"out{number}"), 0)[1]:
        sys.exit(f"round {number}: the second run failed")
print(hits)
"""


@pytest.mark.parametrize(
    "kills", [3, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(900)])], ids=["few", "many"]
)
def test_a_killed_run_goes_on_to_the_same_bytes(archive: Path, tmp_path: Path, kills: int) -> None:
    words = [sys.executable, "-W", "ignore", "-c", ROUNDS, str(archive), str(tmp_path), str(kills)]
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 0
    expected = tree(tmp_path / "unbroken")
    assert len(expected) > 3 * 2
    for number in range(kills):
        assert tree(tmp_path / f"out{number}") == expected, number


def failing(patch: pytest.MonkeyPatch, name: str, turn: int, number: int) -> Callable[[], int]:
    """Let the n-th call of a function of `os` (or the n-th opening of a file for writing) fail; count the calls."""
    calls = 0
    true = getattr(os, name) if name != "write" else None

    def count(where: object) -> None:
        nonlocal calls
        calls += 1
        if calls == turn:
            raise OSError(number, os.strerror(number), None if isinstance(where, int) else str(where))

    if true is None:
        plain = Path.write_bytes

        def write_bytes(self: Path, data: bytes) -> int:
            count(self)
            return plain(self, data)

        patch.setattr(Path, "write_bytes", write_bytes)
    else:

        def wrapped(*arguments: object, **named: object) -> object:
            count(arguments[0])
            return true(*arguments, **named)

        patch.setattr(os, name, wrapped)
    return lambda: calls


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_at_every_step(archive: Path, tmp_path: Path, name: str) -> None:
    """Exit 6 that names the folder, whole files, and the same command goes on when there is room."""
    salt = tmp_path / "salt"
    expected = tmp_path / "expected"
    convert(archive, expected, salt=salt)
    with pytest.MonkeyPatch.context() as patch:
        counted = failing(patch, name, 0, errno.ENOSPC)
        convert(archive, tmp_path / "counted", salt=salt)
        steps = counted()
    assert steps > 0
    for turn in range(1, steps + 1):
        out = tmp_path / f"out-{name}-{turn}"
        error: Exception | None = None
        with pytest.MonkeyPatch.context() as patch:
            failing(patch, name, turn, errno.ENOSPC)
            try:
                convert(archive, out, salt=salt)
            except NoRoomError as caught:
                error = caught
        if out.exists():
            check_whole(out)
        if error is not None:
            assert str(tmp_path / f"out-{name}-{turn}") in str(error), turn
            assert "MB free" in str(error), turn
        assert not [path for path in out.rglob("*") if path.name.endswith(".part")] or error is not None
        convert(archive, out, salt=salt)
        assert tree(out) == tree(expected), turn
        shutil.rmtree(out)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_read_error_stops_its_case_alone(archive: Path, tmp_path: Path, number: int) -> None:
    """Wherever it happens, in the header or in the pixels."""
    victim = sorted((archive / "ct").iterdir())[2]
    true_open, seen = open, 0

    def broken_open(file: object, *arguments: object, **named: object) -> object:
        nonlocal seen
        if str(file) == str(victim):
            seen += 1
            if seen > first:
                raise OSError(number, os.strerror(number), str(file))
        return true_open(file, *arguments, **named)  # type: ignore[call-overload]

    for first in (0, 1):
        seen = 0
        out = tmp_path / f"out{first}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("builtins.open", broken_open)
            outcome = convert(archive, out)
        if seen <= first:
            continue  # one opening was enough for header and pixels
        assert (len(outcome.done), len(outcome.failures), outcome.exit_code) == (2, 1, 3)
        assert victim.name in outcome.failures[0].message
        assert "ct/" in " ".join(outcome.failures[0].files)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_that_cannot_be_written(archive: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(UsageError, match="cannot write there"):
        convert(archive, closed / "out")


def test_an_output_below_a_file(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UsageError, match="cannot write there"):
        convert(archive, tmp_path / "file" / "out")


def test_a_disk_that_is_really_full(archive: Path, tmp_path: Path) -> None:
    """A tmpfs that is too small, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a tmpfs here")
    try:
        rng = np.random.default_rng(3)
        phantoms.nifti_file(archive / "noise.nii.gz", rng.integers(0, 1 << 15, (40, 40, 40)).astype(np.int16))
        with pytest.raises(NoRoomError, match=r"disk.*no space left.*MB free"):
            convert(archive, disk / "out")
        check_whole(disk / "out")
        assert not list(disk.rglob("*.part"))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_two_runs_in_one_folder(archive: Path, tmp_path: Path) -> None:
    from voxelwise.pipeline.manifest import OutputFolder

    with OutputFolder(tmp_path / "out", "convert", {}), pytest.raises(FolderInUseError, match="in use by another run"):
        convert(archive, tmp_path / "out")


ODD_NAMES = ("with spaces", "new\nline", "µ-Größe", "-dash", "a" * 249, "tab\t", "quo'te\"", "semi; touch x", "ünï")


def test_odd_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every one is converted; what is said of them is one line each, with nothing that moves a terminal."""
    root = tmp_path / "in"
    root.mkdir()
    for name in ODD_NAMES:
        phantoms.nifti_file(root / f"{name}.nii")
    phantoms.nifti_file(tmp_path / "plain.nii")
    raw = os.fsencode(root) + b"/odd-\xff\xfe.nii"
    shutil.copy(tmp_path / "plain.nii", raw)
    phantoms.ct_series(root / "-a folder\nwith, everything")
    (root / "bad\x1b[31m\n.nii").write_bytes(b"no image")
    assert main(["convert", str(root), str(tmp_path / "out"), "--json"]) == 3
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document["counts"] == {"in": 12, "done": 11, "skipped": 0, "stopped": 1}
    assert "\x1b" not in said.err
    assert sum(r"bad\x1b[31m\n.nii" in line for line in said.err.splitlines()) == 1
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 11
    assert main(["convert", str(root), str(tmp_path / "out"), "--quiet"]) == 3
