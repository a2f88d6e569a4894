"""Weights that a run starts from, and the record of them that stays in its folder."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...errors import UnsafeInputError, UsageError
from ...networks.base import SegmentationNetwork, SliceNetwork
from ...networks.imagenet import IMAGENET, check_imagenet, imagenet_source, start_from_imagenet
from ...networks.registry import build_network, is_file
from ...networks.weights import LoadReport, start_from, transplant
from ...transforms.writers import write_json
from ..dataset.plan import Plan
from ..dataset.plan_parts import Start
from ..manifest import file_digest
from ..model_folder import load_network, read_model_folder

log = logging.getLogger(__name__)

START_FILE = "start.json"
IN_MODEL_FILE = ("weights", "model", "fold", "head", "sha256")  # of start.json


def with_start_pinned(plan: Plan) -> Plan:
    """The plan with the SHA-256 of the file that its network starts from, and where that lies.

    A file or model that is gone is no error where the plan knows its hash: a run that goes on does not need it.

    Raises:
        UsageError: no such file.
        UnsafeInputError: it is not the file, or the model, that the plan was made with.
    """
    start = plan.network.start
    if start is None or start.weights == IMAGENET:
        return plan
    path = Path(start.weights).expanduser().absolute()
    if start.folds:
        if path.exists():
            _check_model(path, start)
        return plan
    if not path.is_file():
        if start.sha256 is not None:
            return plan
        raise UsageError(f"weights={start.weights}: there is no such file; give a file, or weights={IMAGENET}")
    digest = file_digest(path)
    if start.sha256 not in (None, digest):
        raise UnsafeInputError(
            f"weights={path}: SHA-256 is {digest[:12]}..., the plan says {str(start.sha256)[:12]}...; nothing was "
            "read. Give the file as it was, or take sha256 out of the plan"
        )
    pinned = start.model_copy(update={"weights": str(path), "sha256": digest})
    return plan.model_copy(update={"network": plan.network.model_copy(update={"start": pinned})})


def _check_model(path: Path, start: Start) -> None:
    """Hold the weights of a model folder against those that the plan was made with."""
    model = read_model_folder(path)
    for fold, digest in start.folds.items():
        found = model.sha256(fold) if fold in model.folds else "missing"
        if found != digest:
            raise UnsafeInputError(
                f"--init {path}: the weights of fold {fold} have SHA-256 {found[:12]}..., the plan says "
                f"{digest[:12]}...; nothing was read. Give the model as it was, or start anew with --overwrite"
            )


def check_start(plan: Plan, network: SegmentationNetwork) -> None:
    """Try the weights on a network on the meta device, so that wrong ones are said before any image is read.

    Raises:
        UsageError: weights of another network or of other widths, or none that the library has.
        UnsafeInputError: a pickle that holds more than tensors.
    """
    start = plan.network.start
    if start is None:
        return
    if start.weights == IMAGENET:
        if start.channel_order != "rgb":
            raise UsageError(f"channel_order={start.channel_order} is of a file of weights; {IMAGENET} has rgb")
        check_imagenet(network)
    elif start.folds:
        if Path(start.weights).exists():
            start_from_model(network, plan, start, fold_of(start, ""))
    elif Path(start.weights).is_file():
        start_from(network, Path(start.weights), channel_order=start.channel_order)


def start_network(network: SegmentationNetwork, plan: Plan, folder: Path, *, fold: str = "0") -> None:
    """Give a fresh network the weights of its plan; the report is logged and kept in the fold's folder.

    Raises:
        UsageError: the file is gone or does not fit, or the library's weights cannot be fetched.
        UnsafeInputError: the file is another one than the plan was made with.
    """
    start = with_start_pinned(plan).network.start
    if start is None:
        return
    inner = network.network if isinstance(network, SliceNetwork) else network
    path = Path(start.weights)
    if start.weights == IMAGENET:
        source, report = f"{IMAGENET} ({imagenet_source(inner)})", start_from_imagenet(inner)
        record = {"weights": source, "sha256": _digest(inner, report.taken)}
    elif start.folds and path.exists():
        taken = fold_of(start, fold)
        report = start_from_model(inner, plan, start, taken)
        head = "fresh" if start.fresh_head else "taken"
        other = "" if taken == fold else f", which has no fold {fold}"
        why = "the labels are others" if start.fresh_head else "the labels are the same"
        source = f"fold {taken} of model {path.name}{other} (head {head}: {why})"
        record = {"model": path.name, "fold": taken, "head": head, "sha256": start.folds[taken]}
    elif path.is_file():
        report = start_from(inner, path, channel_order=start.channel_order)
        source = path.name
        record = {"weights": source, "sha256": start.sha256 or _digest(inner, report.taken)}
    else:
        what = f"--init {path}: the model" if start.folds else f"weights={path}: the file"
        raise UsageError(f"{what} is gone, and no checkpoint of the run is there yet")
    names = {"taken": list(report.taken), "dropped": dict(report.dropped), "new": list(report.new)}
    log.info("started from %s: %s", source, "; ".join(str(report).splitlines()[:8]))
    write_json(folder / START_FILE, {**record, **names})


def fold_of(start: Start, fold: str) -> str:
    """The fold of a model folder that a fold of the run starts from: that of the same name, else the first one."""
    return fold if fold in start.folds else next(iter(start.folds))


def start_from_model(network: SegmentationNetwork, plan: Plan, start: Start, fold: str) -> LoadReport:
    """Give the network the weights of a fold of a model folder, with its head or without.

    Args:
        network: of the plan, changed in place; of a slice model the 2D network.
        plan: that the network was built by.
        start: names the model folder.
        fold: of it.

    Raises:
        UsageError: weights that do not fit.
    """
    own = plan.network.name if is_file(plan.network.name) else None
    with torch.random.fork_rng(devices=[]):  # the model is built with draws, which are none of the run's
        loaded = load_network(Path(start.weights), fold, network=own)
    weights = (loaded.network if isinstance(loaded, SliceNetwork) else loaded).state_dict()
    left = head_names(plan) if start.fresh_head else set()
    return transplant(network, {name: value for name, value in weights.items() if name not in left})


def head_names(plan: Plan) -> set[str]:
    """Tensors of the plan's network that the number of its outputs decides the shape of."""
    shapes = []
    for outputs in (plan.outputs, plan.outputs + 1):
        with torch.device("meta"):
            built = build_network(
                plan.network.name, plan.dims, plan.network_channels, outputs, **dict(plan.network.options)
            )
        shapes.append({name: value.shape for name, value in built.state_dict().items()})
    return {name for name, shape in shapes[0].items() if shapes[1].get(name) != shape}


def _digest(network: SegmentationNetwork, names: Sequence[str]) -> str:
    """Of the weights that were taken, where they came in no file of the user's."""
    values, digest = network.state_dict(), hashlib.sha256()
    for name in sorted(names):
        digest.update(name.encode() + values[name].detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_start(folder: Path) -> dict[str, Any]:
    """What model.yaml says of the weights that a fold started from: `start` with their name and SHA-256, or nothing."""
    file = folder / START_FILE
    if not file.is_file():
        return {}
    record: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return {"start": {key: record[key] for key in IN_MODEL_FILE if key in record}}
