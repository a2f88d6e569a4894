"""The choices of a plan that follow from the fingerprint alone, each with its reason in one sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations
from typing import Any, Literal

import numpy as np

from .cases import LabelInfo
from .fingerprint import ChannelFacts, Fingerprint

ANISOTROPIC = 3.0  # a grid whose coarsest step is more than so many times its finest
CROP_SAVES = 0.25
NARROWEST_WINDOW_HU = 400.0  # of a radiologist's soft-tissue window; inside fat alone the percentiles span 120 HU
MR_WORDS = {
    "mr",
    "mri",
    "t1",
    "t2",
    "t1w",
    "t2w",
    "t1gd",
    "t1ce",
    "t1c",
    "flair",
    "adc",
    "dwi",
    "hbv",
    "pd",
    "pdw",
    "swi",
}
CT_WORDS = {"ct", "cta", "cbct"}
PT_WORDS = {"pt", "pet", "suv"}
SIDES = {"left", "right", "l", "r", "lt", "rt", "sinister", "dexter", "sin", "dext"}
FRONT_BACK = {"anterior", "posterior", "ant", "post", "ventral", "dorsal", "front", "back"}
UP_DOWN = {
    "superior",
    "inferior",
    "upper",
    "lower",
    "cranial",
    "caudal",
    "proximal",
    "distal",
    "sup",
    "inf",
    "apex",
    "base",
}
AXIS_WORDS = (SIDES, FRONT_BACK, UP_DOWN)
AXIS_NAMES = ("left-right", "front-back", "up-down")
CONSISTENT = 0.9  # share of the cases in which a class lies on one side of the middle
FAR = 0.25  # ... by at least so many standard deviations of the foreground, on average
FEWEST_CASES = 5


def choose_modality(fingerprint: Fingerprint) -> tuple[str, str]:
    """CT, MR, PT, picture or other: from the channels' names, the files, or the values."""
    if fingerprint.is_pictures:
        return "picture", "the images are pictures without a place in the world"
    for name in fingerprint.dataset.channels:
        modality = modality_in(name)
        if modality is not None:
            return modality, f"the data set calls its channel {name!r}"
    stated = {case.modality for case in fingerprint.cases} - {""}
    if len(stated) == 1:
        return stated.pop(), "the files say so"
    lows = [case.range[0][2] for case in fingerprint.cases]
    highs = [case.range[0][1] for case in fingerprint.cases]
    low, high = float(np.median(lows)), float(np.median(highs))
    if -5000 <= low <= -300 and 50 <= high <= 40_000:
        return "CT", f"values run from about {low:.0f} to {high:.0f} as Hounsfield units do, and nothing else is stated"
    return "other", f"nothing states the modality and values (about {low:.4g} to {high:.4g}) are no Hounsfield units"


def modality_in(name: str) -> str | None:
    """CT, MR or PT where a word in the name of a channel says so."""
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    kinds = (("CT", CT_WORDS), ("MR", MR_WORDS), ("PT", PT_WORDS))
    return next((modality for modality, known in kinds if words & known), None)


def choose_spacing(fingerprint: Fingerprint) -> tuple[list[float] | None, str]:
    """The median; on the coarse axis of anisotropic sets the 10th percentile, as nnU-Net does."""
    if fingerprint.is_pictures:
        return None, "pictures keep their pixels"
    spacings = np.array([case.spacing_mm for case in fingerprint.cases])
    median = np.median(spacings, axis=0)
    coarse = int(median.argmax())
    others = max(step for axis, step in enumerate(median) if axis != coarse)
    target = [_tidy(step) for step in median]
    if median.max() / median.min() > ANISOTROPIC:
        target[coarse] = _tidy(max(float(np.percentile(spacings[:, coarse], 10)), others))
        reason = (
            f"median of {len(spacings)} cases; along axis {coarse}, more than {ANISOTROPIC:g} times coarser than "
            "the finest, "
            f"the 10th percentile, so that fewer slices are merged"
        )
        return target, reason
    return target, f"median of {len(spacings)} cases"


def choose_orientation(fingerprint: Fingerprint) -> tuple[str | None, str]:
    """RAS for volumes, as stored for pictures."""
    if fingerprint.is_pictures:
        return None, "pictures have no place in the world"
    found = sorted({case.orientation for case in fingerprint.cases})
    return "RAS", f"one order of axes for all; stored as {', '.join(found[:6])}{', ...' if len(found) > 6 else ''}"


def choose_crop(fingerprint: Fingerprint) -> tuple[Literal["none", "nonzero"], str]:
    """Crop to the nonzero box where it takes away a quarter or more."""
    saved = 1 - float(np.median([case.box_share for case in fingerprint.cases]))
    if saved > CROP_SAVES:
        return "nonzero", f"the box of nonzero voxels leaves out {saved:.0%} of the median image"
    return "none", f"the box of nonzero voxels would leave out only {saved:.0%} of the median image"


def choose_bias_field() -> tuple[bool, str]:
    """Off: it costs more than the rest of the chain, and networks learn to live with shading."""
    return False, "N4 takes seconds a case and rarely helps a network; true corrects the shading of MR coils"


def choose_normalisation(
    channels: Sequence[ChannelFacts], modality: str, crop: str
) -> tuple[list[dict[str, Any]], str]:
    """Per channel: a window from the values inside the labels for CT, the image's own mean and deviation otherwise."""
    if modality == "CT":
        entries = [_window(channel) for channel in channels]
        where = "inside the labels" if channels[0].inside_labels else "of the images, as nothing is labelled"
        return (
            entries,
            f"CT has a scale: window from the 0.5 to the 99.5 percentile {where}, "
            f"at least {NARROWEST_WINDOW_HU:g} HU wide so that what lies around still differs, then mean and deviation",
        )
    if crop == "nonzero":
        return [
            {"kind": "zscore_nonzero"} for _ in channels
        ], "no common scale, and zero is outside: each image by itself"
    return [{"kind": "zscore"} for _ in channels], "no common scale between images: each by its own mean and deviation"


def _window(channel: ChannelFacts) -> dict[str, Any]:
    """Window of one CT channel; a narrow one is widened about its middle, its deviation to a quarter of the width."""
    low, high = channel.percentile_00_5, channel.percentile_99_5
    missing = NARROWEST_WINDOW_HU - (high - low)
    std = channel.std
    if missing > 0:
        low, high, std = low - missing / 2, high + missing / 2, max(std, NARROWEST_WINDOW_HU / 4)
    return {
        "kind": "window",
        "low": round(low, 3),
        "high": round(high, 3),
        "mean": round(channel.mean, 4),
        "std": round(max(std, 1e-3), 4),
    }


def choose_mirror_axes(
    fingerprint: Fingerprint, slice_axis: int | None, spacing_mm: Sequence[float] | None
) -> tuple[list[int], set[int], str]:
    """Axes that may be flipped without making one class look like another, the labels that name a side, and why."""
    labels = list(fingerprint.dataset.labels or ())
    background = labels[0].value
    named, sides = _named_axes(labels[1:])
    reasons = [f"label {label!r} names the {AXIS_NAMES[axis]} axis" for axis, label in named.items()]
    measured = {} if fingerprint.is_pictures else _measured_axes(fingerprint, background)
    for axis, (first, second) in measured.items():
        if axis not in named:
            reasons.append(
                f"labels {first} and {second} lie at opposite ends of the {AXIS_NAMES[axis]} axis in most cases"
            )
    flat = slice_axis
    if flat is None and spacing_mm is not None and max(spacing_mm) / min(spacing_mm) > ANISOTROPIC:
        flat = int(np.argmax(spacing_mm))
    if flat is not None and flat not in named and flat not in measured:
        reasons.append("slices are not mirrored across their plane")
    axes = [axis for axis in range(3) if axis not in named and axis not in measured and axis != flat]
    if fingerprint.is_pictures:
        axes = [axis for axis in (0, 1) if axis not in named]
    reason = "; ".join(reasons) if reasons else "no label means a side or an end"
    return axes, sides, reason


def _named_axes(labels: Sequence[LabelInfo]) -> tuple[dict[int, str], set[int]]:
    axes: dict[int, str] = {}
    sides = set()
    for label in labels:
        words = set(re.split(r"[^a-z0-9]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", label.name).lower()))
        for axis, known in enumerate(AXIS_WORDS):
            if words & known:
                axes.setdefault(axis, label.name)
                sides.add(label.value)
    return axes, sides


def _measured_axes(fingerprint: Fingerprint, background: int) -> dict[int, tuple[int, int]]:
    """Axes along which two classes lie on opposite sides of the foreground's middle in nearly every case."""
    offsets = [case.offsets for case in fingerprint.cases]
    values = sorted({value for found in offsets for value in found} - {background})
    found: dict[int, tuple[int, int]] = {}
    for first, second in combinations(values, 2):
        both = np.array([(entry[first], entry[second]) for entry in offsets if first in entry and second in entry])
        if len(both) < FEWEST_CASES:
            continue
        opposite = np.maximum(
            ((both[:, 0] < 0) & (both[:, 1] > 0)).mean(0), ((both[:, 0] > 0) & (both[:, 1] < 0)).mean(0)
        )
        apart = np.abs(both[:, 0] - both[:, 1]).mean(0)
        for axis in range(3):
            if opposite[axis] >= CONSISTENT and apart[axis] >= 2 * FAR:
                found.setdefault(axis, (first, second))
    return found


def _tidy(step: float) -> float:
    return float(f"{step:.6g}")
