"""`predict`: a model and images -> label maps on exactly the grids of the images.

A case is done when its record with the checksum of its label map stands; the same call again does what is left. One
bad case stops that case alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from ...errors import CaseError, UsageError
from ...transforms.read_options import DEFAULT, ReadOptions
from ...transforms.volume import Volume
from ..archive.naming import case_names
from ..dataset.layouts import is_dataset
from ..devices import keep_heap
from ..identity import options_mark, salt_mark
from ..manifest import Outcome, OutputFolder, salt_of
from ..refusals import refuse_overlap
from ..sizes import parse_bytes
from .budget import Limits
from .cases import Task, predict_cases, read_case
from .checks import check_fill
from .export import check_target, suffix_of
from .inputs import Inputs, Job, gather
from .predictor import Model, Predictor, loaded
from .reading import check_idle, check_reading

log = logging.getLogger(__name__)


def predict(
    model: Model,
    input: Path | str,
    out: Path | str,
    *,
    fold: str | int | None = None,
    device: str = "auto",
    precision: str = "auto",
    overlap: float | None = None,
    tta: bool | None = None,
    tiling: str = "blend",
    name: str | None = None,
    salt: Path | str | None = None,
    network: str | None = None,
    overwrite: bool = False,
    preview: bool = False,
    options: ReadOptions = DEFAULT,
    fill_nan: str | None = None,
    memory: str | int | None = None,
    gpu_memory: str | int | None = None,
    workers: int | None = None,
) -> Outcome:
    """Segment every volume behind `input`.

    Args:
        model: model folder, or a loaded `Predictor` (whose own fold, device, precision, overlap, tta and tiling then
            hold).
        input: a file, a folder that is walked to its leaves, or a data set.
        out: folder, or a `.nii.gz`, `.nii` or `.png` file where the input is one volume.
        fold: weights of one fold, and of a data set the validation cases of that fold; without it all folds are
            averaged and every image is predicted, with or without a label map.
        device: auto, cpu, cuda:0.
        precision: auto, float32, bf16, fp16.
        overlap: of neighbouring windows; the plan's own when left out.
        tta: average over mirrored windows; the plan's own when left out.
        tiling: "blend" adds up overlapping windows; "exact" gives what one pass over the whole volume would, with
            networks whose logits depend on a bounded neighbourhood (batch norm or none, no attention over the window).
        name: template of the outputs' names; by default the case id for DICOM and the base name for files.
        salt: text file with the salt of the case ids.
        network: `path/to/file.py:Class` again, where the model's network is a user's own.
        overwrite: start anew.
        preview: write a picture of each case into `previews/` too.
        options: how sources are read where the default would stop, or take everything.
        fill_nan: "min": voxels that are NaN or infinite get the least value of their channel; without it they stop
            their case.
        memory: RAM of the process to stay within, as bytes or as "4GB"; each case is planned to fit, and refused where
            it cannot. Cases are then read in turn.
        gpu_memory: the same of the GPU; what is free there when left out.
        workers: 1 reads and predicts in turn; with 2 or more, the default on a GPU, the next case is read while the
            network works on this one.

    Returns:
        Outcome whose cases are the label maps.

    Raises:
        UsageError: wrong options, an input that is not there, results of other settings in `out`.
        UnsafeInputError: weights that must not be opened.
        NoRoomError: `memory` is less than the process takes before it reads an image.
    """
    limits = Limits(parse_bytes(memory, "--memory"), parse_bytes(gpu_memory, "--gpu-memory"))
    keep_heap(limits.ram is None)
    check_fill(fill_nan)
    settings_of = {"fold": fold, "device": device, "precision": precision, "overlap": overlap, "tta": tta}
    predictor = loaded(model, network=network, tiling=tiling, limits=limits, **settings_of)
    check_idle(predictor.limits)
    root, target = Path(input), Path(out)
    refuse_overlap(root, target, walked=not is_dataset(root))
    chosen = None if fold is None else str(fold)
    inputs = gather(root, predictor.model, chosen, options)
    settings = {
        "model": _mark_of(predictor),
        "folds": list(predictor.folds),
        "overlap": predictor.overlap,
        "tta_axes": list(predictor.tta_axes),
        "precision": predictor.precision,
        **({"tiling": "exact"} if predictor.halo is not None else {}),
        "name": name,
        **({"read": options_mark(options)} if options != DEFAULT else {}),
        **({"fill_nan": fill_nan} if fill_nan else {}),
        "salt": salt_mark(salt),
    }
    facts = {
        "device": str(predictor.device),
        "engine": "torch",
        "threads": torch.get_num_threads(),
        "limits": {name: amount for name, amount in asdict(predictor.limits).items() if amount is not None},
    }
    with OutputFolder(target, "predict", settings, overwrite, facts=facts) as folder:
        hashed = name is not None or any(job.kind == "dicom" for job in inputs.jobs)
        secret = salt_of(target, None if salt is None else Path(salt)) if hashed else ""
        tasks = _tasks(inputs, folder, secret, name)
        if preview:
            tasks = [replace(task, preview=folder.folder / "previews" / f"{task.case}.png") for task in tasks]
        folder.facts.update(listed=list(inputs.listed), rubbish=inputs.rubbish)
        for failure in inputs.failures:
            stopped = folder.fail(failure.case, failure.files, CaseError(failure.message, failure.code))
            log.warning("%s: stopped: %s", stopped.case, stopped.message)
        limit = predictor.limits.ram
        ahead = limit is None and (workers > 1 if workers is not None else predictor.device.type == "cuda")

        def read(job: Job) -> Volume:
            check_reading(job.sources, limit, options)
            return read_case(job, options=options, fill_nan=fill_nan)

        predict_cases(folder, tasks, inputs.root, predictor, read, ahead=ahead)
        return folder.finish(listed=len(inputs.listed), rubbish=inputs.rubbish)


def _tasks(inputs: Inputs, folder: OutputFolder, salt: str, template: str | None) -> list[Task]:
    """Names of cases and of their files; a name is used once, and never that of an input."""
    jobs = inputs.jobs
    if folder.single:
        if len(jobs) + len(inputs.failures) > 1:
            count = len(jobs) + len(inputs.failures)
            raise UsageError(f"{inputs.root} holds {count} cases, {folder.out} is one file; give a folder as OUT")
        if template is not None:
            raise UsageError(
                f"--name {template!r}: {folder.out} is already the name; give a folder, or leave --name out"
            )
        for job in jobs:
            check_target(folder.out, job.kind)
        tasks = [Task(_base(folder.out), job, folder.out) for job in jobs]
        _refuse_inputs(tasks)
        return tasks
    names = case_names([job.sources[0] for job in jobs], inputs.root, salt=salt, template=template)
    tasks = [
        Task(case, job, folder.out / f"{case}{suffix_of(job.kind)}") for case, job in zip(names, jobs, strict=True)
    ]
    _refuse_inputs(tasks)
    return tasks


def _refuse_inputs(tasks: Sequence[Task]) -> None:
    """Nothing is written over what is read, under whatever name: links are looked through, hard ones too."""
    identities = {_identity(file) for task in tasks for file in task.job.on_disk} - {None}
    for task in tasks:
        if _identity(task.target) in identities:
            raise UsageError(f"{task.target} is an input; nothing is written over what is read, choose another OUT")


def _identity(path: Path) -> tuple[int, int] | None:
    """What a file is on its disk; None where there is none."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def _mark_of(predictor: Predictor) -> dict[str, str]:
    """What tells models apart: the hashes of the weights."""
    return {fold: predictor.model.sha256(fold) for fold in predictor.folds}


def _base(path: Path) -> str:
    return next(path.name[: -len(end)] for end in (".nii.gz", ".nii", ".png") if path.name.lower().endswith(end))
