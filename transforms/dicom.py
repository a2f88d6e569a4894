"""DICOM headers: one pass over a file, up to its pixels, into a record of what geometry and values need.

Values are taken as the bytes that stand in the file and read here, so that text which nobody uses (names in odd
character sets, over-long numbers) can neither stop a series nor be printed. `dicom_series.py` makes volumes of the
records, `dicom_pixels.py` reads their voxels.
"""

from __future__ import annotations

import hashlib
import struct
import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from pydicom.datadict import tag_for_keyword
from pydicom.uid import UID_dictionary

from ..errors import CaseError, UsageError
from .dicom_diffusion import DIFFUSION_TAGS, diffusion_facts, diffusion_splits
from .dicom_elements import PIXEL_TAGS, Header, read_elements
from .dicom_facts import FACT_TAGS, PERSONAL, facts_of, nameless, personal_texts
from .dicom_frames import PER_FRAME, SHARED, frames_of
from .dicom_mosaic import GRID_TILES, MR_CREATOR, SPACING, TILES, is_mosaic, refused_frames, tiles_of
from .dicom_record import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    GE_BIG_ENDIAN_PIXELS,
    IMPLICIT,
    NATIVE,
    PICTURE_CLASSES,
    UNDEFINED,
    VOLUME_CLASSES,
    DirectoryFileError,
    Slice,
    SliceError,
)
from .dicom_text import (
    DamagedSequenceError,
    Element,
    first_number,
    items_of,
    raw_elements,
    tag_of,
    texts_of,
    whole_number,
)
from .read_options import DEFAULT, ReadOptions

__all__ = [
    "DEFLATED",
    "NATIVE",
    "PICTURE_CLASSES",
    "UNDEFINED",
    "VOLUME_CLASSES",
    "WANTED",
    "DirectoryFileError",
    "Slice",
    "SliceError",
    "is_dicom",
    "read_header",
]
REGIONS = tag_of("SequenceOfUltrasoundRegions")
REGION_TAGS = tuple(
    tag_of(name)
    for name in (
        *("RegionSpatialFormat", "PhysicalUnitsXDirection", "PhysicalUnitsYDirection"),
        *("PhysicalDeltaX", "PhysicalDeltaY"),
    )
)
# What parts slices at one place, the surest first; the diffusion weighting stands between the two.
FIRST_SPLITS = {
    tag_of(name): name
    for name in (
        *("AcquisitionNumber", "TemporalPositionIdentifier", "EchoNumbers", "EchoTime", "TriggerTime"),
        "NominalCardiacTriggerDelayTime",
    )
}
OTHER_SPLITS = {
    tag_of(name): name
    for name in (
        *("ConvolutionKernel", "ImageType", "SequenceName", "AcquisitionTime", "ContentTime", "InversionTime"),
        *("FlipAngle", "ComplexImageComponent", "FrameReferenceTime"),
    )
}
PHILIPS_MR_CREATOR, PHILIPS_SLICES = 0x20010010, 0x20011018
GE_CREATOR, GE_LOCATIONS = 0x00210010, 0x0021104F
COUNTS = {
    tag_of(name): name
    for name in (
        *("ImagesInAcquisition", "NumberOfSlices", "NumberOfTemporalPositions", "NumberOfTimeSlices"),
        "NumberOfSeriesRelatedInstances",
    )
}
KEYWORDS = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID"),
    *("Modality", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation"),
    *("NumberOfFrames", "SeriesNumber", "InstanceNumber", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit", "ImagePositionPatient"),
    *("ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing", "RescaleSlope", "RescaleIntercept"),
    *("RescaleType", "LossyImageCompression", "LossyImageCompressionRatio", "BurnedInAnnotation"),
    *("FrameTime", "FrameTimeVector", "CineRate", "RecommendedDisplayFrameRate"),
)
TAGS = {name: tag_of(name) for name in KEYWORDS}
PRIVATE_TAGS = (MR_CREATOR, TILES, GRID_TILES, PHILIPS_MR_CREATOR, PHILIPS_SLICES, GE_CREATOR, GE_LOCATIONS)
SEQUENCES = (SHARED, PER_FRAME, REGIONS)
SPLIT_TAGS = (*FIRST_SPLITS, *OTHER_SPLITS, *DIFFUSION_TAGS)
WANTED: frozenset[int] = frozenset(
    (*TAGS.values(), *SPLIT_TAGS, *COUNTS, *FACT_TAGS, *PRIVATE_TAGS, *SEQUENCES, SPACING)
)
# Always with loss, and with or without it: JPEG baseline and extended with the retired ones, MPEG and H.264/265;
# near-lossless JPEG-LS, JPEG 2000, its second part, JPEG XL, high-throughput JPEG 2000.
SYNTAXES = "1.2.840.10008.1.2.4."
LOSSY = frozenset(f"{SYNTAXES}{end}" for end in (50, 51, 52, 53, 54, 55, 56, 59, 60, 61, 62, 63, 64, 111))
VIDEO = tuple(f"{SYNTAXES}{end}" for end in range(100, 109))
PERHAPS_LOSSY = frozenset(f"{SYNTAXES}{end}" for end in (81, 91, 93, 112, 203))


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


@lru_cache(maxsize=16)
def group_tags(keywords: tuple[str, ...]) -> tuple[int, ...]:
    """The tags of `--group-by`.

    Raises:
        UsageError: a word that is no keyword of DICOM.
    """
    tags = []
    for keyword in keywords:
        tag = tag_for_keyword(keyword)
        if tag is None:
            raise UsageError(f"--group-by {keyword!r}: no keyword of DICOM; give words such as SeriesInstanceUID")
        tags.append(tag)
    return tuple(tags)


@lru_cache(maxsize=16)
def wanted_tags(group_by: tuple[str, ...], phi: bool) -> frozenset[int]:
    """All tags that are read under these options."""
    return frozenset((*WANTED, *group_tags(group_by), *(tag_of(name) for name in PERSONAL if phi)))


def read_header(path: Path, options: ReadOptions = DEFAULT) -> list[Slice]:
    """Read one file up to its pixels: one record, or one a frame of an enhanced object or a tile of a mosaic.

    Raises:
        CaseError: not DICOM, cut off, or nested so that it cannot be read.
        UsageError: `--group-by` names no keyword of DICOM.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom quotes what it finds in headers
        return records(path, options)


def records(path: Path, options: ReadOptions) -> list[Slice]:
    """`read_header` with the warnings of pydicom let through."""
    header = read_elements(path, wanted_tags(options.group_by, options.phi))
    texts = texts_of(header.elements)
    slice_ = record(path, header, texts, options)
    there = max(0, header.size - header.pixel_offset)
    if header.syntax != DEFLATED and header.pixel_tag and there < header.pixel_length != UNDEFINED:
        raise SliceError(
            f"{path}: PixelData claims {header.pixel_length} bytes, {there} are there: the file is cut off. "
            "Copy it again",
            "truncated",
            (slice_.study, slice_.series),
            slice_.sop_class,
        )
    if not slice_.sop_class:
        raise CaseError(
            f"{path}: no SOPClassUID: cut off in its header, or not DICOM. Copy it again from its source", "not-dicom"
        )
    if slice_.bare and slice_.sop_class not in UID_dictionary:
        raise CaseError(
            f"{path}: no preamble, and a SOPClassUID that is none: not DICOM. Copy it again from its source",
            "not-dicom",
        )
    if slice_.sop_class in VOLUME_CLASSES:
        mosaic = is_mosaic(slice_, texts)
        if PER_FRAME in header.elements:
            return refused_frames(slice_) if mosaic else frames_of(slice_, texts, header.elements)
        if mosaic:
            return tiles_of(slice_, texts)
    return [slice_]


def record(path: Path, header: Header, texts: Mapping[int, str], options: ReadOptions) -> Slice:
    """The record of a file."""

    def said(keyword: str) -> str | None:
        return texts.get(TAGS[keyword])

    def number(keyword: str) -> int | None:
        return whole_number(texts.get(TAGS[keyword]))

    signed = number("PixelRepresentation") == 1
    allocated = number("BitsAllocated") or 16
    stored = number("BitsStored") or allocated
    high = number("HighBit")
    implied = IMPLICIT if header.implicit else EXPLICIT if header.little_endian else BIG_ENDIAN
    sop_class = said("SOPClassUID") or ""
    spacing = said("PixelSpacing")
    if spacing is None and sop_class not in VOLUME_CLASSES:
        spacing = said("ImagerPixelSpacing") or region_spacing(header.elements)
    first, other = (
        {name: texts[tag] for tag, name in table.items() if tag in texts} for table in (FIRST_SPLITS, OTHER_SPLITS)
    )
    groups = [texts.get(tag, "") for tag in group_tags(options.group_by)]
    return Slice(
        path=path,
        size=header.size,
        modified=header.modified,
        sop_class=sop_class,
        sop=said("SOPInstanceUID") or "",
        study=said("StudyInstanceUID") or "",
        series=said("SeriesInstanceUID") or "",
        patient=hashlib.sha256((said("PatientID") or "").encode()).hexdigest()[:12],
        frame_of_reference=said("FrameOfReferenceUID") or "",
        transfer_syntax=header.syntax or implied,
        modality=(said("Modality") or "").upper(),
        image_type=(texts.get(0x00080008) or "").upper(),
        rows=number("Rows") or 0,
        columns=number("Columns") or 0,
        samples=number("SamplesPerPixel") or 1,
        photometric=(said("PhotometricInterpretation") or "").upper(),
        frames=number("NumberOfFrames") or 1,
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=stored - 1 if high is None else high,
        signed=signed,
        padding=signed_value(number("PixelPaddingValue"), signed),
        padding_limit=signed_value(number("PixelPaddingRangeLimit"), signed),
        position=said("ImagePositionPatient"),
        orientation=said("ImageOrientationPatient"),
        spacing=spacing,
        slope=said("RescaleSlope"),
        intercept=said("RescaleIntercept"),
        rescale_type=(said("RescaleType") or "").upper(),
        instance=number("InstanceNumber"),
        series_number=said("SeriesNumber") or "",
        lossy=lossy_ratio(header.syntax, said("LossyImageCompression"), said("LossyImageCompressionRatio")),
        pixels=bool(header.pixel_tag),
        float_pixels=header.pixel_tag in PIXEL_TAGS[:2],
        pixel_offset=-1 if header.syntax == DEFLATED else header.pixel_offset,
        pixel_length=header.pixel_length,
        big_endian=not header.little_endian or header.syntax == GE_BIG_ENDIAN_PIXELS,
        bare=header.bare,
        splits=nameless({**first, **diffusion_splits(texts), **other}),
        facts=facts_of(texts, header.elements) | diffusion_facts(texts),
        phi=personal_texts(header.elements) if options.phi else {},
        group="\\".join(groups),
        stated_counts=stated_counts(texts),
        frame_seconds=frame_seconds(texts),
        burned_in=said("BurnedInAnnotation") == "YES",
        executable_preamble=header.executable,
    )


def signed_value(value: int | None, signed: bool) -> int | None:
    """A 16-bit number that was read as unsigned, in the pixels' sign."""
    return value - 65536 if value is not None and signed and value > 32767 else value


def stated_counts(texts: Mapping[int, str]) -> dict[str, int]:
    """How many images or slices the file says that there are."""
    counts = {name: whole_number(texts[tag]) for tag, name in COUNTS.items() if tag in texts}
    if PHILIPS_SLICES in texts and texts.get(PHILIPS_MR_CREATOR, "").startswith("Philips Imaging DD"):
        counts["NumberOfSlicesMR"] = whole_number(texts[PHILIPS_SLICES])
    if GE_LOCATIONS in texts and texts.get(GE_CREATOR, "").startswith("GEMS_RELA"):
        counts["LocationsInAcquisition"] = whole_number(texts[GE_LOCATIONS])
    return {name: count for name, count in counts.items() if count is not None and count > 0}


def lossy_ratio(syntax: str, stated: str | None, ratio: str | None) -> str:
    """The ratio of a compression with loss or "unknown"; empty where the pixels never were compressed so."""
    number = first_number(ratio)
    found = "unknown" if number is None else f"{number:g}"
    if stated == "01" or syntax in LOSSY or syntax.startswith(VIDEO):
        return found
    return found if syntax in PERHAPS_LOSSY and stated != "00" else ""


def frame_seconds(texts: Mapping[int, str]) -> float | None:
    """Time from frame to frame of a film; None where it is not stated, or not the same all along."""
    vector = (texts.get(TAGS["FrameTimeVector"]) or "").split("\\")[1:]
    steps = [first_number(text) for text in vector]
    if steps and None not in steps:
        known = sorted(step for step in steps if step is not None)
        middle = known[len(known) // 2]
        if known[0] > 0.99 * middle and known[-1] < 1.01 * middle and middle > 0:
            return sum(known) / len(known) / 1000
        return None
    time = first_number(texts.get(TAGS["FrameTime"]))
    if time is not None and time > 0:
        return time / 1000
    rates = (first_number(texts.get(TAGS[name])) for name in ("CineRate", "RecommendedDisplayFrameRate"))
    return next((1 / rate for rate in rates if rate is not None and rate > 0), None)


def region_spacing(elements: Mapping[int, Element]) -> str | None:
    """Pixel size (rows, columns; mm) of an ultrasound picture with one 2D region that is measured in cm."""
    try:
        regions = [texts_of(raw_elements(item)) for item in items_of(elements, REGIONS)]
    except DamagedSequenceError:
        return None
    flat = [region for region in regions if first_number(region.get(REGION_TAGS[0])) == 1]
    if len(flat) != 1:
        return None
    units = [first_number(flat[0].get(tag)) for tag in REGION_TAGS[1:3]]
    across, down = (first_number(flat[0].get(tag)) for tag in REGION_TAGS[3:])
    if units != [3, 3] or not across or not down:
        return None
    return f"{abs(down) * 10:.9g}\\{abs(across) * 10:.9g}"
