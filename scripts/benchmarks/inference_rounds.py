"""Ways to do one thing, each in a process of its own, timed in turn round after round; peaks of memory beside.

A process of its own gives each way the C library's heap as it is shipped, or as `voxelwise predict` sets it. The order
of the ways turns with the round; the first call of each gives its labels and is not counted.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

Call = Callable[[], Any]
KEPT = " (kept heap)"


@dataclass
class Result:
    """What was measured of one way.

    Args:
        seconds: of each round.
        busy: seconds of processor time of each round.
        peak: bytes above the inputs.
        labels: that it gave.
        missing: why it could not be run.
    """

    seconds: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    peak: int | None = None
    labels: np.ndarray | None = None
    missing: str = ""


def race(
    module: str, goal: str, classes: int, ways: Sequence[str], *, rounds: int, threads: int, once: Sequence[str] = ()
) -> dict[str, Result]:
    """Time ways.

    Args:
        module: that holds `build(goal, classes, way)`, which makes the call.
        goal: what is measured.
        classes: of the scores.
        ways: their names; with `KEPT` behind, freed memory is kept.
        rounds: that count; 0: peaks and labels alone.
        threads: of torch.
        once: ways of which labels alone are taken.
    """
    context = multiprocessing.get_context("spawn")
    results = {way: Result() for way in ways}
    lines: dict[str, tuple[Connection, Any]] = {}
    os.environ["OMP_NUM_THREADS"] = str(threads)
    for way in ways:
        ours, theirs = context.Pipe()
        worker = context.Process(target=_work, args=(theirs, module, goal, classes, way, threads), daemon=True)
        worker.start()
        theirs.close()
        results[way].missing = _ask(ours, None)
        if not results[way].missing:
            lines[way] = (ours, worker)
    for way, (line, _) in list(lines.items()):
        answer = _ask(line, "labels")
        if isinstance(answer, str):
            results[way].missing = answer
            del lines[way]
        else:
            results[way].labels = answer
    names = [way for way in lines if way not in once]
    for number in range(rounds):
        turn = number % max(1, len(names))
        for way in names[turn:] + names[:turn]:
            seconds, busy = _ask(lines[way][0], "time")
            results[way].seconds.append(seconds)
            results[way].busy.append(busy)
    for way, (line, worker) in lines.items():
        results[way].peak = None if way in once else _ask(line, "peak")
        line.send("end")
        worker.join(20)
    return results


def _ask(line: Connection, command: str | None) -> Any:
    """The answer to a command; a worker that died says so."""
    try:
        if command is not None:
            line.send(command)
        return line.recv()
    except EOFError:
        if command is None:
            return "its process died"
        raise RuntimeError("a process died in the middle; is there enough memory?") from None


def _work(line: Connection, module: str, goal: str, classes: int, way: str, threads: int) -> None:
    """Make one call, and do it whenever it is asked for."""
    import torch
    from voxelwise.pipeline.devices import keep_heap
    from voxelwise.pipeline.inference.footprint import peak_of

    torch.set_num_threads(threads)
    if way.endswith(KEPT):
        keep_heap()
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            call: Call = importlib.import_module(module).build(goal, classes, way.removesuffix(KEPT))
    except (ImportError, RuntimeError) as error:
        line.send(f"{error}")
        return
    line.send("")
    while (command := line.recv()) != "end":
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), torch.inference_mode():
            if command == "time":
                started, busy = time.perf_counter(), time.process_time()
                call()
                line.send((time.perf_counter() - started, time.process_time() - busy))
            elif command == "peak":
                line.send(peak_of(call))
            else:
                try:
                    line.send(np.asarray(call()))
                except Exception as error:  # of a peer's or an engine's kind; the other ways go on
                    line.send(f"{type(error).__name__}: {error}"[:300])
                    return


def ratio(mine: Sequence[float], others: Sequence[float], less: Sequence[float] = ()) -> tuple[float, float, float]:
    """Median, smallest and largest of the rounds' ratios; what is not the peer's own work is taken off."""
    taken_off = less or [0.0] * len(others)
    each = [one / (other - off) for one, other, off in zip(mine, others, taken_off, strict=True)]
    return statistics.median(each), min(each), max(each)


def show(results: dict[str, Result], reference: np.ndarray | None) -> None:
    """Print what was measured."""
    print(f"  {'':36} {'seconds, median (range)':>28} {'processor s':>11} {'peak MB':>8}  equal labels")
    for way, result in results.items():
        if result.missing:
            print(f"  {way:36} not measured: {result.missing}")
            continue
        timed = "-"
        if result.seconds:
            least, most = min(result.seconds), max(result.seconds)
            timed = f"{statistics.median(result.seconds):.3f} ({least:.3f} to {most:.3f})"
        busy = f"{statistics.median(result.busy):.3f}" if result.busy else "-"
        peak = "-" if result.peak is None else f"{result.peak / 1e6:.0f}"
        share = equal(result.labels, reference)
        print(f"  {way:36} {timed:>28} {busy:>11} {peak:>8}  {'-' if share is None else f'{share:.6f}'}")


def equal(labels: np.ndarray | None, reference: np.ndarray | None) -> float | None:
    """Share of voxels with equal labels."""
    if labels is None or reference is None or labels.shape != reference.shape:
        return None
    return float((labels == reference).mean())


def verdict(name: str, value: float, done: float, aim: float, spread: str = "") -> bool:
    """Print one figure beside its goal; whether it is reached."""
    word = "AIM" if value <= aim else "done" if value <= done else "MISSED"
    print(f"    {name:44} {value:6.3f} {spread:>18}   done <= {done:g}, aim <= {aim:g}: {word}")
    return value <= done
