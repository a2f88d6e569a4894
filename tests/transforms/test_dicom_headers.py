"""DICOM headers: the same elements that pydicom reads, whatever their length and order, and nothing that hurts."""

from __future__ import annotations

import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pydicom
import pytest
from pydicom.data import get_charset_files
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    UltrasoundMultiFrameImageStorage,
)
from voxelwise.errors import CaseError, UsageError
from voxelwise.transforms import dicom_elements
from voxelwise.transforms.dicom import WANTED, Slice, lossy_ratio, read_header
from voxelwise.transforms.dicom_elements import read_elements
from voxelwise.transforms.dicom_record import DirectoryFileError
from voxelwise.transforms.read_options import ReadOptions

PACKAGED = Path(pydicom.__file__).parent / "data" / "test_files"


def one_file(folder: Path, **tags: Any) -> Path:
    """A CT slice of 12 x 10 pixels."""
    return phantoms.ct_series(folder, phantoms.ramp((12, 10, 1)), **tags)[0]


def only(path: Path, **options: Any) -> Slice:
    """The one record of a file."""
    (slice_,) = read_header(path, ReadOptions(**options))
    return slice_


def assert_pixels(path: Path) -> None:
    """The record points at the pixels of the phantom."""
    slice_ = only(path)
    data = path.read_bytes()[slice_.pixel_offset :][: slice_.pixel_length]
    stored = np.frombuffer(data, ">u2" if slice_.big_endian else "<u2").reshape(slice_.rows, slice_.columns)
    np.testing.assert_array_equal(stored.T.astype(int) - 1024, phantoms.ramp((12, 10, 1))[..., 0])


def assert_like_pydicom(path: Path) -> None:
    """Every wanted element, with the same representation and the same bytes."""
    expected = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(WANTED), force=True)
    found = read_elements(path, WANTED).elements
    theirs = {int(tag): element for tag, element in expected.items() if tag in WANTED}
    ours = {int(tag): element for tag, element in found.items() if tag in WANTED}
    assert ours.keys() == theirs.keys(), path
    for tag, element in ours.items():
        assert (element.VR, element.value) == (theirs[tag].VR, theirs[tag].value), (path, hex(tag))


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_elements_are_those_of_pydicom_on_its_own_files() -> None:
    files = [Path(name) for name in get_charset_files("*.dcm")] + sorted(PACKAGED.glob("*.dcm"))
    assert len(files) > 60
    for file in files:
        assert_like_pydicom(file)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_elements_are_those_of_pydicom_on_real_files(shared_data: Callable[[str], Path]) -> None:
    files = [path for path in shared_data("INVENTORY.md").parent.glob("*dicom*/**/*.dcm") if path.is_file()]
    assert len(files) > 500
    for file in files[::3]:
        try:
            assert_like_pydicom(file)
        except DirectoryFileError:
            continue


@pytest.mark.parametrize("length", [100, 32_000, 33_000, 700_000])
@pytest.mark.parametrize("kind", ["private", "wanted", "sequence"])
def test_headers_of_any_length(tmp_path: Path, length: int, kind: str) -> None:
    path = one_file(tmp_path)
    dataset = pydicom.dcmread(path)
    if kind == "private":
        dataset.add_new((0x0009, 0x0010), "LO", "TEST")
        dataset.add_new((0x0009, 0x1010), "OB", bytes(length))
    elif kind == "wanted":
        dataset.ImageComments = "x" * min(length, 10_000)
        dataset.add_new(0x00081199, "UT", "x" * length)  # an unusual representation for a reference
    else:
        items = [Dataset() for _ in range(min(length, 70_000) // 50)]
        for item in items:
            item.ReferencedSOPInstanceUID = "1.2.3.4.5.6.7.8.9"
        dataset.ReferencedImageSequence = Sequence(items)
        dataset["ReferencedImageSequence"].is_undefined_length = True
    dataset.save_as(path)
    assert_pixels(path)
    assert_like_pydicom(path)
    long = read_elements(path, frozenset((*WANTED, 0x00091010, 0x00081199)))
    for tag in {0x00091010, 0x00081199} & long.elements.keys():
        assert len(long.elements[tag].value) == length


def test_pixels_that_stand_before_their_description(tmp_path: Path) -> None:
    path = one_file(tmp_path)
    data = path.read_bytes()
    start = 132 + 12 + struct.unpack("<I", data[140:144])[0]
    pixels = data.rindex(b"\xe0\x7f\x10\x00OW")
    path.write_bytes(data[:start] + data[pixels:] + data[start:pixels])
    assert_pixels(path)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, "1.2.840.113619.5.2"])
def test_every_native_encoding(tmp_path: Path, syntax: str) -> None:
    path = one_file(tmp_path)
    dataset = pydicom.dcmread(path)
    private = syntax == "1.2.840.113619.5.2"
    dataset.file_meta.TransferSyntaxUID = syntax
    if syntax != ImplicitVRLittleEndian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    coding = {"implicit_vr": True, "little_endian": True} if private else {}
    pydicom.dcmwrite(path, dataset, enforce_file_format=not private, **coding)
    assert_pixels(path)
    slice_ = only(path)
    assert (slice_.transfer_syntax, slice_.big_endian) == (str(syntax), syntax != ImplicitVRLittleEndian)


def test_without_preamble_or_file_meta(tmp_path: Path) -> None:
    path = one_file(tmp_path)
    dataset = pydicom.dcmread(path)
    bare = Dataset()
    bare.update(dataset)
    for name, implicit in (("implicit", True), ("explicit", False)):
        pydicom.dcmwrite(tmp_path / name, bare, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
        assert_pixels(tmp_path / name)
        assert only(tmp_path / name).bare
    (tmp_path / "meta").write_bytes(path.read_bytes()[132:])
    assert_pixels(tmp_path / "meta")
    bare.SOPClassUID = "1.2.3.4"
    pydicom.dcmwrite(path, bare, implicit_vr=True, little_endian=True, enforce_file_format=False)
    with pytest.raises(CaseError, match="a SOPClassUID that is none: not DICOM"):
        read_header(path)


def test_deflated_and_never_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = one_file(tmp_path)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path)
    slice_ = only(path)
    assert (slice_.rows, slice_.pixels, slice_.pixel_offset, slice_.pixel_length) == (10, True, -1, 240)
    monkeypatch.setattr(dicom_elements, "LONGEST_INFLATED", 1 << 20)
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(16)) + packer.flush()
    data = path.read_bytes()
    path.write_bytes(data[: 144 + struct.unpack("<I", data[140:144])[0]] + bomb)
    tracemalloc.start()
    with pytest.raises(CaseError, match=r"more than 20000 elements .* damaged"):
        read_header(path)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_rubbish_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "zeros.dcm"
    with open(path, "wb") as file:
        file.write(bytes(128) + b"DICM")
        file.truncate(1 << 32)
    begun = time.perf_counter()
    with pytest.raises(CaseError, match=r"more than 20000 elements .* damaged"):
        read_header(path)
    assert time.perf_counter() - begun < 2


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("explicit", [True, False])
def test_a_length_of_4_gb_is_not_believed(tmp_path: Path, wanted: bool, explicit: bool) -> None:
    path = one_file(tmp_path)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian if explicit else ImplicitVRLittleEndian
    dataset.save_as(path)
    data = path.read_bytes()
    at = data.rindex(b"\x28\x00\x02\x00")  # SamplesPerPixel
    group, element = (0x0021, 0x104F) if wanted else (0x0021, 0x1011)
    form = struct.pack("<HH2sHI", group, element, b"OB", 0, 0xFFFFFFF0)
    bomb = form if explicit else struct.pack("<HHI", group, element, 0xFFFFFFF0)
    path.write_bytes(data[:at] + bomb + data[at:])
    tracemalloc.start()
    begun = time.perf_counter()
    slice_ = only(path)
    assert time.perf_counter() - begun < 2
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert not slice_.pixels  # cut off: the readers stop it
    assert slice_.series


def test_nested_sequences_of_known_length(tmp_path: Path) -> None:
    path = one_file(tmp_path)
    data = path.read_bytes()
    at = data.rindex(b"\xe0\x7f\x10\x00OW")
    inner = b""
    for _ in range(4000):
        item = struct.pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner
        inner = struct.pack("<HH2sHI", 0x5200, 0x9229, b"SQ", 0, len(item)) + item
    path.write_bytes(data[:at] + inner + data[at:])
    begun = time.perf_counter()
    assert_pixels(path)
    assert time.perf_counter() - begun < 2


def test_pixels_within_a_sequence_are_not_the_pixels(tmp_path: Path) -> None:
    icon = Dataset()
    icon.Rows = icon.Columns = 4
    icon.PixelData = bytes(16)
    icon["PixelData"].VR = "OB"
    path = one_file(tmp_path, IconImageSequence=Sequence([icon]))
    for undefined in (False, True):
        dataset = pydicom.dcmread(path)
        dataset["IconImageSequence"].is_undefined_length = undefined
        private = Dataset()
        private.PixelData = b"\xe0\x7f\x10\x00OW\0\0" * 4
        private["PixelData"].VR = "OB"
        dataset.add_new((0x0009, 0x0010), "LO", "TEST")
        dataset.add_new((0x0009, 0x1001), "SQ", Sequence([private]))
        dataset[0x0009, 0x1001].is_undefined_length = undefined
        dataset.save_as(path)
        assert_pixels(path)


@pytest.mark.parametrize(("head", "program"), [(b"MZ", True), (b"\x7fELF", True), (b"II*\0", False), (b"", False)])
def test_a_program_in_the_preamble_is_seen(tmp_path: Path, head: bytes, program: bool) -> None:
    path = one_file(tmp_path)
    path.write_bytes(head.ljust(128, b"\0") + path.read_bytes()[128:])
    assert only(path).executable_preamble is program


def test_text_that_nobody_uses_is_never_read(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = one_file(tmp_path)
    data = path.read_bytes()
    at = data.index(b"\x10\x00\x10\x00PN")
    broken = (
        struct.pack("<HH2sH", 0x0008, 0x0005, b"CS", 10) + b"ISO 2022 X"
        b"\x10\x00\x30\x10DS" + struct.pack("<H", 40) + b"1" * 39 + b"X"
        b"\x10\x00\x40\x10ZZ" + struct.pack("<H", 4) + b"\xff\xfe\xfd\xfc"
    )
    path.write_bytes(data[:at] + broken + data[at:])
    assert_pixels(path)
    for name in get_charset_files("*.dcm"):
        with suppress(CaseError):
            read_header(Path(name))
            read_header(Path(name), ReadOptions(phi=True))
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_a_header_cut_anywhere_says_so_or_has_no_pixels(tmp_path: Path) -> None:
    path = one_file(tmp_path)
    data = path.read_bytes()
    for end in range(0, len(data) - 1, 7):
        path.write_bytes(data[:end])
        with suppress(CaseError):
            assert not only(path).pixels


def test_series_by_other_tags(tmp_path: Path) -> None:
    path = one_file(tmp_path)
    assert only(path).group == ""
    assert only(path, group_by=("SeriesNumber", "StudyDescription", "PatientPosition")).group == "3\\\\HFS"
    with pytest.raises(UsageError, match="--group-by 'Colour': no keyword of DICOM"):
        read_header(path, ReadOptions(group_by=("SeriesNumber", "Colour")))


def test_names_are_kept_on_request_alone(tmp_path: Path) -> None:
    path = one_file(tmp_path, SeriesDescription="ax  thin\x07")
    dataset = pydicom.dcmread(path)
    dataset.SpecificCharacterSet, dataset.PatientName = "ISO_IR 192", "Grün^Canary"
    dataset.save_as(path)
    assert only(path).phi == {}
    assert "anary" not in repr(only(path)).lower().replace(str(tmp_path).lower(), "")
    said = only(path, phi=True).phi
    assert said["PatientName"] == "Grün^Canary"
    assert (said["PatientID"], said["SeriesDescription"]) == ("CANARY-7731", "ax  thin")


def test_counts_that_the_file_states(tmp_path: Path) -> None:
    path = one_file(tmp_path, ImagesInAcquisition=7, NumberOfSlices=9, NumberOfTemporalPositions=0)
    dataset = pydicom.dcmread(path)
    dataset.add_new(0x20010010, "LO", "Philips Imaging DD 001")
    dataset.add_new(0x20011018, "SL", 11)
    dataset.add_new(0x00210010, "LO", "SOMEBODY")
    dataset.add_new(0x0021104F, "SS", 12)
    dataset.save_as(path)
    slice_ = only(path)
    assert slice_.stated_counts == {"ImagesInAcquisition": 7, "NumberOfSlices": 9, "NumberOfSlicesMR": 11}


@pytest.mark.parametrize(
    ("tags", "seconds"),
    [
        ({"FrameTime": "40"}, 0.04),
        ({"FrameTimeVector": ["0", "33.3", "33.4", "33.3"]}, 0.033333),
        ({"FrameTimeVector": ["0", "33", "80"]}, None),
        ({"CineRate": "25", "RecommendedDisplayFrameRate": "5"}, 0.04),
        ({"RecommendedDisplayFrameRate": "5"}, 0.2),
        ({"FrameTime": "0"}, None),
        ({}, None),
    ],
)
def test_time_between_the_frames_of_a_film(tmp_path: Path, tags: dict[str, Any], seconds: float | None) -> None:
    path = one_file(tmp_path, SOPClassUID=UltrasoundMultiFrameImageStorage, **tags)
    assert only(path).frame_seconds == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize(
    ("units", "formats", "expected"),
    [((3, 3), (1,), "0.4\\0.3"), ((3, 4), (1,), None), ((3, 3), (1, 1), None), ((3, 3), (1, 3), "0.4\\0.3")],
)
def test_pixel_size_of_an_ultrasound_picture(
    tmp_path: Path, units: tuple[int, int], formats: tuple[int, ...], expected: str | None
) -> None:
    regions = []
    for kind in formats:
        region = Dataset()
        region.RegionSpatialFormat = kind
        region.PhysicalUnitsXDirection, region.PhysicalUnitsYDirection = units
        region.PhysicalDeltaX, region.PhysicalDeltaY = 0.03, -0.04
        regions.append(region)
    path = one_file(
        tmp_path,
        SOPClassUID=UltrasoundMultiFrameImageStorage,
        PixelSpacing=None,
        SequenceOfUltrasoundRegions=Sequence(regions),
    )
    assert only(path).spacing == expected


def test_pixel_size_at_the_detector_is_for_pictures_alone(tmp_path: Path) -> None:
    tags = {"PixelSpacing": None, "ImagerPixelSpacing": ["0.2", "0.1"]}
    assert only(one_file(tmp_path / "ct", **tags)).spacing is None
    assert only(one_file(tmp_path / "sc", SOPClassUID=SecondaryCaptureImageStorage, **tags)).spacing == "0.2\\0.1"


@pytest.mark.parametrize(
    ("syntax", "stated", "ratio", "expected"),
    [
        ("1.2.840.10008.1.2.1", "01", "12.50", "12.5"),
        ("1.2.840.10008.1.2.1", None, "12.50", ""),
        ("1.2.840.10008.1.2.4.50", None, None, "unknown"),
        ("1.2.840.10008.1.2.4.51", "00", "9", "9"),
        ("1.2.840.10008.1.2.4.102.1", None, None, "unknown"),
        ("1.2.840.10008.1.2.4.91", "00", None, ""),
        ("1.2.840.10008.1.2.4.91", None, None, "unknown"),
        ("1.2.840.10008.1.2.4.70", None, None, ""),
        ("1.2.840.10008.1.2.4.90", "00", "x", ""),
    ],
)
def test_compression_with_loss(syntax: str, stated: str | None, ratio: str | None, expected: str) -> None:
    assert lossy_ratio(syntax, stated, ratio) == expected


def test_burned_in_text_is_stated(tmp_path: Path) -> None:
    assert only(one_file(tmp_path / "a", BurnedInAnnotation="YES")).burned_in
    assert not only(one_file(tmp_path / "b", BurnedInAnnotation="NO")).burned_in
