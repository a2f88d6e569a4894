"""What every stage over many files refuses alike: an output inside its input, and cases that an exception stopped."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

from ..errors import CaseError, UsageError, VoxelwiseError
from .manifest import NO_ROOM


def refuse_overlap(source: Path, out: Path, *, walked: bool = True) -> None:
    """Refuse an output that lies where the input is read.

    Args:
        source: file or folder that is read.
        out: file or folder that would be written.
        walked: the input is a folder that is walked to its leaves, so that results inside it would be input next time.

    Raises:
        UsageError: they are one, or `out` lies inside.
    """
    inside, target = source.resolve(), out.resolve()
    if inside == target:
        raise UsageError(f"{out} is the input; nothing is written over what is read, choose another place")
    if walked and inside.is_dir() and target.is_relative_to(inside):
        raise UsageError(
            f"{out} lies inside the input {source} and would be read as input the next time; choose a place outside"
        )


def refuse_missing(source: Path) -> None:
    """Refuse an input that is not there, or an empty folder.

    Raises:
        UsageError: so it is.
    """
    if not source.exists():
        raise UsageError(f"{source} does not exist; give a file or a folder with images")
    if source.is_dir() and next(source.iterdir(), None) is None:
        raise UsageError(f"{source} is empty; give a file or a folder with images")


def refusal(error: Exception, files: Sequence[str]) -> CaseError | None:
    """The refusal of a case that an exception comes to; its text names a file and quotes nothing of a header.

    Args:
        error: what was raised while the case was worked on.
        files: of the case, relative to the input.

    Returns:
        None where the exception says nothing that is known here.

    Raises:
        Exception: the error itself, where it is not about this case (no room on the disk, an unsafe file).
    """
    first = files[0] if files else "case"
    if isinstance(error, CaseError):
        named = not files or any(_is_named(Path(file), str(error)) for file in files)
        return error if named else CaseError(f"{first}: {error}", error.code)
    if isinstance(error, VoxelwiseError) or (isinstance(error, OSError) and error.errno in NO_ROOM):
        raise error
    if _out_of_memory(error):
        text = f"{first}: needs more memory than there is; do it alone, on a larger machine, or with a smaller patch"
        return CaseError(text, "memory")
    if isinstance(error, OSError):
        reason = error.strerror or type(error).__name__
        return CaseError(f"{first}: cannot be read ({reason}); check the file", "unreadable")
    return None


def _is_named(file: Path, text: str) -> bool:
    """Whether a text names a file, or the folder (a series) that it lies in."""
    folder = file.parent.name
    return file.name in text or (folder != "" and (f"{folder}:" in text or f"{folder}/" in text))


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether memory was the reason, also of an error that wraps another (MONAI's chains do)."""
    if error is None:
        return False
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without loading torch
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return (isinstance(error, RuntimeError) and "allocate memory" in str(error)) or _out_of_memory(error.__cause__)
