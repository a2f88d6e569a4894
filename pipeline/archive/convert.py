"""`convert`: every usable volume of a file, folder or archive -> NIfTI and a JSON sidecar.

One damaged series stops that series: it is named in failures.csv, and the others are converted. A sidecar says what the
volume is (BIDS names where they exist), what was repaired and what a reader should know; nothing of a header that names
a patient goes into it. What is not DICOM is called by its file's name, and paths relative to the input stand in
manifest.json, failures.csv and on the terminal: folders named after people name them there.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import CaseError, UsageError
from ...transforms.geometry import axis_codes
from ...transforms.readers import Found, NotAVolume, Source, find_sources, read_source
from ...transforms.volume import NOTHING, Entry, Volume
from ...transforms.writers import write_json, write_volume
from ..identity import case_id
from ..manifest import Outcome, OutputFolder, digest_of, salt_of
from ..refusals import refusal, refuse_overlap
from ..scale_out import each
from ..text import printable
from .naming import case_names, relative, source_id

log = logging.getLogger(__name__)

METRE, MICRON = 1, 3  # of NIfTI's xyzt_units
PARSING = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError, EOFError)


@dataclass(frozen=True)
class Job:
    """One volume to convert."""

    case: str
    series: str
    source: Source
    target: Path
    sidecar: Path


@dataclass(frozen=True)
class Converted:
    """What came of one: checksum of its inputs, what to tell, and how long it took."""

    inputs: str
    entries: tuple[Entry, ...]
    seconds: float


def convert(
    input: Path | str,
    out: Path | str,
    *,
    overwrite: bool = False,
    name: str | None = None,
    salt: Path | str | None = None,
    workers: int | None = 1,
) -> Outcome:
    """Write every usable volume behind `input` as NIfTI.

    Args:
        input: a file, or a folder that is walked to its leaves.
        out: folder, or a `.nii.gz` / `.nii` file where the input is one volume.
        overwrite: start anew.
        name: template of the outputs' names; by default the case id for DICOM and the base name for files.
        salt: text file with the salt of the case ids.
        workers: processes.

    Raises:
        UsageError: a missing or empty input, two volumes of one name, results of other settings in `out`.
    """
    root, target = Path(input), Path(out)
    refuse_overlap(root, target)
    if name is not None and target.name.endswith((".nii", ".nii.gz")) and not target.is_dir():
        raise UsageError(f"--name {name!r}: {target} is already the name; give a folder, or leave --name out")
    found = find_sources(root)
    settings = {"input": root.resolve().name, "name": name, "salt": _salt_mark(salt)}
    with OutputFolder(target, "convert", settings, overwrite) as folder:
        secret = salt_of(target, Path(salt) if salt is not None else None)
        jobs = _jobs(found, root, folder, secret, name)
        _tell_rest(folder, found, root)
        _convert_all(folder, jobs, root, workers)
        return folder.finish(listed=len(found.listed), rubbish=found.rubbish)


def convert_one(job: Job) -> Converted:
    """Read one volume and write it with its sidecar.

    Memory: the volume, and one slab of it.
    """
    started = time.monotonic()
    volume = in_millimetres(with_a_place(read_source(job.source), job))
    write_volume(job.target, volume)
    write_json(job.sidecar, sidecar(volume, job))
    return Converted(digest_of(job.source.files), (*volume.repairs, *volume.notes), time.monotonic() - started)


def with_a_place(volume: Volume, job: Job) -> Volume:
    """The volume, if its file says where its voxels lie; pictures have no place and need none.

    Raises:
        CaseError: a NIfTI volume whose sform_code and qform_code are both 0.
    """
    if job.source.kind == "nifti" and not volume.geometry.has_world and len(volume.geometry.shape) == 3:
        raise CaseError(
            f"{job.source.files[0]}: sform_code and qform_code are both 0, so nothing says where the voxels lie; "
            "take the volume from its source again, or set the code of the form that holds",
            "no-world-coordinates",
        )
    return volume


def in_millimetres(volume: Volume) -> Volume:
    """The volume with a header of its own where that of the source counts in metres or microns."""
    unit = int(volume.geometry.nifti_fields.get("xyzt_units", 0)) & 7
    if unit not in (METRE, MICRON):
        return volume
    return replace(volume, geometry=replace(volume.geometry, nifti_fields=NOTHING))


def sidecar(volume: Volume, job: Job) -> dict[str, Any]:
    """What is known of a volume, no identifiers of the header; `repairs`, `notes` are lists of {code, detail}."""
    geometry = volume.geometry
    facts = {key: _json_number(value) for key, value in volume.facts.items()}
    return {
        **facts,
        "Modality": volume.modality,
        "case": printable(job.case),
        "series": job.series,
        "source": {"kind": job.source.kind, "files": len(job.source.files)},
        "shape": list(geometry.shape),
        "channels": volume.channels,
        "spacing_mm": [round(value, 6) for value in geometry.spacing_mm] if geometry.has_world else None,
        "orientation": axis_codes(geometry.affine) if geometry.has_world else None,
        "dtype": str(volume.array.dtype),
        "repairs": [{"code": entry.code, "detail": entry.detail} for entry in volume.repairs],
        "notes": [{"code": entry.code, "detail": entry.detail} for entry in volume.notes],
    }


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


def _jobs(found: Found, root: Path, folder: OutputFolder, salt: str, template: str | None) -> list[Job]:
    if folder.single:
        if len(found.sources) > 1:
            raise UsageError(
                f"{root} holds {len(found.sources)} volumes, {folder.out} is one file; give a folder as OUT"
            )
        base = folder.out.name.removesuffix(".gz").removesuffix(".nii")
        targets = [(base, folder.out)] if found.sources else []
    else:
        names = case_names(found.sources, root, salt=salt, template=template)
        targets = [(case, folder.out / f"{case}.nii.gz") for case in names]
    jobs = []
    for (case, target), source in zip(targets, found.sources, strict=True):
        base = target.name.removesuffix(".gz").removesuffix(".nii")
        jobs.append(Job(case, source_id(source, salt, root), source, target, target.with_name(f"{base}.json")))
    return jobs


def _convert_all(folder: OutputFolder, jobs: Sequence[Job], root: Path, workers: int | None) -> None:
    left = []
    for job in jobs:
        record = folder.records.get(job.case)
        try:
            digest = digest_of(job.source.files) if record is not None else ""
        except OSError:
            digest = ""  # an input that cannot be read is stopped below, with the others
        if record is not None and digest not in ("", record["inputs"]):
            first = relative(job.source.files[0], root)
            raise UsageError(f"{first}: {job.target} was made of other files; use --overwrite or another folder")
        if not (digest and folder.is_done(job.case, digest)):
            left.append(job)
    if len(left) < len(jobs):
        log.info("%d of %d are there already", len(jobs) - len(left), len(jobs))
    for number, (job, result) in enumerate(each(convert_one, left, workers), start=1):
        if isinstance(result, Converted):
            folder.note(job.case, *result.entries)
            folder.record(job.case, [job.target, job.sidecar], result.inputs, seconds=result.seconds)
            log.info("converted %d of %d: %s", number, len(left), job.case)
            continue
        files = [relative(path, root) for path in job.source.files]
        failure = folder.fail(job.case, files, stopped_by(result, files))
        log.warning("%s: stopped: %s", job.case, failure.message)


def _tell_rest(folder: OutputFolder, found: Found, root: Path) -> None:
    """What was found and is no volume: stopped files fail, the others are listed in the manifest."""
    for stop in found.stopped:
        files = [relative(path, root) for path in stop.files]
        error = CaseError(stop.message, stop.code)
        failure = folder.fail(files[0] if files else root.name, files, stopped_by(error, files))
        log.warning("%s: stopped: %s", failure.case, failure.message)
    folder.facts["listed"] = [_listed(entry, root) for entry in found.listed]
    folder.facts["rubbish"] = found.rubbish
    if not found.sources and not found.stopped:
        reason = f"; {_listed(found.listed[0], root)['files'][0]}: {found.listed[0].reason}" if found.listed else ""
        text = f"{root}: holds no volume ({len(found.listed)} found that are none{reason})"
        log.warning("%s", text)


def _listed(entry: NotAVolume, root: Path) -> dict[str, Any]:
    return {"files": [relative(path, root) for path in entry.files], "reason": entry.reason}


def _salt_mark(salt: Path | str | None) -> str | None:
    """A word that tells salts apart and gives none away."""
    return None if salt is None else case_id(salt_of(Path(), Path(salt)), "salt").removeprefix("case-")


def _json_number(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    return None if isinstance(value, float) and not math.isfinite(value) else value
