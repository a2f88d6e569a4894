"""Many independent cases over the processes of this machine; one worker is the process itself.

A worker that dies (killed, a codec that crashed) costs the case that it had at hand and no other: what was in flight is
tried again one by one, so that the case can be named.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from ..errors import CaseError

Task = TypeVar("Task")
Result = TypeVar("Result")


def each(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int | None = 1
) -> Iterator[tuple[Task, Result | Exception]]:
    """Run `function` on every task; yield each task with its result, or the exception that it raised, as they come.

    Args:
        function: of a module (it is sent to other processes by name).
        tasks: one argument each.
        workers: processes; 1 or None computes here.
    """
    if workers is None or workers <= 1 or len(tasks) <= 1:
        for task in tasks:
            yield task, _attempt(function, task)
        return
    waiting = list(reversed(tasks))
    while waiting:
        suspects: list[Task] = []
        with _pool(min(workers, len(waiting))) as pool:
            flying: dict[Future[Any], Task] = {}
            while (waiting or flying) and not suspects:
                while waiting and len(flying) < 2 * workers:
                    task = waiting.pop()
                    flying[pool.submit(_attempt, function, task)] = task
                ready, _ = wait(flying, return_when=FIRST_COMPLETED)
                for future in ready:
                    task = flying.pop(future)
                    try:
                        yield task, future.result()
                    except BrokenProcessPool:
                        suspects.append(task)
            suspects += flying.values()
        for task in suspects:
            yield task, _alone(function, task)


def _attempt(function: Callable[[Task], Result], task: Task) -> Result | Exception:
    try:
        return function(task)
    except Exception as error:
        return error


def _alone(function: Callable[[Task], Result], task: Task) -> Result | Exception:
    with _pool(1) as pool:
        try:
            return pool.submit(_attempt, function, task).result()
        except BrokenProcessPool:
            return CaseError(
                "the process that worked on it died (a codec that crashed, or killed for its memory); "
                "try it alone with --workers 1, or leave it out",
                "worker-died",
            )


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
