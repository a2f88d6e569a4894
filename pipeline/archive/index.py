"""`index`: what an archive holds, in one SQLite file: every volume with its geometry, its verdict and the reason.

Headers are read, pixels are not. Series are called by salted hashes, and nothing of a header that names a patient is
kept unless it is asked for. The paths of the files are: here, in failures.csv and on the terminal, so an archive whose
folders or files are named after people gives these names away; an exported table holds none.

A file whose size and time are as they were is not read again. A run that was killed is gone on with by the next; memory
does not grow with the archive. `database.py` says what the tables are.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import CaseError, UsageError
from ...transforms.read_options import DEFAULT, ReadOptions
from ...transforms.writers import atomic_write
from ...transforms.zip_files import check_archive, is_zip, remove_leftovers
from ..identity import salt_of
from ..outcome import Failure, Outcome
from .catalogue import Catalogue, Filter
from .database import COLUMNS, PLACE_COLUMNS, begin, describe, explained, known, opened
from .group import Group
from .looking import Setting, Target
from .scan import Scan
from .sweep import sweep
from .verify import verify as verify_files

log = logging.getLogger(__name__)

DATABASE = Path("voxelwise-index.db")
VERDICTS = ("usable", "stopped", "listed")
EXPORTED = tuple(column for column in COLUMNS if column not in PLACE_COLUMNS)


@dataclass(frozen=True)
class Volumes:
    """Rows of an index (`COLUMNS`), read from its file each time that they are asked for."""

    db: Path
    wanted: Filter

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        with Catalogue(self.db) as catalogue:
            yield from catalogue.rows(self.wanted)


def index(
    archive: Path | str,
    *,
    db: Path | str | None = None,
    modality: str | None = None,
    min_slices: int | None = None,
    verdict: str | None = None,
    export: Path | str | None = None,
    salt: Path | str | None = None,
    verify: bool = False,
    workers: int | None = 1,
    options: ReadOptions = DEFAULT,
) -> Outcome:
    """List every volume of an archive with its geometry, verdict and reason.

    Args:
        archive: folder that is walked to its leaves, a zip archive, or a file.
        db: SQLite file; by default `voxelwise-index.db` in the current folder.
        modality: give and export these alone, such as "CT" or "MR,PT".
        min_slices: give and export what has as many slices or more.
        verdict: give and export these alone: usable, stopped, listed.
        export: CSV file of the same table, without paths.
        salt: text file with the salt of the ids, so that they agree with those of `convert --salt`.
        verify: read every file whole, and stop what holds something else than was recorded.
        workers: processes that look into files.
        options: the ways out that the user has chosen.

    Returns:
        `done` are the ids of usable volumes, `failures` what was stopped; `facts["volumes"]` are the rows (`COLUMNS`).

    Raises:
        UsageError: a missing or empty archive, a database that is none of ours.
        UnsafeInputError: the archive is a zip file that must not be unpacked.
        FolderInUseError: another run works on the database.
    """
    root, path = Path(archive), Path(db) if db is not None else DATABASE
    if not root.exists():
        raise UsageError(f"{root} does not exist; give the folder of an archive")
    wanted = _filter(modality, min_slices, verdict)
    if export is not None and (Path(export).is_dir() or not Path(export).parent.is_dir()):
        raise UsageError(f"--export {export}: give the name of a file in a folder that is there")
    try:
        _update(root, path, salt, options, workers or 1, verify)
    except sqlite3.OperationalError as error:
        raise explained(error, path) from error
    volumes = Volumes(path, wanted)
    if export is not None:
        _export(volumes, Path(export))
    return _outcome(path, volumes)


def _update(root: Path, path: Path, salt: Path | str | None, options: ReadOptions, workers: int, verify: bool) -> None:
    """Bring the database up to date."""
    old = known(path, root)
    if root.is_file():
        _refuse_unsafe(root)
    if not old and root.is_dir() and _is_empty(root):
        raise UsageError(f"{root} is empty; give a file or a folder with images")
    secret = salt_of(Path(), Path(salt)) if salt is not None else old.get("salt") or os.urandom(16).hex()
    meta = describe(root, secret, options)
    remove_leftovers()
    top = root.resolve()
    setting = Setting(str(top if top.is_dir() else top.parent), secret, options, alone=top.is_file())
    own = frozenset(f"{path.resolve()}{end}" for end in ("", "-journal", "-wal", "-shm"))
    with closing(opened(path)) as base:
        begin(base, meta, old)
        scan = Scan(base, setting, workers, own)
        if setting.alone:
            state = top.stat()
            scan.look([Target(str(top), state.st_size, state.st_mtime_ns)])
        else:
            scan.tree(setting.root)
        sweep(scan)
        if verify:
            verify_files(scan)
        if scan.changed or old.get("finished") != "1" or meta["options"] != old.get("options"):
            Group(base, setting, workers).run()
        else:
            log.info("nothing changed since the last run; the index is as it was")
        base.execute("UPDATE meta SET value = '1' WHERE key = 'finished'")


def _refuse_unsafe(archive: Path) -> None:
    """Refuse a zip archive that must not be unpacked before a database is made of it."""
    with suppress(CaseError, OSError), archive.open("rb") as opened_file:
        if is_zip(opened_file.read(4)):
            check_archive(archive)


def _is_empty(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return next(entries, None) is None


def _filter(modality: str | None, min_slices: int | None, verdict: str | None) -> Filter:
    words = tuple(word.strip().upper() for word in (modality or "").split(",") if word.strip())
    verdicts = tuple(word.strip().lower() for word in (verdict or "").split(",") if word.strip())
    if strange := set(verdicts) - set(VERDICTS):
        raise UsageError(f"--verdict {min(strange)}: expected one or several of {', '.join(VERDICTS)}")
    return Filter(words, min_slices, verdicts)


def _export(volumes: Volumes, path: Path) -> None:
    """Write the table without the columns that hold paths."""
    places = [COLUMNS.index(column) for column in EXPORTED]
    with atomic_write(path) as part, part.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(EXPORTED)
        for row in volumes:
            named = dict(zip(COLUMNS, row, strict=True))
            codes = {name: ", ".join(codes_of(named[name])) for name in ("repairs", "notes")}
            writer.writerow([{**named, **codes}[COLUMNS[place]] for place in places])


def codes_of(text: str | None) -> list[str]:
    """The codes of repairs or notes as they are kept."""
    return sorted({entry["code"] for entry in json.loads(text or "[]")})


def _outcome(path: Path, volumes: Volumes) -> Outcome:
    with Catalogue(path) as catalogue:
        done = tuple(row[0] for row in catalogue.rows(Filter(verdict=("usable",)), ("id",)))
        columns = ("id", "place", "code", "reason")
        stopped = catalogue.rows(Filter(verdict=("stopped",)), columns)
        failures = tuple(Failure(case, (place,), code, reason) for case, place, code, reason in stopped)
        counts = dict(
            catalogue.base.execute("SELECT kind, count(*) FROM instances GROUP BY kind ORDER BY kind").fetchall()
        )
    return Outcome(path, done, (), failures, facts={"volumes": volumes, "files": counts})
