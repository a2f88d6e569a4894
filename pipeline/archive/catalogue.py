"""An index as other stages see it: the volumes of an archive, one by one, from the SQLite file that `index` made.

    with Catalogue(Path("voxelwise-index.db")) as catalogue:
        for source in catalogue.sources():
            volume = read_source(source)

Nothing here holds the whole archive. The series of a source is a token in the place of its UID: `Catalogue.salt` and
`records.series_id` give the case id that the same series has everywhere else.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ...errors import UsageError
from ...transforms.itk_files import itk_name
from ...transforms.nifti import base_name
from ...transforms.pictures import picture_name
from ...transforms.sources import Found, NotAVolume, Source, Stopped
from ...transforms.volume import Entry
from .database import COLUMNS, FORMAT, explained
from .records import named, place_of
from .rows import members_of

FETCHED_ROWS = 256


@dataclass(frozen=True)
class Filter:
    """Which rows are wanted.

    Args:
        modality: these alone, such as ("CT", "MR").
        min_slices: as many slices or more.
        verdict: "usable", "stopped", "listed".
    """

    modality: tuple[str, ...] = ()
    min_slices: int | None = None
    verdict: tuple[str, ...] = ()

    def where(self) -> tuple[str, list[Any]]:
        """The condition, and its values."""
        parts: list[str] = ["1"]
        values: list[Any] = []
        for column, words in (("upper(modality)", self.modality), ("verdict", self.verdict)):
            if words:
                parts.append(f"{column} IN ({', '.join('?' * len(words))})")
                values += words
        if self.min_slices is not None:
            parts.append("slices >= ?")
            values.append(self.min_slices)
        return " AND ".join(parts), values


EVERYTHING = Filter()


class Catalogue:
    """The index of an archive, opened for reading.

    Args:
        path: SQLite file that `index` made.

    Raises:
        UsageError: it is not there, or it is no finished index.
        FolderInUseError: another run works on it.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UsageError(f"--db {path}: is not there; make it with voxelwise index")
        self.path = path
        self.base = sqlite3.connect(path, isolation_level=None, timeout=1.0)
        try:
            self.meta = dict(self.base.execute("SELECT key, value FROM meta"))
        except sqlite3.OperationalError as error:
            self.base.close()
            raise explained(error, path) from None
        except sqlite3.DatabaseError:
            self.base.close()
            raise UsageError(f"--db {path}: is no index of voxelwise; give another name") from None
        if self.meta.get("format") != FORMAT or self.meta.get("finished") != "1":
            self.base.close()
            raise UsageError(f"--db {path}: is no finished index of this version; run voxelwise index again")

    def __enter__(self) -> Catalogue:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Keep what was recorded, and close the file."""
        if self.base.in_transaction:
            self.base.execute("COMMIT")
        self.base.close()

    @property
    def archive(self) -> Path:
        """What was indexed: a folder, or a file."""
        return Path(self.meta["archive"])

    @property
    def root(self) -> Path:
        """The folder that the paths are relative to."""
        return self.archive.parent if self.archive.is_file() else self.archive

    @property
    def salt(self) -> str:
        """The salt of the ids."""
        return self.meta["salt"]

    def rows(self, wanted: Filter = EVERYTHING, columns: Sequence[str] = COLUMNS) -> Iterator[tuple[Any, ...]]:
        """Rows of the table of volumes, by place."""
        where, values = wanted.where()
        order = "ORDER BY place, owner, number"
        cursor = self.base.execute(f"SELECT {', '.join(columns)} FROM volumes WHERE {where} {order}", values)
        while page := cursor.fetchmany(FETCHED_ROWS):
            yield from page

    def sources(self, wanted: Filter = EVERYTHING) -> Iterator[Source]:
        """The usable volumes."""
        columns = ("kind", "members", "series", "modality", "shape", "part", "repairs", "notes")
        usable = Filter(wanted.modality, wanted.min_slices, ("usable",))
        for kind, members, series, modality, shape, part, repairs, notes in self.rows(usable, columns):
            files = members_of(members, self.root, named)
            dicom = kind == "dicom"
            yield Source(
                kind,
                files,
                "" if dicom else _base_name(files[0], kind, part),
                series or "",
                modality or "",
                tuple(int(side) for side in shape.split("x")),
                part,
                _entries(repairs) if dicom else None,
                _entries(notes) if dicom else None,
            )

    def stopped(self) -> Iterator[Stopped]:
        """What was found and cannot be read."""
        for members, code, reason in self.rows(Filter(verdict=("stopped",)), ("members", "code", "reason")):
            yield Stopped(members_of(members, self.root, named), code, reason)

    def listed(self) -> Iterator[NotAVolume]:
        """What was found and is no volume."""
        for members, reason in self.rows(Filter(verdict=("listed",)), ("members", "reason")):
            yield NotAVolume(members_of(members, self.root, named), reason)

    def rubbish(self) -> int:
        """Number of files that nobody expects to be images."""
        return int(self.base.execute("SELECT count(*) FROM instances WHERE kind = 'rubbish'").fetchone()[0])

    def found(self) -> Found:
        """Everything at once, as `find_sources` gives it; for archives that fit in memory."""
        return Found(tuple(self.sources()), tuple(self.stopped()), tuple(self.listed()), self.rubbish())

    def record_checksum(self, path: Path, sha256: str) -> None:
        """Keep the checksum of a file, for `index --verify`; kept for good when the catalogue is closed.

        Args:
            path: a file of the archive, on the disk (`Source.on_disk`).
            sha256: hex digits.
        """
        key = place_of(str(path.resolve()), str(self.root))
        if not self.base.in_transaction:
            self.base.execute("BEGIN IMMEDIATE")
        update = "UPDATE instances SET sha256 = ? WHERE folder = ? AND name = ? AND sha256 IS NULL"
        self.base.execute(update, (sha256, *key))


def _base_name(file: Path, kind: str, part: int | None) -> str:
    """The name that a volume has by its file."""
    if kind == "nifti":
        return base_name(file) if part is None else f"{base_name(file)}_t{part:03d}"
    return picture_name(file) if kind == "picture" else itk_name(file)


def _entries(text: str | None) -> tuple[Entry, ...]:
    return tuple(Entry(one["code"], one["detail"]) for one in json.loads(text or "[]"))
