"""The inferer and the postprocessing of a MONAI bundle as windows, labels and regions of a plan."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .bundle_findings import Findings, Step
from .bundle_words import Expression

INFERERS = ("SlidingWindowInferer", "SlidingWindowInfererAdapt", "SliceInferer")
QUIET = {"SaveImage", "EnsureType", "CastToType", "ToTensor", "ToDevice", "DeleteItems", "SelectItems", "Identity"}
WHERE = re.compile(r"torch\.where\(\w+\[\[?(\d+)\]?\]\s*>\s*0(?:\.\d*)?\s*,\s*(\d+)\s*,\s*(.+)\)")
LAMBDA = re.compile(r"lambda (\w+)\s*:\s*(.+)", re.DOTALL)
NAMED_TWICE = "{name} ({number})"


@dataclass(frozen=True)
class Windows:
    """How an image is gone through.

    Args:
        patch: three numbers; 1 along the axis of slices.
        overlap: of neighbouring windows.
        blending: gaussian or constant.
    """

    patch: tuple[int, ...]
    overlap: float
    blending: str


@dataclass(frozen=True)
class Outputs:
    """What the outputs of a network stand for.

    Args:
        labels: of a plan, as plain values.
        regions: of a plan, in the order in which they are painted.
        order: the network's output of each of them; empty for plain classes.
        interpolated: what is on the way back to the image's grid: logits or probabilities.
    """

    labels: list[dict[str, Any]]
    regions: list[dict[str, Any]]
    order: tuple[int, ...]
    interpolated: str = "logits"


def read_inferer(step: Step | None, dims: int) -> Windows | None:
    """Windows; None where something stands in the way, which is noted."""
    if step is None:
        return None
    if step.name not in INFERERS:
        step.stop(f"is none of {', '.join(INFERERS)}")
        return None
    sides, overlap = step.numbers("roi_size"), step.numbers("overlap", 0.25)
    blending = str(step.get("mode", "constant"))
    if blending not in ("constant", "gaussian"):
        step.stop(f"mode is {blending!r}, expected constant or gaussian")
    if step.get("roi_weight_map") is not None or step.get("process_fn") is not None:
        step.stop("weighs windows in a way of its own")
    if sides is None or overlap is None:
        return None
    sides = sides * dims if len(sides) == 1 else sides
    if len(sides) != dims or any(side < 1 or side != int(side) for side in sides):
        step.stop(f"roi_size is {step.get('roi_size')!r:.40}, expected {dims} numbers of voxels")
        return None
    if len({*overlap}) != 1 or not 0 <= overlap[0] < 1:
        step.stop(f"overlap is {step.get('overlap')!r:.40}, expected one number from 0 to below 1")
        return None
    patch = [int(side) for side in sides]
    if step.name == "SliceInferer":
        axis = step.number("spatial_dim", 0.0)
        if dims != 2 or axis not in (0, 1, 2):
            step.stop(f"goes along axis {axis} with a network of {dims} dimensions")
            return None
        patch.insert(int(axis), 1)
    elif dims == 2:
        step.stop("takes pictures; slices of volumes are taken by a SliceInferer")
        return None
    if blending == "gaussian":
        step.keep(sigma_scale=0.125)
        step.differ("MONAI lifts its Gaussian weights to 0.001 at the corners of a window, here they are as they are")
    if (step.get("padding_mode", "constant"), step.get("cval", 0)) != ("constant", 0):
        step.differ("images that are smaller than a window are padded with zeros, not as the inferer does it")
    return Windows(tuple(patch), float(overlap[0]), blending)


def read_outputs(
    steps: Sequence[Step], findings: Findings, *, outputs: int, names: Mapping[int, str]
) -> Outputs | None:
    """Labels or regions; None where something stands in the way, which is noted.

    Args:
        steps: transforms of the postprocessing, in order.
        findings: for what is noted.
        outputs: channels of the network.
        names: of these channels.
    """
    activation = decided = None
    interpolated = "logits"
    values: dict[int, int] = {}
    painted: list[tuple[int, int]] = []
    for step in steps:
        name = step.name.removesuffix("Dict").removesuffix("D").removesuffix("d")
        if name == "Activations":
            activation = next((one for one in ("softmax", "sigmoid") if step.get(one, False)), activation)
            step.keep(other=None)
        elif name == "AsDiscrete":
            decided = _decided(step, activation) or decided
        elif name == "Invert":
            interpolated = "probabilities" if activation is not None and decided is None else "logits"
            if decided is not None or step.get("nearest_interp", True):
                step.differ(
                    "scores are interpolated on the way back to the image's grid; the bundle takes the nearest voxel"
                )
        elif name == "MapLabelValue":
            old, new = step.numbers("orig_labels"), step.numbers("target_labels")
            values = dict(zip(map(int, old or ()), map(int, new or ()), strict=False))
        elif name == "Lambda":
            painted = _painted(step)
        elif name not in QUIET:
            step.stop("has no counterpart here")
    found = None
    if decided == "argmax":
        found = _classes(outputs, names, values, findings)
    elif decided == "threshold":
        found = _regions(outputs, names, painted, findings)
    if not any(step.name.startswith("AsDiscrete") for step in steps):
        findings.obstacles.append("postprocessing has no AsDiscreted: what the label of a voxel is, is not said")
    return None if found is None else replace(found, interpolated=interpolated)


def _decided(step: Step, activation: str | None) -> str | None:
    step.keep(to_onehot=None, rounding=None)
    if step.get("argmax", False):
        step.keep(threshold=None)
        return "argmax"
    threshold = step.get("threshold")
    wanted = {"sigmoid": 0.5, None: 0.0}.get(activation)
    if threshold is None or wanted is None or float(threshold) != wanted:
        step.stop(
            f"its threshold is {threshold!r} behind {activation or 'no activation'}; 0.5 behind sigmoid is done here"
        )
        return None
    return "threshold"


def _painted(step: Step) -> list[tuple[int, int]]:
    """Outputs and the values that they write, the last one over all others, of nested calls of torch.where."""
    text = step.values.get("func")
    found = LAMBDA.fullmatch(text.text.strip()) if isinstance(text, Expression) else None
    rest = found[2].strip() if found else ""
    painted: list[tuple[int, int]] = []
    while match := WHERE.fullmatch(rest):
        painted.insert(0, (int(match[1]), int(match[2])))
        rest = match[3].strip()
    if rest == "0" and painted:
        return painted
    step.stop(f"func is {text if isinstance(text, Expression) else repr(text)}, which is not evaluated")
    return []


def _classes(outputs: int, names: Mapping[int, str], values: Mapping[int, int], findings: Findings) -> Outputs | None:
    written = [values.get(number, number) for number in range(outputs)]
    if outputs < 2 or len({*written}) < outputs or min(written) < 0:
        findings.obstacles.append(f"postprocessing: {outputs} classes are written as the label values {written[:20]}")
        return None
    called = _apart(
        [names.get(number, "background" if number == 0 else f"class {number}") for number in range(outputs)]
    )
    return Outputs([{"value": value, "name": name} for value, name in zip(written, called, strict=True)], [], ())


def _regions(
    outputs: int, names: Mapping[int, str], painted: Sequence[tuple[int, int]], findings: Findings
) -> Outputs | None:
    painted = painted or ([(0, 1)] if outputs == 1 else [])
    order = tuple(number for number, _ in painted)
    if sorted(order) != list(range(outputs)):
        findings.obstacles.append(
            f"postprocessing gives {outputs} masks that may overlap, and does not say which label value each one writes"
        )
        return None
    called = _apart([names.get(number, f"region {number + 1}") for number in order])
    writes = [value for _, value in painted]
    if min(writes) < 1:
        findings.obstacles.append(f"postprocessing: regions write the values {writes}; 0 is background")
        return None
    if outputs > 1:
        findings.differs.append(
            "each region is taken to hold all that is painted over it, which matters for scores against a reference "
            f"alone: {', '.join(called)}"
        )
    regions = [
        {"name": name, "values": sorted({*writes[at:]}), "writes": value}
        for at, (name, value) in enumerate(zip(called, writes, strict=True))
    ]
    owners = {value: name for name, value in zip(called, writes, strict=True)}
    labels = [{"value": 0, "name": "background"}]
    labels += [{"value": value, "name": owners[value]} for value in sorted(owners)]
    return Outputs(labels, regions, order)


def _apart(names: Sequence[str]) -> list[str]:
    """Names that differ: a second one of a name gets its number."""
    return [NAMED_TWICE.format(name=name, number=at) if name in names[:at] else name for at, name in enumerate(names)]
