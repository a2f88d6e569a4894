"""The hazard catalogue on cases of our own: each is read rightly, read rightly and noted, or stopped, as its row says.

Every voxel of a case holds one linear function of its place in the world (`mutants.value_at`), so that a volume is
right where each voxel equals the function at the place that the volume claims for it. The rows are those of the hazard
catalogue: D for DICOM, N for NIfTI. What is asked of single rooms in more depth stands in their own tests.
"""

from __future__ import annotations

import gzip
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mutants
import nibabel as nib
import numpy as np
import phantoms
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    SecondaryCaptureImageStorage,
)

ARRAY, AFFINE = mutants.truth()
SLICES = ARRAY.shape[2]
Make = Callable[[Path], Any]


@dataclass(frozen=True)
class Hazard:
    """A case and what has to come of it.

    Args:
        name: row and what it is.
        make: fills a folder.
        outcome: "right" (nothing said), "noted" (right, and `said` stands in the codes) or "stop" (`said` in the text).
        volumes: how many.
    """

    name: str
    make: Make
    outcome: str = "right"
    said: str = ""
    volumes: int = 1


def series(folder: Path, **tags: Any) -> list[Path]:
    """The series that all DICOM cases are made of."""
    return phantoms.ct_series(folder, ARRAY, AFFINE, **tags)


def only(k: int, value: Any, usual: Any) -> Callable[[int], Any]:
    """A tag with one value in slice k and another one in the rest."""
    return lambda index: value if index == k else (usual(index) if callable(usual) else usual)


def edited(path: Path, **tags: Any) -> Path:
    """A file with tags changed; None takes one out."""
    dataset = pydicom.dcmread(path)
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    dataset.save_as(path)
    return path


def copied(paths: list[Path], folder: Path, **tags: Any) -> None:
    """The files once more, each with a SOPInstanceUID of its own and tags changed (functions of the slice)."""
    folder.mkdir(exist_ok=True)
    for k, path in enumerate(paths):
        target = folder / f"again{len(list(folder.iterdir()))}_{path.name}"
        shutil.copy(path, target)
        values = {name: value(k) if callable(value) else value for name, value in tags.items()}
        edited(target, SOPInstanceUID=f"1.2.3.{len(list(folder.iterdir()))}", **values)


def without(k: int | list[int], **tags: Any) -> Make:
    """Slices missing."""

    def make(folder: Path) -> None:
        paths = series(folder, **tags)
        for one in [k] if isinstance(k, int) else k:
            paths[one].unlink()

    return make


def again(**tags: Any) -> Make:
    """The whole series twice in one folder, with tags changed in the second."""

    def make(folder: Path) -> None:
        copied(series(folder), folder, **tags)

    return make


def changed(k: int, **tags: Any) -> Make:
    """One slice with other tags."""
    return lambda folder: edited(series(folder)[k], **tags)


def bytes_of(k: int, change: Callable[[bytes], bytes]) -> Make:
    """One file with other bytes."""

    def make(folder: Path) -> None:
        path = series(folder)[k]
        path.write_bytes(change(path.read_bytes()))

    return make


def position(k: int, shift_mm: float) -> list[str]:
    """ImagePositionPatient of slice k, moved along the normal."""
    normal = np.cross(AFFINE[:3, 0], AFFINE[:3, 1])
    place = AFFINE[:3, 3] + k * AFFINE[:3, 2] + shift_mm * normal / np.linalg.norm(normal)
    return [f"{value:.9g}"[:16] for value in place * [-1, -1, 1]]


def recoded(syntax: Any) -> Make:
    """The series in another transfer syntax."""

    def make(folder: Path) -> None:
        for path in series(folder):
            dataset = pydicom.dcmread(path)
            if syntax == RLELossless:
                dataset.compress(RLELossless, generate_instance_uid=False)
                dataset.save_as(path)
                continue
            if syntax == ExplicitVRBigEndian:
                dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
            dataset.file_meta.TransferSyntaxUID = syntax
            little, implicit = syntax != ExplicitVRBigEndian, syntax == ImplicitVRLittleEndian
            fresh = Dataset()
            fresh.update({element.tag: element for element in dataset})
            fresh.file_meta = dataset.file_meta
            fresh.preamble = dataset.preamble
            fresh.save_as(path, little_endian=little, implicit_vr=implicit, enforce_file_format=True)

    return make


def sloped(first: float) -> Make:
    """Each slice has a slope of its own, the first one of them whole or not."""

    def make(folder: Path) -> None:
        for k, path in enumerate(series(folder)):
            dataset = pydicom.dcmread(path)
            slope = first + 0.05 * k
            stored = np.rint((ARRAY[:, :, k].T + 1024) / slope).astype("<u2")
            dataset.RescaleSlope, dataset.PixelData = f"{slope:g}", stored.tobytes()
            dataset.save_as(path)

    return make


def one_sloped(folder: Path) -> None:
    """One slice has a slope of its own, and its voxels with it."""
    path = series(folder)[4]
    stored = np.rint((ARRAY[:, :, 4].T + 1024) / 0.5).astype("<u2")
    edited(path, RescaleSlope="0.5", PixelData=stored.tobytes())


def enhanced(folder: Path, order: np.ndarray) -> Path:
    """An enhanced multi-frame CT on the phantom's own axial grid, filled with the function of the place."""
    index = np.stack(np.meshgrid(*(np.arange(size) for size in (12, 10, 8)), indexing="ij"), axis=-1)
    places = index @ phantoms.AXIAL[:3, :3].T + phantoms.AXIAL[:3, 3]
    folder.mkdir(parents=True, exist_ok=True)
    return phantoms.enhanced_ct(folder / "all.dcm", np.rint(mutants.value_at(places)).astype(np.int16), order)


def tilted(folder: Path) -> None:
    """The stack of a tilted gantry: each slice is moved along its columns."""
    affine = AFFINE.copy()
    affine[:3, 2] += 0.3 * AFFINE[:3, 1]
    index = np.stack(np.meshgrid(*(np.arange(size) for size in ARRAY.shape), indexing="ij"), axis=-1)
    values = mutants.value_at(index @ affine[:3, :3].T + affine[:3, 3])
    phantoms.ct_series(folder, np.rint(values).astype(np.int16), affine)


def localizer(folder: Path) -> None:
    """A sagittal scout in the same series."""
    path = series(folder)[0]
    target = shutil.copy(path, folder / "scout.dcm")
    edited(
        Path(target),
        SOPInstanceUID=f"{pydicom.dcmread(path).SOPInstanceUID}.9",
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
        ImageOrientationPatient=["0", "1", "0", "0", "0", "-1"],
        InstanceNumber=99,
    )


def foreign(folder: Path) -> None:
    """What lies about in folders."""
    series(folder)
    for name, data in (("README.txt", b"hello"), ("Thumbs.db", b"\0" * 9), (".DS_Store", b"x"), ("._IM0001.dcm", b"x")):
        (folder / name).write_bytes(data)


def time_points(folder: Path) -> None:
    """Three times the same places."""
    paths = series(folder, TemporalPositionIdentifier=1)
    for time in (2, 3):
        copied(
            paths,
            folder,
            TemporalPositionIdentifier=time,
            InstanceNumber=lambda k, time=time: SLICES * (time - 1) + k + 1,
        )


def unknown_text(folder: Path) -> None:
    """A character set that does not exist, and text that is none."""
    for path in series(folder, SpecificCharacterSet="ISO_IR 100", PatientName="Buc^J\xe9r\xf4me"):
        path.write_bytes(path.read_bytes().replace(b"ISO_IR 100", b"ISO_IR 999"))


def report(folder: Path) -> None:
    """A structured report in the series."""
    path = series(folder)[0]
    target = Path(shutil.copy(path, folder / "report.dcm"))
    classes = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.33", "SOPInstanceUID": "1.2.3.4.5"}
    edited(target, PixelData=None, Rows=None, Columns=None, Modality="SR", **classes)


def capture(folder: Path) -> None:
    """A screenshot in the series."""
    path = series(folder)[0]
    target = Path(shutil.copy(path, folder / "shot.dcm"))
    edited(
        target,
        SOPClassUID=SecondaryCaptureImageStorage,
        SOPInstanceUID="1.2.3.4.6",
        ImagePositionPatient=None,
        ImageOrientationPatient=None,
        PixelSpacing=None,
        ImageType=["DERIVED", "SECONDARY"],
    )


def padded(folder: Path) -> None:
    """Signed voxels; a padding value that no voxel has."""
    series(folder, signed=True, PixelPaddingValue=-2000)


def overlaid(folder: Path) -> None:
    """Twelve bits, and an overlay in the bits above."""
    for path in series(folder, BitsStored=12, HighBit=11):
        dataset = pydicom.dcmread(path)
        dataset.PixelData = (np.frombuffer(dataset.PixelData, "<u2") | 0x5000).astype("<u2").tobytes()
        dataset.save_as(path)


def with_icon(folder: Path) -> None:
    """A picture of the picture, with PixelData of its own."""
    for path in series(folder):
        dataset, icon = pydicom.dcmread(path), Dataset()
        icon.Rows, icon.Columns, icon.BitsAllocated, icon.BitsStored, icon.HighBit = 2, 2, 8, 8, 7
        icon.SamplesPerPixel, icon.PixelRepresentation, icon.PhotometricInterpretation = 1, 0, "MONOCHROME2"
        icon.PixelData = b"\1\2\3\4"
        icon["PixelData"].VR = "OW"
        dataset.IconImageSequence = Sequence([icon])
        dataset.save_as(path)


def two_folders(folder: Path) -> None:
    """Half of the series here, half of it there."""
    for k, path in enumerate(series(folder)):
        (folder / f"part{k % 2}").mkdir(exist_ok=True)
        path.rename(folder / f"part{k % 2}" / path.name)


def scrambled(folder: Path) -> None:
    """A series UID for each slice."""
    series(folder, SeriesInstanceUID=lambda k: f"1.2.3.{k + 1}")


def renamed(folder: Path) -> None:
    """Names without a suffix, in another order than the slices."""
    for k, path in enumerate(series(folder)):
        path.rename(folder / f"{(k * 7) % SLICES:08x}")


def truncated(length: float) -> Callable[[bytes], bytes]:
    """The first part of a file."""
    return lambda data: data[: int(len(data) * length)]


def bomb(data: bytes) -> bytes:
    """An element that claims 4 GB."""
    at = data.index(b"\xe0\x7f\x10\x00OW")
    return data[: at + 8] + struct.pack("<I", 0xFFFFFFF0) + data[at + 12 :]


def nested(data: bytes) -> bytes:
    """Four thousand sequences in one another, before the voxels."""
    at = data.index(b"\xe0\x7f\x10\x00OW")
    deep = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 4000
    return data[:at] + deep + data[at:]


def nifti(name: str = "image.nii.gz", affine: np.ndarray = AFFINE, array: np.ndarray = ARRAY, **fields: Any) -> Make:
    """The volume that all NIfTI cases are made of."""
    return lambda folder: phantoms.nifti_file(folder / name, array, affine, **fields)


def nifti_bytes(change: Callable[[bytes], bytes], name: str = "image.nii.gz") -> Make:
    """A NIfTI file with other bytes."""

    def make(folder: Path) -> None:
        path = phantoms.nifti_file(folder / name, ARRAY, AFFINE)
        path.write_bytes(change(path.read_bytes()))

    return make


def saved(kind: Any, name: str, endianness: str = "<") -> Make:
    """The volume as nibabel writes it."""

    def make(folder: Path) -> None:
        folder.mkdir(parents=True)
        image = kind(ARRAY, AFFINE, kind.header_class(endianness=endianness), dtype=np.int16)
        image.set_sform(AFFINE, 1)
        image.set_qform(AFFINE, 1)
        nib.save(image, folder / name)

    return make


def small(factor: float) -> np.ndarray:
    """The affine in other units."""
    return np.vstack([AFFINE[:3] * factor, AFFINE[3]])


def sheared() -> np.ndarray:
    """An affine that no qform holds."""
    affine = AFFINE.copy()
    affine[:3, 2] += 0.3 * AFFINE[:3, 1]
    return affine


def filled(affine: np.ndarray) -> np.ndarray:
    """The function on another grid."""
    index = np.stack(np.meshgrid(*(np.arange(size) for size in ARRAY.shape), indexing="ij"), axis=-1)
    return np.rint(mutants.value_at(index @ affine[:3, :3].T + affine[:3, 3])).astype(np.int16)


def crc_of(data: bytes) -> bytes:
    """One bit of the checksum turned."""
    return data[:-6] + bytes([data[-6] ^ 4]) + data[-5:]


NAN, INF = float("nan"), float("inf")
LAST = [f"{value:.9g}"[:16] for value in (AFFINE[:3, 3] + 3 * AFFINE[:3, 2]) * [-1, -1, 1]]
DICOM = [
    Hazard("plain", series),
    Hazard("D01 missing middle slice", without(5), "stop", "mm"),
    Hazard("D02 missing last slices", without([10, 11], ImagesInAcquisition=SLICES), "noted", "missing"),
    Hazard("D03 copy of a file", lambda f: shutil.copy(series(f)[3], f / "copy (1).dcm"), "noted", "dupl"),
    Hazard(
        "D04 one SOPInstanceUID, other voxels",
        lambda f: bytes_changed(Path(shutil.copy(series(f)[3], f / "copy.dcm"))),
        "stop",
        "SOPInstanceUID",
    ),
    Hazard("D05 two slices at one place", lambda f: copied(series(f)[3:4], f), "stop", "place"),
    Hazard("D06 two series in a folder", again(SeriesInstanceUID="1.2.3.77"), volumes=2),
    Hazard("D07 two phases", again(AcquisitionNumber=2), volumes=2),
    Hazard("D08 three time points", time_points, volumes=3),
    Hazard("D09 localizer in the series", localizer, "noted", "listed"),
    Hazard("D10 gantry tilt", tilted, "noted", "shear|tilt"),
    Hazard("D11 uneven spacing", changed(6, ImagePositionPatient=position(6, 0.8)), "stop", "mm"),
    Hazard("D11 rounding noise", changed(6, ImagePositionPatient=position(6, 1e-4))),
    Hazard(
        "D12 InstanceNumber in another order", lambda f: series(f, InstanceNumber=lambda k: k * 5 % 12), "noted", ""
    ),
    Hazard("D12 InstanceNumber runs down", lambda f: series(f, InstanceNumber=lambda k: 12 - k)),
    Hazard("D12 InstanceNumber absent", lambda f: series(f, InstanceNumber=None), "noted", ""),
    Hazard("D13 negative SpacingBetweenSlices", lambda f: series(f, SpacingBetweenSlices="-2.5")),
    Hazard("D14 slope of each slice", sloped(0.5)),
    Hazard("D14 slope of each slice, the first whole", sloped(1.0)),
    Hazard("D14 slope of one slice", one_sloped, "noted", "rescale-differs"),
    Hazard("D15 rescale missing in one", changed(4, RescaleSlope=None, RescaleIntercept=None), "stop", "[Rr]escale"),
    Hazard("D16 slope 0", lambda f: series(f, RescaleSlope="0"), "stop", "RescaleSlope"),
    Hazard("D17 unit is not HU", lambda f: series(f, RescaleType="US"), "noted", "not-hu"),
    Hazard("D18 MONOCHROME1", lambda f: series(f, PhotometricInterpretation="MONOCHROME1"), "noted", "monochrome1"),
    Hazard(
        "D20 lossy", lambda f: series(f, LossyImageCompression="01", LossyImageCompressionRatio="9"), "noted", "lossy"
    ),
    Hazard("D21 implicit VR", recoded(ImplicitVRLittleEndian)),
    Hazard("D21 big endian", recoded(ExplicitVRBigEndian)),
    Hazard("D21 deflated", recoded(DeflatedExplicitVRLittleEndian)),
    Hazard("D21 RLE", recoded(RLELossless)),
    Hazard("D22 no preamble", bytes_of(2, lambda data: data[132:]), "noted", "preamble"),
    Hazard("D23 last file cut", bytes_of(11, truncated(0.8)), "stop", "bytes"),
    Hazard("D23 middle file cut in its header", bytes_of(5, truncated(0.3)), "stop", "IM0005"),
    Hazard("D24 empty file", bytes_of(5, lambda data: b""), "stop", "0 bytes"),
    Hazard("D24 foreign files", foreign),
    Hazard("D25 report in the series", report, "noted", "listed"),
    Hazard("D25 screenshot in the series", capture, "noted", "listed"),
    Hazard("D25 no voxels in one", changed(5, PixelData=None), "stop", "PixelData"),
    Hazard("D26 other matrix in one", changed(5, Rows=7, Columns=32), "stop", "matrix|Rows|rows|x"),
    Hazard("D27 other PixelSpacing in one", changed(5, PixelSpacing=["1.3", "0.8"]), "stop", "PixelSpacing"),
    Hazard(
        "D28 other orientation in one",
        changed(5, ImageOrientationPatient=["1", "0", "0", "0", "1", "0"]),
        "stop",
        "ImageOrientationPatient|orientation",
    ),
    Hazard("D29 PixelSpacing 0", lambda f: series(f, PixelSpacing=["0", "0"]), "stop", "PixelSpacing"),
    Hazard("D29 no PixelSpacing", lambda f: series(f, PixelSpacing=None), "stop", "PixelSpacing"),
    Hazard("D29 no position", lambda f: series(f, ImagePositionPatient=None), "stop", "ImagePositionPatient"),
    Hazard("D29 no orientation", lambda f: series(f, ImageOrientationPatient=None), "stop", "ImageOrientationPatient"),
    Hazard(
        "D29 skewed orientation",
        lambda f: series(f, ImageOrientationPatient=["1", "0", "0", "0.1", "0.994987", "0"]),
        "stop",
        "right angle|ImageOrientationPatient",
    ),
    Hazard("D30 enhanced", lambda f: enhanced(f, np.arange(8)), volumes=1),
    Hazard("D30 enhanced, shuffled", lambda f: enhanced(f, np.array([3, 0, 7, 1, 6, 2, 5, 4]))),
    Hazard("D31 signed with padding", padded),
    Hazard("D31 overlay above HighBit", overlaid),
    Hazard("D32 two patients", changed(5, PatientID="SOMEBODY ELSE"), "stop", "PatientID"),
    Hazard("D32 other frame of reference", changed(5, FrameOfReferenceUID="1.2.3"), "stop", "FrameOfReferenceUID"),
    Hazard(
        "D32 frame of each slice", lambda f: series(f, FrameOfReferenceUID=lambda k: f"1.2.{k + 1}"), "noted", "frame"
    ),
    Hazard("D33 scrambled UIDs", scrambled, "stop", "scrambled"),
    Hazard("D34 icon", with_icon),
    Hazard("D35 length of 4 GB", bytes_of(5, bomb), "stop", "IM0005"),
    Hazard("D35 nested sequences", bytes_of(5, nested), "stop", "IM0005"),
    Hazard("D36 in two folders", two_folders),
    Hazard("D37 one slice", lambda f: [path.unlink() for path in series(f)[1:]], "noted", "single|one-slice"),
    Hazard("D38 unknown character set", unknown_text),
    Hazard("D39 names say nothing", renamed),
]
NIFTI = [
    Hazard("plain", nifti()),
    Hazard("N01 forms in conflict", nifti(qoffset_x=9), "stop", "--affine sform or --affine qform"),
    Hazard("N01 forms a little apart", nifti(qoffset_x=AFFINE[0, 3] + 0.05), "noted", "sform-qform-differ"),
    Hazard("N03 sheared", nifti(affine=sheared(), array=filled(sheared()), qform_code=0), "noted", "sheared-grid"),
    Hazard("N03 sheared, with qform", nifti(affine=sheared(), array=filled(sheared())), "noted", "qform-without-shear"),
    Hazard("N04 pixdim 0, sform alone", nifti(qform_code=0, pixdim=[1, 0, 0, 0, 0, 0, 0, 0])),
    Hazard("N05 NaN in the sform", nifti(qform_code=0, srow_x=[NAN, 0, 0, 0]), "stop", "give no grid"),
    Hazard("N05 sform of zeros", nifti(qform_code=0, srow_x=[0, 0, 0, 0]), "stop", "give no grid"),
    Hazard("N05 pixdim 0, qform alone", nifti(sform_code=0, pixdim=[1, 0, 0, 0, 0, 0, 0, 0]), "stop", "give no grid"),
    Hazard("N05 pixdim below 0", nifti(sform_code=0, pixdim=[1, -0.8, 1.1, 2.5, 0, 0, 0, 0]), "stop", "give no grid"),
    Hazard("N06 metre", nifti(affine=small(1e-3), xyzt_units=1), "noted", "units"),
    Hazard("N06 micron", nifti(affine=small(1e3), xyzt_units=3), "noted", "units"),
    Hazard("N06 no unit", nifti(xyzt_units=0)),
    Hazard("N07 time", nifti(array=np.stack([ARRAY] * 3, axis=-1)), volumes=3),
    Hazard("N07 trailing 1", nifti(array=ARRAY[..., np.newaxis]), "noted", "trailing-dimension"),
    Hazard("N08 cut, packed", nifti_bytes(truncated(0.7)), "stop", "ends early"),
    Hazard("N08 cut", nifti_bytes(truncated(0.7), "image.nii"), "stop", "claims .* bytes, the file has"),
    Hazard("N09 checksum", nifti_bytes(crc_of), "stop", "damaged"),
    Hazard("N09 rubbish behind", nifti_bytes(lambda data: data + b"rubbish"), "stop", "behind the stream"),
    Hazard("N10 more slices", nifti(dim=[3, 16, 14, 13, 1, 1, 1, 1]), "stop", "bytes of voxels are there"),
    Hazard("N10 fewer slices", nifti(dim=[3, 16, 14, 11, 1, 1, 1, 1]), "stop", "holds more"),
    Hazard("N11 huge claim", nifti("image.nii", dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]), "stop", "claims"),
    Hazard("N11 huge claim, packed", nifti(dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]), "stop", "claims"),
    Hazard("N13 magic", nifti(magic=b"bad"), "stop", "magic bytes"),
    Hazard("N14 datatype", nifti(datatype=777), "stop", "datatype 777"),
    Hazard("N15 slope 0", nifti(scl_slope=0, scl_inter=50)),
    Hazard("N15 slope NaN", nifti(scl_slope=NAN, scl_inter=NAN)),
    Hazard("N15 slope inf", nifti(scl_slope=INF), "stop", "scl_slope inf"),
    Hazard("N15 inter inf", nifti(scl_slope=1, scl_inter=INF), "stop", "scl_inter inf"),
    Hazard("N17 gzip called nii", nifti_bytes(gzip.compress, "image.nii"), "noted", "suffix-lies"),
    Hazard("N17 no gzip called gz", nifti_bytes(gzip.decompress), "noted", "suffix-lies"),
    Hazard("N18 NIfTI-2", saved(nib.Nifti2Image, "image.nii")),
    Hazard("N18 NIfTI-2, big endian", saved(nib.Nifti2Image, "image.nii.gz", ">")),
    Hazard("N18 big endian", saved(nib.Nifti1Image, "image.nii", ">")),
    Hazard("N18 pair", saved(nib.Nifti1Pair, "image.hdr")),
    Hazard("N24 two dimensions", nifti(array=np.ascontiguousarray(ARRAY[:, :, 0]))),
]


def bytes_changed(path: Path) -> None:
    """One voxel of a DICOM file changed."""
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("hazard", [*DICOM, *NIFTI], ids=lambda hazard: hazard.name.replace(" ", "-"))
def test_a_hazard_ends_as_its_row_says(tmp_path: Path, hazard: Hazard) -> None:
    folder = tmp_path / "case"
    hazard.make(folder)
    volumes, said, stopped = mutants.read_all(folder)
    assert all(mutants.is_right(volume) for volume in volumes), "wrong voxels"
    if hazard.outcome == "stop":
        assert stopped
        assert any(re.search(hazard.said, text) for text in stopped), stopped
        return
    assert not stopped
    assert len(volumes) == hazard.volumes
    if hazard.outcome == "right":
        assert not said
    else:
        assert any(re.search(hazard.said, code) for code in said), said


def test_no_codes_are_read_and_said(tmp_path: Path) -> None:
    """N02: no place in the world, so that nothing can be right or wrong; what stops is decided by the verb."""
    nifti(sform_code=0, qform_code=0)(tmp_path)
    volumes, said, stopped = mutants.read_all(tmp_path)
    assert (len(volumes), said, stopped) == (1, {"no-world-coordinates"}, [])
    np.testing.assert_array_equal(volumes[0].array[0], ARRAY)


def test_holes_are_handed_on_and_counted(tmp_path: Path) -> None:
    """N16, of reading."""
    array = ARRAY.astype(np.float32)
    array[2, 3, 4] = np.nan
    nifti(array=array)(tmp_path)
    volumes, said, stopped = mutants.read_all(tmp_path)
    assert (len(volumes), said, stopped) == (1, {"not-finite"}, [])
