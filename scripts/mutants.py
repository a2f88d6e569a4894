"""Seeded byte mutations of small sources, judged one by one: `python scripts/mutants.py --count 2000 --seed 1`.

Prints per kind how many mutants are read rightly, noted, refused, silently wrong, and whether one crashed, hung, raised
an exception of no kind of ours or took more than 2 GB; then the silently wrong by name with the reason why nothing
could show them, the refusals per row of the hazard catalogue, and the false alarms. The exit code is 1 where something
could have been shown, 1 % or more of the refusals that no row asks for are false alarms, or a child died.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import mutants

MEMORY = 2 << 30
SECONDS = 60
BATCH = 200  # mutants that one child judges


class HangError(BaseException):
    """A mutant took longer than its time; no `except Exception` on the way may keep it."""


def judged(kind: str, seed: int, numbers: Sequence[int], folder: Path) -> Iterator[mutants.Verdict]:
    """Verdicts of a list of mutants, from forked children with a limit on memory and time; a dead one is a crash."""
    left = list(numbers)
    while left:
        batch = left[:BATCH]
        done = 0
        for verdict in of_child(kind, seed, batch, folder):
            yield verdict
            done += 1
        if done < len(batch):
            yield mutants.Verdict(f"{kind}-{batch[done]}", "crash", "the process that read it died")
            done += 1
        left = left[done:]


def of_child(kind: str, seed: int, numbers: Sequence[int], folder: Path) -> Iterator[mutants.Verdict]:
    """Verdicts as a child writes them, line by line."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code = 1
        try:
            with os.fdopen(writing, "w") as pipe:
                work(kind, seed, numbers, folder, pipe)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        for line in pipe:
            fields = json.loads(line)
            yield mutants.Verdict(**{**fields, "rows": tuple(fields["rows"])})
    os.waitpid(child, 0)


def work(kind: str, seed: int, numbers: Sequence[int], folder: Path, pipe: Any) -> None:
    """What a child does."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise HangError

    with tempfile.TemporaryDirectory(dir=folder) as place:
        bench = mutants.Bench(Path(place))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        signal.signal(signal.SIGALRM, stop)
        for number in numbers:
            signal.alarm(SECONDS)
            try:
                verdict = bench.judge(kind, seed, number)
            except HangError:
                verdict = mutants.Verdict(f"{kind}-{number}", "hang", f"no end after {SECONDS} s")
            except MemoryError:
                verdict = mutants.Verdict(f"{kind}-{number}", "memory", "more than 2 GB")
            signal.alarm(0)
            pipe.write(json.dumps(asdict(verdict)) + "\n")
            pipe.flush()


def report(kind: str, verdicts: Sequence[mutants.Verdict], seconds: float) -> bool:
    """Print what came of one kind; whether it is as it has to be."""
    words = Counter(verdict.word for verdict in verdicts)
    wrong_noted = sum(verdict.said.startswith("wrong") for verdict in verdicts)
    table = ", ".join(f"{word} {words[word]}" for word in mutants.VERDICTS)
    print(f"{kind}: {table} ({wrong_noted} of the noted are wrong and said so; {seconds:.0f} s)")
    for verdict in verdicts:
        if verdict.word in ("traceback", "memory", "hang", "crash"):
            print(f"  {verdict.word.upper()} {verdict.name}: {verdict.what}: {verdict.said}")
    for reason in sorted({verdict.once for verdict in verdicts if verdict.word == "silently wrong"}):
        alike = [one for one in verdicts if one.word == "silently wrong" and one.once == reason]
        print(f"  silently wrong, {len(alike)}: {mutants.ONLY_COPY.get(reason, 'COULD BE SHOWN')}")
        for verdict in alike:
            print(f"    {verdict.name}: {verdict.what}")
    refused = [verdict for verdict in verdicts if verdict.word == "refused"]
    rows = Counter(" or ".join(verdict.rows) for verdict in refused if verdict.rows)
    print(f"  refused by row: {', '.join(f'{row} {count}' for row, count in sorted(rows.items())) or 'none'}")
    right = sum(not verdict.rows for verdict in verdicts)
    false = [verdict for verdict in refused if verdict.false_alarm]
    print(f"  false alarms: {len(false)} of {right} that no row tells to stop")
    for verdict in false:
        print(f"    {verdict.name}: {verdict.what}: {verdict.said}")
    unexplained = any(mutants.unexplained(verdict) for verdict in verdicts)
    died = any(words[word] for word in ("traceback", "memory", "hang", "crash"))
    return not unexplained and not died and len(false) < 0.01 * max(right, 1) + (right < 100)


def main() -> int:
    """Judge all kinds, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kinds", nargs="*", default=mutants.KINDS, help=f"of {', '.join(mutants.KINDS)}")
    parser.add_argument("--count", type=int, default=2000, help="mutants of each kind")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory() as folder:
        for kind in chosen.kinds:
            started = time.monotonic()
            verdicts = list(judged(kind, chosen.seed, range(chosen.count), Path(folder)))
            good &= report(kind, verdicts, time.monotonic() - started)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
