"""What a data set looks like: grids, intensities inside the labels, class volumes. Each file is read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import CaseError, NothingDoneError
from ...transforms.geometry import axis_codes, closest_axes
from ..manifest import Failure
from .cases import Case, Dataset
from .checks import CaseVoxels, each_case, failure_of, find_copies, labels_found, read_case, voxel_digest
from .layouts import read_dataset

SAMPLES = 20_000  # foreground voxels kept of a case and channel, evenly spread


@dataclass(frozen=True, eq=False)
class CaseFacts:
    """What one case looks like; axes in the order of the world's (left-right, back-front, down-up).

    Args:
        shape: voxels.
        spacing_mm: of the three axes.
        orientation: axis codes as stored; "" for a picture.
        counts: voxels of each label value.
        offsets: where the middle of each foreground value lies from the middle of all foreground, in standard
            deviations of the foreground along each axis.
        inside: a sample of the foreground voxels of each channel.
        range: least and greatest value, share of whole values and the 0.5 percentile of each channel (whole image).
        box_share: volume of the box that holds what is not 0, as a share of the image.
        digest: of the voxels, so that copies are found.
    """

    name: str
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    orientation: str
    modality: str
    counts: dict[int, int]
    offsets: dict[int, tuple[float, ...]]
    inside: tuple[np.ndarray, ...]
    range: tuple[tuple[float, float, float], ...]
    box_share: float
    digest: str


@dataclass(frozen=True)
class ChannelFacts:
    """Intensities inside the labels over all cases (of the whole images where nothing is labelled)."""

    low: float
    high: float
    mean: float
    std: float
    percentile_00_5: float
    percentile_50: float
    percentile_99_5: float
    inside_labels: bool = True


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """What a data set looks like.

    Args:
        dataset: the cases fit for training, channels and labels filled in where the layout does not say.
        cases: facts of each of these.
        channels: intensities of each channel.
        failures: the cases left out, the layout's own findings first.
    """

    dataset: Dataset
    cases: tuple[CaseFacts, ...]
    channels: tuple[ChannelFacts, ...]
    failures: tuple[Failure, ...]

    @property
    def is_pictures(self) -> bool:
        """True where the images have no place in the world."""
        return all(not case.orientation for case in self.cases)

    def summary(self) -> dict[str, Any]:
        """Plain values for `--json` and the plan's report."""
        spacing = np.array([case.spacing_mm for case in self.cases])
        shape = np.array([case.shape for case in self.cases])
        labels = {label.value: label.name for label in self.dataset.labels or ()}
        voxel_ml = {case.name: float(np.prod(case.spacing_mm)) / 1000 for case in self.cases}
        return {
            "dataset": self.dataset.name,
            "cases": len(self.cases),
            "left_out": [failure.case for failure in self.failures],
            "shape": {
                "least": shape.min(0).tolist(),
                "median": np.median(shape, 0).tolist(),
                "greatest": shape.max(0).tolist(),
            },
            "spacing_mm": {
                "least": spacing.min(0).tolist(),
                "median": np.median(spacing, 0).tolist(),
                "greatest": spacing.max(0).tolist(),
            },
            "orientations": sorted({case.orientation for case in self.cases}),
            "channels": [
                {"name": name, **vars(channel)}
                for name, channel in zip(self.dataset.channels, self.channels, strict=True)
            ],
            "labels": {
                str(value): {
                    "name": name,
                    "cases": sum(value in case.counts for case in self.cases),
                    "median_voxels": float(np.median([case.counts.get(value, 0) for case in self.cases])),
                    "median_ml": float(
                        np.median([case.counts.get(value, 0) * voxel_ml[case.name] for case in self.cases])
                    ),
                }
                for value, name in labels.items()
            },
        }


def take_fingerprint(dataset: Path | str | Dataset, *, workers: int | None = 1) -> Fingerprint:
    """Read every case once; those that are not fit for training are named and left out.

    Args:
        dataset: folder, dataset.json, or what `read_dataset` found.
        workers: threads that read.

    Raises:
        UsageError: no such data set, unknown layout.
        NothingDoneError: no case is left.
    """
    dataset = dataset if isinstance(dataset, Dataset) else read_dataset(dataset)
    values = None if dataset.labels is None else [label.value for label in dataset.labels]
    background = 0 if values is None else values[0]
    several = len(dataset.channels) > 1

    def look(case: Case) -> CaseFacts:
        return _facts(case, read_case(case, values, several_channels=several), background)

    done, failed = each_case(dataset.cases, look, workers)
    done, copies = _without_copies(done)
    done, strange = _with_equal_channels(done)
    failures = (*dataset.failures, *failed, *copies, *strange)
    if not done:
        first = f"; the first: {failures[0].message}" if failures else ""
        raise NothingDoneError(f"data set {dataset.root}: none of its {len(failures)} cases can be used{first}")
    facts = tuple(fact for _, fact in done)
    count = max(len(fact.inside) for fact in facts)
    labels = dataset.labels or labels_found([fact.counts for fact in facts])
    if len(labels) < 2:
        raise NothingDoneError(
            f"data set {dataset.root}: all label maps hold the value {labels[0].value} alone; there is nothing to learn"
        )
    names = (
        dataset.channels if len(dataset.channels) == count else tuple(f"channel {number}" for number in range(count))
    )
    usable = replace(dataset, cases=tuple(case for case, _ in done), channels=names, labels=labels, failures=failures)
    return Fingerprint(usable, facts, tuple(_channel(facts, number) for number in range(count)), failures)


def _facts(case: Case, voxels: CaseVoxels, background: int) -> CaseFacts:
    geometry, image = voxels.geometry, voxels.image
    world, signs = closest_axes(geometry.affine) if geometry.has_world else ((0, 1, 2), (1, 1, 1))
    order = [world.index(axis) for axis in range(3)]
    spacing = geometry.spacing_mm
    foreground = voxels.labels != background
    where = np.nonzero(foreground)
    step = max(1, len(where[0]) // SAMPLES)
    some = tuple(index[::step] for index in where)
    return CaseFacts(
        name=case.name,
        shape=tuple(int(geometry.shape[axis]) for axis in order),
        spacing_mm=tuple(float(spacing[axis]) for axis in order),
        orientation=axis_codes(geometry.affine) if geometry.has_world else "",
        modality=voxels.modality,
        counts=voxels.counts,
        offsets=_offsets(where, voxels.labels[foreground], order, signs),
        inside=tuple(channel[some].astype(np.float32) for channel in image),
        range=tuple(_range(channel) for channel in image),
        box_share=_box_share(image),
        digest=voxel_digest(image),
    )


def _offsets(
    where: Sequence[np.ndarray], values: np.ndarray, order: Sequence[int], signs: Sequence[int]
) -> dict[int, tuple[float, ...]]:
    if not len(values):
        return {}
    counts = np.bincount(values)
    present = np.flatnonzero(counts)
    columns = []
    for axis in order:
        coordinates = where[axis].astype(np.float64)
        means = np.bincount(values, weights=coordinates)[present] / counts[present]
        columns.append(signs[axis] * (means - coordinates.mean()) / max(float(coordinates.std()), 0.5))
    table = np.stack(columns, axis=1)
    return {int(value): tuple(float(x) for x in row) for value, row in zip(present, table, strict=True)}


def _range(channel: np.ndarray) -> tuple[float, float, float]:
    """Least and greatest value, and the 0.5 percentile of every n-th voxel."""
    flat = channel.ravel(order="K")
    sample = flat[:: max(1, flat.size // SAMPLES)]
    return float(flat.min()), float(flat.max()), float(np.percentile(sample, 0.5))


def _box_share(image: np.ndarray) -> float:
    occupied = (image != 0).any(0)
    share = 1.0
    for axis in range(3):
        lines = np.flatnonzero(occupied.any(tuple(other for other in range(3) if other != axis)))
        share *= (int(lines[-1] - lines[0]) + 1) / occupied.shape[axis] if len(lines) else 1.0
    return share


def _channel(facts: Sequence[CaseFacts], number: int) -> ChannelFacts:
    samples = [fact.inside[min(number, len(fact.inside) - 1)] for fact in facts]
    pooled = np.concatenate(samples).astype(np.float64)
    ranges = [fact.range[min(number, len(fact.range) - 1)] for fact in facts]
    low, high = min(least for least, _, _ in ranges), max(greatest for _, greatest, _ in ranges)
    if not len(pooled):
        middle, spread = (low + high) / 2, max((high - low) / 4, 1e-8)
        return ChannelFacts(low, high, middle, spread, low, middle, high, inside_labels=False)
    quantiles = np.percentile(pooled, (0.5, 50, 99.5))
    return ChannelFacts(low, high, float(pooled.mean()), float(pooled.std()), *quantiles.tolist())


def _without_copies(done: list[tuple[Case, CaseFacts]]) -> tuple[list[tuple[Case, CaseFacts]], list[Failure]]:
    copies = find_copies({case.name: fact.digest for case, fact in done}, [case for case, _ in done])
    kept = [(case, fact) for case, fact in done if case.name not in copies]
    return kept, [failure_of(case, copies[case.name]) for case, _ in done if case.name in copies]


def _with_equal_channels(done: list[tuple[Case, CaseFacts]]) -> tuple[list[tuple[Case, CaseFacts]], list[Failure]]:
    """Most cases decide how many channels there are; grey pictures go with colour ones."""
    if not done:
        return [], []
    numbers = [len(fact.inside) for _, fact in done]
    usual = max(sorted(set(numbers)), key=numbers.count)
    if set(numbers) == {1, 3} and all(not fact.orientation for _, fact in done):
        usual = 3
    kept, failures = [], []
    for (case, fact), number in zip(done, numbers, strict=True):
        if number == usual or (number == 1 and usual == 3 and not fact.orientation):
            kept.append((case, fact))
            continue
        message = (
            f"case {case.name} ({case.images[0]}) has {number} channels, most cases have {usual}; leave it out or "
            "correct it"
        )
        failures.append(failure_of(case, CaseError(message, "channels")))
    return kept, failures
