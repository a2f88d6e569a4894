"""The plan of a run: the user's, the one that the run has, a new one, or that of a model which is fine-tuned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...errors import UsageError
from ...networks.base import SegmentationNetwork
from ...networks.registry import build_network
from ..dataset.cases import Dataset
from ..dataset.fingerprint import take_fingerprint
from ..dataset.layouts import read_dataset
from ..dataset.plan import Plan, make_plan, plan_from, read_plan
from ..dataset.rates import choose_rate, has_norms
from ..dataset.store import stored_dataset
from .fine_tuning import (
    NETWORK_WORDS,
    check_init,
    check_same_start,
    plan_fine_tuning,
    plan_fine_tuning_of_store,
    read_initial,
    refuse_contradictions,
)


@dataclass(frozen=True)
class Source:
    """What a run is trained on.

    Args:
        path: of the data set, or of the store.
        dataset: its cases.
        plan: that a store was made by; None of a data set.
    """

    path: Path
    dataset: Dataset
    plan: Plan | None


def read_source(path: Path) -> Source:
    """A data set, or a store that `preprocess` made of one.

    Raises:
        UsageError: no data set, or a store that is not finished.
    """
    stored = stored_dataset(path)
    return Source(path, read_dataset(path), None) if stored is None else Source(path, *stored)


def plan_of_run(
    source: Source,
    asked: Mapping[str, Any],
    *,
    plan: Path | str | Plan | None,
    before: Plan | None,
    memory: int | None,
    workers: int,
) -> tuple[Dataset, Plan]:
    """The cases to preprocess and the plan.

    Args:
        source: data set or store.
        asked: on the command line, on top of the plan.
        plan: the user's.
        before: that the run goes on with.
        memory: that the device may use.
        workers: threads that read.
    """
    plan = plan if plan is not None else source.plan
    if plan is None and before is None:
        fingerprint = take_fingerprint(source.dataset, workers=workers)
        return fingerprint.dataset, make_plan(fingerprint, **_choices(asked, memory))
    found = plan if plan is not None else before
    return source.dataset, changed(found if isinstance(found, Plan) else read_plan(str(found)), asked)


def plan_of_fine_tuning(
    source: Source,
    init: Path,
    run: Path,
    asked: Mapping[str, Any],
    *,
    before: Plan | None,
    memory: int | None,
    workers: int,
) -> tuple[Dataset, Plan]:
    """The same for a run that starts from a model.

    Args:
        source: data set or store.
        init: model folder.
        run: the run's folder.
        asked: on the command line; of the network it may only say what the model says.
        before: that the run goes on with.
        memory: that the device may use.
        workers: threads that read.
    """
    check_init(init, run)
    rest = {key: value for key, value in asked.items() if key not in NETWORK_WORDS}
    if before is not None:
        check_same_start(before, init, run)
        refuse_contradictions(init, before, asked)
        return source.dataset, changed(before, rest)
    initial = read_initial(init, asked)
    if source.plan is not None:
        return source.dataset, changed(plan_fine_tuning_of_store(initial, source.plan, source.path), rest)
    fingerprint = take_fingerprint(source.dataset, workers=workers)
    return fingerprint.dataset, plan_fine_tuning(initial, fingerprint, _choices(rest, memory))


def changed(plan: Plan, asked: Mapping[str, Any]) -> Plan:
    """A plan with what the user asked for on the command line; everything else stays.

    Another network brings the learning rate that it would have been planned with, unless the plan's is somebody's own.

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
    for field in ("batch", "seed", "loss"):
        if field in asked:
            values[field] = asked[field]
    other = plan_from(values, where="options on the command line")
    if other.network == plan.network or "lr" in asked or plan.optimizer.lr != _planned_rate(plan)[0]:
        return other
    rate, why = _planned_rate(other)
    optimizer = other.optimizer.model_copy(update={"lr": rate})
    return other.model_copy(update={"optimizer": optimizer, "reasons": {**other.reasons, "optimizer": why}})


def _planned_rate(plan: Plan) -> tuple[float, str]:
    """What `make_plan` chooses for the plan's network."""
    return choose_rate(has_norms(check_network(plan)))


def check_network(plan: Plan) -> SegmentationNetwork:
    """Build the plan's network without memory, so that a wrong name or option is said before any file is read."""
    options = dict(plan.network.options)
    with torch.device("meta"):
        return build_network(plan.network.name, plan.dims, plan.network_channels, plan.outputs, **options)


def _choices(asked: Mapping[str, Any], amount: int | None) -> dict[str, Any]:
    """Of `make_plan`."""
    kind = str(asked.get("device_kind", "auto"))
    choices = {
        key: asked[key] for key in ("network", "dims", "width", "options", "batch", "seed", "loss") if key in asked
    }
    if amount is not None:
        choices["memory_bytes"] = amount
    if optimizer := _optimizer(asked):
        choices["optimizer"] = optimizer
    return {**choices, "device_kind": "gpu" if kind == "cuda" else kind}


def _optimizer(asked: Mapping[str, Any]) -> dict[str, Any]:
    words = {"optimizer": "name", "lr": "lr", "schedule": "schedule"}
    return {words[key]: asked[key] for key in words if key in asked}
