"""A folder that is made as a whole or not at all: written beside its place under a temporary name, then moved there."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import NoRoomError, UsageError
from ..transforms.writers import NO_ROOM, no_room_text, sync_folder


def refuse_existing(out: Path, record: str, command: str, *, overwrite: bool) -> None:
    """Keep what is there, unless the same command made it and it is to be replaced.

    Args:
        out: folder to make.
        record: JSON file in it that names the command.
        command: the verb.
        overwrite: whether it may be replaced.

    Raises:
        UsageError: something is there.
    """
    if not out.exists() or (out.is_dir() and next(out.iterdir(), None) is None):
        return
    if not overwrite:
        raise UsageError(f"{out} is there already; use --overwrite or another folder")
    ours = False
    with suppress(OSError, ValueError):
        ours = f'"command": "{command}"' in (out / record).read_text(encoding="utf-8")
    if not ours:
        raise UsageError(f"{out} was not made by `voxelwise {command}`, and is not replaced; choose another folder")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes `out` where the block ends without an error, and is gone otherwise.

    An empty `out` is filled; what is in a full one goes when the new one is there.

    Raises:
        UsageError: nothing can be written there.
        NoRoomError: the disk is full.
    """
    part = _beside(out)
    try:
        part.mkdir(parents=True)
        yield part
        _put(part, out)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise NoRoomError(no_room_text(out, None)) from error
        raise UsageError(f"{out}: cannot be written ({error.strerror}); choose another place") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def files_in(folder: Path) -> list[Path]:
    """All files of a folder and its subfolders, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _put(part: Path, out: Path) -> None:
    for path in files_in(part):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    old = None
    if out.exists():
        if any(out.iterdir()):
            old = _beside(out)
            out.rename(old)
        else:
            out.rmdir()
    part.rename(out)
    sync_folder(out.absolute().parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _beside(out: Path) -> Path:
    return out.absolute().with_name(f".{out.name}.{secrets.token_hex(4)}.part")
