"""What an input holds, for a stage that goes through it more than once without keeping it.

A small input is looked through in memory. A large one is indexed into a database beside the output while the run lasts:
memory stays flat, several processes read headers, and a run that was killed goes on without reading them again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from ...transforms.read_options import ReadOptions
from ...transforms.readers import Found, NotAVolume, Source, Stopped, find_sources
from .catalogue import Catalogue
from .index import index

LARGE = 20_000  # files


class Inventory(Protocol):
    """The volumes of an input, what is stopped and what is listed; each may be asked for again."""

    def sources(self) -> Iterator[Source]:
        """The usable volumes, always in the same order."""

    def stopped(self) -> Iterator[Stopped]:
        """What was found and cannot be read."""

    def listed(self) -> Iterator[NotAVolume]:
        """What was found and is no volume."""

    def rubbish(self) -> int:
        """Number of files that nobody expects to be images."""


class InMemory:
    """An `Inventory` of what `find_sources` found."""

    def __init__(self, found: Found) -> None:
        self.found = found

    def sources(self) -> Iterator[Source]:
        """The usable volumes."""
        return iter(self.found.sources)

    def stopped(self) -> Iterator[Stopped]:
        """What cannot be read."""
        return iter(self.found.stopped)

    def listed(self) -> Iterator[NotAVolume]:
        """What is no volume."""
        return iter(self.found.listed)

    def rubbish(self) -> int:
        """Files that nobody expects to be images."""
        return self.found.rubbish


@contextmanager
def inventory(root: Path, database: Path, salt: Path, options: ReadOptions, workers: int | None) -> Iterator[Inventory]:
    """Look through an input.

    Args:
        root: the input.
        database: of a large one; it is there while the run lasts, and after one that was broken off.
        salt: file with the salt of the ids.
        options: how headers are read.
        workers: processes that read headers.

    Raises:
        UsageError: a missing or empty input.
        UnsafeInputError: a zip archive that must not be unpacked.
    """
    if not is_large(root):
        yield InMemory(find_sources(root, options))
        return
    index(root, db=database, salt=salt, workers=workers, options=options)
    with Catalogue(database) as catalogue:
        yield catalogue
    for ending in ("", "-journal", "-wal", "-shm"):
        database.with_name(f"{database.name}{ending}").unlink(missing_ok=True)


def is_large(root: Path) -> bool:
    """Whether a folder holds more files than are looked through in memory."""
    if not root.is_dir():
        return False
    count = 0
    for _, _, names in os.walk(root):
        count += len(names)
        if count > LARGE:
            return True
    return False


def slim(source: Source) -> Source:
    """What names and ids need of a source: its first files, and nothing that was proved."""
    return replace(source, files=source.files[:2], proved=None, repairs=None, notes=None)
