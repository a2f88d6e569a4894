"""Patch, batch and network of a plan: as much of the body as the machine can take in one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod
from typing import Any

import numpy as np
import psutil
import torch

from ...errors import UsageError
from ...networks.base import SegmentationNetwork
from ...networks.registry import build_network
from .rates import has_norms

SMALLEST_SIDE = 4  # of the deepest feature map
MOST_LEVELS = {"cpu": 4, "gpu": 6}
FIRST_WIDTH = {"cpu": 16, "gpu": 32}
WIDEST = {3: 320, 2: 512}
PER_LEVEL = ("widths", "strides", "kernels")  # options of the U-Net with an entry a level
STEP_VOXELS = {"cpu": 2 * 64**3, "gpu": 4 * 128**3}  # patch x batch: what keeps a step at about a second
LEAST_BATCH = {3: 2, 2: 8}
LARGEST_BATCH = {"cpu": 32, "gpu": 64}
# float32 maps of the first level's size and width that are kept for the backward pass (traced: unet 13, vnet 16)
MAPS = {"unet": {3: 16, 2: 24}, "vnet": {3: 18, 2: 27}}
MEMORY_SHARE = 0.5  # of what is free: the rest is for optimiser, augmentation and the system


@dataclass(frozen=True)
class Topology:
    """Patch (three numbers), batch and network options, with the reasons; and whether the network has norms."""

    patch: list[int]
    batch: int
    options: dict[str, Any]
    reasons: dict[str, str]
    normalised: bool


@dataclass(frozen=True)
class Machine:
    """What training may use."""

    kind: str
    memory_bytes: int

    @staticmethod
    def here(kind: str = "auto", memory_bytes: int | None = None) -> Machine:
        """This machine: `gpu` where CUDA works, else `cpu`; free memory unless given."""
        if kind == "auto":
            kind = "gpu" if torch.cuda.is_available() else "cpu"
        if memory_bytes is None:
            gpu = kind == "gpu" and torch.cuda.is_available()
            memory_bytes = torch.cuda.mem_get_info()[0] if gpu else psutil.virtual_memory().available
        return Machine("gpu" if kind == "gpu" else "cpu", int(memory_bytes))


@dataclass(frozen=True)
class _Model:
    """A network by name, built once at most, and without memory."""

    name: str
    dims: int
    channels: int
    classes: int
    options: Mapping[str, Any]

    @cached_property
    def built(self) -> SegmentationNetwork:
        with torch.device("meta"):
            return build_network(self.name, self.dims, self.channels, self.classes, **self.options)

    def alignment(self) -> tuple[list[int], list[int]]:
        """What a patch is a multiple of, and the least size of its sides."""
        strides = self.options.get("strides", [0])
        if self.name == "unet" and all(isinstance(level, list) for level in strides):  # known without building it
            stride = [prod(level[axis] for level in strides) for axis in range(self.dims)]
            return stride, stride
        return [int(step) for step in self.built.stride], [int(side) for side in self.built.minimum_size]

    @property
    def normalised(self) -> bool:
        """Whether the network has norms."""
        if self.name == "unet" and "encoder" not in self.options:  # known without building it
            return bool(self.options.get("norm") != "none")
        return has_norms(self.built)

    def fits(self, patch: Sequence[int], batch: int, machine: Machine) -> bool:
        """Whether activations and weights, with gradients and moments, stay within the share of memory."""
        limit = MEMORY_SHARE * machine.memory_bytes
        # a trace gives the same within a fifth, and loads much of torch
        if self.name in MAPS and "encoder" not in self.options:
            width = self.options["widths"][0] if self.name == "unet" else self.options.get("width", 16)
            return 2 * MAPS[self.name][self.dims] * width * prod(patch) * batch * 4 <= limit
        weights = sum(parameter.numel() for parameter in self.built.parameters())
        return 2 * self.built.activation_bytes(patch, training=True, batch=batch) + 16 * weights <= limit


def choose_topology(
    shape: Sequence[float],
    spacing_mm: Sequence[float],
    machine: Machine,
    *,
    dims: int,
    slice_axis: int | None,
    channels: int,
    classes: int,
    network: str = "unet",
    width: int | None = None,
    options: Mapping[str, Any] | None = None,
    patch: Sequence[int] | None = None,
    batch: int | None = None,
) -> Topology:
    """The patch starts at the median image and shrinks, longest side first, until a step fits.

    Args:
        shape: median image on the plan's grid.
        spacing_mm: of that grid.
        machine: what there is.
        dims: 2 for a slice model.
        slice_axis: axis along which a slice model has no extent.
        channels: of the image.
        classes: background included.
        network: a registry name or file.py:Class.
        width: channels of the first level.
        options: of the network, on top of what is chosen here.
        patch: given by the user.
        batch: given by the user.
    """
    axes = [axis for axis in range(3) if axis != slice_axis] if dims == 2 else [0, 1, 2]
    steps = [float(spacing_mm[axis]) for axis in axes]
    given = None if patch is None else [int(patch[axis]) for axis in axes]
    ours = network == "unet" and "encoder" not in (options or {})  # the levels of an encoder of others are its own
    levels = _levels_given(options or {}) if ours else None
    sides = given or [max(1, round(float(shape[axis]))) for axis in axes]
    model: _Model | None = None
    while True:
        chosen: dict[str, Any] = {"width": width} if width else {}
        if network == "unet" and width:
            chosen = {"widths": [width * 2**level for level in range(5)]}
        if ours:
            chosen = _unet_options(sides, steps, machine.kind, width, dims, levels)
        if model is None or ours:  # the levels of ours follow the patch
            model = _Model(network, dims, channels, classes, {**chosen, **(options or {})})
        stride, smallest = model.alignment()
        whole = given or [ceil(side / step) * step for side, step in zip(sides, stride, strict=True)]
        longest = max(
            (axis for axis in range(len(axes)) if whole[axis] > max(stride[axis], smallest[axis])),
            key=lambda axis: whole[axis] * steps[axis],
            default=None,
        )
        least = batch or LEAST_BATCH[dims]
        small = prod(whole) * least <= STEP_VOXELS[machine.kind]
        if given or longest is None or (small and model.fits(whole, least, machine)):
            break
        sides = list(whole)
        sides[longest] -= stride[longest]
    size = batch or _batch(model, whole, machine)
    full = [1, 1, 1]
    for axis, side in zip(axes, whole, strict=True):
        full[axis] = side
    options = dict(model.options)
    reasons = _reasons(shape, full, stride, size, machine, options, batch, levels)
    return Topology(full, size, options, reasons, model.normalised)


def _levels_given(options: Mapping[str, Any]) -> int | None:
    """Levels of a U-Net whose user gives `widths`, `strides` or `kernels`; None where the images decide.

    Raises:
        UsageError: lists of different lengths, which are no levels.
    """
    lengths = {name: len(options[name]) for name in PER_LEVEL if isinstance(options.get(name), (list, tuple))}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise UsageError(f"options of network 'unet': {found} entries; give each of them one entry a level")
    return next(iter(lengths.values()), None)


def _unet_options(
    sides: Sequence[int], steps: Sequence[float], kind: str, width: int | None, dims: int, levels: int | None = None
) -> dict[str, Any]:
    """Levels, strides and kernels: an axis is halved while 4 voxels remain, but not where it is coarse already.

    With `levels` given there are as many, and the rule decides what each halves as long as there is something left.
    """
    extent, grid = [float(side) for side in sides], list(steps)
    strides, kernels = [[1] * dims], [_kernel(grid)]
    while len(strides) < (levels or MOST_LEVELS[kind]):
        can = [side / 2 >= SMALLEST_SIDE for side in extent]
        finest = min((step for step, able in zip(grid, can, strict=True) if able), default=0.0)
        halves = [able and step < 2 * finest for step, able in zip(grid, can, strict=True)]
        if not any(halves):
            break
        strides.append([2 if halve else 1 for halve in halves])
        extent = [side / 2 if halve else side for side, halve in zip(extent, halves, strict=True)]
        grid = [step * 2 if halve else step for step, halve in zip(grid, halves, strict=True)]
        kernels.append(_kernel(grid))
    while len(strides) < (levels or 2):  # tiny images: the network pads
        strides.append([2] * dims)
        kernels.append([3] * dims)
    options = {**_unet_levels(len(strides), kind, width, dims), "strides": strides}
    if any(size != 3 for kernel in kernels for size in kernel):
        options["kernels"] = kernels
    return options


def _unet_levels(levels: int, kind: str, width: int | None, dims: int) -> dict[str, Any]:
    first = width or FIRST_WIDTH[kind]
    return {
        "widths": [min(first * 2**level, max(WIDEST[dims], first)) for level in range(levels)],
        "blocks": "residual",
        "deep_supervision": min(2, levels - 1),
    }


def _kernel(grid: Sequence[float]) -> list[int]:
    return [3 if step < 2 * min(grid) else 1 for step in grid]


def _batch(model: _Model, patch: Sequence[int], machine: Machine) -> int:
    """Two on a CPU, where time decides (more for slices); on a GPU as many as fit the step."""
    if machine.kind == "cpu" and model.dims == 3:
        return 2
    least = LEAST_BATCH[model.dims]
    wanted = int(np.clip(STEP_VOXELS[machine.kind] // prod(patch), least, LARGEST_BATCH[machine.kind]))
    while wanted > least and not model.fits(patch, wanted, machine):
        wanted -= 1
    return wanted


def _reasons(
    shape: Sequence[float],
    patch: Sequence[int],
    stride: Sequence[int],
    batch: int,
    machine: Machine,
    options: Mapping[str, Any],
    given: int | None,
    levels: int | None,
) -> dict[str, str]:
    median = " x ".join(f"{side:.0f}" for side in shape)
    whole = all(side >= median_side for side, median_side in zip(patch, shape, strict=True) if side > 1)
    covers = "holds it whole" if whole else f"shrunk until a step fits a {machine.kind.upper()}"
    return {
        "patch": f"the median image has {median} voxels on this grid; {covers}, in multiples of {list(stride)}",
        "batch": "given" if given else f"{batch} patches make a step that suits a {machine.kind.upper()}",
        "network": f"{levels} levels, as given"
        if levels
        else f"{len(options['widths'])} levels: an axis is halved while {SMALLEST_SIDE} voxels remain"
        if "widths" in options
        else "as asked for",
    }
