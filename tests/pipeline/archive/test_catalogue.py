"""The index as other stages see it."""

from __future__ import annotations

import hashlib
import sqlite3
import zipfile
from contextlib import closing
from pathlib import Path

import numpy as np
import phantoms
import pytest
from voxelwise.errors import UsageError
from voxelwise.pipeline.archive.catalogue import Catalogue, Filter
from voxelwise.pipeline.archive.index import index
from voxelwise.pipeline.archive.naming import source_id
from voxelwise.pipeline.archive.records import named, packed, stored, unpacked
from voxelwise.transforms.dicom import read_header
from voxelwise.transforms.readers import find_sources, read_source


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    root = tmp_path / "archive"
    phantoms.ct_series(root / "ct", seed=1)
    phantoms.mr_series(root / "mr", phantoms.ramp((6, 5, 3)) + 100, seed=2)
    phantoms.nifti_file(root / "a.nii.gz")
    phantoms.nifti_file(root / "time.nii", np.stack([phantoms.ramp()] * 2, axis=-1))
    (root / "x.png").write_bytes(b"no picture")
    phantoms.ct_series(root / "film", seed=5, SOPClassUID="1.2.840.10008.5.1.4.1.1.7", Modality="OT")
    with zipfile.ZipFile(root / "z.zip", "w") as zipped:
        for file in phantoms.ct_series(tmp_path / "zipped", seed=4):
            zipped.write(file, f"inner/{file.name}")
    return root


def test_a_catalogue_gives_what_a_search_finds(archive: Path, tmp_path: Path) -> None:
    """The same volumes with the same files, ids, repairs and notes, and each of them can be read."""
    index(archive, db=tmp_path / "index.db")
    wanted = find_sources(archive)
    with Catalogue(tmp_path / "index.db") as catalogue:
        found, salt = catalogue.found(), catalogue.salt
    own = {(*source.files, source.part): source for source in found.sources}
    assert len(own) == len(wanted.sources) == len(found.sources)
    for source in wanted.sources:
        other = own[(*source.files, source.part)]
        assert (other.kind, other.name, other.modality, other.shape) == (
            source.kind,
            source.name,
            source.modality,
            source.shape,
        )
        assert (other.repairs, other.notes) == (source.repairs, source.notes)
        assert source_id(other, salt, archive) == source_id(source, salt, archive)
        np.testing.assert_array_equal(read_source(other).array, read_source(source).array)
    assert {stop.files for stop in found.stopped} == {stop.files for stop in wanted.stopped}
    assert {(stop.code, stop.message) for stop in found.stopped} == {(s.code, s.message) for s in wanted.stopped}
    assert set(found.listed) == set(wanted.listed)
    assert found.rubbish == wanted.rubbish


def test_filters(archive: Path, tmp_path: Path) -> None:
    index(archive, db=tmp_path / "index.db")
    with Catalogue(tmp_path / "index.db") as catalogue:
        assert [source.modality for source in catalogue.sources(Filter(("MR",)))] == ["MR"]
        assert {source.shape for source in catalogue.sources(Filter(("CT", "MR"), 4))} == {(12, 10, 8)}
        assert {row[0] for row in catalogue.rows(Filter(verdict=("stopped",)), ("code",))} == {"unknown-format"}


def test_checksums_are_kept_for_verify(archive: Path, tmp_path: Path) -> None:
    db, file = tmp_path / "index.db", archive / "a.nii.gz"
    index(archive, db=db)
    with Catalogue(db) as catalogue:
        catalogue.record_checksum(file, hashlib.sha256(file.read_bytes()).hexdigest())
        catalogue.record_checksum(archive / "time.nii", "0" * 64)
    assert [failure.code for failure in index(archive, db=db, verify=True).failures] == [
        "content-changed",
        "unknown-format",
    ]


def test_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no\.db: is not there; make it with voxelwise index"):
        Catalogue(tmp_path / "no.db")
    (tmp_path / "letter.db").write_text("dear all, " * 100)
    with pytest.raises(UsageError, match="is no index of voxelwise"):
        Catalogue(tmp_path / "letter.db")
    phantoms.nifti_file(tmp_path / "archive" / "a.nii")
    index(tmp_path / "archive", db=tmp_path / "index.db")
    with closing(sqlite3.connect(tmp_path / "index.db")) as base:
        base.execute("UPDATE meta SET value = '0' WHERE key = 'finished'")
        base.commit()
    with pytest.raises(UsageError, match="is no finished index of this version"):
        Catalogue(tmp_path / "index.db")


def test_a_record_comes_back_as_it_was_but_for_identifiers(tmp_path: Path) -> None:
    (file, *_) = phantoms.ct_series(tmp_path)
    (one,) = read_header(file)
    text = packed([one], "a salt of ours")
    (again,) = unpacked(text, one.path, one.size, one.modified)
    for name, value in vars(one).items():
        if name in ("sop", "study", "series", "patient", "frame_of_reference"):
            assert len(getattr(again, name)) == 17
            assert value not in text
        else:
            assert getattr(again, name) == value


@pytest.mark.parametrize("name", ["plain", "back\\slash", "\\udcff", "\udcff\udc80", "new\nline", "\\", "é\\\udcfe"])
def test_any_name_is_kept(name: str) -> None:
    assert named(stored(name)) == name
    stored(name).encode()


def test_a_text_without_a_suffix_is_listed_as_a_search_lists_it(archive: Path, tmp_path: Path) -> None:
    phantoms.ct_series(archive / "bare", seed=31, names=[f"IM{k}" for k in range(8)])
    (archive / "bare" / "SHA256SUMS").write_text("0  IM0\n")
    phantoms.ct_series(archive / "lost", seed=32, names=[f"IM{k}" for k in range(8)])
    (archive / "lost" / "IM5").write_text("an error page\n")
    index(archive, db=tmp_path / "index.db")
    with Catalogue(tmp_path / "index.db") as catalogue:
        kept, found = catalogue.found(), find_sources(archive)
    assert sorted(kept.listed, key=str) == sorted(found.listed, key=str)
    assert [(one.code, len(one.files)) for one in kept.stopped if one.files[0].parent.name == "lost"] == [
        ("plain-text", 8)
    ]
    assert {source.files[0].parent.name for source in kept.sources} >= {"bare"}
