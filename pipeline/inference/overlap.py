"""Cases one after the other in this process, with reading and writing beside the network.

While the network works on a case, a thread reads and prepares the next one and another writes the label map of the
last, so that the network waits for neither. Two images at most are held: this one and the next. Under a limit of memory
the next one is read beside the network only where the plan of this one leaves room for it, and the last label map is on
the disk before the next plan is made.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Generic, TypeVar

from .budget import Plan
from .cases import Done, Ready, Steps, Task

Value = TypeVar("Value")


class Step(Generic[Value]):
    """A call that is made once: in a thread after `begin`, else when its result is wanted."""

    def __init__(self, call: Callable[[], Value]) -> None:
        self._call: Callable[[], Value] | None = call
        self._future: Future[Value] | None = None

    def begin(self, pool: ThreadPoolExecutor | None, instead: Callable[[], Value] | None = None) -> None:
        """Start it, or another call in its place, where there is a pool."""
        if pool is not None and self._call is not None:
            self._future, self._call = pool.submit(instead or self._call), None

    def wait(self) -> None:
        """Until a call that was begun has come to its end, well or not."""
        if self._future is not None:
            self._future.exception()

    def result(self) -> Value:
        """What it gives, once; it is not kept."""
        future, call, self._future, self._call = self._future, self._call, None, None
        if future is not None:
            return future.result()
        if call is None:
            raise ValueError("the result of a step is taken once")
        return call()


def in_turn(
    steps: Steps, tasks: Sequence[Task], *, threads: bool = True
) -> Generator[tuple[Task, Done | Exception], None, None]:
    """Do the cases; each with what came of it, or the error that stopped it, in their order.

    Args:
        steps: of a case.
        tasks: the cases.
        threads: read and write beside the network; else each step waits for the one before.
    """
    limit = steps.predictor.limits.ram
    with ExitStack() as stack:
        pools = [stack.enter_context(ThreadPoolExecutor(1)) if threads else None for _ in range(2)]
        reader, writer = pools
        reading = [Step(partial(steps.read, task)) for task in tasks]
        last: tuple[Task, Step[Done]] | None = None
        for number, task in enumerate(tasks):
            following = reading[number + 1] if number + 1 < len(tasks) else None
            reading[number].wait()
            if limit is None and following is not None:
                following.begin(reader)
            if limit is not None and last is not None:
                yield _settled(*last)
                last = None
            on_plan = None
            if limit is not None and following is not None:
                on_plan = partial(_begin_if_room, steps, tasks[number + 1], following, reader, limit)
            try:
                writing = _segmented(steps, task, reading[number], on_plan)
            except Exception as error:
                if last is not None:
                    yield _settled(*last)
                    last = None
                yield task, error
                continue
            if last is not None:
                yield _settled(*last)
            writing.begin(writer)
            last = task, writing
            if not threads:
                yield _settled(*last)
                last = None
        if last is not None:
            yield _settled(*last)


def _segmented(steps: Steps, task: Task, reading: Step[Ready], on_plan: Callable[[Plan], None] | None) -> Step[Done]:
    """A case up to its label map, and the step that writes it; its image is held by nobody afterwards."""
    return Step(partial(steps.write, task, steps.segment(task, reading.result(), on_plan)))


def _settled(task: Task, writing: Step[Done]) -> tuple[Task, Done | Exception]:
    try:
        return task, writing.result()
    except Exception as error:
        return task, error


def _begin_if_room(
    steps: Steps, task: Task, reading: Step[Ready], pool: ThreadPoolExecutor | None, limit: int, plan: Plan
) -> None:
    """Read a case beside the network where the plan of another one leaves room for that."""
    try:
        needed = steps.reading_bytes(task)
    except Exception:  # it is refused when its turn comes
        return
    if sum(plan.ram.values()) + needed <= limit:
        reading.begin(pool, partial(steps.read, task, planned=True))
