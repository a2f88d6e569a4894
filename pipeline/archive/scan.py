"""First half of an index: every file of a tree is looked into once, and again when it changed.

The walk holds no list of files; what is new goes to the workers in small batches and into the database in transactions
of some thousand rows, so that a kill loses the last of them and the next run goes on from there.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ...errors import CaseError, UnsafeInputError
from ...transforms.look import Look
from ...transforms.tree import items
from ...transforms.zip_files import check_archive
from .database import COLUMNS, INSTANCE
from .looking import Instance, Setting, Target, instance_of, look_at_any
from .records import joined, named, place_of, stored
from .workers import stream

log = logging.getLogger(__name__)

BATCH = 64  # files a task
TRANSACTION_ROWS = 4096
TRANSACTION_SECONDS = 5.0
PAGE_ROWS = 4096
VOLUME_COLUMNS = ("owner", "number", *COLUMNS, "series", "members")
INSERT_VOLUME = (
    f"INSERT OR REPLACE INTO volumes ({', '.join(VOLUME_COLUMNS)}) VALUES ({', '.join('?' * len(VOLUME_COLUMNS))})"
)
INSERT_INSTANCE = f"INSERT OR REPLACE INTO instances ({', '.join(INSTANCE)}) VALUES ({', '.join('?' * len(INSTANCE))})"
TRY_AGAIN = ("changed", "worker-died", "unreadable")  # stopped for reasons that do not lie in the file


class Scan:
    """One walk over a tree, into an open database.

    Args:
        base: the database.
        setting: root, salt, options.
        workers: processes that look into files.
        own: paths that belong to the index itself.
    """

    def __init__(self, base: sqlite3.Connection, setting: Setting, workers: int, own: frozenset[str]) -> None:
        self.base = base
        self.setting = setting
        self.workers = workers
        self.own = own
        self.own_folders = frozenset(os.path.dirname(path) for path in own)
        self.rows = 0
        self.started = 0.0
        self.looked = 0
        self.changed = False
        self.archives: dict[str, tuple[Instance, int]] = {}
        self.todo: list[Instance] = []
        self.empty = base.execute("SELECT 1 FROM instances LIMIT 1").fetchone() is None

    def tree(self, top: str) -> bool:
        """Look into all that is new below a folder; return whether anything is there at all."""
        found = False

        def met() -> Iterator[Target]:
            nonlocal found
            self.enter(top)
            for item in items(top, enter=self.enter):
                found = True
                target = Target(item.path, item.size, item.modified)
                if item.path in self.own:
                    continue
                if item.link:
                    self.keep_if_new(instance_of(Look("listed", reason=item.link), target, self.setting))
                elif item.error is not None:
                    self.keep_if_new(instance_of(Look("stopped", error=item.error), target, self.setting))
                else:
                    yield target

        self.look(met())
        return found

    def look(self, targets: Iterable[Target]) -> None:
        """Look into those of the files that are new or changed, and keep what they are."""
        news: Iterable[Target] = (target for target in targets if not self.is_known(target))
        while True:
            for rows in stream(look_at_any, self.setting, self.tasks(iter(news)), self.workers, self.died):
                for row in rows:
                    self.keep(row)
                if rows and rows[0].archive is not None:
                    self.part_done(rows[0].archive, len(rows))
                self.looked += len(rows)
                if self.looked // 1000 != (self.looked - len(rows)) // 1000:
                    log.info("looked into %d files", self.looked)
            news = ()
            if not self.todo:
                break
        self.commit()

    def tasks(self, news: Iterator[Target]) -> Iterator[tuple[Any, ...]]:
        """Batches of files; those in a zip archive come as soon as the archive was looked into."""
        while True:
            while self.todo:
                yield from self.parts(self.todo.pop())
            batch = tuple(islice(news, BATCH))
            if not batch:
                return
            yield ("files", batch)

    def parts(self, row: Instance) -> Iterator[tuple[Any, ...]]:
        """Batches of the files in one archive; the archive itself is kept when the last of them was looked into."""
        path = os.path.join(self.setting.root, named(row.folder), named(row.name))
        target = Target(path, row.size, row.modified)
        place = joined(row.folder, row.name)
        self.begin()
        self.forget_members(place)
        try:
            names = check_archive(Path(path))
        except (CaseError, UnsafeInputError, OSError) as error:
            look = Look("stopped", error=CaseError(str(error), "changed"))
            self.write(instance_of(look, target, self.setting))
            return
        self.archives[place] = (row, len(names))
        for start in range(0, len(names), BATCH):
            yield ("members", target, names[start : start + BATCH])
        if not names:
            self.part_done(place, 0)

    def part_done(self, place: str, files: int) -> None:
        """Some files of an archive were looked into; with the last one the archive itself is known."""
        row, left = self.archives.pop(place)
        if left > files:
            self.archives[place] = (row, left - files)
        else:
            self.write(row)

    def died(self, task: tuple[Any, ...]) -> Iterator[Any]:
        """What becomes of a task whose worker died: its files one by one, and the one that does it again is stopped."""
        *head, files = task
        if len(files) > 1:
            yield from ((*head, (file,)) for file in files)
            return
        target = files[0]
        archive = None
        if head[0] == "members":
            archive = joined(*place_of(head[1].path, self.setting.root))
            target = Target(os.path.join(head[1].path, files[0]), head[1].size, head[1].modified)
        text = f"{target.path}: the process that looked into it died (for its memory?); leave it out"
        look = Look("broken", error=CaseError(text, "worker-died"))
        yield [instance_of(look, target, self.setting)._replace(archive=archive)]

    def is_known(self, target: Target) -> bool:
        """Whether a file was looked into with this size and time."""
        if self.empty:
            return False
        query = "SELECT size, modified, code FROM instances WHERE folder = ? AND name = ?"
        row = self.base.execute(query, place_of(target.path, self.setting.root)).fetchone()
        return row is not None and row[:2] == (target.size, target.modified) and row[2] not in TRY_AGAIN

    def keep_if_new(self, row: Instance) -> None:
        """Keep what stands in the place of a file."""
        query = "SELECT size, modified, kind, error FROM instances WHERE folder = ? AND name = ?"
        known = self.base.execute(query, (row.folder, row.name)).fetchone()
        if known != (row.size, row.modified, row.kind, row.error):
            self.write(row)

    def keep(self, row: Instance) -> None:
        """Put one file into the database, in the place of what it was before."""
        if row.kind == "zip" and row.archive is None:
            self.todo.append(row)
        elif row.code in TRY_AGAIN and not self.empty:
            self.keep_if_new(row)
        elif row.kind != "gone":
            self.write(row)

    def write(self, row: Instance) -> None:
        """Write one row, and mark the series that it belonged to and belongs to."""
        self.begin()
        self.forget(row.folder, row.name)
        self.base.execute(INSERT_INSTANCE, row[: len(INSTANCE)])
        if row.series is not None:
            self.base.execute("INSERT OR IGNORE INTO touched VALUES (?)", (row.series,))
        if row.volumes:
            write_volumes(self.base, file_owner(row.folder, row.name), row.volumes)
        if row.phi:
            values = ((row.folder, row.name, key, value) for key, value in row.phi)
            self.base.executemany("INSERT OR REPLACE INTO phi VALUES (?, ?, ?, ?)", values)
        self.changed = True
        self.rows += 1
        if self.rows >= TRANSACTION_ROWS or time.monotonic() - self.started > TRANSACTION_SECONDS:
            self.commit()

    def forget(self, folder: str, name: str) -> None:
        """Remove a file and what was made of it alone; the series that it was in is to be sorted again."""
        if self.empty:
            return
        query = "SELECT series, kind FROM instances WHERE folder = ? AND name = ?"
        old = self.base.execute(query, (folder, name)).fetchone()
        if old is None:
            return
        if old[0] is not None:
            self.base.execute("INSERT OR IGNORE INTO touched VALUES (?)", (old[0],))
        if old[1] == "zip":
            self.forget_members(joined(folder, name))
        self.base.execute("DELETE FROM instances WHERE folder = ? AND name = ?", (folder, name))
        self.base.execute("DELETE FROM volumes WHERE owner = ?", (file_owner(folder, name),))
        self.base.execute("DELETE FROM phi WHERE folder = ? AND name = ?", (folder, name))
        self.changed = True

    def forget_members(self, archive: str) -> None:
        """Remove the files of a zip archive."""
        while True:
            query = "SELECT folder, name FROM instances WHERE archive = ? LIMIT ?"
            rows = self.base.execute(query, (archive, PAGE_ROWS)).fetchall()
            for folder, name in rows:
                self.forget(folder, name)
            if not rows:
                return

    def enter(self, folder: str) -> bool:
        """Note the time of a folder before it is read."""
        self.begin()
        self.note_folder(folder, 0)
        return True

    def note_folder(self, folder: str, arriving: int) -> None:
        """Keep the time of a folder."""
        try:
            modified = os.stat(folder).st_mtime_ns
        except OSError:
            return
        place = stored(os.path.relpath(folder, self.setting.root)) if folder != self.setting.root else ""
        modified = 0 if folder in self.own_folders else modified
        row = (place, modified, arriving)
        query = "SELECT folder, modified, arriving FROM folders WHERE folder = ?"
        if self.base.execute(query, (place,)).fetchone() != row:
            self.base.execute("INSERT OR REPLACE INTO folders VALUES (?, ?, ?)", row)
            self.changed = True

    def begin(self) -> None:
        """Begin a transaction if none is open."""
        if not self.base.in_transaction:
            self.base.execute("BEGIN IMMEDIATE")
            self.rows, self.started = 0, time.monotonic()

    def commit(self) -> None:
        """End the transaction."""
        if self.base.in_transaction:
            self.base.execute("COMMIT")
        self.rows = 0


def write_volumes(base: sqlite3.Connection, owner: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write the volumes of a series or a file, in the place of what was there."""
    base.execute("DELETE FROM volumes WHERE owner = ?", (owner,))
    for number, row in enumerate(rows):
        own = {**row, "owner": owner, "number": number}
        base.execute(INSERT_VOLUME, [own.get(column) for column in VOLUME_COLUMNS])


def file_owner(folder: str, name: str) -> str:
    """What the volumes of a file without series are kept under."""
    return f"file:{joined(folder, name)}"
