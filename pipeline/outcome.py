"""What a stage over many cases comes to: the cases done, skipped and stopped, and the exit code that follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..transforms.volume import NOTHING, Entry


@dataclass(frozen=True)
class Failure:
    """One case that was stopped.

    Args:
        case: its name, or the name of its first file where it got none.
        files: relative to the input, or bare names.
        code: short kebab-case word.
        message: the sentence for people.
    """

    case: str
    files: tuple[str, ...]
    code: str
    message: str


@dataclass(frozen=True)
class Outcome:
    """What a stage did: in = done + skipped + stopped.

    Args:
        out: folder or file of the results.
        done: cases done by this run, sorted.
        skipped: cases that an earlier run had done, sorted.
        failures: cases that were stopped.
        notes: case -> repairs and notes that a reader of the result should know.
        facts: what else the stage wants to say (figures, names), for the summary and `--json`.
    """

    out: Path
    done: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()
    notes: Mapping[str, tuple[Entry, ...]] = field(default_factory=lambda: NOTHING)
    facts: Mapping[str, Any] = field(default_factory=lambda: NOTHING)

    @property
    def counts(self) -> dict[str, int]:
        """Cases in, done, skipped and stopped."""
        done, skipped, stopped = len(self.done), len(self.skipped), len(self.failures)
        return {"in": done + skipped + stopped, "done": done, "skipped": skipped, "stopped": stopped}

    @property
    def exit_code(self) -> int:
        """0 all done, 3 some stopped, 4 none done, 6 none because memory does not suffice for any."""
        if not self.done and not self.skipped:
            return 6 if self.failures and all(one.code == "memory" for one in self.failures) else 4
        return 3 if self.failures else 0
