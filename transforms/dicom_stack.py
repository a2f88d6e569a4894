"""What a DICOM series is sorted into: stacks of slices with a proved affine, pictures and films, and the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CaseError
from .dicom_record import Slice
from .volume import Entry

FACT_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices of one volume in order, with the affine that was proved; or one picture, or the frames of one film.

    Args:
        places: where each slice truly lies, in steps of the affine from its first plane, if the slices were put on an
            even grid (`--gaps resample`); None where slice k is plane k.
        film: a picture of several frames; its third axis is time.
    """

    slices: tuple[Slice, ...]
    files: tuple[Path, ...]
    series: str
    affine: np.ndarray
    repairs: tuple[Entry, ...] = ()
    notes: tuple[Entry, ...] = ()
    picture: bool = False
    places: tuple[float, ...] | None = None
    film: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape; of a film (columns, rows, frames)."""
        first = self.slices[0]
        if self.picture:
            return (first.columns, first.rows, first.frames) if self.film else (first.columns, first.rows)
        planes = len(self.slices) if self.places is None else round(self.places[-1]) + 1
        return (first.columns, first.rows, planes)

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """Acquisition facts that hold for every slice."""
        return common_facts(self.slices)


@dataclass(frozen=True, eq=False)
class SortedSeries:
    """Everything that one series was found to hold."""

    stacks: tuple[Stack, ...]
    stopped: tuple[tuple[tuple[Path, ...], CaseError], ...]
    listed: tuple[tuple[tuple[Path, ...], str], ...]


def common_facts(slices: Sequence[Slice]) -> dict[str, Any]:
    """Facts of the first slice that all others share (numbers within rounding)."""
    facts = dict(slices[0].facts)
    known = slices[0].facts
    for one in slices[1:]:
        if one.facts is known:
            continue
        known = one.facts
        for name in [name for name, value in facts.items() if not same_fact(value, known.get(name))]:
            del facts[name]
    return facts


def same_fact(a: Any, b: Any) -> bool:
    """Equal, or two numbers, or lists of them, that differ by rounding alone."""
    if a == b:
        return True
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same_fact(*pair) for pair in zip(a, b, strict=True))
    if not isinstance(a, (int, float)) or not isinstance(b, (int, float)):
        return False
    return abs(a - b) <= FACT_TOLERANCE * max(abs(a), abs(b))
