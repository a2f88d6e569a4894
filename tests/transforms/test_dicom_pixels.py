"""DICOM voxels: values are slope x stored + intercept of the bits that count, whatever the words they are stored in."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    ImplicitVRLittleEndian,
    RLELossless,
    SecondaryCaptureImageStorage,
    UltrasoundMultiFrameImageStorage,
)
from voxelwise.errors import CaseError
from voxelwise.transforms import dicom_pixels
from voxelwise.transforms.dicom import Slice, read_header
from voxelwise.transforms.dicom_pixels import read_stack
from voxelwise.transforms.dicom_stack import Stack
from voxelwise.transforms.dicom_values import mask_bits, on_even_grid, whole_rescaled
from voxelwise.transforms.nifti import smallest_integer
from voxelwise.transforms.readers import find_sources, read_source, read_volume
from voxelwise.transforms.volume import Volume

SMALL = phantoms.ramp((6, 5, 3))


def codes(volume: Volume) -> set[str]:
    return {entry.code for entry in (*volume.repairs, *volume.notes)}


def edited(path: Path, words: np.ndarray | None = None, **tags: Any) -> None:
    """Put other words and tags into a file."""
    dataset = pydicom.dcmread(path)
    if words is not None:
        dataset.PixelData = words.tobytes() + b"\0" * (words.nbytes % 2)
        dataset.BitsAllocated = dataset.BitsStored = words.dtype.itemsize * 8
        dataset.HighBit = dataset.BitsStored - 1
    for name, value in tags.items():
        ambiguous = "Padding" in name or "Descriptor" in name
        setattr(dataset, name, value)
        if ambiguous:
            dataset[name].VR = "SS" if np.min(value) < 0 else "US"
    dataset.save_as(path)


def picture(path: Path, words: np.ndarray, kind: str = SecondaryCaptureImageStorage, **tags: Any) -> Path:
    """Write one picture or film of words ([frames,] rows, columns[, 3])."""
    made = phantoms.ct_series(path.parent, np.zeros((2, 2, 1)), names=[path.name])[0]
    dataset = pydicom.dcmread(made)
    for name in ("RescaleSlope", "RescaleIntercept", "RescaleType", "ImagePositionPatient", "ImageOrientationPatient"):
        delattr(dataset, name)
    colour = words.ndim > 2 and words.shape[-1] == 3
    film = words.ndim - colour == 3
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = kind
    dataset.Rows, dataset.Columns = words.shape[int(film) : int(film) + 2]
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 3 if colour else 1, int(words.dtype.kind == "i")
    dataset.Modality = "OT"
    if colour:
        dataset.PlanarConfiguration, dataset.PhotometricInterpretation = 0, "RGB"
    if film:
        dataset.NumberOfFrames = words.shape[0]
    dataset.save_as(made)
    edited(made, words, **tags)
    return made


@pytest.mark.parametrize("stored", ["u1", "i1", "u2", "i2", "u4", "i4"])
@pytest.mark.parametrize("scale", [None, (1, -5), (3, 7), (0.5, 0.25)])
def test_every_word_is_rescaled_exactly(tmp_path: Path, stored: str, scale: tuple[float, float] | None) -> None:
    draw = np.random.default_rng(1)
    kind = np.iinfo(stored)
    words = draw.integers(max(kind.min, -(2**20)), min(kind.max, 2**20), (3, 5, 6)).astype(stored)
    for plane, path in zip(words, phantoms.mr_series(tmp_path, SMALL), strict=True):
        tags = {} if scale is None else {"RescaleSlope": str(scale[0]), "RescaleIntercept": str(scale[1])}
        edited(path, plane, PixelRepresentation=int(kind.min < 0), **tags)
    slope, intercept = scale or (1, 0)
    volume = read_volume(tmp_path)
    wanted = words.astype(np.float64) * slope + intercept
    np.testing.assert_array_equal(volume.array[0].transpose(2, 1, 0).astype(np.float64), wanted)
    if scale is None and stored in ("u1", "i1"):
        assert volume.array.dtype == np.dtype(stored)
    elif slope == 0.5:
        assert volume.array.dtype == np.float32
    else:
        assert volume.array.dtype == smallest_integer(int(wanted.min()), int(wanted.max()))


@given(
    stored=st.integers(1, 16),
    shift=st.integers(0, 15),
    signed=st.booleans(),
    values=st.lists(st.integers(0, 65535), min_size=1, max_size=8),
)
@settings(max_examples=60, deadline=None)
def test_bits_outside_bits_stored_never_count(stored: int, shift: int, signed: bool, values: list[int]) -> None:
    high = min(15, stored - 1 + shift)
    one = slice_of(bits_stored=stored, high_bit=high, signed=signed)
    plane = np.array(values, np.uint16).view(np.int16 if signed else np.uint16)
    found = plane.copy()
    mask_bits(found, one)
    for word, value in zip(values, found.tolist(), strict=True):
        bits = word >> (high + 1 - stored) & ((1 << stored) - 1)
        assert value == (bits - (1 << stored) if signed and bits >> (stored - 1) else bits)


def slice_of(**values: Any) -> Slice:
    """A header record with these values, made without a file."""
    names = ["sop_class", "sop", "study", "series", "patient", "frame_of_reference"]
    texts = dict.fromkeys([*names, "transfer_syntax", "modality", "image_type"], "")
    return Slice(path=Path("none.dcm"), size=0, modified=0, **texts, **values)


@given(
    words=st.lists(st.integers(-32768, 32767), min_size=4, max_size=4),
    slope=st.integers(-3, 3).filter(bool),
    intercept=st.integers(-2000, 2000),
)
@settings(max_examples=50, deadline=None)
def test_rescaling_in_place_is_arithmetic(words: list[int], slope: int, intercept: int) -> None:
    stored = np.array(words, np.int16).reshape(1, 2, 2)
    wanted = stored.astype(np.int64) * slope + intercept
    fits = wanted.min() >= -(2**15) and wanted.max() < 2**15
    dtype = np.dtype(np.int16 if fits else np.int32)
    found = whole_rescaled(stored.copy(), [(float(slope), float(intercept))], dtype)
    np.testing.assert_array_equal(found, wanted)


def test_signed_and_unsigned_slices_of_twelve_bits_keep_their_signs(tmp_path: Path) -> None:
    paths = phantoms.mr_series(tmp_path, SMALL)
    for number, path in enumerate(paths):
        words = np.full((5, 6), 0xF800 if number else 0x0800, np.uint16)
        edited(path, words, BitsStored=12, HighBit=11, PixelRepresentation=int(number == 0))
    values = read_volume(tmp_path).array[0]
    assert values[0, 0].tolist() == [-2048, 2048, 2048]


def test_float_pixels_are_kept(tmp_path: Path) -> None:
    words = np.linspace(-1, 1, 90, dtype=np.float32).reshape(3, 5, 6)
    for plane, path in zip(words, phantoms.mr_series(tmp_path, SMALL), strict=True):
        dataset = pydicom.dcmread(path)
        del dataset.PixelData
        dataset.FloatPixelData, dataset.BitsAllocated = plane.tobytes(), 32
        dataset.save_as(path)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array[0].transpose(2, 1, 0), words)
    assert volume.array.dtype == np.float32


def test_one_bit_is_refused_in_words(tmp_path: Path) -> None:
    path = phantoms.mr_series(tmp_path, SMALL[:, :, :1])[0]
    edited(path, np.zeros((5, 6), np.uint8), BitsAllocated=1, BitsStored=1, HighBit=0)
    with pytest.raises(CaseError, match=r"BitsAllocated is 1, expected 8 or 16 or 32|need \d+ bytes"):
        read_volume(tmp_path)


def test_contradicting_bits_stop(tmp_path: Path) -> None:
    edited(phantoms.mr_series(tmp_path, SMALL)[1], BitsStored=12, HighBit=16)
    with pytest.raises(CaseError, match=r"IM0001\.dcm: BitsStored 12, HighBit 16 in BitsAllocated 16 contradict"):
        read_volume(tmp_path)


def test_the_private_syntax_of_ge_has_big_endian_pixels(tmp_path: Path) -> None:
    for path in phantoms.ct_series(tmp_path, SMALL):
        dataset = pydicom.dcmread(path)
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        dataset.save_as(path, implicit_vr=True, little_endian=True)
        data = path.read_bytes().replace(b"\x12\x001.2.840.10008.1.2\0", b"\x14\x001.2.840.113619.5.2\0\0", 1)
        length = int.from_bytes(data[140:144], "little") + 2
        path.write_bytes(data[:140] + length.to_bytes(4, "little") + data[144:])
    np.testing.assert_array_equal(read_volume(tmp_path).array[0], SMALL)


def test_padding_is_kept_and_said(tmp_path: Path) -> None:
    """All converters keep it; a CT window cuts it off, and whoever takes statistics is told."""
    array = SMALL.copy()
    array[0] = -3000
    array[1] = -2500
    for path in phantoms.ct_series(tmp_path, array, signed=True, intercept=0):
        edited(path, PixelPaddingValue=-3000, PixelPaddingRangeLimit=-2400)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array[0], array)
    assert [entry.detail[:9] for entry in volume.notes if entry.code == "padding"] == ["30 voxels"]


def test_planes_of_an_even_grid_are_interpolated() -> None:
    planes = np.array([0, 10, 40, 41], np.int16)[:, None, None] * np.ones((1, 2, 3), np.int16)
    found = on_even_grid(planes, (0.0, 1.0, 3.0, 4.001), 5)
    assert found.dtype == np.int16
    assert found[:, 0, 0].tolist() == [0, 10, 25, 40, 41]
    smooth = on_even_grid(planes.astype(np.float32), (0.0, 1.5, 3.0, 4.0), 5)
    np.testing.assert_allclose(smooth[:, 1, 2], [0, 20 / 3, 20, 40, 41], rtol=1e-6)
    assert on_even_grid(planes[:1], (0.0,), 1).shape == (1, 2, 3)


@pytest.mark.parametrize(("modality", "inverted"), [("CR", True), ("OT", False)])
@pytest.mark.parametrize("signed", [False, True])
def test_monochrome1_is_inverted_where_it_is_shown_so(
    tmp_path: Path, modality: str, inverted: bool, signed: bool
) -> None:
    words = np.arange(12).reshape(4, 3).astype(np.int16 if signed else np.uint16) - 2 * signed
    tags = {"PhotometricInterpretation": "MONOCHROME1", "Modality": modality, "BitsStored": 12, "HighBit": 11}
    path = picture(tmp_path / "a.dcm", words, ComputedRadiographyImageStorage, **tags)
    volume = read_volume(path)
    wanted = (-1 if signed else 4095) - words if inverted else words
    np.testing.assert_array_equal(volume.array[0], wanted.T)
    assert any(entry.code == "monochrome1" for entry in volume.repairs) == inverted


def test_colours_come_as_three_channels(tmp_path: Path) -> None:
    words = np.random.default_rng(0).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    volume = read_volume(picture(tmp_path / "a.dcm", words))
    np.testing.assert_array_equal(volume.array, words.transpose(2, 1, 0))
    planar = picture(tmp_path / "b.dcm", np.ascontiguousarray(words))
    edited(planar, np.ascontiguousarray(words.transpose(2, 0, 1)), PlanarConfiguration=1)
    np.testing.assert_array_equal(read_volume(planar).array, words.transpose(2, 1, 0))
    deep = picture(tmp_path / "c.dcm", words.astype(np.uint16) << 8)
    volume = read_volume(deep)
    np.testing.assert_array_equal(volume.array, words.transpose(2, 1, 0))
    assert "colour-depth" in codes(volume)


@pytest.mark.parametrize("deep", [False, True])
def test_a_palette_is_turned_into_colours(tmp_path: Path, deep: bool) -> None:
    words = np.arange(12, dtype=np.uint8).reshape(4, 3)
    table = np.random.default_rng(0).integers(0, 255, (3, 16), dtype=np.uint8)
    path = picture(tmp_path / "a.dcm", words, PhotometricInterpretation="PALETTE COLOR")
    tags: dict[str, Any] = {}
    for name, row in zip(("Red", "Green", "Blue"), table, strict=True):
        stored = row.astype(np.uint16) << 8 | row if deep else row
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [16, 0, 16 if deep else 8]
        tags[f"{name}PaletteColorLookupTableData"] = stored.tobytes()
    edited(path, **tags)
    np.testing.assert_array_equal(read_volume(path).array, table[:, words].transpose(0, 2, 1))


@pytest.mark.parametrize("colour", [False, True])
def test_a_film_has_its_frames_on_the_third_axis(tmp_path: Path, colour: bool) -> None:
    shape = (4, 5, 6, 3) if colour else (4, 5, 6)
    words = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    path = picture(tmp_path / "a.dcm", words, UltrasoundMultiFrameImageStorage, FrameTime="40")
    one = read_header(path)[0]
    stack = Stack((one,), (path,), "1/2", np.diag([1, 1, 0.04, 1.0]), picture=True, film=True)
    volume = read_stack(stack)
    wanted = words.transpose(3, 2, 1, 0) if colour else words.transpose(2, 1, 0)[np.newaxis]
    np.testing.assert_array_equal(volume.array, wanted)
    assert volume.geometry.film
    assert not volume.geometry.has_world


def test_tiles_are_cut_out_of_their_mosaic(tmp_path: Path) -> None:
    array = phantoms.ramp((4, 3, 1))
    path = phantoms.ct_series(tmp_path, np.zeros((8, 6, 1)))[0]
    words = np.arange(48, dtype=np.uint16).reshape(6, 8)
    edited(path, words)
    whole = read_header(path)[0]
    tiles = [
        dicom_pixels.replace(whole, rows=3, columns=4, tile=(row, column, 6, 8)) for row in (0, 3) for column in (0, 4)
    ]
    for compressed in (False, True):
        if compressed:
            dataset = pydicom.dcmread(path)
            dataset.compress(RLELossless)
            dataset.save_as(path)
            now = read_header(path)[0]
            tiles = [dicom_pixels.replace(now, rows=3, columns=4, tile=one.tile) for one in tiles]
        volume = read_stack(Stack(tuple(tiles), (path,), "1", np.eye(4)))
        assert volume.array.shape == (1, *array.shape[:2], 4)
        wanted = [words[row : row + 3, column : column + 4] for row in (0, 3) for column in (0, 4)]
        np.testing.assert_array_equal(volume.array[0].transpose(2, 1, 0), np.array(wanted, np.int16) - 1024)


def grow(path: Path) -> None:
    """One more byte at the end."""
    path.write_bytes(path.read_bytes() + b"\0")


def touch(path: Path) -> None:
    """A later date."""
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


@pytest.mark.parametrize(("change", "compressed"), [(grow, False), (touch, False), (touch, True)])
def test_a_file_that_changes_behind_its_header_is_read_again_once(
    tmp_path: Path, change: Callable[[Path], None], compressed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = phantoms.ct_series(tmp_path, SMALL)
    if compressed:
        dataset = pydicom.dcmread(paths[1])
        dataset.compress(RLELossless)
        dataset.save_as(paths[1])
    source = find_sources(tmp_path).sources[0]
    headers = [one for path in paths for one in read_header(path)]
    change(paths[1])
    with pytest.raises(CaseError, match=r"IM0001\.dcm: changed while it was read") as caught:
        read_stack(Stack(tuple(headers), tuple(paths), "1", np.eye(4)))
    assert caught.value.code == "changed"
    if change is touch:
        np.testing.assert_array_equal(read_source(source).array[0], SMALL)
    checks = []

    def check(one: Slice, *rest: Any) -> None:
        if not checks and one.path == paths[1]:
            checks.append(one)
            raise CaseError("changed once", "changed")

    monkeypatch.setattr(dicom_pixels, "check_unchanged", check)
    np.testing.assert_array_equal(read_source(source).array[0], SMALL)
    assert checks


def test_pixels_that_end_early_and_disks_that_fail_stop_the_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = phantoms.ct_series(tmp_path, SMALL)
    headers = [one for path in paths for one in read_header(path)]
    stack = Stack(tuple(headers), tuple(paths), "1", np.eye(4))
    real = os.readv
    with monkeypatch.context() as patch:
        patch.setattr(os, "readv", lambda number, views: real(number, [views[0][:7]]))
        np.testing.assert_array_equal(read_stack(stack).array[0], SMALL)
        patch.setattr(os, "readv", lambda number, views: 0)
        with pytest.raises(CaseError, match=r"0 of 60 bytes of pixels could be read: the file is cut off"):
            read_stack(stack)

        def broken(number: int, views: Any) -> int:
            raise OSError(5, "Input/output error")

        patch.setattr(os, "readv", broken)
        with pytest.raises(CaseError, match=r"IM000\d\.dcm: cannot be read \(Input/output error\)"):
            read_stack(stack)
    paths[2].unlink()
    with pytest.raises(CaseError, match=r"IM0002\.dcm: cannot be read \(No such file or directory\)"):
        read_stack(stack)


@pytest.mark.parametrize("threads", ["1", "3"])
def test_the_number_of_threads_changes_nothing(tmp_path: Path, threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    phantoms.ct_series(tmp_path)
    np.testing.assert_array_equal(read_volume(tmp_path).array[0], phantoms.ramp())
