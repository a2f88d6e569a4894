"""The Lightning module of supervised training: loss, optimiser, averaged weights, validation Dice on whole cases."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn

from ...errors import NothingDoneError
from ...networks.base import SegmentationNetwork
from ...networks.losses import build_loss, build_region_loss
from ..dataset.plan import Plan
from ..devices import memory_format
from ..seeds import draw_seed
from .optimise import average_weights, build_optimizer, rate_factor

log = logging.getLogger(__name__)

CLIP_NORM = 12.0
FAILURES_IN_A_ROW = 3


class SegmentationModule(lightning.LightningModule):
    """Train a network on patches and validate it on whole cases.

    Args:
        network: the network, already initialised.
        plan: loss, learning rate, schedule, averaging, labels.
        steps: optimiser steps of the whole run, which the schedule is fitted to.
        score: case name, network -> Dice of what the plan scores, foreground classes or regions, on the whole case, NaN
            where one is absent.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        plan: Plan,
        *,
        steps: int,
        score: Callable[[str, SegmentationNetwork], Tensor],
    ) -> None:
        super().__init__()
        self.network = network
        self.averaged = average_weights(network, plan.average_weights) if plan.average_weights > 0 else None
        self.plan, self.steps, self.score = plan, steps, score
        members = [classes for _, classes in plan.scored]
        self.loss = build_region_loss(plan.loss, members) if plan.regions else build_loss(plan.loss)
        self.format = memory_format(network.spatial_dims)
        self.bad_steps: list[list[str]] = []
        self.case_scores: list[Tensor] = []
        self.dice: dict[str, float] = {}
        self.mean_loss = float("nan")

    @property
    def model(self) -> SegmentationNetwork:
        """The network that a run leaves behind: the averaged one where there is one."""
        averaged: Any = self.averaged
        return self.network if averaged is None else averaged.module

    def configure_optimizers(self) -> Any:
        """The plan's optimiser; the rate changes every step."""
        chosen = self.plan.optimizer
        optimizer = build_optimizer(
            chosen.name, self.network.parameters(), lr=chosen.lr, weight_decay=chosen.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate_factor(chosen.schedule, step, self.steps, chosen.warmup)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Whatever the network draws (dropout) comes from the seed and the step, so that a resumed run draws alike."""
        torch.manual_seed(draw_seed(self.plan.seed, 3, self.global_step))

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor | None:
        """Loss of one batch; None (no step) where it is not finite, and an end after three of those in a row
        (hazards T01)."""
        image = batch["image"].contiguous(memory_format=self.format)
        logits = self.network(image)
        loss = self.loss(logits if isinstance(logits, list) else [logits], batch["labels"])
        if not bool(torch.isfinite(loss)):
            self._bad_step(batch["case"], "the loss is not finite")
            return None
        self.bad_steps.clear()
        value = float(loss.detach())
        self.mean_loss = value if self.mean_loss != self.mean_loss else 0.95 * self.mean_loss + 0.05 * value
        self.log("loss", value, batch_size=len(image))
        return loss

    def _bad_step(self, cases: list[str], why: str) -> None:
        self.bad_steps.append(list(cases))
        log.warning("step %d skipped: %s (cases %s)", self.global_step, why, ", ".join(cases))
        if len(self.bad_steps) >= FAILURES_IN_A_ROW:
            named = sorted({case for step in self.bad_steps for case in step})
            raise NothingDoneError(
                f"training stopped at step {self.global_step}: {why} in {FAILURES_IN_A_ROW} steps in a row, with cases "
                f"{', '.join(named)}; the last checkpoint is whole. Look at these cases, or lower --lr"
            )

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm to 12 as nnU-Net does; gradients that are not finite are dropped, so the weights stay
        (hazards T01)."""
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), CLIP_NORM)
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if not scaled and not bool(torch.isfinite(norm)):
            optimizer.zero_grad(set_to_none=True)
            log.warning("step %d skipped: the gradient is not finite", self.global_step)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Follow the weights."""
        if self.averaged is not None:
            self.averaged.update_parameters(self.network)

    def on_validation_epoch_start(self) -> None:
        """Start the table of this epoch."""
        self.case_scores = []

    def validation_step(self, batch: str, batch_idx: int) -> None:
        """Dice of one whole case."""
        self.case_scores.append(self.score(batch, self.model))

    def on_validation_epoch_end(self) -> None:
        """Mean Dice per class over the cases that have the class, and over the classes."""
        if not self.case_scores:
            return
        per_class = torch.stack(self.case_scores).nanmean(dim=0)
        names = [name for name, _ in self.plan.scored]
        self.dice = {name: float(value) for name, value in zip(names, per_class, strict=True)}
        self.dice["mean"] = float(per_class.nanmean())
        for name, value in self.dice.items():
            if value == value:
                self.log(f"dice/{name}", value, batch_size=1)
