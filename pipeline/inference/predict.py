"""`predict`: a model and images -> label maps on exactly the grids of the images.

A case is done when its record with the checksum of its label map stands; the same call again does what is left. One
bad case stops that case alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path

from ...errors import CaseError, UsageError
from ...transforms.cores import alone
from ...transforms.read_options import DEFAULT, ReadOptions
from ..archive.naming import case_names, relative
from ..dataset.layouts import is_dataset
from ..devices import keep_heap
from ..identity import digest_of, options_mark, salt_mark
from ..manifest import Outcome, OutputFolder, salt_of
from ..refusals import refuse_overlap
from ..sizes import parse_bytes
from .budget import Limits
from .cases import Done, Task, stopped_by
from .checks import check_fill
from .classes import Wanted
from .inputs import Inputs, gather
from .label_files import beside, check_target, suffix_of
from .loading import Model
from .modes import MARGIN_MM, Modes, several
from .predictor import Predictor
from .work import arrange

log = logging.getLogger(__name__)


def predict(
    model: Model,
    input: Path | str,
    out: Path | str,
    *,
    fold: str | int | None = None,
    device: str = "auto",
    precision: str = "auto",
    engine: str = "auto",
    overlap: float | None = None,
    tta: bool | None = None,
    tiling: str = "blend",
    classes: Wanted | None = None,
    probabilities: bool = False,
    uncertainty: bool = False,
    with_model: Sequence[Path | str] | Path | str = (),
    coarse: Path | str | None = None,
    margin: float = MARGIN_MM,
    skip_background: bool = False,
    views: str | Sequence[str] | None = None,
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
    scheduler: str | None = None,
    tls_config: Path | str | None = None,
    single_process: bool = False,
) -> Outcome:
    """Segment every volume behind `input`.

    Args:
        model: model folder, or a loaded `Predictor` (whose own fold, device, precision, engine, overlap, tta and tiling
            then hold).
        input: a file, a folder that is walked to its leaves, or a data set.
        out: folder, or a `.nii.gz`, `.nii` or `.png` file where the input is one volume.
        fold: weights of one fold, and of a data set the validation cases of that fold; without it all folds are
            averaged and every image is predicted, with or without a label map.
        device: auto (every GPU of the machine, or its CPU), cpu, cuda:0, or several with commas between.
        precision: auto, float32, bf16, fp16.
        engine: torch; openvino, which auto takes on a CPU where it is installed; compile (torch.compile), tensorrt. All
            are checked against torch on the first window; auto goes back to torch where one fails.
        overlap: of neighbouring windows; the plan's own when left out.
        tta: average over mirrored windows; the plan's own when left out.
        tiling: "blend" adds up overlapping windows; "exact" gives what one pass over the whole volume would, with
            networks whose logits depend on a bounded neighbourhood (batch norm or none, no attention over the window).
        classes: names or label values, as a list or as "liver,spleen": what is written, the others as background. The
            name of a region stands for all label values that it is made of.
        probabilities: write those of the classes too, CASE_probabilities.b2nd, which `read_probabilities` reads.
        uncertainty: map the entropy of the probabilities, CASE_uncertainty.nii.gz, and with several networks their
            disagreement, CASE_disagreement.nii.gz; the means over what was found stand in the manifest, and a case
            whose mean is above half a bit, or in which nothing was found, gets a note.
        with_model: folders of further models with the same plan and labels; the scores of all folds of all models are
            averaged, each with the same weight.
        coarse: folder of a model that finds the region: the model works on its box alone, outside is background.
        margin: millimetres around that region.
        skip_background: windows that hold nothing but what the plan takes for background are not computed.
        views: "axial", "coronal", "sagittal", several of them or "all": slicings of a 2D model whose scores are
            averaged; the plan's own when left out.
        name: template of the outputs' names; by default the case id for DICOM and the base name for files.
        salt: text file with the salt of the case ids.
        network: `path/to/file.py:Class` again, where the model's network is a user's own.
        overwrite: start anew.
        preview: write a picture of each case into `previews/` too.
        options: how sources are read where the default would stop, or take everything.
        fill_nan: "min": voxels that are NaN or infinite get the least value of their channel; without it they stop
            their case.
        memory: RAM to stay within with all processes, as bytes or as "4GB"; each case is planned to fit, and refused
            where it cannot. On a cluster it is that of each worker.
        gpu_memory: the same of each GPU; what is free there when left out.
        workers: processes on this machine, each with the model and a fair part of cores and memory; one a GPU when left
            out. One worker is the process itself, which reads the next case and writes the last one in threads beside
            the network, where `memory` has room for that.
        scheduler: address of a Dask cluster in the place of these; its workers find the same files under the same
            paths, and take `auto` as the first GPU that they see. `precision` auto is what this machine would take.
        tls_config: YAML file with ca-file, cert and key for it.
        single_process: start no thread, worker or child process at all; only torch and its kernels have their threads
            (`OMP_NUM_THREADS` is their number). Compressed DICOM is then decoded in this process too, where a codec
            that crashes or hangs takes the run with it.

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
    work = arrange(
        model,
        device=device,
        workers=workers,
        scheduler=scheduler,
        tls_config=tls_config,
        single_process=single_process,
        limits=limits,
        fold=fold,
        precision=precision,
        engine=engine,
        overlap=overlap,
        tta=tta,
        tiling=tiling,
        network=network,
        modes=Modes(
            classes=classes,
            probabilities=probabilities,
            uncertainty=uncertainty,
            with_models=several(with_model),
            coarse=None if coarse is None else Path(coarse).absolute(),
            margin_mm=margin,
            skip_background=skip_background,
            views=views,
        ),
    )
    predictor = work.predictor
    root, target = Path(input), Path(out)
    if scheduler is not None:  # workers of a cluster stand elsewhere
        root, target = root.absolute(), target.absolute()
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
        **predictor.mode_settings,
        "name": name,
        **({"read": options_mark(options)} if options != DEFAULT else {}),
        **({"fill_nan": fill_nan} if fill_nan else {}),
        "salt": salt_mark(salt),
    }
    work = work.for_cases(len(inputs.jobs))
    with (
        alone() if single_process else nullcontext(),
        OutputFolder(target, "predict", settings, overwrite, facts=work.facts) as folder,
    ):
        hashed = name is not None or any(job.kind == "dicom" for job in inputs.jobs)
        secret = salt_of(target, None if salt is None else Path(salt)) if hashed else ""
        tasks = _tasks(inputs, folder, secret, name)
        if preview:
            tasks = [replace(task, preview=folder.folder / "previews" / f"{task.case}.png") for task in tasks]
        names = predictor.asked_files
        if names:
            tasks = [replace(one, beside=beside(one.target, one.case, one.job.kind, names)) for one in tasks]
            _refuse_clashes(tasks)
            if folder.single and not folder.records:
                _refuse_foreign(tasks, overwrite=overwrite)
        folder.facts.update(listed=list(inputs.listed), rubbish=inputs.rubbish)
        for failure in inputs.failures:
            stopped = folder.fail(failure.case, failure.files, CaseError(failure.message, failure.code))
            log.warning("%s: stopped: %s", stopped.case, stopped.message)
        left = _left(folder, tasks)
        work = work.for_cases(len(left))
        with closing(work.results(left, options, fill_nan)) as results:
            _keep(folder, results, len(left), inputs.root)
        return folder.finish(listed=len(inputs.listed), rubbish=inputs.rubbish)


def _left(folder: OutputFolder, tasks: Sequence[Task]) -> list[Task]:
    """Tasks that no earlier run has done from the same inputs."""
    left = []
    for task in tasks:
        try:
            known = task.case in folder.records and all(path.is_file() for path in task.files)
            done = known and folder.is_done(task.case, digest_of(task.job.on_disk))
        except OSError:
            done = False  # an input that cannot be read is stopped with the others
        if not done:
            left.append(task)
    if len(left) < len(tasks):
        log.info("%d of %d are there already", len(tasks) - len(left), len(tasks))
    return left


def _keep(folder: OutputFolder, results: Iterable[tuple[Task, Done | Exception]], total: int, root: Path) -> None:
    """Records and failures of cases, as they come."""
    for number, (task, done) in enumerate(results, start=1):
        if isinstance(done, Exception):
            stopped = stopped_by(done, task.job, root)
            failure = folder.fail(task.case, [relative(file, root) for file in task.job.files], stopped)
            log.warning("%s: stopped: %s", task.case, failure.message)
            continue
        folder.note(task.case, *done.entries)
        folder.facts["engine"] = done.engine  # where one failed on the first window, torch did the work
        if done.plan is not None:
            folder.facts.setdefault("plans", {})[task.case] = done.plan
        folder.record(task.case, done.files, done.inputs, done.numbers, seconds=done.seconds)
        log.info("predicted %d of %d: %s", number, total, task.case)


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


def _refuse_foreign(tasks: Sequence[Task], *, overwrite: bool) -> None:
    """Beside an output that is one file, nothing is written over a file that is not ours."""
    for path in (path for task in tasks for path in task.beside.values() if path.exists()):
        if not overwrite:
            raise UsageError(f"{path} exists and is not ours; use --overwrite or another file")


def _refuse_clashes(tasks: Sequence[Task]) -> None:
    """No file of a case has the name of another one's."""
    seen: dict[Path, str] = {}
    for task in tasks:
        for path in task.files:
            if seen.setdefault(path, task.case) != task.case:
                raise UsageError(
                    f"{path.name} would be written for the cases {seen[path]} and {task.case}; rename one of them, or "
                    "give --name"
                )
    _refuse_inputs(tasks)


def _refuse_inputs(tasks: Sequence[Task]) -> None:
    """Nothing is written over what is read, under whatever name: links are looked through, hard ones too."""
    identities = {_identity(file) for task in tasks for file in task.job.on_disk} - {None}
    for task in tasks:
        for path in (task.target, *task.beside.values()):
            if _identity(path) in identities:
                raise UsageError(f"{path} is an input; nothing is written over what is read, choose another OUT")


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
