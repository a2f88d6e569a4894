"""`--skip-background`: windows that hold nothing but background are not computed.

What background is, the plan says: voxels at or below the low end of a window (`window`, `rescale`), which the network
sees as one value, and voxels that are 0 in the image where those alone are left out of its mean (`zscore_nonzero`). A
voxel that lies in skipped windows alone is background; any other one has the scores of its computed windows alone. So
one more channel is added up, the share of the computed windows, and scores are divided by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ..model_folder import ModelFolder
from .scorer import Head, Scorer

Range = tuple[float, float]  # of prepared values that are background
SURE = 30.0  # score of the background where nothing was computed; the others have 0, and regions less than that
LEAST_SHARE = 1e-4
ROUNDING = 1e-5


def background_of(model: ModelFolder) -> tuple[Range, ...]:
    """The prepared values that the plan takes for background, of each channel that the network sees: with 2.5D one for
    each of the neighbouring slices.

    Raises:
        UsageError: the plan does not say, or the model has no background.
    """
    if model.labels[0].value != 0:
        raise UsageError(
            f"--skip-background: the first class of {model.folder} is {model.labels[0].name}, no background"
        )
    plan = model.plan
    slices = int(plan.get("slices", 1))
    ranges = (_range(values, name, model) for name, values in zip(plan["channels"], plan["normalisation"], strict=True))
    return tuple(one for one in ranges for _ in range(slices))


def _range(values: Mapping[str, Any], channel: str, model: ModelFolder) -> Range:
    kind = values["kind"]
    if kind == "rescale":
        return -math.inf, ROUNDING
    if kind == "window":
        low = (float(values["low"]) - float(values.get("mean", 0.0))) / float(values.get("std", 1.0))
        return -math.inf, low + ROUNDING * max(1.0, abs(low))
    if kind == "zscore_nonzero":
        return 0.0, 0.0
    raise UsageError(
        f"--skip-background: the plan of {model.folder} does not say what is background in channel {channel} "
        f"(normalisation {kind}); leave the option out"
    )


class SkippingScorer:
    """A scorer that computes windows with more than background in them alone.

    Args:
        scorer: that does the work.
        background: range of prepared values of each channel of a window.
        members: whose scores come one behind the other.
        regions: whether scores are those of regions, none of which is in the background.

    Attributes:
        seen: windows that were asked for.
        skipped: of these.
    """

    def __init__(self, scorer: Scorer, background: Sequence[Range], members: int = 1, *, regions: bool = False) -> None:
        self.scorer, self.members, self.regions = scorer, members, regions
        self.low, self.high = (torch.tensor(ends).reshape(1, -1, 1, 1, 1) for ends in zip(*background, strict=True))
        self.channels, self.classes = scorer.channels + 1, scorer.classes
        self.device = scorer.device
        self.head: Head | None = self._scores
        self.seen = self.skipped = 0

    def __call__(self, windows: Tensor) -> Tensor:
        """Windows (N, C, *patch) to (N, channels, *patch): what the scorer gives and 1, or zeros."""
        low, high = self.low.to(windows.device), self.high.to(windows.device)
        kept = ~((windows >= low) & (windows <= high)).flatten(1).all(1)
        self.seen, self.skipped = self.seen + len(windows), self.skipped + int((~kept).sum())
        found = torch.zeros((len(windows), self.channels, *windows.shape[2:]), device=self.device)
        if bool(kept.any()):
            there = kept.to(self.device)
            found[there, :-1] = self.scorer(windows[kept])
            found[there, -1] = 1
        return found

    def _scores(self, sums: Tensor) -> Tensor:
        values, share = sums[:, :-1], sums[:, -1:]
        values = values / share.clamp(min=LEAST_SHARE)
        scores = values if self.scorer.head is None else self.scorer.head(values)
        sure = torch.full((scores.shape[1],), -SURE if self.regions else 0.0, device=scores.device)
        if not self.regions:
            sure[:: scores.shape[1] // self.members] = SURE
        return torch.where(share > LEAST_SHARE, scores, sure.reshape(1, -1, *[1] * (scores.ndim - 2)))
