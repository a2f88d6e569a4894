"""Raw DICOM elements as text and numbers: bytes are read as what they are, nothing is validated, nothing is printed."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from functools import cache, lru_cache

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset

PARSE_ERRORS = (
    *(EOFError, OSError, ValueError, KeyError, TypeError, AttributeError, NotImplementedError),
    *(struct.error, OverflowError, IndexError, AssertionError),
)
NUMERIC = re.compile(r"(?:nan|inf|[-+.,0-9eE\\ ]){1,99}", re.IGNORECASE)
FORMS = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FD": "d", "FL": "f", "US or SS": "H", "US or SS or OW": "H"}
FORMS |= {"UV": "Q", "SV": "q"}
PRIVATE_FORMS = {0x0019100E: "FD", 0x20011003: "FL", 0x200510B0: "FL", 0x200510B1: "FL", 0x200510B2: "FL"}
PRIVATE_FORMS |= {0x0019100A: "US", 0x20011018: "SL", 0x0021104F: "SS"}

Element = RawDataElement | DataElement


class DamagedSequenceError(Exception):
    """A sequence whose bytes make no items."""


@cache
def tag_of(keyword: str) -> int:
    """The number of a keyword of the standard."""
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise ValueError(f"{keyword} is no DICOM keyword")
    return tag


@lru_cache(maxsize=4096)
def form_of(tag: int) -> str | None:
    """The struct letter of a tag's binary value; None for text, and for private tags that are not known."""
    if tag >> 16 & 1:
        return FORMS.get(PRIVATE_FORMS.get(tag, ""))
    try:
        return FORMS.get(dictionary_VR(tag))
    except KeyError:
        return None


def text_of(element: Element) -> str | None:
    """A value as text, several joined by a backslash; None where it is empty or a sequence."""
    value, vr = element.value, element.VR
    if isinstance(value, bytes):
        form = form_of(element.tag) if vr is None or vr == "UN" else FORMS.get(vr)
        if vr == "SQ":
            return None
        if form is None:
            return value.decode("latin-1").strip(" \0") or None
        order = "<" if getattr(element, "is_little_endian", True) else ">"
        count = len(value) // struct.calcsize(form)
        parts = struct.unpack_from(f"{order}{count}{form}", value)
        return "\\".join(map(str, parts)) or None
    return None if value is None or vr == "SQ" else str(value).strip(" \0") or None


def items_of(elements: Mapping[int, Element], tag: int) -> list[Dataset]:
    """The items of a sequence; none where it is absent, or no sequence after all.

    Raises:
        DamagedSequenceError: its bytes make no items.
    """
    element = elements.get(tag)
    if element is None or element.value is None:
        return []
    if isinstance(element, RawDataElement):
        try:
            element = Dataset({element.tag: element})[element.tag]  # type: ignore[dict-item]
        except (*PARSE_ERRORS, RecursionError) as error:
            raise DamagedSequenceError(f"({tag >> 16:04X},{tag & 0xFFFF:04X})") from error
    return list(element.value) if element.VR == "SQ" else []


def raw_elements(item: Dataset) -> Mapping[int, Element]:
    """The elements of a sequence item, not yet converted."""
    return dict(item.items())


def texts_of(elements: Mapping[int, Element]) -> dict[int, str]:
    """All values that are no sequences as text."""
    texts = {}
    for tag, element in elements.items():
        text = text_of(element)
        if text is not None:
            texts[int(tag)] = text
    return texts


def first_number(text: str | None) -> float | None:
    """The first number of a text; None where there is none, or it is not finite."""
    first = (text or "").split("\\", 1)[0]
    try:
        value = float("" if "_" in first else first)  # Python takes 1_0 for a number
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


def whole_number(text: str | None) -> int | None:
    """The first number of a text as an integer; None where there is none."""
    if text is not None and text.isdecimal() and text.isascii():
        return int(text) if len(text) < 20 else None
    value = first_number(text)
    return None if value is None else int(value)


def shown(text: str | None) -> str:
    """What stands where numbers should be, for a message: never words, which a damaged header may take from a name."""
    if not text:
        return "absent"
    return f"'{text}'" if NUMERIC.fullmatch(text) else "text that is no number"
