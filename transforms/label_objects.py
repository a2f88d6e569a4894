"""What a DICOM SEG or RTSTRUCT says of itself: which series it belongs to, and which classes it draws.

Only references, names, codes and colours leave a header. A name that holds the patient's name or number is not taken:
the coded meaning stands in its place, or nothing.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError

from ..errors import CaseError

SEG_CLASSES = frozenset({"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"})
RTSTRUCT_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
PARSING = (
    *(ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError, EOFError),
    *(OSError, struct.error, BytesLengthException),  # pydicom parses sequences when they are asked for
)
LONGEST_NAME = 64
Read = TypeVar("Read")
D50_TO_SRGB = np.array(
    [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]]
)
D50_WHITE = np.array([0.96422, 1.0, 0.82521])


@dataclass(frozen=True)
class Segment:
    """One class that is drawn.

    Args:
        number: SegmentNumber or ROINumber.
        name: what people call it, "" where no name can be taken.
        code: scheme, value and meaning of the coded property type, such as SCT, 10200004, Liver.
        colour: red, green and blue from 0 to 255.
    """

    number: int
    name: str
    code: tuple[str, str, str] | None = None
    colour: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class LabelObject:
    """The header of a DICOM SEG or RTSTRUCT.

    Args:
        kind: "seg" or "rtstruct".
        path: the file.
        segments: in the order of the file; for an RTSTRUCT those that have closed contours.
        series: SeriesInstanceUIDs that it refers to; never written out unhashed.
        instances: SOPInstanceUIDs that it refers to; never written out.
        frame_of_reference: UID of the space that its places are in, "" where it says none.
    """

    kind: str
    path: Path
    segments: tuple[Segment, ...]
    series: tuple[str, ...]
    instances: frozenset[str]
    frame_of_reference: str = ""


def read_dicom(path: Path, *, pixels: bool = False) -> Dataset:
    """The data set of a file.

    Raises:
        CaseError: it cannot be read or parsed.
    """
    try:
        return pydicom.dcmread(path, stop_before_pixels=not pixels)
    except (InvalidDicomError, *PARSING) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise CaseError(f"{path}: cannot be read ({error.strerror}). Check the disk") from error
        raise CaseError(
            f"{path}: cannot be parsed ({type(error).__name__}); the file is damaged. Copy it again from its source",
            "unparsable",
        ) from error


def parsed(path: Path, read: Callable[[], Read]) -> Read:
    """What `read` makes of a data set; errors of parsing become a refusal.

    Raises:
        CaseError: the data set lacks what it must have.
    """
    try:
        return read()
    except PARSING as error:
        raise CaseError(
            f"{path}: a header without what it must have ({type(error).__name__}). Export it again", "unparsable"
        ) from error


def public_name(wanted: Iterable[str], dataset: Dataset) -> str:
    """The first of some names that is not empty and does not hold the patient's name or number, on one line."""
    secrets = _words(dataset)
    for text in wanted:
        name = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:LONGEST_NAME]
        if name and not any(secret in name.casefold() for secret in secrets):
            return name
    return ""


def code_of(sequence: Sequence[Dataset] | None, dataset: Dataset) -> tuple[str, str, str] | None:
    """Scheme, value and meaning of the first code of a sequence; free text that names the patient is left out."""
    if not sequence:
        return None
    code = sequence[0]
    value = code.get("CodeValue") or code.get("LongCodeValue") or ""
    texts = (code.get("CodingSchemeDesignator"), value, code.get("CodeMeaning"))
    scheme, number, meaning = (public_name([str(text or "")], dataset) for text in texts)
    return (scheme, number, meaning) if number else None


def colour_of_lab(values: Sequence[int] | None) -> tuple[int, int, int] | None:
    """RecommendedDisplayCIELabValue (three 16-bit numbers, white D50) as sRGB."""
    if values is None or len(values) != 3:
        return None
    lightness, a, b = (
        float(values[0]) / 65535 * 100,
        float(values[1]) / 65535 * 255 - 128,
        float(values[2]) / 65535 * 255 - 128,
    )
    y = (lightness + 16) / 116
    steps = np.array([y + a / 500, y, y - b / 200])
    white = np.where(steps > 6 / 29, steps**3, 3 * (6 / 29) ** 2 * (steps - 4 / 29))
    linear = np.clip(D50_TO_SRGB @ (white * D50_WHITE), 0, 1)
    shown = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = (int(value) for value in np.rint(shown * 255))
    return red, green, blue


def _words(dataset: Dataset) -> set[str]:
    """Parts of the patient's name and number that are long enough to tell somebody by."""
    texts = [str(dataset.get(name) or "") for name in ("PatientName", "PatientID", "OtherPatientIDs")]
    parts = {part.casefold() for text in texts for part in re.split(r"[\^=\s,\\\[\]']+", text)}
    return {part for part in parts if len(part) >= 3}
