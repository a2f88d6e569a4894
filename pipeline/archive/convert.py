"""`convert`: every usable volume of a file, folder or archive -> NIfTI and a JSON sidecar.

One damaged series stops that series: it is named in failures.csv, and the others are converted. A sidecar says what the
volume is (BIDS names where they exist), what was repaired and what a reader should know; nothing of a header that names
a patient goes into it, unless `--phi` asks for it. What is not DICOM is called by its file's name, and paths relative
to the input stand in manifest.json, failures.csv and on the terminal: folders named after people name them there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import CaseError, UsageError
from ...transforms.read_options import DEFAULT, ReadOptions
from ...transforms.readers import NotAVolume, Source, dicom_stack, read_source
from ...transforms.volume import NOTHING, Entry, Volume
from ...transforms.writers import write_json, write_volume
from ..identity import beside, file_digest, is_file_output, options_mark, salt_mark, states_of
from ..manifest import Outcome, OutputFolder, salt_of
from ..refusals import refusal, refuse_missing, refuse_overlap
from ..scale_out import check_scheduler, each
from .arrangement import Place, bids_places, check_layout, describe, file_place
from .catalogue import Catalogue
from .inventory import InMemory, Inventory, inventory, slim
from .naming import files_id, names_of, origin_of, relative, source_id, whole_id
from .sidecar import sidecar

log = logging.getLogger(__name__)

METRE, MICRON = 1, 3  # of NIfTI's xyzt_units
PARSING = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError, EOFError)


@dataclass(frozen=True)
class Job:
    """One volume to convert.

    Args:
        case: what its record and its file are called.
        series: salted id of the series or file that it comes from, with others maybe.
        source: what is read.
        target, sidecar: what is written.
        root: the input that was asked for.
        salt: of the ids.
        options: how it is read.
        states: of its files when the work was planned (`states_of`); empty where one could not be looked at.
        checksums: the SHA-256 of each input file is wanted.
    """

    case: str
    series: str
    source: Source
    target: Path
    sidecar: Path
    root: Path
    salt: str
    options: ReadOptions
    states: tuple[str, str] = ("", "")
    checksums: bool = False


@dataclass(frozen=True)
class Work:
    """What all jobs of a run share."""

    root: Path
    folder: OutputFolder
    salt: str
    format: str
    options: ReadOptions
    checksums: bool

    def jobs(self, sources: Iterable[Source], places: Sequence[Place | None]) -> Iterator[Job]:
        """One job a volume that has a place."""
        for source, place in zip(sources, places, strict=True):
            if place is None:
                continue
            folder = self.folder
            target = folder.out if folder.single else folder.folder / f"{place.base}.{self.format}"
            yield Job(
                case=place.name,
                series=whole_id(source, self.salt, self.root),
                source=source,
                target=target,
                sidecar=target.with_name(f"{_base(target)}.json"),
                root=self.root,
                salt=self.salt,
                options=self.options,
                states=_states(source, self.root),
                checksums=self.checksums,
            )


@dataclass(frozen=True)
class Converted:
    """What came of one: checksums of what was written and, where wanted, read, what to tell, and how long it took."""

    files: Mapping[Path, str]
    entries: tuple[Entry, ...]
    seconds: float
    checksums: Mapping[Path, str]


def convert(
    input: Path | str,
    out: Path | str,
    *,
    overwrite: bool = False,
    name: str | None = None,
    salt: Path | str | None = None,
    layout: str = "flat",
    format: str = "nii.gz",
    options: ReadOptions = DEFAULT,
    workers: int | None = 1,
    scheduler: str | None = None,
    tls_config: Path | str | None = None,
    db: Path | str | None = None,
) -> Outcome:
    """Write every usable volume behind `input` as NIfTI.

    Args:
        input: a file, or a folder that is walked to its leaves.
        out: folder, or a `.nii.gz` / `.nii` file where the input is one volume.
        overwrite: start anew.
        name: template of the outputs' names; by default the case id for DICOM and the base name for files.
        salt: text file with the salt of the case ids.
        layout: "flat", "bids" or "msd".
        format: "nii.gz" or "nii".
        options: how the sources are read.
        workers: processes on this machine.
        scheduler: address of a Dask cluster in the place of these.
        tls_config: YAML file with ca-file, cert and key for it.
        db: an index of the input, which then keeps the SHA-256 of every file that was read.

    Raises:
        UsageError: a missing or empty input, results of other settings in `out`, options that contradict each other.
    """
    root, target = Path(input), Path(out)
    refuse_overlap(root, target)
    single = is_file_output(target)
    check_layout(layout, format, single=single, template=name)
    if name is not None and single:
        raise UsageError(f"--name {name!r}: {target} is already the name; give a folder, or leave --name out")
    check_scheduler(scheduler, tls_config)
    settings = {
        "input": root.resolve().name,
        "name": name,
        "salt": salt_mark(salt),
        "layout": layout,
        "format": None if single else format,
        "options": options_mark(options),
    }
    refuse_missing(root)
    with ExitStack() as stack:
        folder = stack.enter_context(OutputFolder(target, "convert", settings, overwrite))
        secret = salt_of(target, Path(salt) if salt is not None else None)
        salted = Path(salt) if salt is not None else beside(target, "salt.txt")
        found = stack.enter_context(inventory(root, beside(target, ".index.db"), salted, options, workers))
        root = root if isinstance(found, InMemory) else root.resolve()
        recorded = None if db is None else stack.enter_context(Catalogue(Path(db)))
        work = Work(root, folder, secret, format, options, checksums=db is not None)
        known = [slim(source) for source in found.sources()]
        places = _places(known, root, folder, secret, name, layout)
        left = _left(folder, work.jobs(found.sources(), places))
        _tell_rest(folder, found, root, secret, bool(known))
        jobs = (job for job in work.jobs(found.sources(), places) if job.case in left)
        results = each(convert_one, jobs, workers, scheduler=scheduler, tls_config=tls_config, total=len(left))
        with closing(results):
            _keep(folder, results, len(left), recorded)
        modalities = [source.modality for source, place in zip(known, places, strict=True) if place]
        describe(layout, folder.folder, folder.records, modalities)
        return folder.finish(listed=len(folder.facts["listed"]), rubbish=found.rubbish())


def convert_one(job: Job) -> Converted:
    """Read one volume and write it with its sidecar.

    Memory: the volume, and one slab of it.
    """
    started = time.monotonic()
    source = job.source
    if source.kind == "dicom" and source.proved is None and source.on_disk == source.files:
        source = replace(source, proved=(dicom_stack(source, job.options), job.options))
    origin = origin_of(source, job.salt, job.options)
    volume = in_millimetres(with_a_place(read_source(source, job.options), job))
    checksums = {path: file_digest(path) for path in source.on_disk} if job.checksums else {}
    if states_of(source.on_disk, job.root) != job.states:
        first = relative(source.files[0], job.root)
        raise CaseError(f"{first}: changed while it was read; run again when the archive is at rest", "changed")
    job.target.parent.mkdir(parents=True, exist_ok=True)
    record = sidecar(volume, case=job.case, series=job.series, source=source, origin=origin)
    files = {job.target: write_volume(job.target, volume), job.sidecar: write_json(job.sidecar, record)}
    entries = (*volume.repairs, *volume.notes)
    return Converted(files, entries, time.monotonic() - started, checksums)


def with_a_place(volume: Volume, job: Job) -> Volume:
    """The volume, if its file says where its voxels lie; pictures and films have no place and need none.

    Raises:
        CaseError: a NIfTI volume whose sform_code and qform_code are both 0; NRRD or MetaImage without directions.
    """
    geometry = volume.geometry
    kind, flat = job.source.kind, geometry.film or len(geometry.shape) < 3
    if kind in ("nifti", "itk") and not geometry.has_world and not flat:
        nifti = kind == "nifti"
        found = "sform_code and qform_code are both 0" if nifti else "the header names no directions"
        way_out = "set the code of the form that holds" if nifti else "export it with them"
        raise CaseError(
            f"{job.source.files[0]}: {found}, so nothing says where the voxels lie; "
            f"take the volume from its source again, or {way_out}",
            "no-world-coordinates",
        )
    return volume


def in_millimetres(volume: Volume) -> Volume:
    """The volume with a header of its own where that of the source counts in metres or microns."""
    unit = int(volume.geometry.nifti_fields.get("xyzt_units", 0)) & 7
    if unit not in (METRE, MICRON):
        return volume
    return replace(volume, geometry=replace(volume.geometry, nifti_fields=NOTHING))


def stopped_by(error: Exception, files: Sequence[str]) -> CaseError:
    """The refusal that an exception comes to; a parser's own error means a damaged file.

    Raises:
        Exception: the error itself, where it is not about this volume (no room on the disk, an unsafe file).
    """
    if (known := refusal(error, files)) is not None:
        return known
    if not isinstance(error, PARSING):
        raise error
    first = files[0] if files else "input"
    log.debug("%s", first, exc_info=error)
    return CaseError(
        f"{first}: cannot be parsed ({type(error).__name__}); the file is damaged, leave it out", "unparsable"
    )


def _places(
    sources: Sequence[Source], root: Path, folder: OutputFolder, salt: str, template: str | None, layout: str
) -> list[Place | None]:
    """Where each volume goes; None where its name is taken, which stops it."""
    if folder.single:
        if len(sources) > 1:
            raise UsageError(f"{root} holds {len(sources)} volumes, {folder.out} is one file; give a folder as OUT")
        return [Place(_base(folder.out), _base(folder.out)) for _ in sources]
    places: list[Place | None] = []
    if layout == "bids":
        found = bids_places(sources, salt, root)
    else:
        names = names_of(sources, root, salt=salt, template=template)
        found = [name if isinstance(name, CaseError) else file_place(name, layout) for name in names]
    for place, source in zip(found, sources, strict=True):
        if isinstance(place, CaseError):
            _stop(folder, source_id(source, salt, root), [relative(path, root) for path in source.files], place)
            places.append(None)
        else:
            places.append(place)
    return places


def _left(folder: OutputFolder, jobs: Iterable[Job]) -> set[str]:
    """The cases that no earlier run has done.

    Raises:
        UsageError: an earlier run made an output of other files.
    """
    left: set[str] = set()
    total = 0
    for total, job in enumerate(jobs, start=1):  # noqa: B007
        record, known = folder.records.get(job.case), folder.stamp_of(job.case)
        if record is None or not job.states[0]:
            left.add(job.case)
            continue
        if record["inputs"] != job.states[1] or known not in (None, job.states[0]):
            first = relative(job.source.files[0], job.root)
            raise UsageError(f"{first}: {job.target} was made of other files; use --overwrite or another folder")
        if known is None or not folder.is_done(job.case, job.states[1]):
            left.add(job.case)
    if len(left) < total:
        log.info("%d of %d are there already", total - len(left), total)
    return left


def _keep(
    folder: OutputFolder,
    results: Iterable[tuple[Job, Converted | Exception]],
    total: int,
    recorded: Catalogue | None,
) -> None:
    """Record what was converted, and stop what was not, as it comes."""
    for number, (job, result) in enumerate(results, start=1):
        if isinstance(result, Converted):
            folder.note(job.case, *result.entries)
            stamp, inputs = job.states
            folder.record(job.case, result.files, inputs, seconds=result.seconds, stamp=stamp)
            for path, checksum in result.checksums.items():
                if recorded is not None:
                    recorded.record_checksum(path, checksum)
            log.info("converted %d of %d: %s", number, total, job.case)
            continue
        files = [relative(path, job.root) for path in job.source.files]
        _stop(folder, job.case, files, stopped_by(result, files))


def _tell_rest(folder: OutputFolder, found: Inventory, root: Path, salt: str, any_volume: bool) -> None:
    """What was found and is no volume: stopped files fail, the others are listed in the manifest."""
    for stop in found.stopped():
        files = [relative(path, root) for path in stop.files]
        error = stopped_by(CaseError(stop.message, stop.code), files)
        _stop(folder, files_id(stop.files, salt, root), files, error)
        any_volume = True
    listed = [_listed(entry, root) for entry in found.listed()]
    folder.facts.update(listed=listed, rubbish=found.rubbish())
    if not any_volume:
        reason = f"; {listed[0]['files'][0]}: {listed[0]['reason']}" if listed else ""
        log.warning("%s", f"{root}: holds no volume ({len(listed)} found that are none{reason})")


def _stop(folder: OutputFolder, case: str, files: Sequence[str], error: CaseError) -> None:
    failure = folder.fail(case, files, error)
    log.warning("%s: stopped: %s", failure.case, failure.message)


def _listed(entry: NotAVolume, root: Path) -> dict[str, Any]:
    return {"files": [relative(path, root) for path in entry.files], "reason": entry.reason}


def _base(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _states(source: Source, root: Path) -> tuple[str, str]:
    try:
        return states_of(source.on_disk, root)
    except OSError:
        return "", ""  # it is stopped when it is read
