"""MONAI's transforms of intensities, one after the other, as one normalisation of a plan.

Clipping and rising lines go together as one window, whatever their order. Statistics of the image come out the same
behind any rising line, so what stood in front of them falls away; a clip in front of them does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from .bundle_findings import Step

UNBOUNDED = 3e38  # of float32: a window that clips nothing
DEVIATION, RANGE = ("zscore", "zscore_nonzero"), ("rescale_own", "rescale_nonzero")  # of the image itself


@dataclass(frozen=True)
class Intensity:
    """What was done to the values so far.

    Args:
        kind: none, or a kind of a plan that takes the image's own statistics.
        low: values are clipped to it: of the image where kind is none, else of what became of it.
        high: the same from above.
        scale: of the line behind the clip or the image's range.
        shift: of it.
    """

    kind: str = "none"
    low: float = -math.inf
    high: float = math.inf
    scale: float = 1.0
    shift: float = 0.0

    @property
    def clipped(self) -> bool:
        """Whether values are clipped."""
        return self.low > -math.inf or self.high < math.inf

    @property
    def own(self) -> bool:
        """Whether statistics of the image were taken."""
        return self.kind in (*DEVIATION, *RANGE)

    def after(self, step: Step, channels: int) -> Intensity:
        """With one more transform; where that cannot be, it is noted and nothing changes."""
        return READERS[step.name.removesuffix("d")](self, step, channels)

    def clip(self, step: Step, low: float, high: float) -> Intensity:
        """Values to [low, high]."""
        if self.kind in RANGE:
            return self._impossible(step)
        bounds = [(bound - self.shift) / self.scale for bound in (low, high)]
        found = replace(self, low=max(self.low, bounds[0]), high=min(self.high, bounds[1]))
        if found.low >= found.high:
            step.stop(f"clips all values to one ({found.low:g})")
            return self
        return found

    def line(self, step: Step, scale: float, shift: float) -> Intensity:
        """value * scale + shift."""
        if self.kind in DEVIATION:
            return self._impossible(step)
        if not (math.isfinite(scale) and math.isfinite(shift) and scale > 0):
            step.stop("the line that it makes does not rise")
            return self
        return replace(self, scale=self.scale * scale, shift=self.shift * scale + shift)

    def statistics(self, step: Step, kind: str) -> Intensity:
        """By the image's own values."""
        moved = kind == "zscore_nonzero" and self.shift != 0  # what is 0 in the file is not 0 any more
        if self.clipped or moved or (self.own and kind == "zscore_nonzero"):
            return self._impossible(step)
        if self.kind in ("zscore_nonzero", "rescale_nonzero"):
            return self._impossible(step) if kind != "rescale_own" else Intensity("rescale_nonzero")
        return Intensity(kind)

    def values(self) -> dict[str, Any]:
        """The normalisation of a plan."""
        bounds = {"low": self.low, "high": self.high}
        given = {key: value for key, value in bounds.items() if math.isfinite(value)}
        mean, std = -self.shift / self.scale, 1 / self.scale
        if self.own:
            line = {"mean": mean, "std": std} if (self.scale, self.shift) != (1, 0) else {}
            return {"kind": self.kind, **given, **line}
        if len(given) == 2 and math.isclose(mean, self.low) and math.isclose(std, self.high - self.low):
            return {"kind": "rescale", **given}
        if not given and (self.scale, self.shift) == (1, 0):
            return {"kind": "none"}
        return {"kind": "window", "low": -UNBOUNDED, "high": UNBOUNDED, **given, "mean": mean, "std": std}

    def _impossible(self, step: Step) -> Intensity:
        step.stop(
            f"cannot follow {'statistics of the image' if self.own else 'a clip'}: no normalisation here does both"
        )
        return self


def _range(so_far: Intensity, step: Step, channels: int) -> Intensity:
    low, high = step.number("a_min"), step.number("a_max")
    new_low, new_high = step.number("b_min", 0.0), step.number("b_max", 1.0)
    if low is None or high is None or new_low is None or new_high is None:
        return so_far
    if low >= high or new_low >= new_high:
        step.stop(f"its ranges are {low:g}..{high:g} and {new_low:g}..{new_high:g}, expected rising ones")
        return so_far
    if step.get("clip", False):
        so_far = so_far.clip(step, low, high)
    scale = (new_high - new_low) / (high - low)
    return so_far.line(step, scale, new_low - low * scale)


def _normalise(so_far: Intensity, step: Step, channels: int) -> Intensity:
    apart, nonzero = bool(step.get("channel_wise", False)), bool(step.get("nonzero", False))
    if step.get("subtrahend") is not None or step.get("divisor") is not None:
        mean, std = step.numbers("subtrahend", 0.0), step.numbers("divisor", 1.0)
        if step.get("subtrahend") is None or step.get("divisor") is None or nonzero:
            step.stop("takes one of mean and deviation from the image, or leaves zeros out; give both, for all voxels")
        elif mean is not None and std is not None and len({*mean}) == len({*std}) == 1:
            return so_far.line(step, 1 / std[0] if std[0] else math.inf, -mean[0] / (std[0] or 1.0))
        elif mean is not None and std is not None:
            step.stop("has other numbers for each channel, and only the same ones are read here")
        return so_far
    if channels > 1 and not apart:
        step.stop("takes mean and deviation of all channels together (channel_wise is false)")
        return so_far
    return so_far.statistics(step, "zscore_nonzero" if nonzero else "zscore")


def _scale(so_far: Intensity, step: Step, channels: int) -> Intensity:
    step.keep(factor=None)
    low, high = step.number("minv", 0.0), step.number("maxv", 1.0)
    if low is None or high is None or low >= high or None in (step.values.get("minv", 0), step.values.get("maxv", 0)):
        step.stop("brings the image's own range to none that rises (minv, maxv)")
        return so_far
    if channels > 1 and not step.get("channel_wise", False):
        step.stop("takes the range of all channels together (channel_wise is false)")
        return so_far
    found = so_far.statistics(step, "rescale_own")
    return found.line(step, high - low, low) if found.kind in RANGE else found


def _threshold(so_far: Intensity, step: Step, channels: int) -> Intensity:
    bound, value = step.number("threshold"), step.number("cval", 0.0)
    if bound is None or value is None:
        return so_far
    if bound != value:
        step.stop(f"puts {value:g} where the image is beyond {bound:g}, which no normalisation here does")
        return so_far
    return so_far.clip(step, *((bound, math.inf) if step.get("above", True) else (-math.inf, bound)))


def _shift(so_far: Intensity, step: Step, channels: int) -> Intensity:
    offset = step.number("offset")
    return so_far if offset is None else so_far.line(step, 1.0, offset)


READERS = {
    "ScaleIntensityRange": _range,
    "NormalizeIntensity": _normalise,
    "ScaleIntensity": _scale,
    "ThresholdIntensity": _threshold,
    "ShiftIntensity": _shift,
}
