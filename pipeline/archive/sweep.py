"""Between the halves of an index: what vanished is taken out, and what changed while the tree was read is read again.

A file that changes a second time, and a folder in which files still arrive, stop their series.
"""

from __future__ import annotations

import os

from ...errors import CaseError
from ...transforms.look import Look
from ...transforms.tree import items
from .looking import Target, instance_of
from .records import joined, named
from .scan import PAGE_ROWS, Scan

CHANGED = "changed again while it was read. Run again when nobody writes there"


def sweep(scan: Scan) -> None:
    """Hold everything that is kept against the disk once more."""
    scan.empty = False
    if not scan.setting.alone:
        sweep_folders(scan)
    sweep_files(scan)
    scan.commit()


def sweep_folders(scan: Scan) -> None:
    """Read folders again whose time changed since they were entered."""
    last = None
    while True:
        where = "" if last is None else "WHERE folder > ?"
        query = f"SELECT folder, modified FROM folders {where} ORDER BY folder LIMIT {PAGE_ROWS}"
        page = scan.base.execute(query, () if last is None else (last,)).fetchall()
        if not page:
            return
        last = page[-1][0]
        for place, modified in page:
            folder = os.path.join(scan.setting.root, named(place)) if place else scan.setting.root
            now = _time(folder)
            if now is None:
                scan.begin()
                scan.base.execute("DELETE FROM folders WHERE folder = ?", (place,))
                scan.changed = True
            elif now != modified and folder not in scan.own_folders:
                _read_again(scan, folder, place)


def _read_again(scan: Scan, folder: str, place: str) -> None:
    """Look into what arrived in a folder."""
    scan.begin()
    scan.note_folder(folder, 0)
    before = _time(folder)

    def is_new(below: str) -> bool:
        inside = joined(place, os.path.relpath(below, folder)) if place else os.path.relpath(below, folder)
        known = scan.base.execute("SELECT 1 FROM folders WHERE folder = ?", (inside,)).fetchone()
        return known is None and scan.enter(below)

    found = items(folder, enter=is_new)
    scan.look(
        Target(item.path, item.size, item.modified)
        for item in found
        if not item.link and item.error is None and item.path not in scan.own
    )
    if _time(folder) != before:
        scan.begin()
        scan.note_folder(folder, 1)


def sweep_files(scan: Scan) -> None:
    """Take out files that vanished; read those again that changed."""
    last = None
    columns = "folder, name, size, modified, archive, kind"
    archives: dict[str, bool] = {}
    while True:
        where = "" if last is None else "WHERE (folder, name) > (?, ?)"
        query = f"SELECT {columns} FROM instances {where} ORDER BY folder, name LIMIT {PAGE_ROWS}"
        page = scan.base.execute(query, () if last is None else last).fetchall()
        if not page:
            return
        last = page[-1][:2]
        again = []
        for folder, name, size, modified, archive, _ in page:
            if archive is not None:
                archives = archives if archive in archives else {archive: _is_kept(scan, archive)}
                if not archives[archive]:
                    scan.begin()
                    scan.forget(folder, name)
                continue
            path = os.path.join(scan.setting.root, named(folder), named(name))
            state = _state(path, modified)
            if state is None:
                scan.begin()
                scan.forget(folder, name)
            elif state != (size, modified):
                again.append(Target(path, *state))
        if again:
            scan.look(again)
            for target in again:
                if _state(target.path, target.modified) not in (None, target[1:]):
                    _stop_changing(scan, target)


def _state(path: str, modified: int) -> tuple[int, int] | None:
    """Size and time of a file; None where it is gone, or what was kept stood for no file."""
    try:
        state = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return (0, 0) if modified == 0 else (-1, -1)
    if os.path.islink(path):
        return (0, 0) if modified == 0 else None
    if os.path.isdir(path):
        return (0, 0) if modified == 0 and not os.access(path, os.R_OK | os.X_OK) else None
    return state.st_size, state.st_mtime_ns


def _stop_changing(scan: Scan, target: Target) -> None:
    look = Look("broken", error=CaseError(f"{target.path}: {CHANGED}", "changed"))
    row = instance_of(look, target, scan.setting)
    query = "SELECT series FROM instances WHERE folder = ? AND name = ?"
    old = scan.base.execute(query, (row.folder, row.name)).fetchone()
    if old is not None and old[0] is None:
        stopped = Look("stopped", error=look.error)
        row = instance_of(stopped, target, scan.setting)
    scan.write(row._replace(blames=old[0] if old else None))


def _is_kept(scan: Scan, archive: str) -> bool:
    """Whether a zip archive is known as a file."""
    folder, _, name = archive.rpartition("/")
    query = "SELECT kind = 'zip' FROM instances WHERE folder = ? AND name = ?"
    row = scan.base.execute(query, (folder, name)).fetchone()
    return row is not None and bool(row[0])


def _time(folder: str) -> int | None:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return None
