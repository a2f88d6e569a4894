"""`index`: what an archive holds, in one SQLite file: every volume with its geometry, its verdict and the reason.

Headers are read, pixels are not. Series are called by salted hashes, and nothing of a header that names a patient is
kept. The paths of the files are: here, in failures.csv and on the terminal, so an archive whose folders or files are
named after people gives these names away. The file is written whole or not at all. A tree whose names, sizes and times
did not change is not read again.

Tables:
    meta       key, value: format, archive, salt, a digest of the tree
    volumes    one row a volume, or what was found in its place: see `COLUMNS`; verdict is usable, stopped or listed
    instances  path, size, modified, and the volume that the file belongs to
"""

from __future__ import annotations

import csv
import hashlib
import logging
import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from ...errors import CaseError, UsageError
from ...transforms.geometry import axis_codes
from ...transforms.readers import Found, Source, dicom_stack, find_sources, source_geometry
from ...transforms.volume import Entry, Geometry
from ...transforms.writers import atomic_write
from ..identity import case_id, salt_of
from ..outcome import Failure, Outcome
from .naming import relative, source_id

log = logging.getLogger(__name__)

FORMAT = "1"
DATABASE = Path("voxelwise-index.db")
COLUMNS = (
    *("id", "verdict", "code", "reason", "kind", "modality", "shape", "slices", "spacing_mm", "orientation"),
    *("body_part", "part", "files", "place"),
)
SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE volumes (number INTEGER PRIMARY KEY, {", ".join(COLUMNS)});
CREATE TABLE instances (path TEXT PRIMARY KEY, size INTEGER, modified INTEGER, volume INTEGER REFERENCES volumes);
CREATE INDEX instances_volume ON instances (volume);
"""


def index(
    archive: Path | str,
    *,
    db: Path | str | None = None,
    modality: str | None = None,
    min_slices: int | None = None,
    export: Path | str | None = None,
    salt: Path | str | None = None,
) -> Outcome:
    """List every volume of an archive with its geometry, verdict and reason.

    Args:
        archive: folder that is walked to its leaves, or a file.
        db: SQLite file; by default `voxelwise-index.db` in the current folder.
        modality: return and export these alone, such as "CT" or "MR,PT".
        min_slices: return and export what has as many slices or more.
        export: CSV file of the same table.
        salt: text file with the salt of the ids, so that they agree with those of `convert --salt`.

    Returns:
        `done` are the ids of usable volumes, `failures` what was stopped; `facts["volumes"]` are the rows (`COLUMNS`).
    """
    root, path = Path(archive), Path(db) if db is not None else DATABASE
    if not root.exists():
        raise UsageError(f"{root} does not exist; give the folder of an archive")
    known = _known(path, root)
    secret = salt_of(Path(), Path(salt)) if salt is not None else known.get("salt", "")
    tree = {relative(file, root): state for file, state in _files(root, path)}
    if known.get("tree") == _tree_digest(tree) and known.get("salt") == secret:
        log.info("nothing changed since the last run; the index is as it was")
        rows = _read(path)
    else:
        rows = _write(path, root, tree, find_sources(root), secret or os.urandom(16).hex())
    outcome = _outcome(path, rows)
    chosen = [row for row in rows if _is_chosen(row, modality, min_slices)]
    if export is not None:
        with atomic_write(Path(export)) as part, part.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream, lineterminator="\n").writerows([COLUMNS, *chosen])
    return Outcome(outcome.out, outcome.done, (), outcome.failures, facts={"volumes": chosen})


def _known(path: Path, root: Path) -> dict[str, str]:
    """What the file of an earlier run says of itself; empty where there is none."""
    if not path.exists():
        return {}
    try:
        with closing(sqlite3.connect(f"file:{path.resolve()}?mode=ro".replace("%", "%25"), uri=True)) as base:
            known = dict(base.execute("SELECT key, value FROM meta"))
    except sqlite3.DatabaseError:
        raise UsageError(f"--db {path}: is there and is no index of voxelwise; give another name") from None
    if known.get("format") != FORMAT:
        raise UsageError(
            f"--db {path}: has format {known.get('format')}, expected {FORMAT}; delete it or give another name"
        )
    if known.get("archive") != str(root.resolve()):
        raise UsageError(f"--db {path}: is the index of {known.get('archive')}; delete it or give another name")
    return known


def _files(root: Path, db: Path) -> Iterator[tuple[Path, tuple[int, int]]]:
    """Every regular file below, with size and time; links are not followed."""
    if root.is_file():
        state = root.stat()
        yield root, (state.st_size, state.st_mtime_ns)
        return
    own = db.resolve()
    for top, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = Path(top) / name
            state = path.lstat()
            if path.resolve() != own:
                yield path, (state.st_size, state.st_mtime_ns)


def _tree_digest(tree: dict[str, tuple[int, int]]) -> str:
    digest = hashlib.sha256()
    for name, (size, modified) in sorted(tree.items()):
        digest.update(f"{name}\0{size}\0{modified}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _rows(found: Found, root: Path, salt: str) -> Iterator[tuple[dict[str, Any], Sequence[Path]]]:
    """Volumes, then what was stopped, then what is no volume."""
    for source in found.sources:
        row = {
            "id": source_id(source, salt, root),
            "kind": source.kind,
            "modality": source.modality,
            "part": source.part,
        }
        try:
            yield {**row, "verdict": "usable", **_facts(source)}, source.files
        except CaseError as error:
            yield {**row, "verdict": "stopped", "code": error.code, "reason": str(error)}, source.files
    for stop in found.stopped:
        place = relative(stop.files[0], root) if stop.files else ""
        row = {"id": case_id(salt, place), "verdict": "stopped", "code": stop.code, "reason": stop.message}
        yield row, stop.files
    for entry in found.listed:
        place = relative(entry.files[0], root) if entry.files else ""
        yield {"id": case_id(salt, place), "verdict": "listed", "reason": entry.reason}, entry.files


def _facts(source: Source) -> dict[str, Any]:
    """Geometry and what else the headers tell."""
    entries: tuple[Entry, ...] = ()
    body_part = ""
    if source.kind == "dicom":
        stack = dicom_stack(source)
        geometry = Geometry(stack.shape, stack.affine, has_world=not stack.picture)
        entries = (*stack.repairs, *stack.notes)
        body_part = str(stack.slices[0].facts.get("BodyPartExamined", ""))
    else:
        geometry = source_geometry(source)[0]
    return {
        "shape": "x".join(str(side) for side in geometry.shape),
        "slices": geometry.shape[2] if len(geometry.shape) > 2 else 1,
        "spacing_mm": "x".join(f"{step:.4g}" for step in geometry.spacing_mm) if geometry.has_world else None,
        "orientation": axis_codes(geometry.affine) if geometry.has_world else None,
        "body_part": body_part if re.fullmatch(r"[A-Z0-9 _]{1,16}", body_part) else None,
        "code": ", ".join(sorted({entry.code for entry in entries})) or None,
        "reason": "; ".join(entry.detail for entry in entries) or None,
    }


def _write(path: Path, root: Path, tree: dict[str, tuple[int, int]], found: Found, salt: str) -> list[tuple[Any, ...]]:
    meta = {"format": FORMAT, "archive": str(root.resolve()), "salt": salt, "tree": _tree_digest(tree)}
    rows = list(_rows(found, root, salt))
    with atomic_write(path) as part, closing(sqlite3.connect(part)) as base:
        base.executescript(SCHEMA)
        base.executemany("INSERT INTO meta VALUES (?, ?)", sorted(meta.items()))
        owner: dict[str, int] = {}
        for number, (row, files) in enumerate(rows, start=1):
            places = [relative(file, root) for file in files]
            row.update(files=len(files), place=os.path.commonpath(places) if places else "")
            base.execute(
                f"INSERT INTO volumes VALUES ({','.join('?' * (len(COLUMNS) + 1))})",
                (number, *(_text(row.get(column)) for column in COLUMNS)),
            )
            owner.update(dict.fromkeys(places, number))
        instances = ((_text(name), *state, owner.get(name)) for name, state in sorted(tree.items()))
        base.executemany("INSERT OR IGNORE INTO instances VALUES (?, ?, ?, ?)", instances)
        base.commit()
    return _read(path)


def _read(path: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as base:
        return list(base.execute(f"SELECT {', '.join(COLUMNS)} FROM volumes ORDER BY number"))


def _text(value: Any) -> Any:
    """A value that SQLite takes: a name that is no text has its odd bytes escaped."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _outcome(path: Path, rows: Sequence[Sequence[Any]]) -> Outcome:
    named = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    failures = [
        Failure(row["id"], (row["place"],), row["code"], row["reason"]) for row in named if row["verdict"] == "stopped"
    ]
    return Outcome(path, tuple(row["id"] for row in named if row["verdict"] == "usable"), (), tuple(failures))


def _is_chosen(row: Sequence[Any], modality: str | None, min_slices: int | None) -> bool:
    named = dict(zip(COLUMNS, row, strict=True))
    wanted = {word.strip().upper() for word in modality.split(",")} if modality else None
    if wanted is not None and (named["modality"] or "").upper() not in wanted:
        return False
    return min_slices is None or (named["slices"] or 0) >= min_slices
