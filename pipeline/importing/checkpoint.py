"""Checkpoints of other programs, read in a child process and handed over as safetensors and JSON.

A checkpoint is a pickle, and a pickle is a program. Here it is opened by torch's restricted reader alone, with a list
of plain types, in a process of its own that is bounded in memory and time (`checkpoint_child`); there is no other way
to read one, whatever it holds.
"""

from __future__ import annotations

import json
import math
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from ...errors import NoRoomError, UnsafeInputError, UsageError
from ...transforms.codec_child import LENGTH
from ...transforms.codecs import BOOT

CHILD_MODULE = f"{__package__}.checkpoint_child"
START_SECONDS = 300.0  # the child imports torch, on a machine that may be busy
SECONDS, BYTES_A_SECOND = 60.0, 10e6  # a slow disk
SLACK_BYTES, COPIES = 1 << 30, 4  # what libraries take beside the file, mapped once and copied in parts
LONGEST_REPLY = 1 << 24


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a checkpoint holds.

    Args:
        weights: tensors by name; names of one tensor share it.
        facts: all else that is plain, as JSON has it.
    """

    weights: Mapping[str, Tensor]
    facts: Mapping[str, Any]


class CheckpointReader:
    """The child process that reads checkpoints, from `with` to its end; it is started with the first file."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def read(self, path: Path, keys: Sequence[str] = ("",)) -> Checkpoint:
        """Read one file.

        Args:
            path: of the checkpoint.
            keys: names that the dictionary of its weights may have, the first that is there counts; "" for the file
                being that dictionary.

        Raises:
            UsageError: it is cut off or damaged, or holds no weights by name.
            UnsafeInputError: it holds other types than tensors and plain values; the child died or did not end.
            NoRoomError: more memory was asked for than a file of its size explains.
        """
        try:
            size = path.stat().st_size
            with path.open("rb"):
                pass
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror}); copy the folder again") from error
        seconds = SECONDS + size / BYTES_A_SECOND
        request = {
            "path": os.path.abspath(path),
            "keys": list(keys),
            "seconds": math.ceil(seconds) + 5,
            "memory": SLACK_BYTES + COPIES * size,
        }
        process = self._running()
        deadline = time.monotonic() + START_SECONDS + seconds
        self._ask(process, json.dumps(request).encode(), path)
        reply = json.loads(self._receive(process, self._length(process, path, deadline), path, deadline))
        if "error" in reply:
            raise refused(path, reply)
        if reply["bytes"] > size + LONGEST_REPLY:
            raise self._dead(process, path)
        return opened(path, self._receive(process, reply["bytes"], path, deadline), reply)

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

    def _ask(self, process: subprocess.Popen[bytes], data: bytes, path: Path) -> None:
        assert process.stdin is not None
        left = memoryview(LENGTH.pack(len(data)) + data)
        try:
            while left:
                left = left[os.write(process.stdin.fileno(), left) :]
        except BrokenPipeError:
            raise self._dead(process, path) from None

    def _length(self, process: subprocess.Popen[bytes], path: Path, deadline: float) -> int:
        length = int(LENGTH.unpack(self._receive(process, LENGTH.size, path, deadline))[0])
        if length > LONGEST_REPLY:
            raise self._dead(process, path)
        return length

    def _receive(self, process: subprocess.Popen[bytes], count: int, path: Path, deadline: float) -> bytes:
        assert process.stdout is not None
        number, ready = process.stdout.fileno(), select.poll()
        ready.register(number, select.POLLIN)
        data = bytearray(count)
        left = memoryview(data)
        while left:
            if not ready.poll(max(0.0, deadline - time.monotonic()) * 1000):
                self.stop()
                raise UnsafeInputError(f"{path} was not read in time, and its reader was stopped; get the file again")
            got = os.readv(number, [left])
            if got == 0:
                raise self._dead(process, path)
            left = left[got:]
        return bytes(data)

    def _dead(self, process: subprocess.Popen[bytes], path: Path) -> UnsafeInputError:
        try:
            code: int | str = process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = "unknown"
        self.stop()
        return UnsafeInputError(f"{path}: the process that read it died (exit {code}); get the file again")


def refused(path: Path, reply: Mapping[str, str]) -> UnsafeInputError | UsageError | NoRoomError:
    """What the child said, in our words."""
    if reply["kind"] == "type":
        return UnsafeInputError(
            f"{path} holds {reply['error']}, which is neither a tensor nor a plain value; it was not read. Save the "
            "checkpoint again without it"
        )
    if reply["kind"] == "memory":
        return NoRoomError(f"{path}: reading it takes more memory than there is; close other programs")
    return UsageError(f"{path} cannot be read as a checkpoint: {reply['error']}; get the file again")


def opened(path: Path, data: bytes, reply: Mapping[str, Any]) -> Checkpoint:
    """A reply as tensors and facts."""
    try:
        weights = safetensors.torch.load(data)
    except SafetensorError as error:
        raise UnsafeInputError(f"{path}: its reader gave no weights ({error}); get the file again") from error
    for name, first in reply["aliases"].items():
        weights[name] = weights[first]
    return Checkpoint(weights, reply["facts"])
