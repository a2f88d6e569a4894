"""The SQLite file of an index: its tables, and how it is opened so that a killed run cannot confuse the next.

Tables:
    meta       key, value: format, archive, salt, options, reader, finished ("1" when a run came to its end)
    folders    time of each folder, and whether files arrived in it while it was read
    instances  one row a file: folder, name, size, modified (nanoseconds), kind, series (a token), header (the record of
               a DICOM file as JSON), code and error of what cannot be read, sha256 where it was verified or converted;
               `path` is relative to the archive
    series     one row a series: number of files, and what tells whether its UIDs were scrambled
    volumes    one row a volume, or what was found in its place: see `COLUMNS`
    touched    series that have to be sorted again: empty when a run came to its end
    blamed     series that a file which cannot be read may belong to
    phi        with --phi: what names people, by file

Everything is kept in the order of its key, so that two indexes of one tree are dumped alike.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from ...errors import FolderInUseError, NoRoomError, UsageError
from ...transforms.read_options import ReadOptions
from ..identity import file_digest
from .records import READER

FORMAT = "2"
COLUMNS = (
    *("id", "verdict", "code", "reason", "repairs", "notes", "kind", "modality", "body_part", "use"),
    *("shape", "slices", "spacing_mm", "orientation", "part", "files", "place"),
)
PLACE_COLUMNS = ("reason", "place")  # those that hold paths
USES = ("3D", "2D", "film", "label map?")
INSTANCE = ("folder", "name", "size", "modified", "kind", "archive", "series", "header", "code", "error", "blames")
SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE folders (folder TEXT PRIMARY KEY, modified INTEGER, arriving INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE instances (
    folder TEXT NOT NULL, name TEXT NOT NULL, size INTEGER NOT NULL, modified INTEGER NOT NULL, kind TEXT NOT NULL,
    archive TEXT, series TEXT, header TEXT, code TEXT, error TEXT, blames TEXT, sha256 TEXT,
    path TEXT GENERATED ALWAYS AS (CASE folder WHEN '' THEN name ELSE folder || '/' || name END) VIRTUAL,
    PRIMARY KEY (folder, name)
) WITHOUT ROWID;
CREATE INDEX instances_series ON instances (series) WHERE series IS NOT NULL;
CREATE INDEX instances_broken ON instances (kind) WHERE kind = 'broken';
CREATE INDEX instances_archive ON instances (archive) WHERE archive IS NOT NULL;
CREATE TABLE series (
    series TEXT PRIMARY KEY, files INTEGER NOT NULL, single TEXT, scrambled INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX series_single ON series (single) WHERE single IS NOT NULL;
CREATE TABLE volumes (
    owner TEXT NOT NULL, number INTEGER NOT NULL, {", ".join(COLUMNS)}, series TEXT, members TEXT,
    PRIMARY KEY (owner, number)
) WITHOUT ROWID;
CREATE INDEX volumes_place ON volumes (place);
CREATE TABLE touched (series TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE blamed (
    series TEXT PRIMARY KEY, folder TEXT NOT NULL, name TEXT NOT NULL, code TEXT NOT NULL, error TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE phi (folder TEXT, name TEXT, key TEXT, value TEXT, PRIMARY KEY (folder, name, key)) WITHOUT ROWID;
"""
CACHE_KIB = 16384
PAGE_BYTES = 16384


def known(path: Path, root: Path) -> dict[str, str]:
    """What the file of an earlier run says of itself; empty where there is none.

    Raises:
        UsageError: it is no index, of another format, or of another archive.
    """
    if not path.parent.is_dir():
        raise UsageError(f"--db {path}: the folder {path.parent} does not exist; make it or give another name")
    if not path.exists():
        return {}
    if path.is_dir():
        raise UsageError(f"--db {path}: is a folder; give the name of a file")
    try:
        with closing(
            sqlite3.connect(path, timeout=0.0)
        ) as base:  # not read-only: what a killed run left half written is undone
            if not base.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                return {}
            found = dict(base.execute("SELECT key, value FROM meta"))
    except sqlite3.DatabaseError as error:
        if "locked" in str(error):
            raise FolderInUseError(f"--db {path}: another run works on it; wait for its end") from None
        raise UsageError(f"--db {path}: is there and is no index of voxelwise; give another name") from None
    if found.get("format") != FORMAT:
        raise UsageError(
            f"--db {path}: has format {found.get('format')}, expected {FORMAT}; delete it or give another name"
        )
    if found.get("archive") != str(root.resolve()):
        raise UsageError(f"--db {path}: is the index of {found.get('archive')}; delete it or give another name")
    return found


def explained(error: sqlite3.OperationalError, path: Path) -> Exception:
    """What a failure of the database means to the user; the error itself where it is a bug of ours."""
    text = str(error)
    if "locked" in text:
        return FolderInUseError(f"--db {path}: another run works on it; wait for its end")
    if "is full" in text:
        return NoRoomError(f"--db {path}: no space left on the disk; make room and run the same command again")
    if any(words in text for words in ("unable to open", "readonly", "disk I/O error")):
        return UsageError(f"--db {path}: cannot be written ({text}); check the disk and the rights")
    return error


def opened(path: Path) -> sqlite3.Connection:
    """A connection whose transactions are begun and ended by hand, with a small cache."""
    base = sqlite3.connect(path, isolation_level=None, timeout=0.0)
    base.execute("PRAGMA locking_mode = EXCLUSIVE")
    base.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    base.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    base.execute("PRAGMA temp_store = FILE")
    base.execute("PRAGMA secure_delete = ON")  # names that were kept with --phi leave no trace
    return base


def describe(root: Path, salt: str, options: ReadOptions) -> dict[str, str]:
    """What an index says of itself before its first file."""
    chosen = dict(options.chosen())
    if options.geometry is not None:
        chosen["geometry"] = file_digest(options.geometry)
    return {
        "format": FORMAT,
        "archive": str(root.resolve()),
        "salt": salt,
        "options": json.dumps(chosen, sort_keys=True),
        "reader": READER,
        "finished": "0",
    }


def begin(base: sqlite3.Connection, meta: Mapping[str, str], old: Mapping[str, str]) -> None:
    """Make the tables, or make them anew where what was kept was read otherwise."""
    fits = all(old.get(key) == meta[key] for key in ("salt", "options", "reader"))
    base.execute("BEGIN IMMEDIATE")
    if old and not fits:
        for (table,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            base.execute(f'DROP TABLE "{table}"')
    if not (old and fits):
        for statement in SCHEMA.split(";"):
            base.execute(statement)
    base.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", sorted(meta.items()))
    base.execute("COMMIT")
