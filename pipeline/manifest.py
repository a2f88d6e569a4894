"""Output folders that can be trusted: a lock, settings that must agree, one record per case, a summary.

A file is visible under its final name only when it is whole. "Done" is a record with the checksum of the output, never
the mere existence of a file. While a run lasts, its records are lines of `.records.jsonl`, each synced to disk, so that
a kill loses the case at hand and no more; at the end they become

    manifest.json   command, settings, versions, one record a case: equal bytes for equal runs, killed in between or not
    timings.json    what differs between equal runs: times, host, peak memory, the command line, the state of the inputs
    failures.csv    case, files, code, message of each case that was stopped (only where there is one)

Files are named by their paths relative to the input, here and on the terminal: what a path gives away is not hidden.

A run that is refused as wrong use before any case was done leaves everything as it found it.

Where the output is one file (`OUT.nii.gz`), these stand beside it under the names `OUT.manifest.json` and so on.
"""

from __future__ import annotations

import csv
import errno
import json
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from ..errors import CaseError, NoRoomError, UsageError
from ..transforms.volume import NOTHING, Entry
from ..transforms.writers import atomic_write, plain_value, write_text
from .identity import beside, case_id, digest_of, file_digest, is_file_output, salt_of
from .lock import FolderLock
from .outcome import Failure, Outcome
from .text import printable

__all__ = ["Failure", "Outcome", "OutputFolder", "case_id", "digest_of", "file_digest", "salt_of", "versions"]

FORMAT = 1
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
LIBRARIES = (
    "torch",
    "monai",
    "numpy",
    "scipy",
    "nibabel",
    "pydicom",
    "SimpleITK",
    "itk",
    "lightning",
    "blosc2",
    "isal",
)
PART = re.compile(r"^\..+\.part$|^\.lock\.[0-9a-f]{12}$")  # temporary names of `atomic_write` and of the lock
BOOKS = {
    *(".lock", ".records.jsonl", "salt.txt", "manifest.json", "timings.json", "failures.csv", ".DS_Store"),
    *(f".index.db{ending}" for ending in ("", "-journal", "-wal", "-shm")),  # of a large input, while a run lasts
}


@cache
def versions() -> dict[str, str]:
    """Versions of voxelwise and of what it computes with, read without importing them."""
    found = {"python": platform.python_version()}
    for name in ("voxelwise", *LIBRARIES):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


class OutputFolder:
    """The folder (or the one file) that a stage writes to, locked while the stage runs.

    Args:
        out: folder, or a file name ending in `.nii`, `.nii.gz` or `.png` where the result is one file.
        command: the verb.
        settings: values that decide the results; a second run with other values is refused.
        overwrite: start anew: earlier records are dropped and the files that they name removed.
        facts: values recorded in the manifest that may differ from run to run (device, threads, precision).

    Raises:
        UsageError: results of other settings, a filled folder that is not ours, no right to write.
        FolderInUseError: another run works here.
    """

    def __init__(
        self,
        out: Path,
        command: str,
        settings: Mapping[str, Any],
        overwrite: bool = False,
        *,
        facts: Mapping[str, Any] = NOTHING,
    ) -> None:
        self.out = Path(out)
        self.single = is_file_output(self.out)
        self.folder = self.out.parent if self.single else self.out
        self.command, self.overwrite = command, overwrite
        self.settings: dict[str, Any] = json.loads(json.dumps(dict(settings), sort_keys=True, default=str))
        self.facts: dict[str, Any] = dict(facts)
        self.records: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, float] = {}
        self.stamps: dict[str, str] = {}
        self._done: set[str] = set()
        self._skipped: set[str] = set()
        self._failures: dict[tuple[str, tuple[str, ...]], Failure] = {}
        self._notes: dict[str, list[Entry]] = {}
        self._manifest, self._journal = beside(self.out, "manifest.json"), beside(self.out, ".records.jsonl")
        self._lock = FolderLock(beside(self.out, ".lock"), self.out)
        self._stream: IO[str] | None = None
        self._started, self._clock = time.time(), time.monotonic()
        self._finished = False
        self._found: bytes | None = None  # the manifest of an earlier run
        self._made: list[Path] = []  # folders and books that were not there before

    def __enter__(self) -> OutputFolder:
        folders = (self.folder, *self.folder.parents)
        self._made = [folder for folder in folders if not folder.exists()]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            raise UsageError(f"{self.out}: cannot write there ({error.strerror}); choose another place") from None
        except OSError as error:
            if error.errno == errno.EROFS:
                raise UsageError(f"{self.out}: cannot write there ({error.strerror}); choose another place") from None
            raise self._translated(error) from None
        books = (beside(self.out, name) for name in sorted(BOOKS - {".lock", ".DS_Store"}))
        self._made[:0] = [book for book in books if not book.exists()]
        try:
            self._take_over()
        except BaseException as error:
            self._lock.release()
            if isinstance(error, UsageError):
                self._remove_made()
            if isinstance(error, OSError):
                raise self._translated(error) from error
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        refused = isinstance(error, UsageError) and not self._done
        try:
            if refused:
                self._leave_as_found()
            elif not self._finished:
                # what counts is in the records already, and the first error is the one to show
                with suppress(OSError, NoRoomError) if error else nullcontext():
                    self._write_books(finished=error is None)
        finally:
            if self._stream is not None:
                with suppress(OSError):
                    self._stream.close()
            self._lock.release()
        if refused:
            self._remove_made()
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise self._translated(error) from error

    def stamp_of(self, case: str) -> str | None:
        """The state of the inputs that an earlier run made the case of; None where nothing is known of it."""
        return self.stamps.get(case) if case in self.records else None

    def is_done(self, case: str, inputs_digest: str) -> bool:
        """Whether an earlier run did it from the same inputs and its files are unchanged; it then counts as skipped."""
        record = self.records.get(case)
        if record is None or record["inputs"] != inputs_digest or case in self._done:
            return False
        for name, digest in record["files"].items():
            path = self.folder / name
            if not path.is_file() or file_digest(path) != digest:
                return False
        self._skipped.add(case)
        self._notes[case] = [Entry(**entry) for entry in record.get("notes", [])]
        return True

    def note(self, case: str, *entries: Entry) -> None:
        """Keep repairs or notes of a case; called before `record`, they stand in its record."""
        self._notes.setdefault(case, []).extend(entries)

    def record(
        self,
        case: str,
        files: Sequence[Path] | Mapping[Path, str],
        inputs_digest: str,
        details: Mapping[str, Any] = NOTHING,
        *,
        seconds: float | None = None,
        stamp: str | None = None,
    ) -> None:
        """The case is done: `files` are whole and under their final names inside the folder.

        Args:
            case: its name.
            files: what was written, with the SHA-256 of each where it is known.
            inputs_digest: a digest of what it was made from, equal between equal runs.
            details: json-able values that are equal between equal runs.
            seconds: how long it took (goes to timings.json).
            stamp: the state of the inputs on this disk, such as `stamp_of` their sizes and times (to timings.json).
        """
        known = files if isinstance(files, Mapping) else {Path(path): file_digest(path) for path in files}
        names = {path.relative_to(self.folder).as_posix(): digest for path, digest in known.items()}
        record: dict[str, Any] = {**details, "files": names, "inputs": inputs_digest}
        if entries := self._notes.get(case):
            record["notes"] = [{"code": entry.code, "detail": entry.detail} for entry in entries]
        self._append({"case": case, "record": record, **({} if stamp is None else {"stamp": stamp})})
        self.records[case] = record
        if stamp is not None:
            self.stamps[case] = stamp
        self._done.add(case)
        self._skipped.discard(case)
        for key in [key for key in self._failures if key[0] == case]:
            del self._failures[key]
        if seconds is not None:
            self.seconds[case] = round(seconds, 3)

    def fail(self, case: str, files: Iterable[Path | str], error: CaseError) -> Failure:
        """The case is stopped; what an earlier run made of it is removed, for it is not what this run would make.

        Args:
            case: its name.
            files: strings are kept as they are (relative to the input), of paths the last part.
            error: why.
        """
        names = tuple(printable(name if isinstance(name, str) else name.name) for name in files)
        failure = Failure(printable(case), names, error.code, printable(str(error)))
        if case in self.records:
            self._append({"case": case, "record": None})
            self._forget(case)
        self._failures[case, names] = failure
        return failure

    def finish(self, **facts: Any) -> Outcome:
        """Write manifest, timings and failures; `facts` go into the outcome, not into the files."""
        self._write_books(finished=True)
        self._finished = True
        return Outcome(
            out=self.out,
            done=tuple(sorted(self._done)),
            skipped=tuple(sorted(self._skipped)),
            failures=tuple(self._failures[key] for key in sorted(self._failures)),
            notes={case: tuple(entries) for case, entries in sorted(self._notes.items()) if entries},
            facts=facts,
        )

    # ------------------------------------------------------------------ the books

    def _take_over(self) -> None:
        before: dict[str, Any] = {}
        if self._manifest.exists():
            self._found = self._manifest.read_bytes()
            before = self._read_manifest()
        elif not self.overwrite:
            self._refuse_what_is_not_ours()
        self._remove_parts()
        self.records = dict(before.get("cases", {}))
        self.stamps = self._read_stamps()
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

    def _strange(self) -> list[str]:
        """Names in the folder that are neither books nor temporary files of ours."""
        return sorted(p.name for p in self.folder.iterdir() if p.name not in BOOKS and not PART.match(p.name))

    def _is_bare(self) -> bool:
        """Whether an earlier run left nothing but its books, so that its settings bind nobody."""
        return not self.out.exists() if self.single else not (self._read_journal() or self._strange())

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

    def _leave_as_found(self) -> None:
        """Nothing was done: the manifest is again what it was."""
        if self._found is not None and not self.overwrite:
            with atomic_write(self._manifest) as part:
                part.write_bytes(self._found)
        elif self._manifest not in self._made:
            self._write_books(finished=False)

    def _remove_made(self) -> None:
        """Take away the books of a run that did nothing, and the folders that were made for it."""
        for path in self._made:
            with suppress(OSError):
                if path.is_dir():
                    path.rmdir()
                else:
                    path.unlink()

    def _append(self, entry: Mapping[str, Any]) -> None:
        if self._stream is None:
            raise ValueError("an OutputFolder is used inside `with`")
        try:
            self._stream.write(json.dumps(entry, sort_keys=True) + "\n")
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise self._translated(error) from error

    def _forget(self, case: str) -> None:
        record = self.records.pop(case)
        self._done.discard(case)
        self._skipped.discard(case)
        inside = self.folder.resolve()
        for name in record.get("files", {}):
            path = self.folder / name
            if path.resolve().is_relative_to(inside):
                path.unlink(missing_ok=True)
                with suppress(OSError):  # folders of a layout that are empty now
                    for parent in list(Path(name).parents)[:-1]:
                        (self.folder / parent).rmdir()

    def _contents(self, *, finished: bool) -> dict[str, Any]:
        failures = [self._failures[key] for key in sorted(self._failures)]
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

    def _write_books(self, *, finished: bool) -> None:
        self._write_json(self._manifest, self._contents(finished=finished))
        unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
        who = {"self": resource.RUSAGE_SELF, "children": resource.RUSAGE_CHILDREN}
        peaks = {name: round(resource.getrusage(number).ru_maxrss / unit, 1) for name, number in who.items()}
        timings = {
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self._started)),
            "seconds": round(time.monotonic() - self._clock, 3),
            "host": platform.node(),
            "pid": os.getpid(),
            "command_line": sys.argv,
            "peak_memory_mib": peaks,
            "cases": dict(sorted(self.seconds.items())),
            "inputs": {case: self.stamps[case] for case in sorted(self.records) if case in self.stamps},
        }
        self._write_json(beside(self.out, "timings.json"), timings)
        table = beside(self.out, "failures.csv")
        if self._failures:
            with atomic_write(table) as part, part.open("w", newline="", encoding="utf-8") as stream:
                rows = csv.writer(stream, lineterminator="\n")
                rows.writerow(("case", "files", "code", "message"))
                for _, failure in sorted(self._failures.items()):
                    rows.writerow((failure.case, " | ".join(failure.files), failure.code, failure.message))
        else:
            table.unlink(missing_ok=True)
        if finished:
            self._journal.unlink(missing_ok=True)

    def _write_json(self, path: Path, contents: Mapping[str, Any]) -> None:
        # escaped to ASCII, so that a file name which is no text (hazard O06) can stand in it
        write_text(path, json.dumps(contents, indent=1, sort_keys=True, default=plain_value) + "\n")

    def _translated(self, error: OSError) -> Exception:
        if error.errno not in NO_ROOM:
            return error
        free = ""
        with suppress(OSError):
            room = os.statvfs(next(folder for folder in (self.folder, *self.folder.parents) if folder.exists()))
            free = f" ({room.f_bavail * room.f_frsize / 1e6:.0f} MB free)"
        named = isinstance(error.filename, (str, bytes))  # of an open file it is a number
        where = os.fsdecode(error.filename) if named else self.out
        return NoRoomError(f"{where}: no space left on the disk{free}; make room and run the same command again")
