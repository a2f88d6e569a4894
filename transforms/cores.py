"""How many threads do the work that needs no interpreter: packing, reading, arithmetic on whole planes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
MOST_THREADS = 8
_alone: list[None] = []  # one for each `alone` block that is open


@contextmanager
def alone() -> Iterator[None]:
    """Inside the block this process starts no thread, worker or child of ours."""
    _alone.append(None)
    try:
        yield
    finally:
        _alone.pop()


def is_alone() -> bool:
    """Whether an `alone` block is open."""
    return bool(_alone)


def threads() -> int:
    """The cores that this process may use; OMP_NUM_THREADS at most, which is 1 in the workers of a cluster."""
    if is_alone():
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores, int(told) if told.isdecimal() and int(told) else cores, MOST_THREADS))


def on_all_cores(function: Callable[[Task], Result], tasks: Sequence[Task]) -> list[Result]:
    """The results of independent tasks, in order; the first error ends it."""
    workers = min(threads(), len(tasks))
    if workers <= 1:
        return [function(task) for task in tasks]
    with ThreadPoolExecutor(workers) as pool:
        try:
            return list(pool.map(function, tasks))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
