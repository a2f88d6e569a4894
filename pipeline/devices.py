"""Where the arithmetic runs and in which precision: device, autocast, threads, the C library's heap."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ..errors import UsageError, unknown

PRECISIONS = ("auto", "float32", "bf16", "fp16")
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str = "auto") -> torch.device:
    """The torch device of `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        UsageError: an unknown word, or a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    if name == "cuda" or name.startswith("cuda:"):
        number = name.partition(":")[2] or "0"
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not number.isdigit() or int(number) >= found:
            raise UsageError(f"--device {name}: this machine has {found} CUDA devices; use --device auto or cpu")
        return torch.device(f"cuda:{int(number)}")
    raise unknown("--device", name, ("auto", "cpu", "cuda:0"))


@lru_cache(maxsize=1)
def has_fast_bf16() -> bool:
    """True where the CPU has bf16 instructions (torch also computes without them, but slower than in float32)."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def resolve_precision(name: str, device: torch.device) -> str:
    """`auto` becomes the fastest precision that trains well: bf16 on a GPU or a CPU that has it, else float32."""
    if name not in PRECISIONS:
        raise unknown("--precision", name, PRECISIONS)
    if name == "fp16" and device.type == "cpu":
        raise UsageError("--precision fp16 needs a GPU; use float32 or bf16 on a CPU")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if has_fast_bf16() else "float32"


@contextlib.contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Autocast in a resolved precision; float32 is float32 in full, also in cuDNN, which torch lets round to TF32."""
    if precision == "float32":
        with full_float32() if device.type == "cuda" else contextlib.nullcontext():
            yield
        return
    with torch.autocast(device.type, dtype=DTYPES[precision]):
        yield


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """No TF32 (10 bits behind the point) inside the block: that of cuDNN is on by default, that of matrices is not."""
    flags: Any = torch.backends.cudnn
    kinds = (flags.conv, flags.rnn)
    before = [kind.fp32_precision for kind in kinds]
    try:
        for kind in kinds:
            kind.fp32_precision = "ieee"
        yield
    finally:
        for kind, word in zip(kinds, before, strict=True):
            kind.fp32_precision = word


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread inside the block: small tensors are done before a second thread has woken up."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def memory_format(spatial_dims: int) -> torch.memory_format:
    """Channels last, which the convolutions of oneDNN and cuDNN take without reordering."""
    return torch.channels_last_3d if spatial_dims == 3 else torch.channels_last


def keep_heap(keep: bool = True) -> bool:
    """Tell glibc to keep freed memory for the next tensor of the same size; returns whether it was done.

    Without it every large tensor is mapped and unmapped again, a page fault per 4 kB. The process keeps its peak
    memory; `keep=False` lets it go as soon as it is freed.
    VOXELWISE_KEEP_HEAP=0 switches it off; other C libraries are left alone.
    """
    if os.environ.get("VOXELWISE_KEEP_HEAP", "1") == "0" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL("libc.so.6")
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    amounts = (2**30, 2**31 - 4097, 2**26) if keep else (2**24, 2**26, 2**20)
    wanted = zip((mmap_threshold, trim_threshold, top_pad), amounts, strict=True)
    return all(libc.mallopt(option, value) == 1 for option, value in wanted)
