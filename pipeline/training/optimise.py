"""Optimiser, learning-rate schedule and the running average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ...errors import unknown

SCHEDULES = ("cosine", "poly", "constant")


def build_optimizer(
    name: str, parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW, Adam, or SGD with Nesterov momentum 0.99 (nnU-Net's)."""
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    if name == "adam":
        return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay)
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=lr, weight_decay=weight_decay, momentum=0.99, nesterov=True)
    raise unknown("--optimizer", name, ("adamw", "adam", "sgd"))


def rate_factor(schedule: str, step: int, steps: int, warmup: float) -> float:
    """What the learning rate is multiplied by at `step` of `steps`: a linear warm-up, then the schedule down to 0.

    Args:
        schedule: `cosine`, `poly` ((1 - t) ** 0.9) or `constant` (which keeps the warm-up).
        warmup: share of the steps that the warm-up takes, at most 1,000 steps.
    """
    warm = min(int(warmup * steps), 1000)
    if step < warm:
        return (step + 1) / (warm + 1)
    progress = min(1.0, (step - warm) / max(1, steps - warm))
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "poly":
        return (1 - progress) ** 0.9
    if schedule == "constant":
        return 1.0
    raise unknown("--schedule", schedule, SCHEDULES)


def average_weights(network: nn.Module, decay: float) -> AveragedModel:
    """An exponential running average of a network's weights, which follows closely at first.

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that the random start is forgotten.
    """

    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        n = int(count)
        torch._foreach_lerp_(list(averaged), list(current), 1 - min(decay, (1 + n) / (10 + n)))

    model = AveragedModel(network, multi_avg_fn=update, use_buffers=False)
    return model.requires_grad_(False)
