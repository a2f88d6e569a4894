"""What a run needs before its first step: plan, folds and the store of preprocessed cases, all written into the run."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import NoRoomError, NothingDoneError, UsageError
from ...networks.base import SegmentationNetwork
from ...transforms.chains import preprocessing_steps
from ...transforms.writers import write_json
from ..dataset.cases import Dataset
from ..dataset.folds import Fold, all_cases, make_folds
from ..dataset.plan import Plan, read_plan, write_plan
from ..dataset.store import PLAN_FILE, Store, damaged_cases, open_store, preprocess
from ..lock import FolderLock
from ..manifest import Failure
from ..model_folder import MODEL_FILE
from ..sizes import parse_bytes
from .planning import check_network, plan_of_fine_tuning, plan_of_run, read_source
from .start import check_start, with_start_pinned

log = logging.getLogger(__name__)

FOLDS_FILE, STORE = "folds.json", "preprocessed"


@dataclass(frozen=True)
class Prepared:
    """What `prepare` leaves.

    Args:
        plan: resolved.
        store: preprocessed cases.
        folds: name -> cases; `all` among them where it was asked for.
        failures: cases left out.
    """

    plan: Plan
    store: Store
    folds: Mapping[str, Fold]
    failures: tuple[Failure, ...]


@contextmanager
def reserved(run: Path, *, overwrite: bool) -> Iterator[FolderLock]:
    """Hold a run while it is prepared; the lock may be released before the block ends, once a fold has its own.

    Raises:
        FolderInUseError: another call prepares the run; or `overwrite`, and a fold of it is being trained.
        UsageError: no folder can be made there.
    """
    is_new = not run.exists()
    lock = FolderLock(run / ".lock", run)
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise UsageError(f"--out {run}: cannot write there ({error.strerror}); choose another place") from None
    try:
        for held in sorted(run.glob("fold_*/.lock")) if overwrite else ():
            FolderLock(held, held.parent).check()
        yield lock
    finally:
        lock.release()
        if is_new:
            with suppress(OSError):  # wrong use, so nothing was written: leave no empty folder
                run.rmdir()


def prepare(
    dataset: Path,
    run: Path,
    *,
    fold: str,
    plan: Path | str | Plan | None,
    init: Path | None,
    splits: Path | str | None,
    overwrite: bool,
    workers: int,
    changes: Mapping[str, Any],
) -> Prepared:
    """Plan, fold and preprocess; each is kept in the run and read back by the next call.

    Args:
        dataset: a data set.
        run: the run's folder, `reserved`.
        fold: number of the fold or `all`, checked before anything costly.
        plan: the user's plan; the run's own or a new one otherwise.
        init: model folder to fine-tune.
        splits: the user's folds.
        overwrite: let a new plan replace the run's.
        workers: threads and processes that read.
        changes: what the user asked for on top of the plan (network, dims, width, options, batch, loss, optimizer,
            lr, schedule, seed, memory, gpu_memory, device_kind), None where not.

    Raises:
        UsageError: wrong options; a run of another plan or other folds in the same folder.
        UnsafeInputError: weights to start from that are not the ones of the plan, or more than tensors.
        NoRoomError: a training step needs more than the memory that was given.
        NothingDoneError: no case is left.
    """
    kept = run / PLAN_FILE
    if init is not None and plan is not None:
        raise UsageError(
            f"--plan beside --init {init}: the plan of a fine-tuning is made from the model; leave one of them out"
        )
    before = read_plan(kept) if kept.is_file() and not overwrite else None
    asked = {key: value for key, value in changes.items() if value not in (None, {})}
    memory = _memory(asked)
    source = read_source(dataset)
    if init is None:
        cases, chosen = plan_of_run(source, asked, plan=plan, before=before, memory=memory, workers=workers)
    else:
        cases, chosen = plan_of_fine_tuning(source, init, run, asked, before=before, memory=memory, workers=workers)
    chosen = with_start_pinned(chosen)
    built = check_network(chosen)
    check_start(chosen, built)
    if memory is not None:
        check_memory(chosen, built, memory)
    folds = _folds(source.dataset, fold, splits)
    if before is not None:
        _refuse_other_plan(before, chosen, run)
    if overwrite:
        (run / MODEL_FILE).unlink(missing_ok=True)
    write_plan(chosen, kept)
    store, failures = _preprocessed(dataset if source.plan else None, cases, run, chosen, overwrite, workers)
    usable = set(store.cases) - {failure.case for failure in failures}
    folds = {
        name: Fold(*(tuple(case for case in side if case in usable) for side in (one.train, one.validation)))
        for name, one in folds.items()
    }
    if not folds[fold].train:
        first = f"; the first that was stopped: {failures[0].message}" if failures else ""
        raise NothingDoneError(f"{dataset}: fold {fold} has no training case that can be used{first}")
    _write_folds(run / FOLDS_FILE, folds, overwrite)
    for failure in failures:
        log.warning("left out: %s", failure.message)
    return Prepared(chosen, store, folds, failures)


def _preprocessed(
    cache: Path | None, cases: Dataset, run: Path, plan: Plan, overwrite: bool, workers: int
) -> tuple[Store, tuple[Failure, ...]]:
    """The user's own store, or the run's, made or finished now."""
    if cache is None:
        outcome = preprocess(cases, out=run / STORE, plan=plan, overwrite=overwrite, workers=workers)
        return open_store(run / STORE), outcome.failures
    store = open_store(cache)
    if [dict(step) for step in store.steps] != preprocessing_steps(**plan.model_dump()):
        raise UsageError(
            f"{cache} was preprocessed by another plan; train from the data set, or preprocess with this one"
        )
    return store, (*store.failures, *damaged_cases(store))


def check_memory(plan: Plan, network: SegmentationNetwork, limit_bytes: int) -> None:
    """Hold a training step against the memory that was given.

    Raises:
        NoRoomError: with the batch that would fit, if one does.
    """
    patch = [side for axis, side in enumerate(plan.patch) if axis != plan.slice_axis]
    weights = 16 * sum(parameter.numel() for parameter in network.parameters())  # gradients and two moments with them
    maps = network.activation_bytes(patch, training=True, batch=plan.batch)
    if maps + weights <= limit_bytes:
        return
    fits = int((limit_bytes - weights) * plan.batch // maps)
    way_out = f"--batch {fits} would fit" if fits > 0 else "give a smaller patch in the plan, or a smaller --width"
    raise NoRoomError(
        f"a training step of this plan (patch {plan.patch}, batch {plan.batch}) needs about "
        f"{(maps + weights) / 1e9:.2f} GB, {limit_bytes / 1e9:.2f} GB are given; {way_out}"
    )


def _memory(asked: Mapping[str, Any]) -> int | None:
    """What the device may use, of `--memory` or `--gpu-memory`; None where neither was given."""
    kind = asked.get("device_kind", "auto")
    if kind != "cuda" and "gpu_memory" in asked:
        raise UsageError(f"--gpu-memory {asked['gpu_memory']}: the training runs on the CPU; give --memory")
    word = "gpu_memory" if kind == "cuda" else "memory"
    return parse_bytes(asked.get(word), f"--{word.replace('_', '-')}")


def _folds(dataset: Dataset, fold: str, splits: Path | str | None) -> dict[str, Fold]:
    if fold == "all":
        return {"all": all_cases(dataset)}
    folds = {str(number): one for number, one in enumerate(make_folds(dataset, splits))}
    if fold not in folds:
        raise UsageError(f"--fold {fold}: there are the folds {', '.join(folds)} (or all)")
    return folds


def _write_folds(path: Path, folds: Mapping[str, Fold], overwrite: bool) -> None:
    """Beside the folds that earlier calls wrote; the same name never means other cases."""
    new = {name: {"train": list(one.train), "validation": list(one.validation)} for name, one in folds.items()}
    old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() and not overwrite else {}
    differ = [name for name in new if old.get(name, new[name]) != new[name]]
    if differ:
        raise UsageError(
            f"{path} names other cases for fold {differ[0]} (the data set or --splits changed); "
            "use --overwrite or another folder"
        )
    write_json(path, {**old, **new})


def _refuse_other_plan(before: Plan, now: Plan, run: Path) -> None:
    old, new = (one.model_dump(mode="json", exclude={"reasons"}) for one in (before, now))
    differ = [
        f"{key}: {json.dumps(old.get(key))} -> {json.dumps(new.get(key))}"
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]
    if differ:
        raise UsageError(f"{run} holds a run of another plan ({'; '.join(differ)}); use --overwrite or another folder")
