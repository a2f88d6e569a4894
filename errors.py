"""The exceptions that reach a user, and the exit code that each one ends the command line with.

    VoxelwiseError          1  (never raised itself: an uncaught exception is our bug)
    ├── UsageError          2  a wrong option, a missing path, an unknown name, an output of other settings
    ├── CaseError           3  one case cannot be used; a stage over many cases records it and goes on
    ├── NothingDoneError    4  no case could be done
    ├── UnsafeInputError    5  a file that must not be opened (a pickle, a wrong hash)
    ├── NoRoomError         6  out of disk or memory; the run can be resumed
    ├── FolderInUseError    7  another run works on the output folder
    └── InterruptedRunError 130  stopped by a signal; the run can be resumed

A message says which file or option, what was found, what was expected, and what the user can do.
`ValueError` and `TypeError` stay for arguments of Python functions; the command line shows them as wrong use (2).
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class VoxelwiseError(Exception):
    """Base of everything that is shown to a user as one line."""

    exit_code = 1


class UsageError(VoxelwiseError):
    """A wrong option, a missing path, an unknown name."""

    exit_code = 2


class CaseError(VoxelwiseError):
    """One case is refused before any voxel of it is used; the others go on.

    Args:
        message: file, tag or field, what was found against what was expected, what to do.
        code: short kebab-case word for tables, such as `missing-slice`.
    """

    exit_code = 3

    def __init__(self, message: str, code: str = "unreadable") -> None:
        super().__init__(message)
        self.code = code


class NothingDoneError(VoxelwiseError):
    """No case could be done."""

    exit_code = 4


class UnsafeInputError(VoxelwiseError):
    """A file that must not be opened: a pickle, a wrong hash, an archive that leaves its folder."""

    exit_code = 5


class NoRoomError(VoxelwiseError):
    """Out of disk or memory; what was finished stays, and the run can be resumed."""

    exit_code = 6


class FolderInUseError(VoxelwiseError):
    """Another run works on the output folder."""

    exit_code = 7


class InterruptedRunError(VoxelwiseError):
    """Stopped by a signal; the run can be resumed."""

    exit_code = 130


def unknown(what: str, name: str, choices: Iterable[str]) -> UsageError:
    """A `UsageError` for a choice that does not exist: names the nearest ones and lists all."""
    known = sorted(choices)
    near = get_close_matches(name, known, n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    return UsageError(f"unknown {what} {name!r}{hint} (there are: {', '.join(known)})")
