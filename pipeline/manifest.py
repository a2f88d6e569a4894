"""Output folders that can be trusted: a lock, settings that must agree, one record per case, a summary.

A file is visible under its final name only when it is whole. "Done" is a record with the checksum of the output, never
the mere existence of a file. `books` says which files keep the records.

A run that is refused as wrong use before any case was done leaves everything as it found it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import CaseError, NoRoomError, UsageError
from ..transforms.volume import NOTHING, Entry
from ..transforms.writers import NO_ROOM
from .books import Books
from .identity import beside, case_id, digest_of, file_digest, salt_of
from .lock import FolderLock
from .outcome import Failure, Outcome
from .text import printable

__all__ = ["NO_ROOM", "Failure", "Outcome", "OutputFolder", "case_id", "digest_of", "file_digest", "salt_of"]


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
        self._books = Books(self.out, command, settings, overwrite=overwrite, facts=facts)
        self.single, self.folder = self._books.single, self._books.folder
        self.facts, self.records, self.seconds = self._books.facts, self._books.records, self._books.seconds
        self._done: set[str] = set()
        self._skipped: set[str] = set()
        self._notes: dict[str, list[Entry]] = {}
        self._lock = FolderLock(beside(self.out, ".lock"), self.out)
        self._finished = False
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
            raise self._books.translated(error) from None
        self._made[:0] = self._books.missing()
        try:
            self._books.take_over()
        except BaseException as error:
            self._lock.release()
            if isinstance(error, UsageError):
                self._remove_made()
            if isinstance(error, OSError):
                raise self._books.translated(error) from error
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        refused = isinstance(error, UsageError) and not self._done
        try:
            if refused:
                self._books.leave_as_found()
            elif not self._finished:
                # what counts is in the records already, and the first error is the one to show
                with suppress(OSError, NoRoomError) if error else nullcontext():
                    self._books.write(finished=error is None)
        finally:
            self._books.close()
            self._lock.release()
        if refused:
            self._remove_made()
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise self._books.translated(error) from error

    def stamp_of(self, case: str) -> str | None:
        """The state of the inputs that an earlier run made the case of; None where nothing is known of it."""
        return self._books.stamps.get(case) if case in self.records else None

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
        self._books.keep(case, record, stamp)
        self._done.add(case)
        self._skipped.discard(case)
        for key in [key for key in self._books.failures if key[0] == case]:
            del self._books.failures[key]
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
            self._books.take_back(case)
            self._done.discard(case)
            self._skipped.discard(case)
        self._books.failures[case, names] = failure
        return failure

    def finish(self, **facts: Any) -> Outcome:
        """Write manifest, timings and failures; `facts` go into the outcome, not into the files."""
        self._books.write(finished=True)
        self._finished = True
        return Outcome(
            out=self.out,
            done=tuple(sorted(self._done)),
            skipped=tuple(sorted(self._skipped)),
            failures=tuple(failure for _, failure in sorted(self._books.failures.items())),
            notes={case: tuple(entries) for case, entries in sorted(self._notes.items()) if entries},
            facts=facts,
        )

    def _remove_made(self) -> None:
        """Take away the books of a run that did nothing, and the folders that were made for it."""
        for path in self._made:
            with suppress(OSError):
                if path.is_dir():
                    path.rmdir()
                else:
                    path.unlink()
