"""Several networks in one pass over the windows: averaged, or kept apart for what they disagree about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ...networks.base import SegmentationNetwork
from ..model_folder import ModelFolder
from .scorer import Head, NetworkScorer

LONGEST_SHOWN = 120  # letters of two values; longer ones are named alone
SHARED = ("dims", "channels", "modality", "spacing_mm", "orientation", "crop", "bias_field", "normalisation", "patch")


class MembersScorer(NetworkScorer):
    """What each of several networks gives for a window, one behind the other; its scores are (members * K, *S)."""

    def __init__(self, networks: Sequence[SegmentationNetwork], **options: Any) -> None:
        super().__init__(networks, **options)
        self.members = [NetworkScorer([network], **options) for network in networks]

    @property
    def channels(self) -> int:
        """Of all members."""
        return sum(member.channels for member in self.members)

    @property
    def classes(self) -> int:
        """Of all members."""
        return sum(member.classes for member in self.members)

    @property
    def head(self) -> Head | None:  # type: ignore[override]
        """Each member's own, on its own features."""
        return None if all(member.head is None for member in self.members) else self._heads

    @property
    def unmirrored(self) -> MembersScorer:
        """The same without mirroring."""
        return MembersScorer(self.networks, device=self.device, precision=self.precision, engine=self.engine)

    def __call__(self, windows: Tensor) -> Tensor:
        """Windows (N, C, *patch) to (N, channels, *patch), float32, on the device."""
        return torch.cat([member(windows) for member in self.members], dim=1)

    def _heads(self, found: Tensor) -> Tensor:
        parts = found.split([member.channels for member in self.members], dim=1)
        pairs = zip(self.members, parts, strict=True)
        return torch.cat([part if member.head is None else member.head(part) for member, part in pairs], dim=1)


def mean_of_members(scores: Tensor, members: int) -> Tensor:
    """(members * K, *S) to (K, *S)."""
    return scores if members == 1 else scores.unflatten(0, (members, -1)).mean(0)


def marks_of(model: ModelFolder, folds: Sequence[str]) -> dict[str, str]:
    """What tells models apart: the hashes of the weights."""
    return {fold: model.sha256(fold) for fold in folds}


def check_together(first: ModelFolder, other: ModelFolder) -> None:
    """Refuse a model that cannot be averaged with another one window by window.

    Raises:
        UsageError: what differs.
    """
    differing = _differences(first, other)
    if differing:
        raise UsageError(
            f"--with-model {other.folder} cannot be averaged with {first.folder} in one pass: {'; '.join(differing)}. "
            "Models of an ensemble share grid, preprocessing, patch and labels: train them with one --plan"
        )


def _differences(first: ModelFolder, other: ModelFolder) -> list[str]:
    ours, theirs = _shared(first), _shared(other)
    different = [name for name in ours if ours[name] != theirs[name]]
    return [
        f"{name} is {theirs[name]}, expected {ours[name]}"
        if len(f"{theirs[name]}{ours[name]}") < LONGEST_SHOWN
        else f"{name} differs (see model.yaml)"
        for name in different
    ]


def _shared(model: ModelFolder) -> Mapping[str, Any]:
    plan = model.plan
    return {
        **{name: plan.get(name) for name in SHARED},
        "slices": plan.get("slices", 1),
        "regions": plan.get("regions", []),
        "blending": plan.get("blending", "gaussian"),
        "windows": plan.get("windows", "even"),
        "resampling": plan.get("resampling"),
        "preprocessing": [dict(step) for step in model.preprocessing],
        "labels": [(label.value, label.name) for label in model.labels],
    }
