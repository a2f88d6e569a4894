"""The books of an output folder: what an earlier run left there is read and held against this one, and all is written.

While a run lasts, its records are lines of `.records.jsonl`, each synced to disk, so that a kill loses the case at hand
and no more; at the end they become

    manifest.json   command, settings, versions, one record a case: equal bytes for equal runs, killed in between or not
    timings.json    what differs between equal runs: times, host, peak memory, the command line, the state of the inputs
    failures.csv    case, files, code, message of each case that was stopped (only where there is one)

Files are named by their paths relative to the input, here and on the terminal: what a path gives away is not hidden.

Where the output is one file (`OUT.nii.gz`), these stand beside it under the names `OUT.manifest.json` and so on.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from ..errors import NoRoomError, UsageError
from ..transforms.writers import NO_ROOM, atomic_write, plain_value, write_text
from .identity import beside, is_file_output
from .outcome import Failure
from .versions import versions

FORMAT = 1
PART = re.compile(r"^\..+\.part$|^\.lock\.[0-9a-f]{12}$")  # temporary names of `atomic_write` and of the lock
BOOKS = {
    *(".lock", ".records.jsonl", "salt.txt", "manifest.json", "timings.json", "failures.csv", ".DS_Store"),
    *(f".index.db{ending}" for ending in ("", "-journal", "-wal", "-shm")),  # of a large input, while a run lasts
}


class Books:
    """What is known of the cases of an output, and the files that keep it.

    Args:
        out: folder, or the file where the result is one.
        command: the verb.
        settings: values that decide the results.
        overwrite: drop earlier records and remove the files that they name.
        facts: values of the manifest that may differ from run to run.

    Attributes:
        records: case -> its record in the manifest.
        stamps: case -> the state of the inputs that it was made of.
        seconds: case -> how long it took this run.
        failures: (case, files) -> why it was stopped.
    """

    def __init__(
        self, out: Path, command: str, settings: Mapping[str, Any], *, overwrite: bool, facts: Mapping[str, Any]
    ) -> None:
        self.out, self.command, self.overwrite = out, command, overwrite
        self.single = is_file_output(out)
        self.folder = out.parent if self.single else out
        self.settings: dict[str, Any] = json.loads(json.dumps(dict(settings), sort_keys=True, default=str))
        self.facts: dict[str, Any] = dict(facts)
        self.records: dict[str, dict[str, Any]] = {}
        self.stamps: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.failures: dict[tuple[str, tuple[str, ...]], Failure] = {}
        self._manifest, self._journal = beside(out, "manifest.json"), beside(out, ".records.jsonl")
        self._stream: IO[str] | None = None
        self._started, self._clock = time.time(), time.monotonic()
        self._found: bytes | None = None  # the manifest of an earlier run
        self._new = False  # there was no manifest

    def missing(self) -> list[Path]:
        """Books that are not there yet."""
        books = (beside(self.out, name) for name in sorted(BOOKS - {".lock", ".DS_Store"}))
        return [book for book in books if not book.exists()]

    def take_over(self) -> None:
        """Read what an earlier run left, remove its temporary files, and start the journal of this one.

        Raises:
            UsageError: results of other settings, or files that are not ours.
        """
        before: dict[str, Any] = {}
        self._new = not self._manifest.exists()
        if not self._new:
            self._found = self._manifest.read_bytes()
            before = self._read_manifest()
        elif not self.overwrite:
            self._refuse_what_is_not_ours()
        self._remove_parts()
        self.records.update(before.get("cases", {}))
        self.stamps.update(self._read_stamps())
        for entry in self._read_journal():
            self._found = None  # the manifest that is written now knows more
            if entry["record"] is None:
                self.records.pop(entry["case"], None)
                continue
            self.records[entry["case"]] = entry["record"]
            if "stamp" in entry:
                self.stamps[entry["case"]] = entry["stamp"]
        if self.overwrite:
            for case in list(self.records):
                self._forget(case)
        self._write_json(self._manifest, self._contents(finished=False))
        self._journal.unlink(missing_ok=True)
        self._stream = self._journal.open("a", encoding="utf-8")

    def keep(self, case: str, record: dict[str, Any], stamp: str | None) -> None:
        """The record of a case that is done, on disk when this returns.

        Raises:
            NoRoomError: the disk is full.
        """
        self._append({"case": case, "record": record, **({} if stamp is None else {"stamp": stamp})})
        self.records[case] = record
        if stamp is not None:
            self.stamps[case] = stamp

    def take_back(self, case: str) -> None:
        """The case is done no longer: its record goes, and the files that it names.

        Raises:
            NoRoomError: the disk is full.
        """
        self._append({"case": case, "record": None})
        self._forget(case)

    def write(self, *, finished: bool) -> None:
        """Manifest, timings and failures; a finished run needs its journal no more."""
        self._write_json(self._manifest, self._contents(finished=finished))
        self._write_json(beside(self.out, "timings.json"), self._timings())
        self._write_failures()
        if finished:
            self._journal.unlink(missing_ok=True)

    def leave_as_found(self) -> None:
        """Nothing was done: the manifest is again what it was."""
        if self._found is not None and not self.overwrite:
            with atomic_write(self._manifest) as part:
                part.write_bytes(self._found)
        elif not self._new:
            self.write(finished=False)

    def close(self) -> None:
        """Close the journal."""
        if self._stream is not None:
            with suppress(OSError):
                self._stream.close()

    def translated(self, error: OSError) -> Exception:
        """The error, or what it means for the user where the disk is full."""
        if error.errno not in NO_ROOM:
            return error
        free = ""
        with suppress(OSError):
            room = os.statvfs(next(folder for folder in (self.folder, *self.folder.parents) if folder.exists()))
            free = f" ({room.f_bavail * room.f_frsize / 1e6:.0f} MB free)"
        named = isinstance(error.filename, (str, bytes))  # of an open file it is a number
        where = os.fsdecode(error.filename) if named else self.out
        return NoRoomError(f"{where}: no space left on the disk{free}; make room and run the same command again")

    def _append(self, entry: Mapping[str, Any]) -> None:
        if self._stream is None:
            raise ValueError("an OutputFolder is used inside `with`")
        try:
            self._stream.write(json.dumps(entry, sort_keys=True) + "\n")
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise self.translated(error) from error

    def _forget(self, case: str) -> None:
        record = self.records.pop(case)
        inside = self.folder.resolve()
        for name in record.get("files", {}):
            path = self.folder / name
            if path.resolve().is_relative_to(inside):
                path.unlink(missing_ok=True)
                with suppress(OSError):  # folders of a layout that are empty now
                    for parent in list(Path(name).parents)[:-1]:
                        (self.folder / parent).rmdir()

    def _read_manifest(self) -> dict[str, Any]:
        way_out = f"use --overwrite or another {'file' if self.single else 'folder'}"
        try:
            before = json.loads(self._manifest.read_text(encoding="utf-8"))
            command, settings = before["command"], dict(before["settings"])
            dict(before["cases"])
        except (ValueError, KeyError, TypeError):
            if self.overwrite:
                return {}
            raise UsageError(f"{self._manifest}: is no manifest of voxelwise; {way_out}") from None
        if self.overwrite or (not before["cases"] and self._is_bare()):
            return before
        if command != self.command:
            raise UsageError(f"{self.out} holds results of `{command}`, not of `{self.command}`; {way_out}")
        changes = [
            f"{name}: {json.dumps(settings.get(name))} -> {json.dumps(self.settings.get(name))}"
            for name in sorted({*settings, *self.settings})
            if settings.get(name) != self.settings.get(name)
        ]
        if changes:
            raise UsageError(f"{self.out} holds results of other settings ({', '.join(changes)}); {way_out}")
        return before

    def _is_bare(self) -> bool:
        """Whether an earlier run left nothing but its books, so that its settings bind nobody."""
        return not self.out.exists() if self.single else not (self._read_journal() or self._strange())

    def _strange(self) -> list[str]:
        """Names in the folder that are neither books nor temporary files of ours."""
        return sorted(p.name for p in self.folder.iterdir() if p.name not in BOOKS and not PART.match(p.name))

    def _refuse_what_is_not_ours(self) -> None:
        if self.single:
            if self.out.exists():
                raise UsageError(f"{self.out} exists and has no manifest beside it; use --overwrite or another file")
            return
        if strange := self._strange():
            raise UsageError(
                f"{self.out} is not empty (it holds {strange[0]!r}) and has no manifest; "
                "use --overwrite or another folder"
            )

    def _remove_parts(self) -> None:
        if self.single:
            parts: Iterable[Path] = self.folder.glob(f".{self.out.name}*.part")
        else:
            parts = (Path(top) / name for top, _, names in os.walk(self.folder) for name in names if PART.match(name))
        for path in list(parts):
            path.unlink(missing_ok=True)

    def _read_journal(self) -> list[dict[str, Any]]:
        entries = []
        with suppress(FileNotFoundError):
            for line in self._journal.read_text(encoding="utf-8").splitlines():
                with suppress(ValueError):  # the line that a kill cut off
                    entry = json.loads(line)
                    if isinstance(entry, dict) and {"case", "record"} <= entry.keys():
                        entries.append(entry)
        return entries

    def _read_stamps(self) -> dict[str, str]:
        with suppress(OSError, ValueError, AttributeError):
            stamps = json.loads(beside(self.out, "timings.json").read_text(encoding="utf-8")).get("inputs", {})
            return {str(case): str(stamp) for case, stamp in dict(stamps).items()}
        return {}

    def _contents(self, *, finished: bool) -> dict[str, Any]:
        failures = [self.failures[key] for key in sorted(self.failures)]
        return {
            "format": FORMAT,
            "command": self.command,
            "finished": finished,
            "settings": self.settings,
            "facts": self.facts,
            "versions": versions(),
            "cases": {case: self.records[case] for case in sorted(self.records)},
            "failures": [{**vars(one), "files": list(one.files)} for one in failures],
        }

    def _timings(self) -> dict[str, Any]:
        unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
        who = {"self": resource.RUSAGE_SELF, "children": resource.RUSAGE_CHILDREN}
        peaks = {name: round(resource.getrusage(number).ru_maxrss / unit, 1) for name, number in who.items()}
        return {
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self._started)),
            "seconds": round(time.monotonic() - self._clock, 3),
            "host": platform.node(),
            "pid": os.getpid(),
            "command_line": sys.argv,
            "peak_memory_mib": peaks,
            "cases": dict(sorted(self.seconds.items())),
            "inputs": {case: self.stamps[case] for case in sorted(self.records) if case in self.stamps},
        }

    def _write_failures(self) -> None:
        table = beside(self.out, "failures.csv")
        if not self.failures:
            table.unlink(missing_ok=True)
            return
        with atomic_write(table) as part, part.open("w", newline="", encoding="utf-8") as stream:
            rows = csv.writer(stream, lineterminator="\n")
            rows.writerow(("case", "files", "code", "message"))
            for _, failure in sorted(self.failures.items()):
                rows.writerow((failure.case, " | ".join(failure.files), failure.code, failure.message))

    def _write_json(self, path: Path, contents: Mapping[str, Any]) -> None:
        # escaped to ASCII, so that a file name which is no text (hazard O06) can stand in it
        write_text(path, json.dumps(contents, indent=1, sort_keys=True, default=plain_value) + "\n")
