"""A model of another program as it was understood, before it is written as a model folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...networks.base import SegmentationNetwork
from ..dataset.plan import Plan


@dataclass(frozen=True)
class Report:
    """What became of what a model says of itself; short lines.

    Args:
        taken: what the plan and the network have of it.
        ignored: what matters in training alone, or to nothing of ours.
        differs: what is done otherwise here.
    """

    taken: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Conversion:
    """A model that can be written.

    Args:
        kind: of the source, in words.
        plan: makes the preprocessing, the network and the labels.
        networks: names of folds, and the network with their weights; made one at a time.
        report: of the conversion.
        source: plain values for the provenance: names of files with their SHA-256, and how the weights came to be.
    """

    kind: str
    plan: Plan
    networks: Iterator[tuple[str, SegmentationNetwork]]
    report: Report
    source: Mapping[str, Any]
