"""Which prediction belongs to which reference: by base name, out of folders, single files or a data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...errors import NothingDoneError, UsageError
from ..dataset.layouts import base_name, is_dataset, read_dataset

VOLUMES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
PICTURES = (".png", ".tif", ".tiff", ".gif", ".bmp")


@dataclass(frozen=True)
class Pairs:
    """What is to be compared.

    Args:
        pairs: case name -> prediction and reference, sorted by name.
        only_predicted: predictions without a reference.
        only_referenced: references without a prediction.
        labels: label value -> name, where the data set of the references says so.
    """

    pairs: Mapping[str, tuple[Path, Path]]
    only_predicted: tuple[str, ...]
    only_referenced: tuple[str, ...]
    labels: Mapping[int, str] | None


def match(predictions: Path, references: Path) -> Pairs:
    """Pair the label maps of two places by base name.

    Args:
        predictions: a folder of label maps, or one file.
        references: the same, or a data set (dataset.json, nnU-Net raw, images/ + labels/), whose labels are taken.

    Raises:
        UsageError: a place is missing or holds no label map, or two files of one folder share a base name.
        NothingDoneError: no name is in both.
    """
    for name, place in (("predictions", predictions), ("references", references)):
        if not place.exists():
            raise UsageError(f"{name} {place} does not exist; give a folder of label maps, or one file")
    labels = None
    if is_dataset(references):
        dataset = read_dataset(references)
        true = {case.name: case.label for case in dataset.cases if case.label is not None}
        if dataset.labels is not None:
            labels = {label.value: label.name for label in dataset.labels}
    else:
        true = label_maps(references, "references")
    predicted = label_maps(predictions, "predictions")
    if predictions.is_file() and references.is_file():  # two files are one case, whatever they are called
        predicted = dict(zip(true, predicted.values(), strict=True))
    both = sorted(predicted.keys() & true.keys())
    if not both:
        raise NothingDoneError(
            f"no prediction in {predictions} ({_shown(predicted)}) has the base name of a reference in {references} "
            f"({_shown(true)}); files are matched by their names without suffixes: rename one side"
        )
    return Pairs(
        pairs={name: (predicted[name], true[name]) for name in both},
        only_predicted=tuple(sorted(predicted.keys() - true.keys())),
        only_referenced=tuple(sorted(true.keys() - predicted.keys())),
        labels=labels,
    )


def label_maps(place: Path, what: str) -> dict[str, Path]:
    """Base name -> label map of a folder (volumes, or pictures where there is no volume), or of one file."""
    if place.is_file():
        return {base_name(place): place}
    visible = [entry for entry in sorted(place.iterdir()) if entry.is_file() and not entry.name.startswith(".")]
    if not visible:
        raise UsageError(f"{what} {place} is empty; give a folder of label maps")
    for endings in (VOLUMES, PICTURES):
        files = [entry for entry in visible if entry.name.lower().endswith(endings)]
        named = {base_name(entry): entry for entry in files}
        if len(named) < len(files):
            twins = [str(entry.name) for entry in files if named[base_name(entry)] != entry]
            raise UsageError(f"{what} {place}: {twins[0]} shares its base name with another file; keep one of them")
        if named:
            return named
    raise UsageError(
        f"{what} {place} holds no label map (found {visible[0].name}, ...); expected files with one of the suffixes "
        f"{', '.join((*VOLUMES, *PICTURES))}"
    )


def _shown(named: Mapping[str, Path]) -> str:
    names = sorted(named)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
