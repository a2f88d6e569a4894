"""The wanted elements of a DICOM file, up to its pixels, as pydicom's own generator takes them off a piece of the file.

The generator runs on bytes in memory: a file object costs it two system calls an element, and a length of 4 GB that
nobody wrote would be reserved. Where the header is longer than the piece, reading goes on behind it.
"""

from __future__ import annotations

import logging
import os
import struct
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from pydicom.dataelem import RawDataElement
from pydicom.filereader import data_element_generator

from ..errors import CaseError
from .dicom_record import BIG_ENDIAN, DEFLATED, DICOMDIR, IMPLICIT, UNDEFINED, DirectoryFileError
from .dicom_text import PARSE_ERRORS, Element, text_of

PIECE = 1 << 15
GROWTH = 16
LONGEST_HEADER = 1 << 28
MOST_ELEMENTS = 20_000
LONGEST_INFLATED = 1 << 26
PIXEL_TAGS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
AT_PIXELS = frozenset(PIXEL_TAGS)
DESCRIBED = {0x00080016, 0x00280010}  # SOPClassUID, Rows
META_TAGS = (0x00020002, 0x00020010)
PROGRAMS = (b"MZ", b"\x7fELF", *(struct.pack(order + "I", 0xFEEDFACE + wide) for order in "<>" for wide in (0, 1)))

# pydicom quotes what it finds in headers; nothing of a header belongs in a log.
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)


class TooManyElementsError(Exception):
    """More elements than any header has."""


@dataclass(frozen=True, eq=False)
class Header:
    """The wanted elements of a file, and where its pixels lie.

    Args:
        pixel_tag: PixelData, or one of its two floating-point forms; 0 where the file has none.
        pixel_offset: first byte of the value, in the inflated data set where it is deflated.
    """

    elements: Mapping[int, Element]
    syntax: str
    implicit: bool
    little_endian: bool
    bare: bool
    executable: bool
    size: int
    modified: int
    pixel_tag: int = 0
    pixel_offset: int = -1
    pixel_length: int = UNDEFINED


@dataclass
class Pixels:
    """Where the generator met the pixels."""

    tag: int = 0
    offset: int = -1
    length: int = UNDEFINED


def read_elements(path: Path, wanted: Collection[int]) -> Header:
    """Read the wanted elements of one file.

    Raises:
        CaseError: not DICOM, cut off, or nested so that it cannot be read.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            return parsed(path, file, wanted)
    except (RecursionError, MemoryError) as error:
        raise CaseError(
            f"{path}: sequences are nested too deeply to be read ({type(error).__name__}). Export it again", "nested"
        ) from error
    except TooManyElementsError as error:
        raise CaseError(
            f"{path}: more than {MOST_ELEMENTS} elements stand before its pixels: the DICOM header is damaged. "
            "Copy the file again from its source",
            "truncated",
        ) from error
    except zlib.error as error:
        raise CaseError(
            f"{path}: the deflated DICOM header is cut off or damaged. Copy the file again from its source", "truncated"
        ) from error
    except OSError as error:
        raise CaseError(
            f"{path}: cannot be read ({error.strerror or error}). Check the disk and the rights", "unreadable"
        ) from error


def parsed(path: Path, file: BinaryIO, wanted: Collection[int]) -> Header:
    """Preamble, file meta and data set of an open file."""
    status = os.fstat(file.fileno())
    head = file.read(PIECE)
    bare = head[128:132] != b"DICM"
    meta, start = meta_of(head, 0 if bare else 132)
    if start >= len(head) and len(head) < status.st_size:
        head += file.read(min(status.st_size, LONGEST_HEADER) - len(head))
        meta, start = meta_of(head, 0 if bare else 132)
    syntax = meta.get(META_TAGS[1], "")
    if meta.get(META_TAGS[0]) == DICOMDIR:
        raise DirectoryFileError(
            f"{path}: a DICOMDIR, which holds no image. Give the folder with the images", "dicomdir"
        )
    pixels = Pixels()
    if syntax == DEFLATED:
        data = inflated(file, start)
        implicit, little = encoding(syntax, data[:6])
        whole = wanted_elements(bytes_reader(data), 0, len(data), (implicit, little), wanted, pixels)
    else:
        implicit, little = encoding(syntax, head[start : start + 6])
        reader = file_reader(file, head)
        whole = wanted_elements(reader, start, status.st_size, (implicit, little), wanted, pixels)
    return Header(
        elements=whole,
        syntax=syntax,
        implicit=implicit,
        little_endian=little,
        bare=bare,
        executable=not bare and head.startswith(PROGRAMS),
        size=status.st_size,
        modified=status.st_mtime_ns,
        pixel_tag=pixels.tag,
        pixel_offset=pixels.offset,
        pixel_length=pixels.length,
    )


def meta_of(head: bytes, start: int) -> tuple[dict[int, str], int]:
    """SOP class and transfer syntax of the file meta, and where the data set begins."""

    def behind(tag: int, vr: str | None, length: int) -> bool:
        return tag >> 16 != 2

    stream = BytesIO(head)
    stream.seek(start)
    try:
        found = data_element_generator(stream, False, True, behind, specific_tags=META_TAGS)  # type: ignore[arg-type]
        meta = {int(element.tag): text_of(element) or "" for element in found}
    except PARSE_ERRORS:
        return {}, len(head)
    return meta, stream.tell()


def encoding(syntax: str, first: bytes) -> tuple[bool, bool]:
    """Whether value representations are implicit, and words little endian.

    The first element decides over what the file meta says of the former, as in pydicom; without a transfer syntax its
    group number decides over the latter.
    """
    if len(first) < 6:
        return syntax in ("", IMPLICIT), syntax != BIG_ENDIAN
    explicit = 0x40 < first[4] < 0x5B and 0x40 < first[5] < 0x5B
    if syntax:
        return not explicit, syntax != BIG_ENDIAN
    return not explicit, not (explicit and struct.unpack("<H", first[:2])[0] >= 1024)


def file_reader(file: BinaryIO, head: bytes) -> Callable[[int, int], bytes]:
    """Pieces of an open file, the first of which is already there."""

    def piece(start: int, count: int) -> bytes:
        if count == PIECE and start < len(head):
            return head[start:]
        file.seek(start)
        return file.read(count)

    return piece


def bytes_reader(data: bytes) -> Callable[[int, int], bytes]:
    """Pieces of what is in memory."""
    return lambda start, count: data[start : start + count]


def wanted_elements(
    reader: Callable[[int, int], bytes],
    start: int,
    size: int,
    coding: tuple[bool, bool],
    wanted: Collection[int],
    pixels: Pixels,
) -> dict[int, Element]:
    """The wanted elements from byte `start` on, up to the pixels of the top level; `pixels` is filled in.

    Ends where the file ends, is cut off or is damaged.

    Raises:
        TooManyElementsError: rubbish that reads as elements without end.
    """
    elements: dict[int, Element] = {}
    length = PIECE
    seen = 0

    def at_pixels(tag: int, vr: str | None, count: int) -> bool:
        nonlocal seen
        seen += 1
        if seen > MOST_ELEMENTS:
            raise TooManyElementsError
        if tag not in AT_PIXELS:  # pydicom's tags hash fast and compare slowly
            return False
        pixels.tag, pixels.offset, pixels.length = int(tag), start + stream.tell(), count
        return True

    while start < size:
        data = reader(start, length)
        stream = BytesIO(data)
        last: Element | None = None
        try:
            for last in data_element_generator(
                stream,
                *coding,
                at_pixels,
                specific_tags=wanted,  # type: ignore[arg-type]
            ):
                elements[last.tag] = last
        except PARSE_ERRORS:
            if start + len(data) >= size or len(data) >= LONGEST_HEADER:
                break  # cut off or damaged: what stands before says whose it is
            length = min(length * GROWTH, LONGEST_HEADER)
            continue
        if pixels.tag:
            if pixels.length == UNDEFINED or elements.keys() >= DESCRIBED:
                break
            start, length = pixels.offset + pixels.length, PIECE  # pixels before what describes them: go on behind
            continue
        missing = missing_bytes(last)
        if missing and last is not None and start + len(data) + missing > size:
            del elements[last.tag]
            break
        if stream.tell() > len(data):
            start, length = start + stream.tell(), PIECE
        elif start + len(data) >= size or len(data) >= LONGEST_HEADER:
            break
        else:
            length = min(max(length * GROWTH, length + missing), LONGEST_HEADER)
    return elements


def missing_bytes(element: Element | None) -> int:
    """How much of a value lies behind the piece that it was taken from."""
    if not isinstance(element, RawDataElement) or element.length == UNDEFINED:
        return 0
    return element.length - len(element.value or b"")


def inflated(file: BinaryIO, start: int) -> bytes:
    """The data set of a deflated file from its beginning: as much as a header may need, never the whole of a bomb."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    file.seek(start)
    data = bytearray()
    while not stream.eof and len(data) < LONGEST_INFLATED:
        packed = stream.unconsumed_tail or file.read(1 << 18)
        if not packed:
            break
        data += stream.decompress(packed, LONGEST_INFLATED - len(data))
    return bytes(data)
