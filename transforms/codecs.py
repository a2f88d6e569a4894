"""Compressed and deflated pixels, decoded in a child process: a codec that crashes or hangs costs one case.

One child a process, started when the first compressed frame is wanted and kept for the next series; after a crash or a
time-out the next request starts another. It is a plain subprocess, which the daemons of a cluster may have too. What
can be known without it is decided here: that no codec is installed, and that a size is not to be believed.

Who wants no other process (`cores.alone`) has the codecs in this one, without a bound on time or memory: one that
crashes or hangs takes the run with it.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from ..errors import CaseError
from .codec_child import LENGTH, LONGEST_MESSAGE, frames_of, in_words
from .cores import is_alone
from .dicom import DEFLATED, NATIVE, Slice

SECONDS_A_FRAME = 60.0
SLACK_BYTES = 256 << 20  # what libraries take beside the frame
FRAMES_IN_MEMORY = 8  # copies of a frame that a codec may make
LARGEST_FRAME = 1 << 30
FREE_BYTES = 64 << 20
AHEAD, AHEAD_BYTES = 4, 1 << 14  # requests that wait at the child, so that it never waits; less than a pipe holds
LARGEST_RATIO = {  # of decoded to compressed bytes
    DEFLATED: 1100,
    "1.2.840.10008.1.2.5": 70,  # RLE: 128 bytes from 2
    "1.2.840.10008.1.2.4.50": 400,  # JPEG: a block of 64 samples takes 2 bits
    "1.2.840.10008.1.2.4.51": 400,
    "1.2.840.10008.1.2.4.57": 40,  # lossless JPEG: a sample takes 1 bit
    "1.2.840.10008.1.2.4.70": 40,
}
OTHER_RATIO = 20000  # JPEG-LS and JPEG 2000 know no bound: even black 512 x 512 slices stay below
BOOT = "import sys; sys.path[:] = sys.argv[2:]; from importlib import import_module; import_module(sys.argv[1]).serve()"
CHILD_MODULE = f"{__package__}.codec_child"


class UndecodableError(CaseError):
    """A frame that the child answered with words."""


@dataclass(frozen=True)
class Request:
    """Frames of one file; the first slice stands for all."""

    slices: tuple[Slice, ...]
    colour: bool

    @property
    def frame_bytes(self) -> int:
        """Decoded size of one frame."""
        one = self.slices[0]
        rows, columns = (one.rows, one.columns) if one.tile is None else one.tile[2:]
        return rows * columns * one.samples * max(1, one.bits_allocated // 8)

    def message(self, seconds: float) -> dict[str, Any]:
        """What the child is asked."""
        one = self.slices[0]
        whole = self.frame_bytes * one.frames if one.transfer_syntax == DEFLATED else 0
        return {
            "path": os.path.abspath(one.path),
            "bare": one.bare,
            "syntax": one.transfer_syntax,
            "frames": [each.frame or 0 for each in self.slices],
            "colour": self.colour,
            "seconds": seconds,
            "memory": SLACK_BYTES + FRAMES_IN_MEMORY * self.frame_bytes + 3 * (one.size + whole),
        }


def decoded_frames(slices: Sequence[Slice], *, colour: bool = False) -> Generator[np.ndarray, None, None]:
    """Stored words of each slice's frame, in order; of mosaics the whole tiled image.

    The child is the caller's until the generator ends or is closed: who may leave half way closes it.

    Args:
        slices: neighbours that lie in one file are asked for together.
        colour: turn YBR and palettes into red, green and blue.

    Raises:
        CaseError: `codec-missing`, `codec` (no such frame can be), `codec-crashed`, `codec-timeout`, `truncated`.
    """
    requests = [Request(tuple(group), colour) for _, group in groupby(slices, key=lambda one: one.path)]
    for request in requests:
        check_codec(request.slices[0])
        check_size(request)
    yield from answers_here(requests) if is_alone() else child().answers(requests)


def answers_here(requests: Sequence[Request]) -> Generator[np.ndarray, None, None]:
    """The frames, decoded in this process."""
    for request in requests:
        with closing(frames_of(request.message(SECONDS_A_FRAME))) as frames:
            for one in request.slices:
                try:
                    array = np.ascontiguousarray(next(frames))
                except Exception as error:  # whatever a parser or codec raises is one refused frame
                    raise refused(one, in_words(error)) from error
                check_frame(one, array.shape, array.dtype)
                yield array


def check_codec(one: Slice) -> None:
    """Refuse what no installed codec reads, and say what to install."""
    syntax = UID(one.transfer_syntax)
    try:
        decoder = get_decoder(syntax)
    except (NotImplementedError, ValueError) as error:
        raise CaseError(
            f"{one.path}: transfer syntax {syntax.name} is not supported. Export it uncompressed", "codec"
        ) from error
    if not decoder.is_available:
        missing = "; ".join(decoder.missing_dependencies)
        raise CaseError(
            f"{one.path}: no codec for transfer syntax {syntax.name} is installed. Install one of: {missing}",
            "codec-missing",
        )


def check_size(request: Request) -> None:
    """Hold the claim of the header against what so many compressed bytes can hold, before any memory is taken."""
    one = request.slices[0]
    claimed, there = request.frame_bytes * one.frames, max(0, one.size - max(0, one.pixel_offset))
    ratio = LARGEST_RATIO.get(one.transfer_syntax, 1 if one.transfer_syntax in NATIVE else OTHER_RATIO)
    if request.frame_bytes > LARGEST_FRAME or claimed > FREE_BYTES + ratio * there:
        raise CaseError(
            f"{one.path}: Rows {one.rows} x Columns {one.columns} x {one.frames} frame(s) claim {claimed} bytes from "
            f"{there} compressed ones; expected at most {ratio} times as many and {LARGEST_FRAME} a frame. "
            "Copy the file again from its source",
            "pixel-length",
        )


class Child:
    """The process that decodes, seen from the one that asks."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._owner = os.getpid()

    @property
    def is_ours(self) -> bool:
        """False in a process that was forked off: the pipes are its parent's."""
        return self._owner == os.getpid()

    def answers(self, requests: Sequence[Request]) -> Generator[np.ndarray, None, None]:
        """Ask for all and give the frames as they come."""
        with self._lock:
            process = self._running()
            asked: deque[int] = deque()  # lengths of the requests whose answers are to come
            whole = False
            try:
                for number, request in enumerate(requests):
                    while number + len(asked) < len(requests) and len(asked) < AHEAD:
                        data = json.dumps(requests[number + len(asked)].message(SECONDS_A_FRAME)).encode()
                        if asked and sum(asked) + len(data) > AHEAD_BYTES:
                            break
                        self._ask(process, LENGTH.pack(len(data)) + data, request.slices[0])
                        asked.append(len(data))
                    for one in request.slices:
                        yield self._answer(process, one)
                    asked.popleft()
                whole = True
            except UndecodableError:
                whole = len(asked) == 1  # nothing else is on its way
                raise
            finally:
                if not whole:  # a fault, or a caller that has gone: what is still in the pipes is nobody's
                    self.stop()

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self.stop()
        if self._process is None:
            single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
            self._process = subprocess.Popen(
                [sys.executable, "-c", BOOT, CHILD_MODULE, *filter(None, sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env={**os.environ, **single, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONSAFEPATH": "1"},
            )
        return self._process

    def _ask(self, process: subprocess.Popen[bytes], data: bytes, one: Slice) -> None:
        left = memoryview(data)
        assert process.stdin is not None
        try:
            while left:
                left = left[os.write(process.stdin.fileno(), left) :]
        except BrokenPipeError:
            raise self._crashed(process, one) from None

    def _answer(self, process: subprocess.Popen[bytes], one: Slice) -> np.ndarray:
        deadline = time.monotonic() + SECONDS_A_FRAME
        head = self._read(process, one, LENGTH.size, deadline)
        size = LENGTH.unpack(head)[0]
        if size > LONGEST_MESSAGE:
            raise self._crashed(process, one)
        reply = json.loads(bytes(self._read(process, one, size, deadline)))
        if "error" in reply:
            raise refused(one, reply)
        shape, dtype = tuple(reply["shape"]), np.dtype(reply["dtype"])
        check_frame(one, shape, dtype)
        array = np.empty(shape, dtype)
        if array.size:
            self._read_into(process, one, array.data.cast("B"), deadline)
        return array

    def _read(self, process: subprocess.Popen[bytes], one: Slice, count: int, deadline: float) -> bytearray:
        data = bytearray(count)
        self._read_into(process, one, memoryview(data), deadline)
        return data

    def _read_into(self, process: subprocess.Popen[bytes], one: Slice, left: memoryview, deadline: float) -> None:
        assert process.stdout is not None
        number, ready = process.stdout.fileno(), select.poll()
        ready.register(number, select.POLLIN)
        while left:
            if not ready.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise CaseError(
                    f"{one.path}: PixelData was not decoded within {SECONDS_A_FRAME:g} s a frame; the codec was "
                    "stopped. Copy the file again, or export it uncompressed",
                    "codec-timeout",
                )
            count = os.readv(number, [left])
            if count == 0:
                raise self._crashed(process, one)
            left = left[count:]

    def _crashed(self, process: subprocess.Popen[bytes], one: Slice) -> CaseError:
        try:
            code: int | str = process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = "unknown"
        return CaseError(
            f"{one.path}: the codec for {UID(one.transfer_syntax).name} crashed on PixelData (exit {code}); expected "
            "voxels. Copy the file again, or export it uncompressed",
            "codec-crashed",
        )


def check_frame(one: Slice, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Refuse a frame of another shape than its header's, or of no numbers."""
    wanted = expected_shapes(one)
    if shape not in wanted or dtype.kind not in "iuf":
        raise CaseError(f"{one.path}: the codec gave {shape}, expected {wanted[-1]}. Export it again", "codec")


def expected_shapes(one: Slice) -> tuple[tuple[int, ...], ...]:
    """Shapes that a frame may have: grey, or colours last."""
    size = (one.rows, one.columns) if one.tile is None else one.tile[2:]
    return ((*size, 3),) if one.samples > 1 else ((*size, 3), size)


def refused(one: Slice, reply: dict[str, Any]) -> CaseError:
    """What the child said, in our words."""
    name = UID(one.transfer_syntax).name
    if reply["kind"] == "unsupported":
        return UndecodableError(
            f"{one.path}: PixelData ({name}) is of a kind that no installed codec reads: {reply['error']}. "
            "Export it uncompressed",
            "codec",
        )
    return UndecodableError(
        f"{one.path}: PixelData ({name}) cannot be decoded: {reply['error']}. "
        "Copy the file again, or export it uncompressed",
        "truncated",
    )


def child() -> Child:
    """The child of this very process: one that was forked off starts its own."""
    if not CHILDREN or not CHILDREN[-1].is_ours:
        CHILDREN.append(Child())  # the parent's stays listed, or Python would wait for it
    return CHILDREN[-1]


def stop() -> None:
    """End the child; the next request starts another."""
    if CHILDREN and CHILDREN[-1].is_ours:
        CHILDREN[-1].stop()


CHILDREN: list[Child] = []
atexit.register(stop)
