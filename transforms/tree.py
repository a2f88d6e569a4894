"""The files below a folder: one by one, in bounded memory or in a fixed order; links are named and not followed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ..errors import CaseError

MOST_SORTED = 4096  # entries of a folder that are held at once where their order does not matter
DEEPEST_OPEN = 200  # folders that are read entry by entry at once; deeper ones are read whole


class Item(NamedTuple):
    """One file, or something in its place that is not read.

    Args:
        path: the folder that was walked, and the way from there.
        size, modified: bytes, and nanoseconds.
        error: why a folder cannot be looked into.
        link: why a link is not followed.
    """

    path: str
    size: int = 0
    modified: int = 0
    error: CaseError | None = None
    link: str = ""


def walk(folder: Path) -> Iterator[Path]:
    """All files below a folder in a fixed order."""
    return (Path(item.path) for item in items(folder, ordered=True) if not item.error and not item.link)


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sort numbers in names as numbers."""
    return [(0, int(part)) if part.isdecimal() else (1, part.lower()) for part in re.split(r"(\d+)", name) if part]


def items(root: Path | str, *, ordered: bool = False, enter: Callable[[str], bool] | None = None) -> Iterator[Item]:
    """Everything below a folder that is not a folder.

    Args:
        root: a folder.
        ordered: files by their natural order before folders; else nearly as the system gives them, in memory that does
            not grow with their number.
        enter: is asked, with its path, whether a folder below is to be entered.
    """
    top = os.path.realpath(root)
    stack: list[Iterator[Item | str]] = [_entries(os.fspath(root), top, ordered)]
    while stack:
        found = next(stack[-1], None)
        if found is None:
            stack.pop()
        elif not isinstance(found, str):
            yield found
        elif enter is None or enter(found):
            below = _entries(found, top, ordered)
            stack.append(iter(list(below)) if len(stack) >= DEEPEST_OPEN else below)


def _entries(folder: str, top: str, ordered: bool) -> Iterator[Item | str]:
    """What lies in one folder: items, and the paths of folders."""
    try:
        with os.scandir(folder) as scan:
            if ordered:
                there = sorted(scan, key=lambda entry: (entry.is_dir(follow_symlinks=False), natural_key(entry.name)))
                yield from filter(None, (_entry(entry, top) for entry in there))
            else:
                while there := sorted(islice(scan, MOST_SORTED), key=lambda entry: entry.name):
                    yield from filter(None, (_entry(entry, top) for entry in there))
    except FileNotFoundError:
        return
    except OSError as error:
        message = f"{folder}: the folder cannot be read ({error.strerror}). Check the disk and the rights"
        yield Item(folder, error=CaseError(message, "unreadable"))


def _entry(entry: os.DirEntry[str], top: str) -> Item | str | None:
    try:
        if entry.is_dir(follow_symlinks=False):
            return entry.path
        if entry.is_symlink():
            return Item(entry.path, link=_link(entry.path, top))
        if not entry.is_file(follow_symlinks=False):
            return None  # a pipe, a socket, a device
        state = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        message = f"{entry.path}: cannot be read ({error.strerror}). Check the disk and the rights"
        return Item(entry.path, error=CaseError(message, "unreadable"))
    return Item(entry.path, state.st_size, state.st_mtime_ns)


def _link(path: str, top: str) -> str:
    """Why a link is not followed."""
    target = os.path.realpath(path)
    if not os.path.exists(target):
        return "a link that leads nowhere"
    if target != top and not target.startswith(os.path.join(top, "")):
        return "a link that leads out of the folder; it is not followed"
    if os.path.join(os.path.realpath(os.path.dirname(path)), "").startswith(os.path.join(target, "")):
        return "a link to a folder above it (a loop); it is not followed"
    return "a link to what lies in the folder itself; it is read in its own place"
