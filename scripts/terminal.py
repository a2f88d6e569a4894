"""What the command line says, and where: results on standard output, everything else on standard error.

A stage logs; `Terminal` shows its records. A record such as `log.info("scored %d of %d: %s", ...)` is progress: a bar
on a terminal, now and then a line elsewhere. Each stopped case is one line, as it happens or in the summary.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..pipeline.text import printable

if TYPE_CHECKING:
    from ..pipeline.outcome import Outcome

PROGRESS = "%d of %d"
SECONDS_BETWEEN_LINES = 2.0


class Terminal(logging.Handler):
    """Shows log records on standard error.

    Args:
        quiet: warnings and errors only.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__(logging.WARNING if quiet else logging.INFO)
        self.shown: set[str] = set()
        self.bar: Any = None
        self.task: tuple[str, Any] = ("", None)
        self.last_line = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record."""
        text = one_line(record.getMessage())
        if record.levelno >= logging.WARNING:
            self.shown.add(text)
            self.line(f"voxelwise: {text}")
        elif PROGRESS in str(record.msg) and isinstance(record.args, tuple) and len(record.args) >= 2:
            self.progress(str(record.msg).split(PROGRESS)[0].strip(), text, *record.args[:2])
        else:
            self.line(text)

    def progress(self, what: str, text: str, done: Any, total: Any) -> None:
        """`done` of `total` are done."""
        if not sys.stderr.isatty():
            now = time.monotonic()
            if done == total or now - self.last_line > SECONDS_BETWEEN_LINES:
                self.last_line = now
                self.line(text)
            return
        if self.bar is None:
            from rich.console import Console
            from rich.progress import Progress

            self.bar = Progress(console=Console(stderr=True), transient=True)
            self.bar.start()
        if self.task[0] != what:
            if self.task[1] is not None:
                self.bar.remove_task(self.task[1])
            self.task = (what, self.bar.add_task(what))
        self.bar.update(self.task[1], completed=done, total=total)

    def line(self, text: str) -> None:
        """One line, above the bar if there is one."""
        if self.bar is not None:
            self.bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.stop()
            self.bar, self.task = None, ("", None)
        super().close()


def listen(*, quiet: bool, debug: bool) -> Terminal:
    """Show our own log records; the warnings of libraries stay out (they flood, and may quote headers)."""
    terminal = Terminal(quiet=quiet)
    ours = logging.getLogger(__package__.partition(".")[0])
    for old in [handler for handler in ours.handlers if isinstance(handler, Terminal)]:
        ours.removeHandler(old)
    ours.addHandler(terminal)
    ours.setLevel(logging.INFO)
    ours.propagate = False
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(logging.NullHandler())
    if not debug:
        warnings.simplefilter("ignore")
    return terminal


def shown_already(text: str) -> bool:
    """Whether a log record that holds this text was shown."""
    ours = logging.getLogger(__package__.partition(".")[0])
    return any(text in seen for one in ours.handlers if isinstance(one, Terminal) for seen in one.shown)


def finish(command: str, outcome: Outcome, *, as_json: bool, quiet: bool = False, next_step: str = "") -> int:
    """Say what a stage did, and return the exit code.

    Args:
        command: the verb.
        outcome: what it did.
        as_json: one document on standard output.
        quiet: no summary where all went well.
        next_step: a line on what to do now.
    """
    counts = outcome.counts
    for failure in outcome.failures:
        text = one_line(failure.message)
        if not shown_already(text):
            complain(f"{failure.case}: {text}")
    noted = sum(len(entries) for entries in outcome.notes.values())
    if not quiet or outcome.exit_code:
        line = f"{command}: {counts['in']} in = {counts['done']} done + {counts['stopped']} stopped"
        line += f" + {counts['skipped']} skipped"
        line += f"; {noted} repairs and notes" if noted else ""
        listed = outcome.facts.get("listed")
        line += f"; {listed} found that are no volumes" if isinstance(listed, int) and listed else ""
        print(f"{line} -> {one_line(str(outcome.out))}", file=sys.stderr)
        for code, cases in sorted(noted_cases(outcome).items()):
            print(f"  {code}: {cases} case{'s' if cases > 1 else ''}", file=sys.stderr)
        if next_step and outcome.exit_code in (0, 3):
            print(next_step, file=sys.stderr)
    if as_json:
        notes = {case: [vars(entry) for entry in entries] for case, entries in outcome.notes.items()}
        document(
            {
                "command": command,
                "exit_code": outcome.exit_code,
                "out": str(outcome.out),
                "counts": counts,
                "done": list(outcome.done),
                "skipped": list(outcome.skipped),
                "failures": [vars(failure) for failure in outcome.failures],
                "notes": notes,
                "facts": dict(outcome.facts),
            }
        )
    return outcome.exit_code


def noted_cases(outcome: Outcome) -> dict[str, int]:
    """How many cases have a repair or note of each code, so that no flood hides the one that matters."""
    return Counter(code for entries in outcome.notes.values() for code in {entry.code for entry in entries})


def complain(text: str) -> None:
    """One line on standard error."""
    print(f"voxelwise: {one_line(text)}", file=sys.stderr, flush=True)


def document(contents: Mapping[str, Any] | Sequence[Any]) -> None:
    """The one JSON document of standard output."""
    print(json.dumps(contents, indent=1, default=str))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Columns of text, as wide as they need to be."""
    cells = [[str(column) for column in columns], *([one_line(str(value)) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def short(value: object, width: int = 60) -> str:
    """A value as a cell of a table: nothing for None, its beginning where it is long."""
    text = "" if value is None else str(value)
    return text if len(text) <= width else f"{text[: width - 3]}..."


def one_line(text: str) -> str:
    """Line breaks become spaces, other control characters and bytes that are no text are escaped."""
    return printable(" ".join(part.strip() for part in text.splitlines() if part.strip()))
