"""Cases over processes of this machine, or over a Dask cluster: what a process is told, and what it does.

Each process loads the model once and keeps it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...errors import NoRoomError
from ...transforms.read_options import DEFAULT, ReadOptions
from ..devices import keep_heap, resolve_device
from ..scale_out import each, own_place
from .budget import UNLIMITED, Limits, rounded_up
from .cases import Done, Steps, Task
from .footprint import resident
from .loading import load_predictor

PRELOAD = f"{__package__}.preload"


@dataclass(frozen=True)
class Recipe:
    """All that a process needs to do cases as every other one does them.

    Args:
        model: the folder.
        options: of `load_predictor`, less the device and the limits.
        devices: one for each process in turn; "auto" where each finds its own.
        limits: of one process.
        workers: processes on this machine.
        waiting: bytes that the process that waits takes, and what belongs to it.
        share: processes on one GPU.
        threads: of the arithmetic of one process; None for as many as Dask gives it.
        reading: how sources are read.
        fill_nan: whether holes are filled.
    """

    model: Path
    options: Mapping[str, Any]
    devices: tuple[str, ...] = ("auto",)
    limits: Limits = UNLIMITED
    workers: int = 1
    waiting: int = 0
    share: int = 1
    threads: int | None = None
    reading: ReadOptions = DEFAULT
    fill_nan: str | None = None


@dataclass(frozen=True)
class Errand:
    """A case, and how cases are done."""

    recipe: Recipe
    task: Task


def spread(
    recipe: Recipe,
    tasks: Sequence[Task],
    workers: int,
    *,
    scheduler: str | None = None,
    tls_config: Path | str | None = None,
) -> Generator[tuple[Task, Done | Exception], None, None]:
    """Do the cases; each with what came of it, or the error that stopped it, as they come.

    Args:
        recipe: how.
        tasks: the cases.
        workers: processes on this machine.
        scheduler: address of a Dask cluster in the place of these.
        tls_config: for it.
    """
    errands = (Errand(recipe, task) for task in tasks)
    # a GPU must not wait for the disk: one thread of its process reads or writes while the other has the network
    at_once = 2 if recipe.limits.ram is None and any(one.startswith("cuda") for one in recipe.devices) else 1
    results = each(
        do_case,
        errands,
        workers,
        scheduler=scheduler,
        tls_config=tls_config,
        total=len(tasks),
        at_once=at_once,
        preload=PRELOAD,
    )
    with closing(results):
        for errand, result in results:
            yield errand.task, result


def do_case(errand: Errand) -> Done:
    """One case in a process of a cluster, whose threads may have another one at hand: the network is for one at a time,
    two images at most are held, and under a limit of RAM one case waits for the other.
    """
    steps, task = _steps(errand.recipe), errand.task
    with _ONE if errand.recipe.limits.ram is not None else nullcontext():
        with _TWO:
            ready = steps.read(task)
            with _NETWORK:
                result = steps.segment(task, ready)
            del ready
        return steps.write(task, result)


_ONE, _NETWORK, _LOADING = threading.Lock(), threading.Lock(), threading.Lock()
_TWO = threading.BoundedSemaphore(2)
_loaded: dict[str, Steps] = {}


def _steps(recipe: Recipe) -> Steps:
    """The model of a recipe, loaded once a process."""
    key = repr(recipe)
    with _LOADING:
        if key not in _loaded:
            _loaded.clear()
            _loaded[key] = _load(recipe)
        return _loaded[key]


def _load(recipe: Recipe) -> Steps:
    number, given = own_place()
    threads = recipe.threads or (given if given > 1 else None)
    if threads is not None:
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # which the threads that pack and read go by
    keep_heap(recipe.limits.ram is None)
    device = recipe.devices[number % len(recipe.devices)]
    limits = _gpu_shared(recipe.limits, recipe.share, resolve_device(device))
    predictor = load_predictor(recipe.model, **recipe.options, device=device, limits=limits)
    check_share(recipe)
    return Steps(predictor, recipe.reading, recipe.fill_nan)


def check_share(recipe: Recipe) -> None:
    """Refuse a share of RAM that its process oversteps before it has read anything.

    Raises:
        NoRoomError: so it is.
    """
    held, share = resident(), recipe.limits.ram
    if share is not None and held > share:
        least = rounded_up(recipe.waiting + held * recipe.workers)
        raise NoRoomError(
            f"--memory leaves {share / 1e9:.2f} GB for each of {recipe.workers} workers, which takes {held / 1e9:.2f} "
            f"GB with its libraries and the network, before it reads an image; give at least {least} and room for "
            f"{recipe.workers} images, or fewer workers"
        )


def _gpu_shared(limits: Limits, share: int, device: torch.device) -> Limits:
    """Limits of a process that has a GPU together with others: a fair part of it, where nobody named an amount."""
    if share == 1 or limits.gpu is not None or device.type != "cuda":
        return limits
    free, total = torch.cuda.mem_get_info(device)
    return replace(limits, gpu=min(int(free), int(total) // share))
