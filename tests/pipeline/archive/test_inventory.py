"""A large input through a database: the same tree as through memory, gone on with after a broken run."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import phantoms
import pytest
from voxelwise.errors import UsageError
from voxelwise.pipeline.archive import convert as stage
from voxelwise.pipeline.archive import inventory as module
from voxelwise.pipeline.archive.convert import convert
from voxelwise.pipeline.archive.index import index
from voxelwise.pipeline.identity import file_digest


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two series, one that is stopped, a file, another of its name, and a text."""
    root = tmp_path / "archive"
    phantoms.ct_series(root / "ct", seed=1)
    phantoms.mr_series(root / "mr", seed=2)
    phantoms.ct_series(root / "damaged", seed=3)[3].unlink()
    phantoms.nifti_file(root / "a" / "atlas.nii.gz")
    phantoms.nifti_file(root / "b" / "atlas.nii.gz")
    (root / "README.txt").write_text("an archive")
    (tmp_path / "salt").write_text("a salt of ours")
    return root


def tree(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name not in ("timings.json", "failures.csv", "manifest.json")
    }


@pytest.mark.parametrize("layout", ["flat", "bids"])
def test_a_large_input_gives_the_same_files(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    small = convert(archive, tmp_path / "small", salt=tmp_path / "salt", layout=layout)
    monkeypatch.setattr(module, "LARGE", 3)
    large = convert(archive, tmp_path / "large", salt=tmp_path / "salt", layout=layout)
    assert (large.done, large.counts, large.facts) == (small.done, small.counts, small.facts)
    assert [(one.case, one.code) for one in large.failures] == [(one.case, one.code) for one in small.failures]
    assert tree(tmp_path / "large") == tree(tmp_path / "small")
    again = convert(archive, tmp_path / "large", salt=tmp_path / "salt", layout=layout)
    assert (again.done, again.skipped) == ((), small.done)


def test_a_broken_run_keeps_its_database_for_the_next(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGE", 3)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(stage, "each", lambda *arguments, **named: iter(range(1 // 0)))
        with pytest.raises(ZeroDivisionError):
            convert(archive, out)
    assert (out / ".index.db").is_file()
    assert len(convert(archive, out).done) == 4
    assert not list(out.glob(".index.db*"))


def test_checksums_of_what_was_read_go_into_an_index(archive: Path, tmp_path: Path) -> None:
    index(archive, db=tmp_path / "index.db")
    convert(archive, tmp_path / "out", db=tmp_path / "index.db")
    base = sqlite3.connect(tmp_path / "index.db")
    recorded = dict(base.execute("SELECT folder || '/' || name, sha256 FROM instances WHERE sha256 IS NOT NULL"))
    base.close()
    assert recorded["a/atlas.nii.gz"] == file_digest(archive / "a" / "atlas.nii.gz")
    assert len(recorded) == 8 + 8 + 2
    with pytest.raises(UsageError, match=r"nowhere\.db: is not there"):
        convert(archive, tmp_path / "other", db=tmp_path / "nowhere.db")
    assert not (tmp_path / "other").exists()
