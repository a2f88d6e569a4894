"""Which cases train and which validate; no patient is ever on both sides."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import KFold

from ...errors import UsageError
from .cases import Dataset

FOLDS = 5
FOLD_SEED = 12345
LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fold:
    """Names of the cases on either side, sorted."""

    train: tuple[str, ...]
    validation: tuple[str, ...]


def make_folds(dataset: Dataset, splits: Path | str | None = None, *, count: int = FOLDS) -> list[Fold]:
    """The user's folds, or `KFold(5, shuffle=True, random_state=12345)` on the sorted patients (nnU-Net's folds).

    With fewer patients than folds there is one fold a patient, and a warning says so.

    Args:
        dataset: the cases that can be used.
        splits: a JSON list of {"train": [...], "val": [...]}, as nnU-Net's splits_final.json.
        count: of folds where no file is given.

    Raises:
        UsageError: one patient alone; a splits file that cannot be read, names unknown cases or parts a patient.
    """
    if splits is not None:
        return _read_splits(Path(splits), dataset)
    patients = sorted({case.patient for case in dataset.cases})
    if len(patients) < 2:
        raise UsageError(
            f"data set {dataset.root} has {len(patients)} patient; folds need two or more: train with --fold all "
            "(no validation), or name the patients in patients.csv"
        )
    if len(patients) < count:
        LOG.warning("%d patients: %d folds instead of %d", len(patients), len(patients), count)
        count = len(patients)
    parts = KFold(count, shuffle=True, random_state=FOLD_SEED).split(np.arange(len(patients)))
    return [_fold(dataset, {patients[index] for index in validation}) for _, validation in parts]


def all_cases(dataset: Dataset) -> Fold:
    """`--fold all`: every case trains and none validates."""
    return Fold(tuple(case.name for case in dataset.cases), ())


def _fold(dataset: Dataset, validating: set[str]) -> Fold:
    cases = sorted(dataset.cases, key=lambda case: case.name)
    return Fold(
        tuple(case.name for case in cases if case.patient not in validating),
        tuple(case.name for case in cases if case.patient in validating),
    )


def _read_splits(path: Path, dataset: Dataset) -> list[Fold]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--splits {path}: cannot be read as JSON ({error})") from error
    usable = {case.name: case.patient for case in dataset.cases}
    stopped = {failure.case for failure in dataset.failures}
    if not isinstance(entries, list) or not entries:
        raise UsageError(f'--splits {path}: expected a list of {{"train": [...], "val": [...]}}, one for each fold')
    folds = []
    for number, entry in enumerate(entries):
        train, validation = (_names(entry, side, f"--splits {path}: fold {number}") for side in ("train", "val"))
        unknown = sorted({*train, *validation} - set(usable) - stopped)
        if unknown:
            raise UsageError(f"--splits {path}: fold {number} names {unknown[0]!r}, which is no case of {dataset.root}")
        fold = Fold(*(tuple(sorted(set(side) - stopped)) for side in (train, validation)))
        shared = {usable[name] for name in fold.train} & {usable[name] for name in fold.validation}
        if shared:
            both = next(name for name in fold.validation if usable[name] in shared)
            raise UsageError(
                f"--splits {path}: fold {number} has a patient on both sides (validation case {both!r}); a "
                "patient's cases "
                "must all train or all validate"
            )
        if not fold.train:
            raise UsageError(f"--splits {path}: fold {number} has no training case that can be used")
        folds.append(fold)
    return folds


def _names(entry: Any, side: str, where: str) -> Iterable[str]:
    names = entry.get(side) if isinstance(entry, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f'{where}: expected {{"train": [...], "val": [...]}} with names of cases')
    return names
