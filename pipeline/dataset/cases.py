"""The records of a data set: its cases, its classes, and what stopped some of the cases."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..manifest import Failure


@dataclass(frozen=True)
class LabelInfo:
    """One class: the value in the label maps and its name."""

    value: int
    name: str


@dataclass(frozen=True)
class Case:
    """One subject's image and, where there is one, its label map.

    Args:
        name: id of the case, unique in its data set even where upper and lower case are not told apart.
        images: files that together hold the channels, in order (one file may hold several, as an RGB picture does).
        label: the label map; None for a case to be predicted.
        patient: whose case it is; folds never part two cases of one patient.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None
    patient: str


@dataclass(frozen=True)
class Dataset:
    """What a data set folder says of itself; no voxel is read.

    Args:
        name: from dataset.json, or the folder's name.
        root: the folder.
        cases: sorted by name; those in `failures` are not among them.
        channels: names of the channels ("CT", "T1", ...); empty where the layout does not say.
        labels: class 0 (background) first; None where the layout has no list, then the values found are sorted.
        layout: "msd", "nnunet" or "plain".
        failures: cases that cannot be used, with the reason (label missing, id doubled, ...).
    """

    name: str
    root: Path
    cases: tuple[Case, ...]
    channels: tuple[str, ...] = ()
    labels: tuple[LabelInfo, ...] | None = None
    layout: str = "plain"
    failures: tuple[Failure, ...] = ()
