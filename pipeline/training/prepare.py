"""What a run needs before its first step: plan, folds and the store of preprocessed cases, all written into the run."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...errors import NothingDoneError, UsageError
from ...networks.registry import build_network
from ...transforms.writers import write_json
from ..dataset.cases import Dataset
from ..dataset.fingerprint import take_fingerprint
from ..dataset.folds import Fold, all_cases, make_folds
from ..dataset.layouts import read_dataset
from ..dataset.plan import Plan, make_plan, plan_from, read_plan, write_plan
from ..dataset.store import Store, open_store, preprocess
from ..manifest import Failure
from ..model_folder import MODEL_FILE
from ..sizes import parse_bytes

log = logging.getLogger(__name__)

PLAN_FILE, FOLDS_FILE, STORE = "plan.yaml", "folds.json", "preprocessed"


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


def prepare(
    dataset: Path,
    run: Path,
    *,
    fold: str,
    plan: Path | str | Plan | None,
    splits: Path | str | None,
    overwrite: bool,
    workers: int,
    changes: Mapping[str, Any],
) -> Prepared:
    """Plan, fold and preprocess; each is kept in the run and read back by the next call.

    Args:
        dataset: a data set.
        run: the run's folder.
        fold: number of the fold or `all`, checked before anything costly.
        plan: the user's plan; the run's own or a new one otherwise.
        splits: the user's folds.
        overwrite: let a new plan replace the run's.
        workers: threads and processes that read.
        changes: what the user asked for on top of the plan (network, dims, width, options, batch, optimizer, lr,
            schedule,
            seed, memory, gpu_memory, device_kind), None where not.

    Raises:
        UsageError: wrong options; a run of another plan or other folds in the same folder.
        NothingDoneError: no case is left.
    """
    cases = listed = read_dataset(dataset)
    kept = run / PLAN_FILE
    asked = {key: value for key, value in changes.items() if value not in (None, {})}
    if plan is None and kept.is_file() and not overwrite:
        chosen = changed(read_plan(kept), asked)
    elif plan is None:
        kind = str(asked.get("device_kind", "auto"))
        fingerprint = take_fingerprint(cases, workers=workers)
        cases = fingerprint.dataset
        chosen = make_plan(fingerprint, **_choices(asked, kind))
    else:
        chosen = changed(plan if isinstance(plan, Plan) else read_plan(plan), asked)
    check_network(chosen)
    folds = _folds(listed, fold, splits)
    run.mkdir(parents=True, exist_ok=True)
    if kept.is_file() and not overwrite:
        _refuse_other_plan(read_plan(kept), chosen, run)
    if overwrite:
        (run / MODEL_FILE).unlink(missing_ok=True)
    write_plan(chosen, kept)
    outcome = preprocess(cases, out=run / STORE, plan=chosen, overwrite=overwrite, workers=workers)
    store = open_store(run / STORE)
    usable = set(outcome.done) | set(outcome.skipped)
    folds = {
        name: Fold(*(tuple(case for case in side if case in usable) for side in (one.train, one.validation)))
        for name, one in folds.items()
    }
    if not folds[fold].train:
        raise NothingDoneError(
            f"{dataset}: fold {fold} has no training case that can be used; see {run / STORE}/failures.csv"
        )
    write_json(
        run / FOLDS_FILE,
        {name: {"train": list(one.train), "validation": list(one.validation)} for name, one in folds.items()},
    )
    for failure in outcome.failures:
        log.warning("left out: %s", failure.message)
    return Prepared(chosen, store, folds, outcome.failures)


def changed(plan: Plan, asked: Mapping[str, Any]) -> Plan:
    """A plan with what the user asked for on the command line; everything else stays.

    Raises:
        UsageError: another number of dimensions, which needs a new plan.
    """
    values = plan.model_dump()
    if asked.get("dims", plan.dims) != plan.dims:
        raise UsageError(f"--dims {asked['dims']}: the plan is for dims {plan.dims}; make another with voxelwise plan")
    if "network" in asked and asked["network"] != plan.network.name:
        values["network"] = {"name": asked["network"], "options": {}}
    if "width" in asked and "widths" in values["network"]["options"]:
        first = values["network"]["options"]["widths"][0]
        values["network"]["options"]["widths"] = [
            max(1, n * asked["width"] // first) for n in values["network"]["options"]["widths"]
        ]
    elif "width" in asked:
        values["network"]["options"]["width"] = asked["width"]
    values["network"]["options"].update(asked.get("options", {}))
    values["optimizer"].update(_optimizer(asked))
    for field in ("batch", "seed"):
        if field in asked:
            values[field] = asked[field]
    return plan_from(values, where="options on the command line")


def check_network(plan: Plan) -> None:
    """Build the plan's network without memory, so that a wrong name or option is said before any file is read."""
    with torch.device("meta"):
        build_network(plan.network.name, plan.dims, len(plan.channels), len(plan.labels), **dict(plan.network.options))


def _choices(asked: Mapping[str, Any], kind: str) -> dict[str, Any]:
    word = "gpu_memory" if kind == "cuda" else "memory"
    amount = parse_bytes(asked.get(word), f"--{word.replace('_', '-')}")
    choices = {key: asked[key] for key in ("network", "dims", "width", "options", "batch", "seed") if key in asked}
    if amount is not None:
        choices["memory_bytes"] = amount
    if optimizer := _optimizer(asked):
        choices["optimizer"] = optimizer
    return {**choices, "device_kind": "gpu" if kind == "cuda" else kind}


def _optimizer(asked: Mapping[str, Any]) -> dict[str, Any]:
    words = {"optimizer": "name", "lr": "lr", "schedule": "schedule"}
    return {words[key]: asked[key] for key in words if key in asked}


def _folds(dataset: Dataset, fold: str, splits: Path | str | None) -> dict[str, Fold]:
    if fold == "all":
        return {"all": all_cases(dataset)}
    folds = {str(number): one for number, one in enumerate(make_folds(dataset, splits))}
    if fold not in folds:
        raise UsageError(f"--fold {fold}: there are the folds {', '.join(folds)} (or all)")
    return folds


def _refuse_other_plan(before: Plan, now: Plan, run: Path) -> None:
    old, new = (one.model_dump(mode="json", exclude={"reasons"}) for one in (before, now))
    differ = [f"{key}: {json.dumps(old[key])} -> {json.dumps(new[key])}" for key in old if old[key] != new[key]]
    if differ:
        raise UsageError(f"{run} holds a run of another plan ({'; '.join(differ)}); use --overwrite or another folder")
