"""Second half of an index: series whose files changed are sorted into volumes, from what the first half kept."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator
from typing import Any

from ...transforms.grouping import FEWEST_SCRAMBLED, Grouped, group_series, scrambled
from ...transforms.neighbours import NO_SLICE, PLAIN_TEXT, neighbours
from .looking import Series, Setting, Sorted, slices_of, sort_all
from .records import joined, named, readable
from .rows import Row, listed_row, rows_of_series, stopped_row
from .scan import PAGE_ROWS, file_owner, write_volumes
from .workers import stream

log = logging.getLogger(__name__)

BATCH_FILES = 512  # a task
TRANSACTION_SERIES = 512
ARRIVING = "files arrived in the folder while it was read. Run again when it is complete"
BLAMED = "series, folder, name, code, error"
WAS_READ = ("changed", "content-changed")  # codes of files whose series is known for sure
SINGLE_OWNER = "single:"


class Group:
    """Sorts the series that were touched.

    Args:
        base: the database.
        setting: root, salt, options.
        workers: processes that sort.
    """

    def __init__(self, base: sqlite3.Connection, setting: Setting, workers: int) -> None:
        self.base = base
        self.setting = setting
        self.workers = workers

    def run(self) -> None:
        """Do all that is to be done; may be killed and begun again at any moment."""
        self.blame()
        self.sort()
        self.part_scrambled()

    def blame(self) -> None:
        """Find the series that files which cannot be read may belong to, and touch those where that changed."""
        base = self.base
        base.execute("BEGIN IMMEDIATE")
        base.execute("CREATE TEMP TABLE IF NOT EXISTS blame AS SELECT * FROM blamed WHERE 0")
        base.execute("CREATE UNIQUE INDEX IF NOT EXISTS temp.blame_series ON blame (series)")
        base.execute("DELETE FROM blame")
        insert = "INSERT OR IGNORE INTO blame VALUES (?, ?, ?, ?, ?)"
        for folder, name, code, error, blames in self.broken():
            series = self.may_belong_to(folder, name, blames, code)
            base.executemany(insert, ((one, folder, name, code, error) for one in sorted(series)))
            write_volumes(base, file_owner(folder, name), [] if series else [self.lone(folder, name, code, error)])
        for (folder,) in base.execute("SELECT folder FROM folders WHERE arriving ORDER BY folder").fetchall():
            text = readable(f"{self.path(folder, '')}: {ARRIVING}")
            query = "INSERT OR IGNORE INTO blame SELECT DISTINCT series, folder, '', 'changed', ? FROM instances"
            base.execute(f"{query} WHERE folder = ? AND series IS NOT NULL", (text, folder))
        for one, other in (("blame", "blamed"), ("blamed", "blame")):
            query = f"SELECT {BLAMED} FROM {one} EXCEPT SELECT {BLAMED} FROM {other}"
            base.execute(f"INSERT OR IGNORE INTO touched SELECT series FROM ({query})")
        base.execute("DELETE FROM blamed")
        base.execute(f"INSERT INTO blamed SELECT {BLAMED} FROM blame ORDER BY series")
        base.execute("INSERT OR IGNORE INTO touched SELECT series FROM series WHERE scrambled")
        base.execute("DELETE FROM volumes WHERE owner >= ? AND owner < ?", (SINGLE_OWNER, SINGLE_OWNER[:-1] + ";"))
        base.execute("COMMIT")

    def broken(self) -> Iterator[tuple[Any, ...]]:
        """Files that cannot be read and may be slices, page by page."""
        last: tuple[str, str] = ("", "")
        while True:
            query = "SELECT folder, name, code, error, blames FROM instances WHERE kind = 'broken'"
            order = f"AND (folder, name) > (?, ?) ORDER BY folder, name LIMIT {PAGE_ROWS}"
            page = self.base.execute(f"{query} {order}", last).fetchall()
            if not page:
                return
            last = page[-1][:2]
            yield from page

    def may_belong_to(self, folder: str, name: str, blames: str | None, code: str) -> set[str]:
        """The series of a file that cannot be read: by its header, else by its neighbours in its folder.

        Neighbours are asked also where the header names a series that no other file has: it may be cut there.
        """
        if blames is not None:
            query = "SELECT max(kind = 'dicom') FROM instances WHERE series = ?"
            images = self.base.execute(query, (blames,)).fetchone()[0]
            if images is not None:
                return {blames} if images else set()
            if code in WAS_READ:
                return set()
        query = "SELECT name, series FROM instances WHERE folder = ? AND kind = 'dicom'"
        others = ((named(other), key) for other, key in self.base.execute(query, (folder,)))
        return neighbours(named(name), others, code)

    def lone(self, folder: str, name: str, code: str, error: str) -> Row:
        """The row of a file that cannot be read and belongs to no series."""
        files, root, salt = [self.path(folder, name)], self.setting.root, self.setting.salt
        return (
            listed_row(files, NO_SLICE, root, salt)
            if code == PLAIN_TEXT
            else stopped_row(files, code, error, root, salt)
        )

    def sort(self) -> None:
        """Sort every series that was touched."""
        total = self.base.execute("SELECT count(*) FROM touched").fetchone()[0]
        done = 0
        for found in stream(sort_all, self.setting, self.tasks(), self.workers, self.died):
            for one in found:
                self.write(one)
            done += len(found)
            if found:
                log.info("sorted %d of %d series", done, total)
        self.commit()

    def tasks(self) -> Iterator[tuple[list[Series]]]:
        """Batches of series with their files."""
        last = ""
        batch: list[Series] = []
        files = 0
        while True:
            query = f"SELECT series FROM touched WHERE series > ? ORDER BY series LIMIT {PAGE_ROWS}"
            page = self.base.execute(query, (last,)).fetchall()
            if not page:
                break
            last = page[-1][0]
            for (token,) in page:
                series = self.series(token)
                batch.append(series)
                files += len(series.files)
                if files >= BATCH_FILES:
                    yield (batch,)
                    batch, files = [], 0
        if batch:
            yield (batch,)

    def series(self, token: str) -> Series:
        """A series as it is kept."""
        query = "SELECT folder, name, size, modified, header FROM instances WHERE series = ?"
        blame = self.base.execute("SELECT folder, name, code, error FROM blamed WHERE series = ?", (token,)).fetchone()
        files = self.base.execute(query, (token,)).fetchall()
        return Series(token, files, (self.path(*blame[:2]), *blame[2:]) if blame else None)

    def write(self, found: Sorted) -> None:
        """Keep the volumes of a series."""
        if not self.base.in_transaction:
            self.base.execute("BEGIN IMMEDIATE")
            self.written = 0
        write_volumes(self.base, found.token, found.volumes)
        if found.files:
            row = (found.token, found.files, found.single)
            self.base.execute("INSERT OR REPLACE INTO series VALUES (?, ?, ?, 0)", row)
        else:
            self.base.execute("DELETE FROM series WHERE series = ?", (found.token,))
        self.base.execute("DELETE FROM touched WHERE series = ?", (found.token,))
        self.written += 1
        if self.written >= TRANSACTION_SERIES:
            self.commit()

    def died(self, task: tuple[list[Series]]) -> Iterator[Any]:
        """What becomes of series whose worker died: one by one, and the one that does it again is stopped."""
        batch = task[0]
        if len(batch) > 1:
            yield from (([one],) for one in batch)
            return
        paths = [self.path(folder, name) for folder, name, *_ in batch[0].files]
        text = f"{paths[0]}: the process that sorted its series died (for its memory?); leave the series out"
        row = stopped_row(paths, "worker-died", text, self.setting.root, self.setting.salt)
        yield [Sorted(batch[0].token, len(paths), None, (row,))]

    def part_scrambled(self) -> None:
        """Stop series of one slice each that look like one series whose UIDs were scrambled."""
        query = "SELECT single FROM series WHERE single IS NOT NULL AND single > ? GROUP BY single HAVING count(*) >= ?"
        last = ""
        while True:
            row = self.base.execute(f"{query} ORDER BY single LIMIT 1", (last, FEWEST_SCRAMBLED)).fetchone()
            if row is None:
                return
            last = row[0]
            self.part_one(last)

    def part_one(self, single: str) -> None:
        """Hold the series of one slice each, of one study, number and folder, against each other."""
        tokens = self.base.execute("SELECT series FROM series WHERE single = ? ORDER BY series", (single,)).fetchall()
        stacks, owners = [], {}
        for (token,) in tokens:
            for stack in group_series(slices_of(self.setting, self.series(token).files), self.setting.options).stacks:
                stacks.append(stack)
                owners[stack.files[0]] = token
        stacks.sort(key=lambda stack: str(stack.files[0]))
        stop = scrambled(stacks)
        if stop is None:
            return
        self.base.execute("BEGIN IMMEDIATE")
        for file in stop.files:
            if file in owners:
                self.base.execute("DELETE FROM volumes WHERE owner = ?", (owners[file],))
                self.base.execute("UPDATE series SET scrambled = 1 WHERE series = ?", (owners[file],))
        modality = stacks[0].slices[0].modality
        rows = rows_of_series(Grouped(stopped=(stop,)), self.setting.root, self.setting.salt, modality)
        write_volumes(self.base, f"{SINGLE_OWNER}{single}", rows)
        self.base.execute("COMMIT")

    def path(self, folder: str, name: str) -> str:
        """The path of a stored folder and name."""
        return os.path.join(self.setting.root, named(joined(folder, name))).rstrip("/")

    def commit(self) -> None:
        """End the transaction."""
        if self.base.in_transaction:
            self.base.execute("COMMIT")
