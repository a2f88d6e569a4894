"""What is done when an accelerator runs out of memory in spite of the plan: less at a time, in the end without it.

Each step is a note of the case. Labels stay the same as long as the accelerator does the work.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ...transforms.volume import Entry
from .scorer import Scorer

log = logging.getLogger(__name__)

Result = TypeVar("Result")
SAME = "the labels are the same"


class CarefulScorer:
    """A scorer that works on fewer windows at a time once an accelerator's memory did not suffice.

    Args:
        scorer: that does the work.
        notes: where it is told.
    """

    def __init__(self, scorer: Scorer, notes: list[Entry]) -> None:
        self.scorer, self.notes = scorer, notes
        self.most: int | None = None
        self.channels, self.classes = scorer.channels, scorer.classes
        self.head, self.device = scorer.head, scorer.device

    def __call__(self, windows: Tensor) -> Tensor:
        """Windows (N, C, *patch) to (N, channels, *patch).

        Raises:
            torch.OutOfMemoryError: for a single window.
        """
        while True:
            count = len(windows) if self.most is None else min(self.most, len(windows))
            try:
                parts = [self.scorer(part) for part in windows.split(count)]
                return parts[0] if len(parts) == 1 else torch.cat(parts)
            except torch.OutOfMemoryError:
                if count == 1:
                    raise
            # behind the block: the error holds what was made
            parts = []
            torch.cuda.empty_cache()
            self.most = count // 2
            self.notes.append(out_of_memory(f"windows were scored {self.most} at a time; {SAME}"))


def first_that_fits(roads: Sequence[tuple[str, Callable[[], Result]]], notes: list[Entry]) -> Result:
    """What the first of several roads gives for which the accelerator's memory suffices.

    Args:
        roads: what is told when one is taken, and the road; the first one is the plan.
        notes: where it is told.

    Raises:
        torch.OutOfMemoryError: it suffices for none.
    """
    for what, road in roads[:-1]:
        try:
            return _taken(what, road, notes)
        except torch.OutOfMemoryError:
            pass
        torch.cuda.empty_cache()
    return _taken(*roads[-1], notes)


def _taken(what: str, road: Callable[[], Result], notes: list[Entry]) -> Result:
    if what:
        notes.append(out_of_memory(what))
    return road()


def out_of_memory(what: str) -> Entry:
    """The note of a case that went on with less."""
    entry = Entry("gpu-memory", f"the memory of the GPU did not suffice, {what}")
    log.warning("%s", entry.detail)
    return entry
