"""The loop over the cases of `predict`: read, segment, write, record; one bad case stops that case alone."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...errors import CaseError
from ...transforms.loading import load_channels
from ...transforms.read_options import DEFAULT, ReadOptions
from ...transforms.readers import read_source
from ...transforms.volume import Volume
from ...transforms.writers import atomic_write
from ..archive.naming import relative
from ..manifest import OutputFolder, digest_of
from ..overlays import overlay
from ..refusals import refusal
from .checks import filled
from .export import write_labels
from .inputs import Job
from .predictor import Predictor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """One case: what it is called, what it is made from, where its label map goes."""

    case: str
    job: Job
    target: Path
    preview: Path | None = None

    @property
    def files(self) -> list[Path]:
        """What is written."""
        return [self.target] if self.preview is None else [self.target, self.preview]


def read_case(job: Job, *, options: ReadOptions = DEFAULT, fill_nan: str | None = None) -> Volume:
    """The volume of a case, its channels put together."""
    one = len(job.sources) == 1
    volume = read_source(job.sources[0], options) if one else load_channels(job.sources, options=options)
    return filled(volume) if fill_nan else volume


def predict_cases(
    folder: OutputFolder,
    tasks: Sequence[Task],
    root: Path,
    predictor: Predictor,
    read_one: Callable[[Job], Volume],
    *,
    ahead: bool,
) -> None:
    """Do what is not done yet.

    Args:
        folder: where records and failures go.
        tasks: all cases.
        root: of the inputs, which messages leave out.
        predictor: the model.
        read_one: gives the volume of a job.
        ahead: read the next case in a thread meanwhile.
    """
    left = []
    for task in tasks:
        try:
            known = task.case in folder.records and all(path.is_file() for path in task.files)
            done = known and folder.is_done(task.case, digest_of(task.job.on_disk))
        except OSError:
            done = False  # an input that cannot be read is stopped below, with the others
        if not done:
            left.append(task)
    if len(left) < len(tasks):
        log.info("%d of %d are there already", len(tasks) - len(left), len(tasks))
    for number, (task, read) in enumerate(_read_all(left, read_one, ahead=ahead), start=1):
        started = time.monotonic()
        try:
            volume = read()
            found = predictor.segment(volume)
            labels = found.labels
            write_labels(task.target, labels, volume.geometry, task.job.kind)
            if task.preview is not None:
                task.preview.parent.mkdir(parents=True, exist_ok=True)
                picture = overlay(volume, {"labels": labels}, predictor.classes, title=task.case)
                with atomic_write(task.preview) as temporary:
                    temporary.write_bytes(picture)
            folder.note(task.case, *volume.repairs, *volume.notes, *found.notes)
            if predictor.measured:
                folder.facts.setdefault("plans", {})[task.case] = str(found.plan)
            seconds = time.monotonic() - started
            folder.record(task.case, task.files, digest_of(task.job.on_disk), seconds=seconds)
            log.info("predicted %d of %d: %s", number, len(left), task.case)
        except Exception as error:
            files = [relative(file, root) for file in task.job.files]
            failure = folder.fail(task.case, files, _refusal(error, files))
            log.warning("%s: stopped: %s", task.case, failure.message)


def _read_all(
    tasks: Sequence[Task], read_one: Callable[[Job], Volume], *, ahead: bool
) -> Iterator[tuple[Task, Callable[[], Volume]]]:
    """Each task with a call that gives its volume; `ahead` reads the next one in a thread meanwhile."""
    if not ahead or len(tasks) < 2:
        for task in tasks:
            yield task, partial(read_one, task.job)
        return
    with ThreadPoolExecutor(1) as pool:
        waiting: Future[Volume] = pool.submit(read_one, tasks[0].job)
        for task, following in zip(tasks, [*tasks[1:], None], strict=True):
            volume = waiting
            volume.exception()  # read to its end before the next one starts: two volumes at most are held
            if following is not None:
                waiting = pool.submit(read_one, following.job)
            yield task, volume.result


def _refusal(error: Exception, files: Sequence[str]) -> CaseError:
    """The refusal of a case that an exception comes to; an exception that nobody knows is our own bug.

    Raises:
        Exception: the error itself, where it is not about this case (no room, an unsafe file).
    """
    if (known := refusal(error, files)) is not None:
        return known
    first = files[0] if files else "case"
    log.debug("%s", first, exc_info=error)
    return CaseError(
        f"{first}: could not be segmented ({type(error).__name__}), a bug of ours; report it with what --debug shows",
        "internal",
    )
