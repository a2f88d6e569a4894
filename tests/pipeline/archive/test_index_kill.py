"""An index that is killed at any moment and begun again ends as one that was not."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import tempfile
import time
import warnings
import zipfile
from contextlib import closing
from pathlib import Path

import phantoms
import pytest
from voxelwise.pipeline.archive import group, scan
from voxelwise.pipeline.archive.index import index


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Series, files, a zip archive, and files that stop others."""
    root = tmp_path / "archive"
    for seed in range(6):
        phantoms.ct_series(root / f"ct{seed}", phantoms.ramp((6, 5, 6)), seed=seed)
    phantoms.nifti_file(root / "a.nii.gz")
    (root / "ct1" / "IM0009.dcm").write_bytes(b"")
    (root / "ct2" / "IM0003.dcm").unlink()
    with zipfile.ZipFile(root / "b.zip", "w") as zipped:
        for file in phantoms.ct_series(tmp_path / "zipped", phantoms.ramp((6, 5, 6)), seed=9):
            zipped.write(file, f"inner/{file.name}")
    (tmp_path / "salt").write_text("a salt of ours\n")
    (tmp_path / "temporary").mkdir()
    return root


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as base:
        return list(base.iterdump())


def run(archive: Path, db: Path, seconds: float | None = None) -> float:
    """Index in a process of its own, killed after some seconds; returns how long it worked."""
    folder = archive.parent
    started = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other tests may have begun threads; the child uses none
        child = os.fork()
    if not child:
        try:
            tempfile.tempdir = str(folder / "temporary")
            scan.BATCH, scan.TRANSACTION_ROWS, group.TRANSACTION_SERIES, group.BATCH_FILES = 2, 5, 1, 4
            index(archive, db=db, salt=folder / "salt")
        finally:
            os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert seconds is not None or status == 0
    return time.monotonic() - started


def check(archive: Path, moments: int) -> None:
    """Kill at seeded moments; the next run ends as the unbroken one, with nothing left."""
    folder = archive.parent
    whole = run(archive, folder / "whole.db")
    wanted = dump(folder / "whole.db")
    rng = random.Random(7)
    for moment in range(moments):
        db = folder / f"killed{moment}.db"
        run(archive, db, rng.uniform(0, whole))
        run(archive, db)
        assert dump(db) == wanted
        kept = {"archive", "salt", "temporary", "zipped", "whole.db", *(f"killed{k}.db" for k in range(moment + 1))}
        assert {path.name for path in folder.iterdir()} == kept
        left = list((folder / "temporary").glob("*"))
        assert [path for path in left if any(path.iterdir())] == []  # one that was not locked yet goes within a minute


def test_killed_at_three_moments(archive: Path) -> None:
    check(archive, 3)


@pytest.mark.slow
def test_killed_at_fifty_moments(archive: Path) -> None:
    check(archive, 50)
