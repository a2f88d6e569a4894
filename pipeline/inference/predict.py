"""`predict`: a model and images -> label maps on exactly the grids of the images.

A case is done when its record with the checksum of its label map stands; the same call again does what is left. One
bad case stops that case alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.spatialimages import SpatialImage

from ...errors import CaseError, UsageError
from ...transforms.loading import load_channels
from ...transforms.located import affine_of, plain
from ...transforms.read_options import DEFAULT, ReadOptions
from ...transforms.readers import read_source
from ...transforms.volume import Geometry, Volume
from ...transforms.writers import atomic_write
from ..archive.naming import case_names, relative
from ..dataset.layouts import is_dataset
from ..devices import keep_heap
from ..identity import options_mark, salt_mark
from ..manifest import Outcome, OutputFolder, digest_of, salt_of
from ..model_folder import ModelFolder
from ..overlays import overlay
from ..refusals import refusal, refuse_overlap
from .checks import check_fill, filled
from .export import check_target, suffix_of, write_labels
from .inputs import Inputs, Job, gather
from .predictor import Predictor, load_predictor

log = logging.getLogger(__name__)

Model = Predictor | ModelFolder | Path | str
GEOMETRIC_FIELDS = (
    *("srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("pixdim", "sform_code", "qform_code", "xyzt_units"),
)


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
    name: str | None = None,
    salt: Path | str | None = None,
    network: str | None = None,
    overwrite: bool = False,
    preview: bool = False,
    options: ReadOptions = DEFAULT,
    fill_nan: str | None = None,
    workers: int | None = None,
) -> Outcome:
    """Segment every volume behind `input`.

    Args:
        model: model folder, or a loaded `Predictor` (whose own fold, device, precision, overlap and tta then hold).
        input: a file, a folder that is walked to its leaves, or a data set.
        out: folder, or a `.nii.gz`, `.nii` or `.png` file where the input is one volume.
        fold: weights of one fold, and of a data set the validation cases of that fold; without it all folds are
            averaged and every image is predicted, with or without a label map.
        device: auto, cpu, cuda:0.
        precision: auto, float32, bf16, fp16.
        overlap: of neighbouring windows; the plan's own when left out.
        tta: average over mirrored windows; the plan's own when left out.
        name: template of the outputs' names; by default the case id for DICOM and the base name for files.
        salt: text file with the salt of the case ids.
        network: `path/to/file.py:Class` again, where the model's network is a user's own.
        overwrite: start anew.
        preview: write a picture of each case into `previews/` too.
        options: how sources are read where the default would stop, or take everything.
        fill_nan: "min": voxels that are NaN or infinite get the least value of their channel; without it they stop
            their case.
        workers: 1 reads and predicts in turn; with 2 or more, the default on a GPU, the next case is read while the
            network works on this one.

    Returns:
        Outcome whose cases are the label maps.

    Raises:
        UsageError: wrong options, an input that is not there, results of other settings in `out`.
        UnsafeInputError: weights that must not be opened.
    """
    keep_heap()
    check_fill(fill_nan)
    settings_of = {"fold": fold, "device": device, "precision": precision, "overlap": overlap, "tta": tta}
    predictor = _loaded(model, network=network, **settings_of)
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
        "name": name,
        **({"read": options_mark(options)} if options != DEFAULT else {}),
        **({"fill_nan": fill_nan} if fill_nan else {}),
        "salt": salt_mark(salt),
    }
    facts = {"device": str(predictor.device), "engine": "torch", "threads": torch.get_num_threads()}
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
        ahead = workers > 1 if workers is not None else predictor.device.type == "cuda"
        read = partial(read_case, options=options, fill_nan=fill_nan)
        _predict_all(folder, tasks, inputs.root, predictor, read, ahead=ahead)
        return folder.finish(listed=len(inputs.listed), rubbish=inputs.rubbish)


def predict_volume(
    model: Model,
    image: Any,
    *,
    fold: str | int | None = None,
    device: str = "auto",
    precision: str = "auto",
    overlap: float | None = None,
    tta: bool | None = None,
    network: str | None = None,
) -> Any:
    """Segment one volume that is in memory already.

    Args:
        model: model folder, or a `Predictor`, which saves loading it again for each volume.
        image: `(array, affine)` with an array (X, Y, Z) or (C, X, Y, Z), a nibabel image (channels last), or a
            `MetaTensor` (C, X, Y, Z).
        fold: one fold; all are averaged without it.
        device: auto, cpu, cuda:0.
        precision: auto, float32, bf16, fp16.
        overlap: of neighbouring windows; the plan's own when left out.
        tta: average over mirrored windows; the plan's own when left out.
        network: as for `predict`.

    Returns:
        The label map in the same kind: an array (X, Y, Z), a nibabel image, or a `MetaTensor` (1, X, Y, Z).

    Raises:
        CaseError: an image that the model cannot take.
        TypeError: an image of another kind.
    """
    settings_of = {"fold": fold, "device": device, "precision": precision, "overlap": overlap, "tta": tta}
    predictor = _loaded(model, network=network, **settings_of)
    volume, give_back = _as_volume(image)
    return give_back(predictor.labels(volume))


def read_case(job: Job, *, options: ReadOptions = DEFAULT, fill_nan: str | None = None) -> Volume:
    """The volume of a case, its channels put together."""
    one = len(job.sources) == 1
    volume = read_source(job.sources[0], options) if one else load_channels(job.sources, options=options)
    return filled(volume) if fill_nan else volume


def _loaded(model: Model, **options: Any) -> Predictor:
    return model if isinstance(model, Predictor) else load_predictor(model, **options)


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


def _predict_all(
    folder: OutputFolder,
    tasks: Sequence[Task],
    root: Path,
    predictor: Predictor,
    read_one: Callable[[Job], Volume],
    *,
    ahead: bool,
) -> None:
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
            labels = predictor.labels(volume)
            write_labels(task.target, labels, volume.geometry, task.job.kind)
            if task.preview is not None:
                task.preview.parent.mkdir(parents=True, exist_ok=True)
                picture = overlay(volume, {"labels": labels}, predictor.classes, title=task.case)
                with atomic_write(task.preview) as temporary:
                    temporary.write_bytes(picture)
            folder.note(task.case, *volume.repairs, *volume.notes)
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


def _mark_of(predictor: Predictor) -> dict[str, str]:
    """What tells models apart: the hashes of the weights."""
    return {fold: predictor.model.sha256(fold) for fold in predictor.folds}


def _base(path: Path) -> str:
    return next(path.name[: -len(end)] for end in (".nii.gz", ".nii", ".png") if path.name.lower().endswith(end))


def _as_volume(image: Any) -> tuple[Volume, Callable[[np.ndarray], Any]]:
    """An image in memory as a volume, and how its label map is given back."""
    if isinstance(image, MetaTensor):
        array, affine = plain(image).detach().cpu().numpy(), affine_of(image)
        volume = _volume(array, affine)
        return volume, lambda labels: MetaTensor(torch.from_numpy(labels)[None], affine=image.affine.clone())
    if isinstance(image, SpatialImage):
        array = np.asanyarray(image.dataobj)
        array = np.moveaxis(array, -1, 0) if array.ndim == 4 else array[np.newaxis]
        return _volume(array, image.affine), lambda labels: _nifti(labels, image)
    if isinstance(image, tuple) and len(image) == 2:
        array, affine = np.asarray(image[0]), np.asarray(image[1], dtype=np.float64)
        array = array if array.ndim == 4 else array[np.newaxis]
        return _volume(array, affine), lambda labels: labels
    raise TypeError(
        f"predict_volume takes (array, affine), a nibabel image or a MetaTensor, got {type(image).__name__}"
    )


def _volume(array: np.ndarray, affine: np.ndarray | None) -> Volume:
    if affine is None or np.shape(affine) != (4, 4) or not np.isfinite(affine).all():
        raise ValueError("an image needs a finite (4, 4) affine, voxel index to RAS+ mm")
    if array.ndim not in (3, 4):
        raise ValueError(f"an image is (X, Y, Z) or (C, X, Y, Z), got an array of {array.ndim - 1} dimensions")
    if array.dtype.kind not in "iufb":
        raise ValueError(f"an image holds real numbers, got {array.dtype}")
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    if native.dtype in (np.float16, np.longdouble, np.bool_, np.uint64):
        native = native.astype(np.float32)
    return Volume(native, Geometry(tuple(array.shape[1:]), np.asarray(affine, dtype=np.float64)))


def _nifti(labels: np.ndarray, image: SpatialImage) -> nib.Nifti1Image:
    """A label map with the geometry of a nibabel image and nothing else of its header."""
    header = nib.Nifti1Header()
    if isinstance(image.header, nib.Nifti1Header):
        for field in GEOMETRIC_FIELDS:
            header[field] = image.header[field]
    header.set_data_dtype(labels.dtype)
    return nib.Nifti1Image(labels, image.affine, header)
