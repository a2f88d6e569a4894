"""`index --verify`: every file is read whole and held against the checksum that is kept of it, or its checksum is kept.

A file whose content changed although its size and time did not stops its volume until somebody touches it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from itertools import islice

from ...errors import CaseError
from ...transforms.look import Look
from .looking import Target, digests, instance_of, look_at
from .records import named, place_of
from .scan import PAGE_ROWS, Scan
from .workers import stream

log = logging.getLogger(__name__)

BATCH = 16
CONTENT_CHANGED = "content-changed"
MESSAGE = (
    "its content is not what was recorded, though its size and time are. Check the disk; touch the file to take it"
)


def verify(scan: Scan) -> int:
    """Read every file whole; return how many hold something else than was recorded."""
    total = scan.base.execute("SELECT count(*) FROM instances WHERE archive IS NULL AND modified != 0").fetchone()[0]
    first = scan.base.execute(
        "SELECT count(*) FROM instances WHERE archive IS NULL AND modified != 0 AND sha256 IS NULL"
    ).fetchone()[0]
    changed = done = 0
    for found in stream(digests, scan.setting, _tasks(scan), scan.workers, _died):
        for path, digest in found:
            done += 1
            changed += _compare(scan, path, digest)
        log.info("verified %d of %d files", done, total)
    scan.commit()
    log.info("%d files held against their checksums, %d had none and have one now", total - first, first)
    return changed


def _died(task: tuple[tuple[str, ...]]) -> list[list[tuple[str, str | None]]]:
    """A worker that dies while it reads says nothing of its files."""
    return [[(path, None) for path in task[0]]]


def _tasks(scan: Scan) -> Iterator[tuple[tuple[str, ...]]]:
    paths = _paths(scan)
    while batch := tuple(islice(paths, BATCH)):
        yield (batch,)


def _paths(scan: Scan) -> Iterator[str]:
    last: tuple[str, str] = ("", "")
    while True:
        query = "SELECT folder, name FROM instances WHERE archive IS NULL AND modified != 0 AND (folder, name) > (?, ?)"
        page = scan.base.execute(f"{query} ORDER BY folder, name LIMIT {PAGE_ROWS}", last).fetchall()
        if not page:
            return
        last = page[-1]
        yield from (os.path.join(scan.setting.root, named(folder), named(name)) for folder, name in page)


def _compare(scan: Scan, path: str, digest: str | None) -> bool:
    """Hold one checksum against what is kept; whether it differs."""
    key = place_of(path, scan.setting.root)
    query = "SELECT sha256, code, kind, series, size, modified FROM instances WHERE folder = ? AND name = ?"
    row = scan.base.execute(query, key).fetchone()
    if row is None or digest is None:
        return False  # gone, or it cannot be read: the next walk says so
    recorded, code, kind, series, size, modified = row
    if recorded is None or (recorded == digest and code == CONTENT_CHANGED):
        scan.begin()
        if recorded is not None:  # it holds again what it held
            for again in look_at(scan.setting, [Target(path, size, modified)]):
                scan.keep(again)
        scan.base.execute("UPDATE instances SET sha256 = ? WHERE folder = ? AND name = ?", (digest, *key))
        return False
    if recorded == digest:
        return False
    if code != CONTENT_CHANGED:
        _stop(scan, Target(path, size, modified), kind, series, recorded)
    return True


def _stop(scan: Scan, target: Target, kind: str, series: str | None, recorded: str) -> None:
    """Stop a file, and the series that it belongs to; what is inside a zip archive with it."""
    error = CaseError(f"{target.path}: {MESSAGE} as it is", CONTENT_CHANGED)
    row = instance_of(Look("broken" if series else "stopped", error=error), target, scan.setting)
    scan.write(row._replace(blames=series))
    update = "UPDATE instances SET sha256 = ? WHERE folder = ? AND name = ?"
    scan.base.execute(update, (recorded, row.folder, row.name))
