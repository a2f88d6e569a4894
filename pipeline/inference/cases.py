"""One case of `predict`: read, segment, write; what is made of it is told, and recorded by who asked for it."""

from __future__ import annotations

import errno
import logging
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...errors import CaseError, UsageError
from ...transforms.loading import load_channels
from ...transforms.read_options import DEFAULT, ReadOptions
from ...transforms.readers import read_source
from ...transforms.volume import Entry, Volume
from ...transforms.writers import NO_ROOM, TEMPORARY_SUFFIX, atomic_write
from ..archive.naming import relative
from ..identity import digest_of, file_digest
from ..overlays import overlay
from ..refusals import refusal
from .checks import filled, noted_constant
from .inputs import Job
from .label_files import PROBABILITIES, write_labels, write_map
from .predictor import Predictor
from .reading import check_reading, reading_bytes
from .segmentation import OnPlan, Prepared, Segmented

log = logging.getLogger(__name__)

NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class Task:
    """One case: what it is called, what it is made from, where its label map goes, and what else is asked for of it."""

    case: str
    job: Job
    target: Path
    preview: Path | None = None
    beside: Mapping[str, Path] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        """What is written."""
        return [self.target, *self.beside.values(), *([] if self.preview is None else [self.preview])]


@dataclass(frozen=True, eq=False)
class Ready:
    """A case that was read.

    Args:
        image: as the predictor takes it.
        inputs: digest of its files, taken before they were read.
    """

    image: Volume | Prepared
    inputs: str

    @property
    def volume(self) -> Volume:
        """The image as it was read."""
        return self.image.volume if isinstance(self.image, Prepared) else self.image


@dataclass(frozen=True, eq=False)
class Result:
    """A case that was segmented; the image is not held any more.

    Args:
        source: the image without its voxels.
        found: its label map.
        picture: the preview, where one is wanted.
        inputs: digest of its files.
        seconds: that it took.
        probabilities: the file that holds them, under its temporary name.
    """

    source: Volume
    found: Segmented
    picture: bytes | None
    inputs: str
    seconds: float
    probabilities: Path | None = None


@dataclass(frozen=True)
class Done:
    """A case whose files are whole and in their places.

    Args:
        files: their SHA-256.
        inputs: digest of what they were made from.
        entries: repairs and notes that a reader of the result should know.
        plan: how it was done, where its memory was planned.
        seconds: that it took.
        numbers: of the case, for its record.
        engine: name, version and precision of what ran the networks.
    """

    files: Mapping[Path, str]
    inputs: str
    entries: tuple[Entry, ...]
    plan: str | None
    seconds: float
    numbers: Mapping[str, object] = field(default_factory=dict)
    engine: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Steps:
    """The three steps of a case, which need nothing of each other but what they hand on.

    Args:
        predictor: the model.
        options: how sources are read.
        fill_nan: whether holes are filled.
    """

    predictor: Predictor
    options: ReadOptions = DEFAULT
    fill_nan: str | None = None

    def reading_bytes(self, task: Task) -> int:
        """What `read` takes at most."""
        needed = reading_bytes(task.job.sources, self.options)
        return 3 * needed if self.fill_nan else needed  # a mask, and a copy where there are holes

    def read(self, task: Task, *, planned: bool = False) -> Ready:
        """The image of a case, prepared where no limit of RAM stands against it.

        Args:
            task: the case.
            planned: there is room for it, as was found out before.
        """
        job = task.job
        if not planned:
            check_reading(job.sources, self.predictor.limits.ram, self.options)
        inputs = digest_of(job.on_disk)
        volume = read_case(job, options=self.options, fill_nan=self.fill_nan)
        return Ready(self.predictor.prepare(volume), inputs)

    def segment(self, task: Task, ready: Ready, on_plan: OnPlan | None = None) -> Result:
        """The label map of a case."""
        started = time.monotonic()
        part = None
        if (store := task.beside.get(PROBABILITIES)) is not None:
            store.parent.mkdir(parents=True, exist_ok=True)
            part = store.with_name(f".{task.target.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
        try:
            asked = {} if part is None else {"probabilities": part}
            found = self.predictor.segment(ready.image, on_plan, **asked)
        except BaseException:
            if part is not None:
                part.unlink(missing_ok=True)
            raise
        picture = None
        if task.preview is not None:
            picture = overlay(ready.volume, {"labels": found.labels}, self.predictor.classes, title=task.case)
        source = replace(ready.volume, array=ready.volume.array[:0])
        return Result(source, found, picture, ready.inputs, time.monotonic() - started, part)

    def write(self, task: Task, result: Result) -> Done:
        """Its files, all of them or none.

        Raises:
            NoRoomError: the disk is full.
            UsageError: nothing can be written there any more.
        """
        started, source, found = time.monotonic(), result.source, result.found
        files: dict[Path, str] = {}
        try:
            files[task.target] = write_labels(task.target, found.labels, source.geometry, task.job.kind)
            for name, path in task.beside.items():
                if name == PROBABILITIES:
                    assert result.probabilities is not None
                    with atomic_write(path) as temporary:
                        result.probabilities.replace(temporary)
                    files[path] = file_digest(path)
                elif name in found.maps:
                    files[path] = write_map(path, found.maps[name], source.geometry, task.job.kind)
            if task.preview is not None and result.picture is not None:
                task.preview.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(task.preview) as temporary:
                    temporary.write_bytes(result.picture)
                files[task.preview] = file_digest(task.preview)
        except Exception as error:
            for path in (*files, *([] if result.probabilities is None else [result.probabilities])):
                with suppress(OSError):
                    path.unlink()
            if isinstance(error, OSError) and error.errno not in NO_ROOM:
                raise _unwritable(task.target, error) from error
            raise
        entries = (*source.repairs, *source.notes, *found.notes)
        plan = str(found.plan) if self.predictor.measured and found.plan is not None else None
        seconds = result.seconds + time.monotonic() - started
        return Done(files, result.inputs, entries, plan, seconds, found.numbers, self.predictor.engine_facts)


def read_case(job: Job, *, options: ReadOptions = DEFAULT, fill_nan: str | None = None) -> Volume:
    """The volume of a case, its channels put together."""
    one = len(job.sources) == 1
    volume = read_source(job.sources[0], options) if one else load_channels(job.sources, options=options)
    return noted_constant(filled(volume) if fill_nan else volume)


def stopped_by(error: Exception, job: Job, root: Path) -> CaseError:
    """The refusal of a case that an exception comes to; an exception that nobody knows is our own bug.

    Args:
        error: what was raised.
        job: of the case.
        root: of the inputs, which messages leave out.

    Raises:
        Exception: the error itself, where it is not about this case (no room, an unsafe file).
    """
    files = [relative(file, root) for file in job.files]
    if (known := refusal(error, files)) is not None:
        return known
    first = files[0] if files else "case"
    log.debug("%s", first, exc_info=error)
    return CaseError(
        f"{first}: could not be segmented ({type(error).__name__}), a bug of ours; report it with what --debug shows",
        "internal",
    )


def _unwritable(target: Path, error: OSError) -> Exception:
    """A place where nothing can be written is wrong for all cases; another fault is that of one."""
    reason = error.strerror or type(error).__name__
    if error.errno in NOT_WRITABLE:
        return UsageError(
            f"{target}: cannot be written ({reason}); make its folder writable, or choose another OUT, and give the "
            "same command again"
        )
    return CaseError(f"{target}: cannot be written ({reason}); check its disk", "unwritable")
