"""DICOM headers: one pass over a file, up to its pixels, into a record of what geometry and values need.

Values are taken as the bytes that stand in the file and read here, so that text which nobody uses (names in odd
character sets, over-long numbers) can neither stop a series nor be printed. `dicom_series.py` makes volumes of the
records, `dicom_pixels.py` reads their voxels.
"""

from __future__ import annotations

import hashlib
import os
import struct
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pydicom
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.uid import UID

from ..errors import CaseError

UNDEFINED = 0xFFFFFFFF
NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
DEFLATED = "1.2.840.10008.1.2.1.99"
DICOMDIR = "1.2.840.10008.1.3.10"


class DirectoryFileError(CaseError):
    """A DICOMDIR: DICOM, and no image."""


class SliceError(CaseError):
    """A file that cannot be read although its header says which series it belongs to."""

    def __init__(self, message: str, code: str, series: tuple[str, str]) -> None:
        super().__init__(message, code)
        self.series = series


CLASSES = "1.2.840.10008.5.1.4.1.1."
VOLUME_CLASSES = frozenset(CLASSES + end for end in ("2", "2.1", "2.2", "4", "4.1", "4.4", "128", "128.1", "130"))
PICTURE_CLASSES = frozenset(
    CLASSES + end
    for end in (
        *(
            "1",
            "1.1",
            "1.1.1",
            "1.2",
            "1.2.1",
            "1.3",
            "1.3.1",
            "3.1",
            "3",
            "6",
            "6.1",
            "7",
            "7.1",
            "7.2",
            "7.3",
            "7.4",
            "20",
        ),
        *("12.1", "12.2", "77.1.1", "77.1.2", "77.1.4", "77.1.5.1", "77.1.5.2"),
    )
)
PIXEL_TAGS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
LONG_FORM = ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "UC", "UN", "UR", "UT", "SV", "UV")
SPLIT_BY = (
    *(
        "AcquisitionNumber",
        "TemporalPositionIdentifier",
        "EchoNumbers",
        "EchoTime",
        "TriggerTime",
        "NominalCardiacTriggerDelayTime",
    ),
    *("DiffusionBValue", "ConvolutionKernel", "ImageType", "SequenceName", "AcquisitionTime", "ContentTime"),
)
PRIVATE_SPLIT = {
    "b-value (0019,100C)": 0x0019100C,
    "b-value (0043,1039)": 0x00431039,
    "b-value (2001,1003)": 0x20011003,
}
FACTS = {
    **{
        name: name
        for name in ("Manufacturer", "MagneticFieldStrength", "FlipAngle", "KVP", "SliceThickness", "ConvolutionKernel")
    },
    **{
        name: name
        for name in ("PatientPosition", "BodyPartExamined", "ScanningSequence", "SequenceVariant", "MRAcquisitionType")
    },
    "ManufacturerModelName": "ManufacturersModelName",
    "ContrastBolusAgent": "ContrastBolusIngredient",
}
MILLISECONDS = {name: name for name in ("EchoTime", "RepetitionTime", "InversionTime")}
NUMBERS = ("MagneticFieldStrength", "FlipAngle", "KVP", "SliceThickness")
OTHER_KEYWORDS = (
    *(
        "SOPClassUID",
        "SOPInstanceUID",
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "FrameOfReferenceUID",
        "PatientID",
        "Modality",
    ),
    *(
        "Rows",
        "Columns",
        "SamplesPerPixel",
        "PhotometricInterpretation",
        "PlanarConfiguration",
        "NumberOfFrames",
        "SeriesNumber",
    ),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing", "InstanceNumber"),
    *(
        "RescaleSlope",
        "RescaleIntercept",
        "RescaleType",
        "ImagesInAcquisition",
        "LossyImageCompression",
        "LossyImageCompressionRatio",
    ),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "SequenceOfUltrasoundRegions"),
)


@cache
def tag_of(keyword: str) -> int:
    """The number of a keyword of the standard."""
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise ValueError(f"{keyword} is no DICOM keyword")
    return tag


WANTED: tuple[int, ...] = (
    *(tag_of(name) for name in (*OTHER_KEYWORDS, *SPLIT_BY, *FACTS, *MILLISECONDS)),
    *PRIVATE_SPLIT.values(),
)


@dataclass(frozen=True, eq=False)
class Slice:
    """What one file, or one frame of it, says of itself.

    Numbers of the geometry are kept as text until they are proved. `patient` is hashed; nothing here names a person.
    `tile` is the place of the slice in a mosaic: first row, first column, rows and columns of the whole stored image.
    """

    path: Path
    size: int
    modified: int
    sop_class: str
    sop: str
    study: str
    series: str
    patient: str
    frame_of_reference: str
    transfer_syntax: str
    modality: str
    image_type: str
    rows: int = 0
    columns: int = 0
    samples: int = 1
    photometric: str = ""
    planar: int = 0
    frames: int = 1
    bits_allocated: int = 16
    bits_stored: int = 16
    high_bit: int = 15
    signed: bool = False
    padding: int | None = None
    padding_limit: int | None = None
    position: str | None = None
    orientation: str | None = None
    spacing: str | None = None
    slope: str | None = None
    intercept: str | None = None
    rescale_type: str = ""
    instance: int | None = None
    series_number: str = ""
    images_in_acquisition: int | None = None
    lossy: str = ""
    pixels: bool = False
    float_pixels: bool = False
    pixel_offset: int = -1
    pixel_length: int = UNDEFINED
    big_endian: bool = False
    bare: bool = False
    frame: int | None = None
    tile: tuple[int, int, int, int] | None = None
    splits: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    phi: Mapping[str, str] = field(default_factory=dict)
    group: str = ""

    @property
    def native(self) -> bool:
        """Whether the pixels stand uncompressed in the file or, deflated, in its data set."""
        return self.transfer_syntax in NATIVE or self.transfer_syntax == DEFLATED

    @property
    def class_name(self) -> str:
        """The SOP class in words."""
        return UID(self.sop_class).name if self.sop_class else "no SOP class"


def is_dicom(head: bytes) -> bool:
    """Whether the first 132 or more bytes are DICOM: the preamble, or a data set without one."""
    return head[128:132] == b"DICM" or begins_data_set(head)


def begins_data_set(head: bytes) -> bool:
    """Whether bytes look like the first element of a data set without preamble (group 2 or 8)."""
    if len(head) < 16:
        return False
    group, element, length = struct.unpack("<HHI", head[:8])
    if group not in (0x0002, 0x0008) or element > 0x0100:
        return False
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    return explicit or (length <= 256 and length % 2 == 0)


def raw_text(dataset: Dataset, tag: int) -> str | None:
    """A value as text, several joined by a backslash; None where the tag is absent or empty."""
    if tag not in dataset:
        return None
    element = dataset.get_item(tag)
    value = element.value
    if isinstance(value, bytes):
        vr = element.VR if element.VR not in (None, "UN") or tag >> 16 & 1 else None
        vr = vr or (dictionary_VR(tag) if not tag >> 16 & 1 else "UN")
        form = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FD": "d", "FL": "f"}.get(vr)
        if vr in ("US or SS", "US or SS or OW"):
            form = "H"
        if form:
            order = "<" if getattr(element, "is_little_endian", True) else ">"
            count = len(value) // struct.calcsize(form)
            return "\\".join(
                str(number) for number in struct.unpack(f"{order}{count}{form}", value[: count * struct.calcsize(form)])
            )
        text = value.decode("latin-1").strip(" \0")
    elif value is None:
        return None
    elif isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue":
        text = "\\".join(str(part) for part in value)
    else:
        text = str(value).strip(" \0")
    return text or None


def get(dataset: Dataset, keyword: str) -> str | None:
    """`raw_text` by keyword."""
    return raw_text(dataset, tag_of(keyword))


def whole_number(text: str | None) -> int | None:
    """The first number of a text as an integer; None where there is none."""
    try:
        return int(float((text or "").split("\\")[0]))
    except (ValueError, OverflowError):
        return None


def read_header(path: Path) -> list[Slice]:
    """Read one file up to its pixels: one record, or one a frame for the enhanced multi-frame classes.

    Raises:
        CaseError: not DICOM, cut off, or nested so that it cannot be read.
    """
    found: dict[str, Any] = {}

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        if int(tag) not in PIXEL_TAGS:
            return False
        found.update(tag=int(tag), vr=vr, length=length)
        return True

    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            status = os.fstat(file.fileno())
            head = file.read(132)
            file.seek(0)
            bare = head[128:132] != b"DICM"
            dataset = read_partial(file, at_pixels, force=bare, specific_tags=list(WANTED))
            offset = file.tell() + (12 if found.get("vr") in LONG_FORM else 8)
    except (RecursionError, MemoryError) as error:
        raise CaseError(
            f"{path}: sequences are nested too deeply to be read ({type(error).__name__}). Export it again", "nested"
        ) from error
    except OSError as error:
        raise CaseError(
            f"{path}: cannot be read ({error.strerror or error}). Check the disk and the rights", "unreadable"
        ) from error
    except (
        pydicom.errors.InvalidDicomError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        NotImplementedError,
    ) as error:
        raise CaseError(
            f"{path}: no DICOM header ({type(error).__name__}). Copy the file again from its source", "not-dicom"
        ) from error
    except (struct.error, zlib.error, OverflowError, IndexError, AssertionError) as error:
        raise CaseError(
            f"{path}: the DICOM header is cut off or damaged. Copy the file again from its source", "truncated"
        ) from error
    meta = dataset.file_meta
    syntax = str(meta.get("TransferSyntaxUID", "")) if meta else ""
    if meta and str(meta.get("MediaStorageSOPClassUID", "")) == DICOMDIR:
        raise DirectoryFileError(
            f"{path}: a DICOMDIR, which holds no image. Give the folder with the images", "dicomdir"
        )
    deflated = syntax == DEFLATED
    place: dict[str, Any] = {"pixels": bool(found), "float_pixels": found.get("tag") in PIXEL_TAGS[:2], "bare": bare}
    if found and not deflated:
        place |= {"pixel_offset": offset, "pixel_length": found["length"]}
    elif found:
        place |= {"pixel_length": found["length"]}
    slice_ = record(path, dataset, syntax, (status.st_size, status.st_mtime_ns), place)
    if not deflated and found and slice_.pixel_length != UNDEFINED and offset + slice_.pixel_length > status.st_size:
        there = max(0, status.st_size - offset)
        raise SliceError(
            f"{path}: PixelData claims {slice_.pixel_length} bytes, {there} are there: the file is cut off. "
            "Copy it again",
            "truncated",
            (slice_.study, slice_.series),
        )
    if not slice_.sop_class:
        raise CaseError(
            f"{path}: no SOPClassUID: cut off in its header, or not DICOM. Copy it again from its source", "not-dicom"
        )
    return frames_of(slice_, dataset)


def record(path: Path, dataset: Dataset, syntax: str, status: tuple[int, int], place: Mapping[str, Any]) -> Slice:
    """The record of a data set."""
    implicit, little = dataset.original_encoding
    number = {name: whole_number(get(dataset, name)) for name in OTHER_KEYWORDS if name not in SEQUENCES}
    signed = number["PixelRepresentation"] == 1
    allocated = number["BitsAllocated"] or 16
    stored = number["BitsStored"] or allocated
    lossy = get(dataset, "LossyImageCompression") == "01"
    splits = {name: get(dataset, name) for name in SPLIT_BY} | {
        name: raw_text(dataset, tag) for name, tag in PRIVATE_SPLIT.items()
    }
    default = "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1" if little else "1.2.840.10008.1.2.2"
    return Slice(
        path=path,
        size=status[0],
        modified=status[1],
        sop_class=get(dataset, "SOPClassUID") or "",
        sop=get(dataset, "SOPInstanceUID") or "",
        study=get(dataset, "StudyInstanceUID") or "",
        series=get(dataset, "SeriesInstanceUID") or "",
        patient=hashlib.sha256((get(dataset, "PatientID") or "").encode()).hexdigest()[:12],
        frame_of_reference=get(dataset, "FrameOfReferenceUID") or "",
        transfer_syntax=syntax or default,
        modality=(get(dataset, "Modality") or "").upper(),
        image_type=(get(dataset, "ImageType") or "").upper(),
        rows=number["Rows"] or 0,
        columns=number["Columns"] or 0,
        samples=number["SamplesPerPixel"] or 1,
        photometric=(get(dataset, "PhotometricInterpretation") or "").upper(),
        planar=number["PlanarConfiguration"] or 0,
        frames=number["NumberOfFrames"] or 1,
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=stored - 1 if number["HighBit"] is None else int(number["HighBit"]),
        signed=signed,
        padding=signed_value(number["PixelPaddingValue"], signed),
        padding_limit=signed_value(number["PixelPaddingRangeLimit"], signed),
        position=get(dataset, "ImagePositionPatient"),
        orientation=get(dataset, "ImageOrientationPatient"),
        spacing=get(dataset, "PixelSpacing") or get(dataset, "ImagerPixelSpacing"),
        slope=get(dataset, "RescaleSlope"),
        intercept=get(dataset, "RescaleIntercept"),
        rescale_type=(get(dataset, "RescaleType") or "").upper(),
        instance=number["InstanceNumber"],
        series_number=get(dataset, "SeriesNumber") or "",
        images_in_acquisition=number["ImagesInAcquisition"],
        lossy=(get(dataset, "LossyImageCompressionRatio") or "unknown") if lossy else "",
        big_endian=not little,
        splits={name: value for name, value in splits.items() if value is not None},
        facts=facts_of(dataset),
        **place,
    )


SEQUENCES = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "SequenceOfUltrasoundRegions")


def signed_value(value: int | None, signed: bool) -> int | None:
    """A 16-bit number that was read as unsigned, in the pixels' sign."""
    return value - 65536 if value is not None and signed and value > 32767 else value


def facts_of(dataset: Dataset) -> dict[str, Any]:
    """Acquisition facts under their BIDS names, in BIDS units."""
    facts: dict[str, Any] = {}
    for name, bids in FACTS.items():
        text = get(dataset, name)
        if text is None:
            continue
        try:
            facts[bids] = float(text) if name in NUMBERS else text.split("\\") if "\\" in text else text
        except ValueError:
            continue
    for name, bids in MILLISECONDS.items():
        try:
            facts[bids] = float(get(dataset, name) or "") / 1000
        except ValueError:
            continue
    return facts


def frames_of(slice_: Slice, dataset: Dataset) -> list[Slice]:
    """One record a frame, where functional groups give each frame its place; else the one record."""
    if slice_.sop_class not in VOLUME_CLASSES or "PerFrameFunctionalGroupsSequence" not in dataset:
        return [slice_]
    shared_items = dataset.get("SharedFunctionalGroupsSequence") or [Dataset()]
    frames = []
    for index, own in enumerate(dataset["PerFrameFunctionalGroupsSequence"].value):
        frames.append(one_frame(slice_, index, own, shared_items[0]))
    if len(frames) != slice_.frames:
        raise CaseError(
            f"{slice_.path}: NumberOfFrames is {slice_.frames}, PerFrameFunctionalGroupsSequence has {len(frames)} "
            "items. Export it again",
            "frame-count",
        )
    return frames


def one_frame(slice_: Slice, index: int, own: Dataset, shared: Dataset) -> Slice:
    """The record of frame `index`: its own functional groups before the shared ones."""

    def group(sequence: str, keyword: str) -> str | None:
        for source in (own, shared):
            if sequence in source and len(source[sequence].value):
                text = get(source[sequence].value[0], keyword)
                if text is not None:
                    return text
        return None

    content = {
        name: group("FrameContentSequence", name)
        for name in ("StackID", "TemporalPositionIndex", "DimensionIndexValues")
    }
    splits = {
        **slice_.splits,
        "StackID": content["StackID"],
        "TemporalPositionIndex": content["TemporalPositionIndex"],
        "EffectiveEchoTime": group("MREchoSequence", "EffectiveEchoTime"),
        "DiffusionBValue": group("MRDiffusionSequence", "DiffusionBValue"),
        "TriggerTime": group("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
        "FrameAcquisitionNumber": group("FrameContentSequence", "FrameAcquisitionNumber"),
        "FrameType": group("MRImageFrameTypeSequence", "FrameType") or group("CTImageFrameTypeSequence", "FrameType"),
    }
    for position, value in enumerate((content["DimensionIndexValues"] or "").split("\\")):
        splits[f"DimensionIndexValues[{position}]"] = value or None
    return replace(
        slice_,
        frame=index,
        instance=None,
        position=group("PlanePositionSequence", "ImagePositionPatient"),
        orientation=group("PlaneOrientationSequence", "ImageOrientationPatient"),
        spacing=group("PixelMeasuresSequence", "PixelSpacing"),
        slope=group("PixelValueTransformationSequence", "RescaleSlope") or slice_.slope,
        intercept=group("PixelValueTransformationSequence", "RescaleIntercept") or slice_.intercept,
        rescale_type=group("PixelValueTransformationSequence", "RescaleType") or slice_.rescale_type,
        splits={name: value for name, value in splits.items() if value is not None},
    )
