"""Zip archives: read like folders, and refused where they are no friends."""

from __future__ import annotations

import errno
import resource
import stat
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import phantoms
import pytest
from voxelwise.errors import CaseError, UnsafeInputError
from voxelwise.transforms import zip_files
from voxelwise.transforms.readers import find_sources, read_geometry, read_source, read_volume
from voxelwise.transforms.zip_files import check_archive, remove_leftovers, temporary_folder


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder that can be seen to be empty afterwards."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(zip_files.tempfile, "tempdir", str(folder))
    return folder


def packed(path: Path, folder: Path) -> Path:
    """A zip archive of a folder."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder).as_posix())
    return path


def test_an_archive_is_walked_like_a_folder(tmp_path: Path, temporary: Path) -> None:
    tree = tmp_path / "tree"
    phantoms.ct_series(tree / "ct", phantoms.ramp((700, 900, 3), np.int32) % 2000)
    phantoms.nifti_file(tree / "a.nii.gz")
    phantoms.nrrd_file(tree / "b.nrrd")
    nib.save(nib.Nifti1Pair(phantoms.ramp(), phantoms.AXIAL), tree / "pair.hdr")
    (tree / "notes.txt").write_text("nothing")
    (tree / "inner.zip").write_bytes(b"PK\5\6" + b"\0" * 18)
    archive = packed(tmp_path / "all.zip", tree)
    found = find_sources(archive)
    folder = find_sources(tree)
    assert [(one.kind, one.name, one.shape) for one in found.sources] == [
        (one.kind, one.name, one.shape) for one in folder.sources
    ]
    assert [entry.reason for entry in found.listed] == ["a zip archive inside a zip archive; it is not read"]
    assert (found.rubbish, found.stopped) == (folder.rubbish, ())
    for inside, outside in zip(found.sources, folder.sources, strict=True):
        assert all(file.is_relative_to(archive) for file in inside.files)
        assert inside.on_disk == (archive,)
        volume, wanted = read_source(inside), read_source(outside)
        np.testing.assert_array_equal(volume.array, wanted.array)
        np.testing.assert_array_equal(volume.geometry.affine, wanted.geometry.affine)
    assert list(temporary.iterdir()) == []


def test_one_volume_in_an_archive_and_errors_name_the_archive(tmp_path: Path, temporary: Path) -> None:
    phantoms.ct_series(tmp_path / "tree")
    archive = packed(tmp_path / "one.zip", tmp_path / "tree")
    np.testing.assert_array_equal(read_volume(archive).array[0], phantoms.ramp())
    assert read_geometry(archive)[0].shape == (12, 10, 8)
    file = tmp_path / "tree" / "IM0003.dcm"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(CaseError, match=r"one\.zip/IM0003\.dcm.*cut off"):
        read_volume(packed(archive, tmp_path / "tree"))
    assert list(temporary.iterdir()) == []


def test_a_series_lies_in_a_folder_and_in_an_archive(tmp_path: Path) -> None:
    files = phantoms.ct_series(tmp_path / "tree" / "a")
    with zipfile.ZipFile(tmp_path / "tree" / "b.zip", "w") as archive:
        for file in files[5:]:
            archive.write(file, file.name)
            file.unlink()
    (source,) = find_sources(tmp_path / "tree").sources
    assert source.shape == (12, 10, 8)
    np.testing.assert_array_equal(read_source(source).array[0], phantoms.ramp())


def hostile(path: Path, name: str) -> None:
    """Archives that must not be unpacked."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good.txt", "x")
        if name in ("../up.nii", "/absolute.nii", "C:\\drive.nii", "a/../../up.nii"):
            archive.writestr(name, "x")
        elif name == "link":
            link = zipfile.ZipInfo("link.nii")
            link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
            archive.writestr(link, "/etc/passwd")
        elif name == "bomb":
            with archive.open("zeros", "w", force_zip64=True) as member:
                for _ in range(4):
                    member.write(bytes(8 << 20))
        elif name == "many":
            for number in range(zip_files.MOST_MEMBERS + 1):
                archive.writestr(zipfile.ZipInfo(str(number)), b"")
    if name == "overlap":
        data = bytearray(path.read_bytes())
        place = data.rindex(b"PK\1\2")
        struct.pack_into("<I", data, place + 20, 1 << 20)
        path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../up.nii", "a name that leads out"),
        ("a/../../up.nii", "a name that leads out"),
        ("/absolute.nii", "a name that leads out"),
        ("C:\\drive.nii", "a name that leads out"),
        ("link", "a link or a special file"),
        ("bomb", "bytes become"),
        ("many", "holds more than 100"),
        ("overlap", "members share bytes"),
    ],
)
def test_hostile_archives_are_refused_at_once(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    if name == "many":
        monkeypatch.setattr(zip_files, "MOST_MEMBERS", 100)
    if name == "bomb":
        monkeypatch.setattr(zip_files, "FREE_BYTES", 1 << 20)
    (tmp_path / "tree").mkdir()
    archive = tmp_path / "tree" / "bad.zip"
    hostile(archive, name)
    started, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnsafeInputError, match=rf"bad\.zip: an unsafe zip archive: .*{message}"):
        find_sources(archive)
    assert time.process_time() - started < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200_000
    phantoms.nifti_file(tmp_path / "tree" / "good.nii")
    found = find_sources(tmp_path / "tree")
    assert [stop.code for stop in found.stopped] == ["unsafe-archive"]
    assert [source.name for source in found.sources] == ["good"]
    assert list(temporary.iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"tree", "temporary"}


@pytest.mark.parametrize(
    ("damage", "code"),
    [(lambda data: data[:-30], "truncated"), (lambda data: data.replace(b"PK\1\2", b"PK\1\3"), "unreadable")],
)
def test_damaged_archives_stop(tmp_path: Path, damage: Callable[[bytes], bytes], code: str) -> None:
    phantoms.nifti_file(tmp_path / "tree" / "a.nii")
    archive = packed(tmp_path / "a.zip", tmp_path / "tree")
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(CaseError, match=r"a\.zip: a zip archive") as caught:
        check_archive(archive)
    assert caught.value.code == code
    assert [stop.code for stop in find_sources(archive).stopped] == [code]


def test_a_member_that_is_encrypted_or_damaged_stops_alone(tmp_path: Path) -> None:
    for name in ("a.nii", "b.nii", "c.nii"):
        phantoms.nifti_file(tmp_path / "tree" / name)
    archive = packed(tmp_path / "a.zip", tmp_path / "tree")
    data = bytearray(archive.read_bytes())
    place = data.index(b"PK\1\2")
    struct.pack_into("<H", data, place + 8, 1)
    data[200] ^= 255
    second = data.index(b"b.nii") + 100
    data[second : second + 20] = bytes(20)
    archive.write_bytes(data)
    found = find_sources(archive)
    assert [(stop.files[0].name, stop.code) for stop in found.stopped] == [
        ("a.nii", "encrypted"),
        ("b.nii", "truncated"),
    ]
    assert [source.name for source in found.sources] == ["c"]


def test_folders_of_killed_processes_are_removed(temporary: Path) -> None:
    left = temporary / f"{zip_files.TEMPORARY}killed"
    (left / "files").mkdir(parents=True)
    (left / zip_files.LOCK).write_bytes(b"")
    with temporary_folder() as folder:
        assert not left.exists()
        remove_leftovers()
        assert folder.is_dir()
    assert list(temporary.iterdir()) == []


def written(path: Path, members: list[tuple[str, bytes]], kind: int = zipfile.ZIP_DEFLATED) -> Path:
    """A zip archive of some members."""
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def test_a_nested_archive_is_listed_whatever_it_is_called(tmp_path: Path, temporary: Path) -> None:
    inner = written(tmp_path / "inner", [("a.txt", b"text")]).read_bytes()
    archive = written(tmp_path / "a.zip", [("inner", inner), ("inner.zip", inner), ("deep/inner", inner)])
    found = find_sources(archive)
    assert [entry.files[0].relative_to(archive).as_posix() for entry in found.listed] == [
        "deep/inner",
        "inner",
        "inner.zip",
    ]
    assert {entry.reason for entry in found.listed} == {"a zip archive inside a zip archive; it is not read"}
    assert (found.sources, found.stopped) == ((), ())


def test_names_that_no_disk_takes_stop_alone(tmp_path: Path, temporary: Path) -> None:
    """A name longer than any file system takes, and files that are a folder of others as well."""
    slices = [(f"s/{file.name}", file.read_bytes()) for file in phantoms.ct_series(tmp_path / "tree")]
    image = phantoms.nifti_file(tmp_path / "a.nii").read_bytes()
    archive = written(tmp_path / "a.zip", [*slices, ("d/" + "x" * 300 + ".nii", image)])
    found = find_sources(archive)
    assert [(stop.code, "File name too long" in stop.message) for stop in found.stopped] == [("unreadable", True)]
    assert read_source(found.sources[0]).geometry.shape == (12, 10, 8)
    archive = written(archive, [("a", slices[0][1]), *((f"a/{name}", data) for name, data in slices[1:])])
    (source,) = find_sources(archive).sources
    with pytest.raises(CaseError, match=r"a\.zip/a.*: cannot be unpacked"):
        read_source(source)
    assert list(temporary.iterdir()) == []


def test_names_are_taken_as_a_folder_has_them(tmp_path: Path) -> None:
    slices = [(f"./s//{file.name}", file.read_bytes()) for file in phantoms.ct_series(tmp_path / "tree")]
    archive = written(tmp_path / "a.zip", slices)
    np.testing.assert_array_equal(read_volume(archive).array[0], phantoms.ramp())
    with pytest.raises(UnsafeInputError, match="two files of one name"):
        check_archive(written(archive, [*slices, ("s/IM0001.dcm", b"")]))


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_in_any_codec_stops_its_series_alone(tmp_path: Path, kind: int) -> None:
    phantoms.nifti_file(tmp_path / "tree" / "good.nii")
    first, *others = phantoms.ct_series(tmp_path / "ct")
    members = [("ct/IM0000.dcm", first.read_bytes()), *((f"ct/{one.name}", one.read_bytes()) for one in others)]
    archive = written(tmp_path / "tree" / "a.zip", members, kind)
    data = bytearray(archive.read_bytes())
    data[60:90] = bytes(byte ^ 0x5A for byte in data[60:90])
    archive.write_bytes(data)
    found = find_sources(tmp_path / "tree")
    assert [source.name for source in found.sources] == ["good"]
    assert [(stop.code, len(stop.files)) for stop in found.stopped] == [("truncated", 8)]
    assert str(archive / "ct" / "IM0000.dcm") in found.stopped[0].message


def test_many_header_files_cost_no_more_than_their_own_data(tmp_path: Path) -> None:
    names = sorted([*(f"{k}.hdr" for k in range(20_000)), *(f"{k}.img" for k in range(20_000)), "0.img.gz", "0.a.b.c"])
    started = time.process_time()
    found = [zip_files.with_siblings(name, names) for name in names]
    assert time.process_time() - started < 2
    assert found[names.index("0.hdr")] == ["0.img", "0.img.gz"]
    assert found[names.index("1.hdr")] == ["1.img"]


def test_a_full_disk_is_no_fault_of_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "x")

    archive = packed(tmp_path / "a.zip", phantoms.nifti_file(tmp_path / "tree" / "a.nii").parent)
    monkeypatch.setattr(zip_files.shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        find_sources(archive)
