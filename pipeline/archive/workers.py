"""A stream of small tasks over the processes of this machine, with as many in flight as keep them busy.

Unlike `scale_out.each` it takes tasks as they are found and never holds them all. A worker that dies costs the tasks
that were in flight: they are done again one by one, and the one that kills its worker is named.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
IN_FLIGHT = 3  # tasks a worker


def stream(
    function: Callable[..., Result],
    first: Any,
    tasks: Iterable[Task],
    workers: int,
    died: Callable[[Task], Iterable[Task | Result]],
) -> Iterator[Result]:
    """Run `function(first, *task)` on every task and yield the results as they come.

    Args:
        function: of a module (it is sent to other processes by name).
        first: its first argument.
        tasks: tuples of the others.
        workers: processes; 1 computes here.
        died: what becomes of a task whose worker died: smaller tasks (tuples of arguments) to try, each alone, or a
            result that says so.
    """
    waiting = iter(tasks)
    begun = list(islice(waiting, 2 if workers > 1 else 0))
    if len(begun) < 2:  # one task is done sooner than a process begins
        for task in chain(begun, waiting):
            yield function(first, *task)  # type: ignore[misc]
        return
    waiting = chain(begun, waiting)
    flying: dict[Future[Result], Task] = {}
    pool = _pool(workers)
    try:
        more = True
        while more or flying:
            while more and len(flying) < IN_FLIGHT * workers:
                following = next(waiting, None)
                more = following is not None
                if following is not None:
                    flying[pool.submit(function, first, *following)] = following  # type: ignore[misc]
            ready, _ = wait(flying, return_when=FIRST_COMPLETED)
            suspects = []
            for future in ready:
                task = flying.pop(future)
                try:
                    yield future.result()
                except BrokenProcessPool:
                    suspects.append(task)
            if suspects:
                suspects += flying.values()
                flying = {}
                pool.shutdown(wait=True)
                for task in suspects:
                    yield from _alone(function, first, task, died)
                pool = _pool(workers)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _alone(
    function: Callable[..., Result], first: Any, task: Any, died: Callable[[Any], Iterable[Any]]
) -> Iterator[Any]:
    with _pool(1) as pool:
        try:
            yield pool.submit(function, first, *task).result()
            return
        except BrokenProcessPool:
            pass
    for smaller in died(task):
        if isinstance(smaller, tuple):
            yield from _alone(function, first, smaller, died)
        else:
            yield smaller


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
