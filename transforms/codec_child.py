"""The process in which codecs run: a file and frame numbers in, plain voxels out, over two pipes.

Codecs are C and C++ that reads what anybody may have written. Here a fault of theirs ends a process that holds nothing
but one file: it has a bound on memory, one on time, writes no file and leaves no core dump. `codecs.py` starts it,
feeds it and kills it; it ends with its parent, whose end of the pipe closes.

Each request and each reply is a JSON object behind four bytes of length; a reply that names a shape is followed by the
voxels.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import struct
import sys
import warnings
from collections.abc import Generator, Iterator
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
import pydicom
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame, parse_basic_offsets, parse_fragments
from pydicom.pixels import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import UID, RLELossless

LENGTH = struct.Struct("<I")
LONGEST_MESSAGE = 1 << 24
END_OF_STREAM, TRAILING_BYTES = b"\xff\xd9", 64
START_OF_FRAME = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7)
QUOTED = re.compile(r"'([^']*)'")
GRACE_SECONDS = 5  # the parent gives up first, and says so


def serve() -> None:
    """Answer requests until the parent has gone."""
    requests, replies = sealed_off()
    base = address_space()
    while (request := read_message(requests)) is not None:
        bound_memory(base + int(request["memory"]))
        try:
            for array in decoded(request):
                send(replies, {"shape": array.shape, "dtype": array.dtype.str}, array)
        except Exception as error:  # whatever a parser or codec raises is one refused frame
            send(replies, in_words(error))


def in_words(error: Exception) -> dict[str, str]:
    """The reply of a frame that a parser or codec refused."""
    if isinstance(error, MemoryError):
        return {"error": "more memory than its size explains was asked for", "kind": "memory"}
    text = without_values(" ".join(str(error).split()))[:200] or type(error).__name__
    return {"error": text, "kind": "unsupported" if isinstance(error, NotImplementedError) else "damaged"}


def without_values(text: str) -> str:
    """What a library says, less the values of the header that it quotes: names of attributes and numbers stay."""
    names = {entry[2] for entry in DicomDictionary.values()}

    def shown(found: re.Match[str]) -> str:
        return found[0] if found[1] in names or found[1].replace(".", "").isdecimal() else "'...'"

    return QUOTED.sub(shown, text)


def sealed_off() -> tuple[BinaryIO, BinaryIO]:
    """Take the two pipes out of reach of what codecs print, and give up what is not needed to decode."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, in the midst of a codec too
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    return requests, replies


def address_space() -> int:
    """Bytes of addresses in use now (0 where the system does not say: then there is no bound)."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def bound_memory(limit: int) -> None:
    """Let allocations beyond this many bytes of addresses fail."""
    if sys.platform == "linux":
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def read_message(file: BinaryIO) -> dict[str, Any] | None:
    """The next message; None at the end of the stream."""
    head = file.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    return dict(json.loads(file.read(LENGTH.unpack(head)[0])))


def send(file: BinaryIO, message: dict[str, Any], array: np.ndarray | None = None) -> None:
    """One message, and the voxels that it announces."""
    data = json.dumps(message).encode()
    write_all(file, LENGTH.pack(len(data)) + data)
    if array is not None and array.size:
        write_all(file, np.ascontiguousarray(array).data.cast("B"))


def write_all(file: BinaryIO, data: bytes | memoryview) -> None:
    """Write to a pipe, which takes a part at a time."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def decoded(request: dict[str, Any]) -> Iterator[np.ndarray]:
    """The frames that a request wants, one after the other; the process ends where one takes too long."""
    seconds = int(request["seconds"]) + GRACE_SECONDS
    signal.alarm(seconds)
    try:
        for found in frames_of(request):
            signal.alarm(0)
            yield found
            signal.alarm(seconds)
    finally:
        signal.alarm(0)


def frames_of(request: dict[str, Any]) -> Generator[np.ndarray, None, None]:
    """The frames that a request wants, one after the other, without a bound on time."""
    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(request["path"], force=request["bare"])
        syntax = UID(request["syntax"])
        if "TransferSyntaxUID" not in dataset.file_meta:
            dataset.file_meta.TransferSyntaxUID = syntax
        syntax = dataset.file_meta.TransferSyntaxUID
        decoder = get_decoder(syntax)
        if syntax.is_encapsulated:
            note_offsets(dataset)
            check_streams(dataset, request["frames"])
        frames = decoder.iter_array(dataset, indices=request["frames"], raw=not request["colour"])
        for array, _ in frames:
            yield coloured(array, dataset) if request["colour"] else array


def note_offsets(dataset: Dataset) -> None:
    """Say where each frame begins where the file does not: else each is looked for from the first fragment on."""
    count = int(dataset.get("NumberOfFrames") or 1)
    buffer = BytesIO(dataset.PixelData)
    if count == 1 or "ExtendedOffsetTable" in dataset or parse_basic_offsets(buffer):
        return
    first = buffer.tell()
    fragments, offsets = parse_fragments(buffer)
    if fragments == count:
        lengths = [struct.unpack_from("<I", dataset.PixelData, offset + 4)[0] for offset in offsets]
        dataset.ExtendedOffsetTable = struct.pack(f"<{count}Q", *(offset - first for offset in offsets))
        dataset.ExtendedOffsetTableLengths = struct.pack(f"<{count}Q", *lengths)


def check_streams(dataset: Dataset, frames: list[int]) -> None:
    """Hold each codestream against the header before a codec sees it: its own size, and that it has an end.

    Codecs take a stream that was cut off, and give what they found as if it were all.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    count = int(dataset.get("NumberOfFrames") or 1)
    tables = [dataset.get(name) for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    places = None if None in tables else tuple(tables)
    for number in frames:
        stream = get_frame(dataset.PixelData, number, number_of_frames=count, extended_offsets=places)
        if syntax == RLELossless:
            continue
        size = stream_size(stream)
        if size not in (None, (dataset.Rows, dataset.Columns)):
            raise ValueError(f"its codestream says {size}, the header ({dataset.Rows}, {dataset.Columns})")
        if END_OF_STREAM not in stream[-TRAILING_BYTES:]:
            raise ValueError("its codestream has no end: it is cut off")


def stream_size(stream: bytes) -> tuple[int, int] | None:
    """Rows and columns as a JPEG, JPEG-LS or JPEG 2000 codestream says them; None where it is not found."""
    if stream[:4] == b"\xff\x4f\xff\x51":
        columns, rows, left, top = struct.unpack(">4I", stream[8:24])
        return rows - top, columns - left
    at = 2 if stream[:2] == b"\xff\xd8" else len(stream)
    while at + 9 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker in START_OF_FRAME:
            rows, columns = struct.unpack(">2H", stream[at + 5 : at + 9])
            return (rows, columns) if rows else None
        else:
            at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return None


def coloured(array: np.ndarray, dataset: Dataset) -> np.ndarray:
    """A frame as red, green and blue; a palette of 16 bits is cut to its upper 8."""
    if dataset.PhotometricInterpretation != "PALETTE COLOR":
        return array
    array = np.asarray(apply_color_lut(array, dataset))
    return (
        (array >> 8).astype(np.uint8) if array.dtype == np.uint16 and deep_palette(dataset) else array.astype(np.uint8)
    )


def deep_palette(dataset: Dataset) -> bool:
    """Whether a palette that claims 16 bits uses them: some hold 8-bit colours."""
    entries, first, _ = dataset.RedPaletteColorLookupTableDescriptor
    ramp = np.arange(first, first + (entries or 65536)).clip(0, 65535).astype(np.uint16)
    return bool(np.asarray(apply_color_lut(ramp, dataset)).max() > 255)
