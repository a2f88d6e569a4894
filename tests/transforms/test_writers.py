"""Files are whole or not there, and labels lie on the grid of their image bit for bit."""

from __future__ import annotations

import builtins
import errno
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import phantoms
import pytest
from PIL import Image
from voxelwise.errors import CaseError, NoRoomError, UsageError
from voxelwise.transforms import gzip_blocks, writers
from voxelwise.transforms.geometry import ALL_AXIS_CODES, reorient_to
from voxelwise.transforms.nifti import read_header, read_nifti
from voxelwise.transforms.nifti_geometry import GEOMETRIC_FIELDS
from voxelwise.transforms.volume import Geometry, Volume
from voxelwise.transforms.writers import (
    atomic_write,
    write_json,
    write_label_map,
    write_picture_labels,
    write_text,
    write_volume,
)

OBLIQUE = phantoms.oblique()


def interrupted(target: Path, error: Exception) -> None:
    """Write half a file and fail."""
    with atomic_write(target) as temporary:
        temporary.write_text("part")
        raise error


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "result.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError, match="half way"):
        interrupted(target, RuntimeError("half way"))
    assert target.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["result.txt"]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(NoRoomError, match=r"result\.txt: no space left.*MB free"):
        interrupted(tmp_path / "result.txt", OSError(errno.ENOSPC, "No space left on device"))
    assert not list(tmp_path.iterdir())


def test_other_system_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match="not allowed"), atomic_write(tmp_path / "result.txt"):
        raise PermissionError(errno.EACCES, "not allowed")


def test_json_is_sorted_and_takes_numpy(tmp_path: Path) -> None:
    write_json(
        tmp_path / "a.json", {"b": np.float32(0.5), "a": np.arange(2), "path": Path("x"), "m": {"k": np.int64(3)}}
    )
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [0, 1], "b": 0.5, "path": "x", "m": {"k": 3}}
    with pytest.raises(TypeError, match="object has no JSON form"):
        write_json(tmp_path / "b.json", object())
    assert not (tmp_path / "b.json").exists()


@pytest.mark.parametrize("codes", ALL_AXIS_CODES)
def test_labels_come_back_on_the_grid_of_their_image(tmp_path: Path, codes: str) -> None:
    """In all 48 orientations: shape, codes and every geometric field are those of the image, bit for bit."""
    array, affine = reorient_to(phantoms.ramp((3, 4, 5))[np.newaxis], OBLIQUE, codes)
    image = read_nifti(phantoms.nifti_file(tmp_path / "image.nii.gz", array[0], affine))
    np.testing.assert_array_equal(image.array, array)
    write_label_map(tmp_path / "labels.nii.gz", (array[0] > 0).astype(np.int64), image.geometry)
    before, after = nib.load(tmp_path / "image.nii.gz").header, nib.load(tmp_path / "labels.nii.gz").header
    for name in GEOMETRIC_FIELDS:
        assert np.asarray(before[name]).tobytes() == np.asarray(after[name]).tobytes(), name
    labels = read_nifti(tmp_path / "labels.nii.gz")
    np.testing.assert_array_equal(labels.array[0], array[0] > 0)
    assert labels.array.dtype == np.uint8
    assert labels.notes == labels.repairs == ()


@pytest.mark.parametrize("codes", ALL_AXIS_CODES)
def test_volumes_without_a_nifti_header_keep_their_affine(tmp_path: Path, codes: str) -> None:
    array, affine = reorient_to(phantoms.ramp((3, 4, 5))[np.newaxis], OBLIQUE, codes)
    write_volume(tmp_path / "image.nii", Volume(array, Geometry(array.shape[1:], affine)))
    volume = read_nifti(tmp_path / "image.nii")
    np.testing.assert_array_equal(volume.geometry.affine, affine.astype(np.float32))
    np.testing.assert_array_equal(volume.array, array)


def test_a_sheared_grid_is_written_without_a_qform(tmp_path: Path) -> None:
    tilted = phantoms.AXIAL.astype(np.float32).astype(float)
    tilted[1, 2] = 0.5
    write_volume(tmp_path / "tilted.nii.gz", Volume(phantoms.ramp((3, 4, 5))[np.newaxis], Geometry((3, 4, 5), tilted)))
    assert int(nib.load(tmp_path / "tilted.nii.gz").header["qform_code"]) == 0
    np.testing.assert_array_equal(read_nifti(tmp_path / "tilted.nii.gz").geometry.affine, tilted)


def test_a_qform_near_a_half_turn_is_never_written_wrong(tmp_path: Path) -> None:
    """A float32 quaternion loses small angles beside half a turn."""
    for angle in (1e-5, 1e-4, 3e-4, 1e-3):
        cos, sin = np.cos(angle), np.sin(angle)
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.array(
            [[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
        )
        geometry = Geometry((512, 512, 2), affine.astype(np.float32).astype(float))
        write_label_map(tmp_path / "labels.nii", np.zeros((512, 512, 2), np.uint8), geometry)
        assert read_nifti(tmp_path / "labels.nii").notes == ()


def test_channels_are_declared_and_come_back(tmp_path: Path) -> None:
    array = np.stack([phantoms.ramp((3, 4, 5)), phantoms.ramp((3, 4, 5)) + 1])
    write_volume(tmp_path / "two.nii.gz", Volume(array, Geometry((3, 4, 5), phantoms.AXIAL)))
    volume = read_nifti(tmp_path / "two.nii.gz")
    np.testing.assert_array_equal(volume.array, array)


def test_colour_pictures_become_rgb24_and_come_back(tmp_path: Path) -> None:
    array = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
    write_volume(tmp_path / "colour.nii.gz", Volume(array, Geometry((4, 5), np.eye(4), has_world=False)))
    assert int(nib.load(tmp_path / "colour.nii.gz").header["datatype"]) == 128
    volume = read_nifti(tmp_path / "colour.nii.gz")
    np.testing.assert_array_equal(volume.array, array)
    assert not volume.geometry.has_world


@pytest.mark.parametrize(("top", "dtype"), [(1, np.uint8), (255, np.uint8), (256, np.uint16), (70000, np.uint32)])
def test_labels_take_the_smallest_type(tmp_path: Path, top: int, dtype: type) -> None:
    labels = np.zeros((3, 2, 2), dtype=np.int64)
    labels[1, 1, 1] = top
    write_label_map(tmp_path / "labels.nii.gz", labels, Geometry((3, 2, 2), np.eye(4)))
    header = read_header(tmp_path / "labels.nii.gz").raw
    assert header.get_data_dtype() == dtype
    assert (float(header["scl_slope"]), float(header["scl_inter"])) == (1, 0)
    assert int(nib.load(tmp_path / "labels.nii.gz").dataobj[1, 1, 1]) == top


def test_labels_are_written_in_either_memory_order(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 5, (70, 33, 9), dtype=np.uint8)
    for name, array in (
        ("c", np.ascontiguousarray(labels)),
        ("f", np.asfortranarray(labels)),
        ("flip", labels[::-1, :, ::-1]),
    ):
        write_label_map(tmp_path / f"{name}.nii.gz", array, Geometry(labels.shape, np.eye(4)))
        np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / f"{name}.nii.gz").dataobj), array)
    write_label_map(tmp_path / "again.nii.gz", labels, Geometry(labels.shape, np.eye(4)))
    assert (tmp_path / "again.nii.gz").read_bytes() == (tmp_path / "c.nii.gz").read_bytes()


def test_labels_that_would_change_are_refused(tmp_path: Path) -> None:
    geometry = Geometry((2, 2, 2), np.eye(4))
    with pytest.raises(ValueError, match="holds whole numbers, got an array of float32"):
        write_label_map(tmp_path / "a.nii.gz", np.ones((2, 2, 2), np.float32), geometry)
    with pytest.raises(ValueError, match="label values -1 to -1 do not fit"):
        write_label_map(tmp_path / "a.nii.gz", np.full((2, 2, 2), -1), geometry)
    with pytest.raises(ValueError, match=r"labels have shape \(2, 2, 3\)"):
        write_label_map(tmp_path / "a.nii.gz", np.ones((2, 2, 3), np.uint8), geometry)
    with pytest.raises(UsageError, match=r"written as \.nii\.gz or \.nii"):
        write_label_map(tmp_path / "a.mha", np.ones((2, 2, 2), np.uint8), geometry)
    with pytest.raises(ValueError, match=r"expected \(channels"):
        write_volume(tmp_path / "a.nii.gz", Volume(np.ones((1, 2, 2, 3)), geometry))
    assert not list(tmp_path.iterdir())


def test_free_text_of_a_header_is_not_copied(tmp_path: Path) -> None:
    image = read_nifti(
        phantoms.nifti_file(tmp_path / "image.nii.gz", descrip=b"Canary^Quetzal", db_name=b"CANARY-7731")
    )
    write_volume(tmp_path / "copy.nii", image)
    assert b"anary" not in (tmp_path / "copy.nii").read_bytes()


def test_picture_labels_are_grey_png(tmp_path: Path) -> None:
    labels = np.arange(12).reshape(4, 3)
    write_picture_labels(tmp_path / "labels.png", labels)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "labels.png")), labels.T)
    write_picture_labels(tmp_path / "many.png", labels * 1000)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "many.png")), labels.T * 1000)
    with pytest.raises(ValueError, match=r"a PNG label map is \(X, Y\)"):
        write_picture_labels(tmp_path / "labels.png", labels[np.newaxis])
    with pytest.raises(CaseError, match=r"written as \.png"):
        write_picture_labels(tmp_path / "labels.jpg", labels)


class Failing:
    """Counts the calls that reach the disk and fails the n-th."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path, number: int, code: int) -> None:
        self.folder, self.left, self.code = os.fspath(folder), number, code
        for module, name in ((os, "fsync"), (os, "replace"), (os, "stat")):
            patch.setattr(module, name, self.counted(getattr(module, name)))
        patch.setattr(builtins, "open", self.opened(builtins.open))
        patch.setattr(writers, "write_all", self.counted(writers.write_all))

    def tick(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise OSError(self.code, os.strerror(self.code))

    def counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            if isinstance(arguments[0], int) or not isinstance(arguments[0], (str, Path)) or self.ours(arguments[0]):
                self.tick()
            return call(*arguments, **options)

        return wrapper

    def opened(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(path: Any, *arguments: Any, **options: Any) -> Any:
            if isinstance(path, (str, Path)) and self.ours(path):
                self.tick()
            return call(path, *arguments, **options)

        return wrapper

    def ours(self, path: Any) -> bool:
        return os.fspath(path).startswith(self.folder)


@pytest.mark.parametrize("name", ["volume.nii", "volume.nii.gz"])
@pytest.mark.parametrize(("code", "kind"), [(errno.ENOSPC, NoRoomError), (errno.EIO, OSError)])
def test_a_fault_at_any_call_leaves_a_whole_file(tmp_path: Path, name: str, code: int, kind: type[Exception]) -> None:
    """The n-th call that reaches the disk fails, for every n: the old file stays, and no part beside it.

    The sync of the folder alone may fail in silence: then the new file is there.
    """
    old, new = (
        Volume(phantoms.ramp((40, 30, 6))[np.newaxis] + add, Geometry((40, 30, 6), np.eye(4))) for add in (0, 1)
    )
    write_volume(tmp_path / name, old)
    failed = 0
    for number in range(1, 40):
        raised: Exception | None = None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(writers, "SLAB_BYTES", 4000)
            failing = Failing(patch, tmp_path, number, code)
            try:
                write_volume(tmp_path / name, new)
            except (OSError, NoRoomError) as error:
                raised = error
        assert [path.name for path in tmp_path.iterdir()] == [name]
        there = read_nifti(tmp_path / name).array
        np.testing.assert_array_equal(there, new.array if raised is None else old.array)
        if failing.left > 0:
            break
        if raised is None:
            write_volume(tmp_path / name, old)
            continue
        failed += 1
        assert isinstance(raised, kind)
    assert failing.left > 0, "the calls did not come to an end"
    assert failed >= 8


def test_a_disk_that_keeps_fewer_bytes_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems take bytes and lose them without a word; others keep other ones."""
    volume = Volume(phantoms.ramp()[np.newaxis], Geometry((12, 10, 8), phantoms.AXIAL))
    whole = writers.write_all
    monkeypatch.setattr(writers, "write_all", lambda file, piece: whole(file, piece[:-1]) + 1)
    with pytest.raises(
        NoRoomError, match=r"a\.nii: no space left on its disk \(up to 0\.0 MB are needed, \d+ MB free\)"
    ):
        write_volume(tmp_path / "a.nii", volume)
    monkeypatch.setattr(writers, "write_all", lambda file, piece: whole(file, bytes(len(piece))))
    with pytest.raises(OSError, match="the header on disk is not the one that was written"):
        write_volume(tmp_path / "a.nii", volume)
    with pytest.raises(OSError, match="the header on disk is not the one that was written"):
        write_volume(tmp_path / "a.nii.gz", volume)
    assert not list(tmp_path.iterdir())


def test_writers_tell_the_checksum_of_what_they_wrote(tmp_path: Path) -> None:
    volume = Volume(phantoms.ramp()[np.newaxis], Geometry((12, 10, 8), phantoms.AXIAL))
    told = {
        "a.nii": write_volume(tmp_path / "a.nii", volume),
        "a.nii.gz": write_volume(tmp_path / "a.nii.gz", volume),
        "b.nii.gz": write_label_map(tmp_path / "b.nii.gz", volume.array[0] * 0, volume.geometry),
        "a.json": write_json(tmp_path / "a.json", {"ä": 1}),
    }
    for name, digest in told.items():
        assert digest == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


def test_names_that_are_no_text_and_long_names_are_written(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9")
    write_json(tmp_path / f"{odd}.json", {"file": odd})
    assert json.loads((tmp_path / f"{odd}.json").read_text()) == {"file": odd}
    long = "n" * 250 + ".json"
    write_json(tmp_path / long, {})
    assert (tmp_path / long).read_text() == "{}\n"


@pytest.mark.parametrize("threads", ["1", "2", "5"])
def test_gzip_is_one_member_and_does_not_depend_on_threads(threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    draw = np.random.default_rng(0)
    parts = [draw.integers(0, 9, size, dtype=np.uint8).tobytes() for size in (352, 70000, 1, 0, 123457, 30000)]
    packed = b"".join(gzip_blocks.gzipped(memoryview(part) for part in parts))
    inflate = zlib.decompressobj(31)
    assert inflate.decompress(packed) == b"".join(parts)
    assert inflate.eof
    assert not inflate.unused_data
    assert hashlib.sha256(packed).hexdigest() == hashlib.sha256(b"".join(gzip_blocks.gzipped(parts))).hexdigest()
    assert gzip.decompress(b"".join(gzip_blocks.gzipped([]))) == b""


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_film_is_written_with_its_frames_in_time(tmp_path: Path, channels: int, suffix: str) -> None:
    array = np.arange(channels * 5 * 4 * 3, dtype=np.uint8).reshape(channels, 5, 4, 3)
    geometry = Geometry((5, 4, 3), np.diag([0.3, 0.2, 0.04, 1.0]), has_world=False, film=True)
    write_volume(tmp_path / f"film{suffix}", Volume(array, geometry))
    image = nib.load(tmp_path / f"film{suffix}")
    header = image.header
    assert image.shape == (5, 4, 1, 3)
    assert header.get_xyzt_units() == ("mm", "sec")
    np.testing.assert_allclose(header["pixdim"][1:5], [0.3, 0.2, 1, 0.04], rtol=1e-6)
    assert (int(header["sform_code"]), int(header["qform_code"]), int(header["intent_code"])) == (0, 0, 0)
    found = np.asarray(image.dataobj)[:, :, 0]
    colours = found if channels == 1 else np.stack([found[name] for name in "RGB"])
    np.testing.assert_array_equal(colours.reshape(array.shape), array)
    labels = (array[0] > 30).astype(np.uint8)
    write_label_map(tmp_path / f"labels{suffix}", labels, geometry)
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / f"labels{suffix}").dataobj)[:, :, 0], labels)
    with pytest.raises(ValueError, match="a film has one grey or three 8-bit colour channels"):
        write_volume(tmp_path / f"two{suffix}", Volume(np.zeros((2, 5, 4, 3), np.uint8), geometry))
