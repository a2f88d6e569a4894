"""Progress of a run on standard error: a bar on a terminal, one line an epoch elsewhere."""

from __future__ import annotations

import logging
import time
from typing import Any

import lightning.pytorch as lightning
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)


class ShowProgress(lightning.Callback):
    """Loss, Dice and remaining time.

    Args:
        steps: of the whole run.
        bar: draw a bar on standard error (for a terminal); otherwise each epoch is one log line.
    """

    def __init__(self, steps: int, *, bar: bool) -> None:
        self.steps = steps
        self.bar: Progress | None = None
        if bar:
            self.bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]:.3f}  Dice {task.fields[dice]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
        self.task: Any = None
        self.started = 0.0
        self.first_step = 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock."""
        self.started, self.first_step = time.monotonic(), trainer.global_step
        if self.bar is not None:
            self.task = self.bar.add_task(
                "training", total=self.steps, completed=trainer.global_step, loss=0.0, dice="-"
            )
            self.bar.start()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar."""
        if self.bar is not None:
            self.bar.update(
                self.task, completed=trainer.global_step, loss=pl_module.mean_loss, dice=_dice(pl_module.dice)
            )

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """One line."""
        done = trainer.global_step - self.first_step
        left = (time.monotonic() - self.started) / max(1, done) * (self.steps - trainer.global_step)
        line = (
            f"epoch {trainer.current_epoch + 1}: step {trainer.global_step} of {self.steps}, "
            f"loss {pl_module.mean_loss:.3f}, Dice {_dice(pl_module.dice)}, {_clock(left)} left"
        )
        if self.bar is None:
            log.info("%s", line)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Leave the terminal clean."""
        self.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the terminal clean."""
        self.close()

    def close(self) -> None:
        """Stop the bar."""
        if self.bar is not None:
            self.bar.stop()


def _dice(dice: dict[str, float]) -> str:
    if not dice:
        return "-"
    classes = ", ".join(f"{name} {value:.3f}" for name, value in list(dice.items())[:4] if name != "mean")
    return f"{dice['mean']:.3f} ({classes})"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
