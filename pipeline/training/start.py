"""Weights that a run starts from, and the record of them that stays in its folder."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import UnsafeInputError, UsageError
from ...networks.base import SegmentationNetwork, SliceNetwork
from ...networks.imagenet import IMAGENET, check_imagenet, imagenet_source, start_from_imagenet
from ...networks.weights import start_from
from ...transforms.writers import write_json
from ..dataset.plan import Plan
from ..manifest import file_digest

log = logging.getLogger(__name__)

START_FILE = "start.json"


def with_start_pinned(plan: Plan) -> Plan:
    """The plan with the SHA-256 of the file that its network starts from, and where that lies.

    A file that is gone is no error where the plan knows its hash: a run that goes on does not need it.

    Raises:
        UsageError: no such file.
        UnsafeInputError: it is not the file that the plan was made with.
    """
    start = plan.network.start
    if start is None or start.weights == IMAGENET:
        return plan
    path = Path(start.weights).expanduser().absolute()
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
    elif Path(start.weights).is_file():
        start_from(network, Path(start.weights), channel_order=start.channel_order)


def start_network(network: SegmentationNetwork, plan: Plan, folder: Path) -> None:
    """Give a fresh network the weights of its plan; the report is logged and kept in the fold's folder.

    Raises:
        UsageError: the file is gone or does not fit, or the library's weights cannot be fetched.
        UnsafeInputError: the file is another one than the plan was made with.
    """
    start = with_start_pinned(plan).network.start
    if start is None:
        return
    inner = network.network if isinstance(network, SliceNetwork) else network
    if start.weights == IMAGENET:
        source, report = f"{IMAGENET} ({imagenet_source(inner)})", start_from_imagenet(inner)
    elif Path(start.weights).is_file():
        source = Path(start.weights).name
        report = start_from(inner, Path(start.weights), channel_order=start.channel_order)
    else:
        raise UsageError(f"weights={start.weights}: the file is gone, and no checkpoint of the run is there yet")
    names = {"taken": list(report.taken), "dropped": dict(report.dropped), "new": list(report.new)}
    log.info("started from %s: %s", source, "; ".join(str(report).splitlines()[:8]))
    digest = start.sha256 or _digest(inner, report.taken)
    write_json(folder / START_FILE, {"weights": source, "sha256": digest, **names})


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
    return {"start": {key: record[key] for key in ("weights", "sha256")}}
