"""From the fingerprint to the plan: what will be done with a data set, each choice with its reason."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UsageError, unknown
from ...transforms.edges import with_own
from ..sizes import parse_bytes
from .cases import Dataset
from .choices import (
    choose_bias_field,
    choose_crop,
    choose_mirror_axes,
    choose_modality,
    choose_normalisation,
    choose_orientation,
    choose_spacing,
)
from .fingerprint import Fingerprint, take_fingerprint
from .plan_parts import split_start
from .plan_record import Plan, plan_from, read_plan, write_plan
from .rates import choose_rate
from .topology import Machine, choose_topology

__all__ = ["Plan", "make_plan", "plan", "plan_from", "read_plan", "write_plan"]

NULLABLE = ("spacing_mm", "orientation")  # None means something here; elsewhere it means "not given"
LOG = logging.getLogger(__name__)
SMALL_VOXELS = 128**3
# mild: on small real sets stronger ones lost, see the results table of the README
AUGMENTATION = {
    "rotation_degrees": 15.0,
    "rotation_probability": 0.2,
    "scale": 0.2,
    "scale_probability": 0.2,
    "noise": 0.1,
    "noise_probability": 0.1,
    "blur_sigma": 1.0,
    "blur_probability": 0.1,
    "brightness": 0.2,
    "brightness_probability": 0.1,
    "contrast": 0.2,
    "contrast_probability": 0.1,
    "low_resolution": 0.5,
    "low_resolution_probability": 0.1,
    "gamma": 0.3,
    "gamma_probability": 0.2,
}


def plan(
    dataset: Path | str | Dataset | Fingerprint,
    *,
    out: Path | str | None = None,
    network: str | None = None,
    dims: int | None = None,
    width: int | None = None,
    options: Mapping[str, Any] | None = None,
    memory: str | int | None = None,
    gpu_memory: str | int | None = None,
    seed: int | None = None,
    workers: int | None = 1,
    overwrite: bool = False,
    **choices: Any,
) -> Plan:
    """Look at a data set and plan its training; cases that cannot be used are named in the log.

    Args:
        dataset: folder, dataset.json, or its fingerprint (`take_fingerprint`), which says what the data set looks like.
        out: YAML file to write; nothing is written without it.
        network: a name that `describe_networks` lists, or file.py:Class.
        dims: 2 for a slice model, 3 for a volume model.
        width: channels of the first level.
        options: of the network.
        memory: RAM to stay within on a CPU, as bytes or as "4GB".
        gpu_memory: the same of a GPU, where there is one.
        seed: of every draw.
        workers: threads that read.
        overwrite: replace an existing file.
        choices: of `make_plan`, or any field of the plan.

    Raises:
        UsageError: no such data set, unknown layout, wrong choice, `out` exists.
        NothingDoneError: no case can be used.
    """
    refuse_existing(out, overwrite)
    amounts = {"cpu": parse_bytes(memory, "--memory"), "gpu": parse_bytes(gpu_memory, "--gpu-memory")}
    amount = amounts[Machine.here(choices.get("device_kind", "auto"), 1).kind]
    if amount is not None:
        choices["memory_bytes"] = amount
    fingerprint = dataset if isinstance(dataset, Fingerprint) else take_fingerprint(dataset, workers=workers)
    for failure in fingerprint.failures:
        LOG.warning("left out: %s", failure.message)
    made = make_plan(fingerprint, network=network, dims=dims, width=width, options=options, seed=seed, **choices)
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        write_plan(made, out)
    return made


def refuse_existing(out: Path | str | None, overwrite: bool) -> None:
    """Keep a plan that somebody may have edited.

    Raises:
        UsageError: the file is there and is not to be replaced.
    """
    if out is not None and Path(out).exists() and not overwrite:
        raise UsageError(f"{out} exists; use --overwrite or another name")


def make_plan(
    fingerprint: Fingerprint,
    *,
    network: str | None = None,
    dims: int | None = None,
    width: int | None = None,
    options: Mapping[str, Any] | None = None,
    device_kind: str = "auto",
    memory_bytes: int | None = None,
    **fields: Any,
) -> Plan:
    """The plan of a data set on this machine.

    Args:
        fingerprint: of the data set.
        network: registry name or file.py:Class; "unet" by default.
        dims: 2 for a slice model, 3 for a volume model.
        width: channels of the first level.
        options: of the network, on top of those chosen.
        device_kind: "cpu", "gpu" or "auto".
        memory_bytes: what training may use; by default what is free.
        fields: any field of the plan, which is then taken as it is; mappings replace the named entries alone.

    Raises:
        UsageError: an unknown field, network or option, or a value that does not fit.
    """
    fields = {name: value for name, value in fields.items() if value is not None or name in NULLABLE}
    for name in fields:
        if name not in Plan.model_fields or name in ("version", "reasons", "network"):
            raise unknown("field of a plan", name, set(Plan.model_fields) - {"version", "reasons"})
    chosen = _Choices(fields)
    dataset = fingerprint.dataset
    is_flat = fingerprint.is_pictures
    if is_flat and dims == 3:
        raise UsageError(f"data set {dataset.root} holds pictures; use --dims 2, or leave the option out")
    dims = chosen.take(
        "dims", dims or (2 if is_flat else 3), "pictures" if is_flat else "volumes" if dims != 2 else "as asked for"
    )
    modality = chosen.take("modality", *choose_modality(fingerprint))
    chosen.take("orientation", *choose_orientation(fingerprint))
    spacing = chosen.take("spacing_mm", *choose_spacing(fingerprint))
    crop = chosen.take("crop", *choose_crop(fingerprint))
    chosen.take("bias_field", *choose_bias_field())
    chosen.take("normalisation", *choose_normalisation(fingerprint.channels, modality, crop))
    grid, shape = _median_grid(fingerprint, spacing)
    slice_axis = _slice_axis(grid, is_flat, fields.get("patch")) if dims == 2 else None
    machine = Machine.here(device_kind, memory_bytes)
    labels = dataset.labels or ()
    start, own_options = split_start(options or {})
    built = choose_topology(
        shape,
        grid,
        machine,
        dims=dims,
        slice_axis=slice_axis,
        channels=len(dataset.channels),
        classes=len(labels),
        network=network or "unet",
        width=width,
        options=own_options,
        patch=fields.get("patch"),
        batch=fields.get("batch"),
    )
    chosen.take("patch", built.patch, built.reasons["patch"])
    chosen.take("batch", built.batch, built.reasons["batch"])
    named = {"name": network or "unet", "options": built.options, "start": start}
    chosen.take("network", named, built.reasons["network"])
    axes, sides, why = choose_mirror_axes(fingerprint, slice_axis, None if spacing is None else grid)
    axes = chosen.take("mirror_axes", axes, why)
    gpu = machine.kind == "gpu"
    chosen.take("oversample_foreground", 0.33, "small structures are seen in at least a third of the patches")
    chosen.take("augmentation", dict(AUGMENTATION), "mild: stronger shapes and intensities lost accuracy on small sets")
    rate, why = choose_rate(built.normalised)
    adamw = "AdamW with a warm-up and a cosine reaches its result in few steps"
    chosen.take("optimizer", {"name": "adamw", "lr": rate}, f"{adamw}; {why}")
    chosen.take("steps_per_epoch", 250 if gpu else 100, f"a validation every few minutes on a {machine.kind.upper()}")
    chosen.take("validation_cases", 8, "as many are predicted whole after an epoch; all are, at the end, by predict")
    chosen.take("average_weights", 0.99, "the running average of the weights is steadier than the last step's")
    chosen.take("overlap", 0.5, "neighbouring windows share half their width, so that no seam is seen")
    small = float(np.prod(shape)) <= SMALL_VOXELS
    tta = bool(axes) and small
    chosen.take(
        "tta",
        tta,
        "small volumes: mirrored predictions are cheap" if tta else "it would multiply the time of a prediction",
    )
    chosen.take("seed", 0, "any whole number; equal seeds give equal runs")
    values = {
        "version": 1,
        "dataset": chosen.values.pop("dataset", dataset.name),
        "channels": list(dataset.channels),
        "labels": [{"value": label.value, "name": label.name, "side": label.value in sides} for label in labels],
        **fields,
        **chosen.values,
        "reasons": chosen.reasons,
    }
    return plan_from(values, where="choices of the plan")


class _Choices:
    """Collects field after field; what the user gave wins, with that as its reason."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = given
        self.values: dict[str, Any] = {}
        self.reasons: dict[str, str] = {}

    def take(self, name: str, value: Any, reason: str) -> Any:
        given = self.given.get(name)
        if name not in self.given:
            self.values[name], self.reasons[name] = value, reason
        elif isinstance(value, Mapping) and isinstance(given, Mapping):
            self.values[name], self.reasons[name] = {**value, **given}, f"{reason}; {', '.join(given)} given"
        else:
            self.values[name], self.reasons[name] = given, "given"
        return self.values[name]


def _median_grid(
    fingerprint: Fingerprint, spacing_mm: Sequence[float | None] | None
) -> tuple[list[float], list[float]]:
    """Spacing of the plan's grid, and the median shape on it."""
    shapes = np.array([case.shape for case in fingerprint.cases], float)
    if spacing_mm is None:
        return [1.0, 1.0, 1.0], np.median(shapes, axis=0).tolist()
    spacings = np.array([case.spacing_mm for case in fingerprint.cases])
    targets = np.array([with_own(spacing_mm, own) for own in spacings])
    shape = np.median(np.round(shapes * spacings / targets), axis=0).tolist()
    return np.median(targets, axis=0).tolist(), shape


def _slice_axis(spacing_mm: Sequence[float], is_flat: bool, patch: Sequence[int] | None) -> int:
    """That of the patch, where one is given; the coarsest axis, or the last where none is."""
    if patch is not None and 1 in patch:
        return list(patch).index(1)
    coarse = int(np.argmax(spacing_mm))
    return coarse if not is_flat and spacing_mm[coarse] > 1.05 * sorted(spacing_mm)[1] else 2
