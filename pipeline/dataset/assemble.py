"""`dataset`: images and label maps matched by reference, proved to lie on one grid, written as a data set.

The layout is nnU-Net's: imagesTr/NAME_0000.nii.gz for each channel, labelsTr/NAME.nii.gz, dataset.json; a sidecar a
case, and patients.csv with hashed ids, so that folds keep the cases of a patient together.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

from ...errors import CaseError, UsageError
from ...transforms.read_options import DEFAULT, ReadOptions
from ...transforms.readers import Found, NotAVolume, Source, find_sources
from ...transforms.register import KINDS
from ..archive.convert import stopped_by
from ..archive.naming import relative
from ..identity import file_digest, options_mark, salt_mark, salt_of
from ..manifest import Outcome, OutputFolder
from ..refusals import refuse_overlap
from ..scale_out import each
from .assemble_case import make_case
from .case_job import IMAGES, LABELS, Choices, Job, Made, make_job
from .channels import Problem, group_images
from .description import describe
from .label_classes import number_classes
from .label_items import find_labels
from .matching import Index, Matched, match, match_table

log = logging.getLogger(__name__)


def dataset(
    images: Path | str,
    labels: Path | str,
    out: Path | str,
    *,
    pairs: Path | str | None = None,
    channels: Sequence[str] = (),
    classes: Sequence[str] = (),
    register: str | None = None,
    resample_label: bool = False,
    overwrite: bool = False,
    salt: Path | str | None = None,
    workers: int | None = 1,
    options: ReadOptions = DEFAULT,
) -> Outcome:
    """Write images and the label maps that belong to them as a data set that `plan` and `train` take.

    Args:
        images: folder of DICOM series, or of NIfTI, NRRD, MHA or picture files.
        labels: folder of DICOM SEG and RTSTRUCT, or of files with label values; may be `images` itself for the former.
        out: folder of the data set.
        pairs: CSV table with the columns image and label, and where wanted case and patient, in the place of matching.
        channels: names of the channels of a case, in order.
        classes: names of classes in the order of their numbers from 1; other segments are left out, and where two
            overlap the later one stays.
        register: "rigid" or "affine" aligns each channel to the first one before it is resampled.
        resample_label: a label map on another grid is put on its image's, nearest voxel, by world position.
        overwrite: start anew.
        salt: text file with the salt of the ids.
        workers: processes.
        options: how sources are read.

    Raises:
        UsageError: a missing or empty input, wrong choices, results of other settings in `out`.
    """
    image_root, label_root, target = Path(images), Path(labels), Path(out)
    for root in (image_root, label_root):
        refuse_overlap(root, target)
    if register is not None and register not in KINDS:
        raise UsageError(f"--register {register!r}: expected one of {', '.join(KINDS)}")
    choices = Choices(tuple(channels), register, resample_label, options)
    settings = {
        "images": image_root.resolve().name,
        "labels": label_root.resolve().name,
        "pairs": None if pairs is None else _file_digest("--pairs", Path(pairs)),
        "channels": list(channels),
        "classes": list(classes),
        "register": register,
        "resample_label": resample_label,
        "salt": salt_mark(salt),
        "options": options_mark(options),
    }
    found, found_labels = _find(image_root, label_root, options)
    with OutputFolder(target, "dataset", settings, overwrite) as folder:
        salts = _salts(target, salt, image_root, label_root)
        same = label_root.resolve() == image_root.resolve()
        items, problems, listed = find_labels(found_labels, label_root, objects_only=same and pairs is None)
        names = {key for item in items if item.source for key in item.keys[:1]}
        cases, incomplete, other = group_images(found.sources, image_root, channels, salts, set() if same else names)
        index = Index(cases, salts, options)
        if pairs is None:
            matched = match(index, items, image_root, label_root)
        else:
            matched = match_table(Path(pairs), index, items, image_root, label_root)
        numbered, nameless = number_classes(matched.pairs, tuple(classes))
        if pairs is None:
            problems = [*problems, *incomplete]
        problems = [*_stopped(found, image_root), *problems, *matched.problems, *nameless]
        stopped = {problem.name for problem in nameless}
        kept = [pair for pair in matched.pairs if pair.case.name not in stopped]
        jobs = [
            make_job(pair, target, salt=salts[0], root=image_root, classes=numbered, choices=choices) for pair in kept
        ]
        for problem in problems:
            failure = folder.fail(problem.name, problem.files, stopped_by(problem.error, problem.files))
            log.warning("%s: stopped: %s", failure.case, failure.message)
        _tell_rest(folder, matched, [*found.listed, *listed], other, image_root, label_root, same)
        left = _left(folder, jobs)
        for name in (IMAGES, LABELS):
            (target / name).mkdir(exist_ok=True)
        with closing(each(make_case, left, workers)) as results:
            _keep(folder, results, len(left))
        describe(folder, numbered, channels, target.resolve().name)
        return folder.finish(classes=[info.name for info in numbered.infos])


def _file_digest(option: str, path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise UsageError(f"{option} {path}: cannot be read ({error.strerror}); give a file") from None


def _find(images: Path, labels: Path, options: ReadOptions) -> tuple[Found, Found]:
    """What lies behind both paths; where one lies inside the other, its files are its own."""
    found = find_sources(images, options)
    if images.resolve() == labels.resolve():
        return found, found
    found_labels = find_sources(labels, options)
    return _without(found, images, labels), _without(found_labels, labels, images)


def _without(found: Found, root: Path, other: Path) -> Found:
    inner = other.resolve()
    if not inner.is_relative_to(root.resolve()):
        return found

    def outside(files: Iterable[Path]) -> bool:
        return not any(file.resolve().is_relative_to(inner) for file in files)

    return Found(
        tuple(one for one in found.sources if outside(one.files)),
        tuple(one for one in found.stopped if outside(one.files)),
        tuple(one for one in found.listed if outside(one.files)),
        found.rubbish,
    )


def _salts(out: Path, salt: Path | str | None, *inputs: Path) -> list[str]:
    """The salt of this data set, and those by which the inputs (converted, predicted) are called."""
    found = [salt_of(out, Path(salt) if salt is not None else None)]
    for folder in inputs:
        if (folder / "salt.txt").is_file():
            found.append((folder / "salt.txt").read_text(encoding="utf-8").strip())
    return list(dict.fromkeys(found))


def _stopped(found: Found, root: Path) -> list[Problem]:
    problems = []
    for one in found.stopped:
        files = tuple(relative(file, root) for file in one.files)
        problems.append(Problem(files[0] if files else root.name, files, CaseError(one.message, one.code)))
    return problems


def _tell_rest(
    folder: OutputFolder,
    matched: Matched,
    listed: Sequence[NotAVolume],
    other: Sequence[Source],
    images: Path,
    labels: Path,
    same: bool,
) -> None:
    """What takes no part goes into the manifest, with the reason."""
    drawn = {pair.label.path for pair in matched.pairs}
    rest = [(entry.files, entry.reason) for entry in listed if not (same and drawn & set(entry.files))]
    rest += [(source.files, "no channel of --channels") for source in other]
    rest += [((file,), "not in the table of --pairs") for file in matched.left_out]
    told = {(_either(files[0], images, labels), reason) for files, reason in rest if files}
    folder.facts["listed"] = [{"file": file, "reason": reason} for file, reason in sorted(told)]


def _either(file: Path, images: Path, labels: Path) -> str:
    return relative(file, images if file.is_relative_to(images) else labels)


def _left(folder: OutputFolder, jobs: Sequence[Job]) -> list[Job]:
    """The jobs that no earlier run has done.

    Raises:
        UsageError: an earlier run made a case of other files or with other classes, or of inputs that are gone.
    """
    if gone := sorted(set(folder.records) - {job.name for job in jobs}):
        raise UsageError(
            f"{folder.out} holds {len(gone)} cases that the inputs no longer have (the first: {gone[0]}); "
            "use --overwrite or another folder"
        )
    left = []
    for job in jobs:
        record, stamp = folder.records.get(job.name), folder.stamp_of(job.name)
        if record is None or not job.states[0]:
            left.append(job)
            continue
        if (record["inputs"], record["choice"]) != (job.states[1], job.choice) or stamp not in (None, job.states[0]):
            raise UsageError(
                f"{folder.out}: case {job.name} was made of other files or with other classes; use --overwrite or "
                "another folder"
            )
        if stamp is None or not folder.is_done(job.name, job.states[1]):
            left.append(job)
    if len(left) < len(jobs):
        log.info("%d of %d are there already", len(jobs) - len(left), len(jobs))
    return left


def _keep(folder: OutputFolder, results: Iterable[tuple[Job, Made | Exception]], total: int) -> None:
    """Record what was made, and stop what was not, as it comes."""
    for number, (job, result) in enumerate(results, start=1):
        if isinstance(result, Made):
            folder.note(job.name, *result.entries)
            details = {
                "voxels": {str(value): count for value, count in sorted(result.counts.items())},
                "modalities": list(result.modalities),
                "patient": job.patient,
                "choice": job.choice,
            }
            stamp, inputs = job.states
            folder.record(job.name, result.files, inputs, details, seconds=result.seconds, stamp=stamp)
            log.info("wrote %d of %d: %s", number, total, job.name)
            continue
        files = [*(relative(file, job.root) for file in job.images), *(file.name for file in job.label.files)]
        failure = folder.fail(job.name, files, stopped_by(result, files))
        log.warning("%s: stopped: %s", job.name, failure.message)
