"""How long a run is: epochs, steps, or the steps that fit into some minutes, measured once and then kept."""

from __future__ import annotations

import copy
import json
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from ...errors import UsageError
from ...transforms.writers import write_json
from ..dataset.plan import Plan
from ..devices import autocast
from .data import Patches
from .module import SegmentationModule
from .optimise import build_optimizer

log = logging.getLogger(__name__)

DEFAULT_EPOCHS = 200
WARM_STEPS, TIMED_STEPS = 3, 9
SAFETY = 0.94  # share of the time that is planned for, since a machine does not keep its pace to the second


@dataclass(frozen=True)
class Budget:
    """What the user asked for; at most one is set."""

    epochs: int | None = None
    minutes: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in asdict(self).items() if value is not None}
        if len(given) > 1:
            raise UsageError(f"{' and '.join(f'--{name}' for name in given)} exclude each other; give one")
        for name, value in given.items():
            if value <= 0:
                raise UsageError(f"--{name} {value}: must be above 0")

    def fixed_steps(self, steps_per_epoch: int) -> int | None:
        """Steps of the run where no clock is needed."""
        if self.minutes is not None:
            return None
        return self.steps or (self.epochs or DEFAULT_EPOCHS) * steps_per_epoch


def steps_of_run(
    budget: Budget,
    plan: Plan,
    record: Path,
    measure: Callable[[], tuple[float, float]],
    used_seconds: float,
    *,
    final_cases: int = 0,
    folds: int = 1,
) -> int:
    """The number of steps of the whole run; with minutes it is measured once and read back from `record` ever after.

    Args:
        budget: epochs, steps or minutes.
        plan: steps of an epoch.
        record: JSON file in the run's folder.
        measure: seconds of one step, seconds of one validation case.
        used_seconds: already spent on preprocessing.
        final_cases: validation cases that are scored once more at the end.
        folds: among which what is left of the minutes is shared in equal parts.

    Raises:
        UsageError: nothing is left of the minutes.
    """
    started = time.monotonic()
    fixed = budget.fixed_steps(plan.steps_per_epoch)
    if fixed is not None:
        return fixed
    if record.is_file():
        return int(json.loads(record.read_text())["steps"])
    minutes = float(budget.minutes or 0)
    share = (60 * minutes - used_seconds) / folds
    if share <= 0:
        raise UsageError(
            f"--minutes {minutes:g}: preparing the data took {used_seconds:.0f} s, so nothing is left to train; give "
            "more minutes, or the same command again, which keeps what is prepared"
        )
    step_seconds, case_seconds = measure()
    left = SAFETY * share - (time.monotonic() - started) - case_seconds * final_cases
    per_step = step_seconds + case_seconds * plan.validation_cases / plan.steps_per_epoch
    steps = max(1, int(left / per_step))
    write_json(
        record,
        {
            "steps": steps,
            "minutes": budget.minutes,
            "step_seconds": step_seconds,
            "validation_case_seconds": case_seconds,
        },
    )
    log.info("%d steps of %.2f s fit into %.0f s, this fold's share of %g minutes", steps, step_seconds, share, minutes)
    return steps


def time_one_step(module: SegmentationModule, patches: Patches, device: torch.device, precision: str) -> float:
    """Median seconds of a training step on a copy of the network, so that the run itself starts untouched."""
    network: nn.Module = copy.deepcopy(module.network).to(device).train()
    optimizer = build_optimizer("sgd", network.parameters(), lr=1e-4, weight_decay=0)
    times = []
    for step in range(WARM_STEPS + TIMED_STEPS):
        started = time.perf_counter()
        drawn = [patches[step * patches.batch + slot] for slot in range(patches.batch)]
        image = torch.stack([one["image"] for one in drawn]).to(device).contiguous(memory_format=module.format)
        labels = torch.stack([one["labels"] for one in drawn]).to(device)
        with autocast(device, precision):
            logits = network(image)
            loss = module.loss(logits if isinstance(logits, list) else [logits], labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[WARM_STEPS:])


def time_one_case(module: SegmentationModule, names: Sequence[str], device: torch.device) -> float:
    """Mean seconds of validating a case, over up to three; 0 where there is none to validate."""
    if not names:
        return 0.0
    network = module.network.to(device)
    chosen = list(names[:3])
    module.score(chosen[0], network)
    started = time.perf_counter()
    for name in chosen:
        module.score(name, network)
    return (time.perf_counter() - started) / len(chosen)
