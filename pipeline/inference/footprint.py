"""What prediction takes, measured: the process as it is, and a batch of windows.

Linux keeps the peak of a process' resident size and lets the process reset it, so that the peak of one call is known
to the page. Elsewhere the traced size of the activations stands in for it.
"""

from __future__ import annotations

import ctypes
import gc
import platform
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from ...networks.registry import build_network
from .scorer import NetworkScorer, Scorer

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
CONTEXT_BYTES = 700 * 10**6  # of a GPU that CUDA, its libraries and their kernels take, whatever is computed


def resident() -> int:
    """Bytes of memory that this process and its children hold; shared pages are counted in each."""
    process = psutil.Process()
    total = int(process.memory_info().rss)
    for child in process.children(recursive=True):
        with suppress(psutil.Error):  # gone meanwhile
            total += int(child.memory_info().rss)
    return total


def give_back() -> None:
    """Hand freed memory back to the system, where the C library is glibc."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def peak_of(call: Callable[[], object]) -> int | None:
    """By how many bytes the resident size of this process rises at most while something is done; None where the system
    does not say."""
    give_back()
    try:
        RESET.write_text("5")
        before = _status("VmRSS")
        call()
        return max(0, _status("VmHWM") - before)
    except (OSError, StopIteration):
        return None


def window_bytes(scorer: Scorer, size: Sequence[int], batch: int) -> tuple[int, int]:
    """What a batch of windows takes while a scorer works on it, with what it gives: of the RAM, and of its GPU.

    The windows are run twice: what libraries load at first, and what an engine then holds for good, is held by the
    process and not counted. They are noise, on which an engine is checked.

    Args:
        scorer: of the windows.
        size: (C, *patch) of one.
        batch: windows at a time.
    """
    draw = torch.Generator().manual_seed(0)

    @torch.inference_mode()
    def run() -> None:
        scorer(torch.randn(batch, *size, generator=draw))
        if scorer.device.type == "cuda":
            torch.cuda.synchronize(scorer.device)

    run()
    if scorer.device.type != "cuda":
        ram = peak_of(run)
        return (_traced(scorer, size) * batch if ram is None else ram), 0
    torch.cuda.reset_peak_memory_stats(scorer.device)
    before = int(torch.cuda.memory_allocated(scorer.device))
    ram = peak_of(run)
    return ram or 0, int(torch.cuda.max_memory_allocated(scorer.device)) - before


def print_idle() -> None:
    """Print what this process takes once it is ready to predict with a small network."""
    scorer = NetworkScorer([build_network("unet", 3, 1, 2, widths=(4, 8)).eval()])
    window_bytes(scorer, (1, 32, 32, 32), 1)
    give_back()
    print(resident())


def _status(name: str) -> int:
    lines = STATUS.read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) * 1024


def _traced(scorer: Scorer, size: Sequence[int]) -> int:
    """The activations of one window, traced, and as much again for what kernels take."""
    networks = getattr(scorer, "networks", ())
    return max((2 * int(one.activation_bytes(size[1:])) for one in networks), default=0)
