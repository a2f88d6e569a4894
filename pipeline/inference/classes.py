"""`--classes`: which classes a user asks for, by name or by label value.

The label of a voxel is the best of all classes, so all of them are scored whatever is written; what is written is what
the whole prediction would write, with the other classes as background. `--coarse` is what confines work to a region.

Where a model's outputs are regions that may overlap, the numbers here are those of regions, and a voxel's is that of
the last region that it lies in. A region that is asked for by its name stands for all label values that it is made of.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import UsageError, unknown
from ...transforms.probabilities import Classes
from ..model_folder import LabelEntry, ModelFolder

Wanted = str | Sequence[str | int]  # "liver,spleen", or one word each


def chosen_classes(model: ModelFolder, wanted: Wanted) -> tuple[int, ...]:
    """Numbers of the classes, or of the regions, that write what is asked for, rising.

    A name that reads as a number is a name first, and a region's name comes before a label's.

    Raises:
        UsageError: a class that the model does not have, or none at all.
    """
    words = wanted.split(",") if isinstance(wanted, str) else [str(word) for word in wanted]
    words = [word.strip() for word in words if word.strip()]
    if not words:
        raise UsageError("--classes names no class; give names or label values, as in --classes liver,spleen")
    by_value, by_name = _numbers_of(model)
    lowered = {name.lower(): numbers for name, numbers in reversed(by_name.items())}
    found: set[int] = set()
    for word in words:
        numbers = by_name.get(word, by_value.get(word, lowered.get(word.lower())))
        if numbers is None:
            raise unknown("class", word, by_name)
        found |= numbers
    return tuple(sorted(found))


def _numbers_of(model: ModelFolder) -> tuple[dict[str, set[int]], dict[str, set[int]]]:
    """The numbers that a label value stands for, and those of a name."""
    labels, regions = model.labels, model.regions
    if not regions:
        by_value = {str(label.value): {number} for number, label in enumerate(labels)}
        return by_value, {label.name: {number} for number, label in enumerate(labels)}
    writers = {label.value: {at for at, one in enumerate(regions) if one.writes == label.value} for label in labels}
    by_value = {str(value): numbers for value, numbers in writers.items() if numbers}
    by_name = {label.name: writers[label.value] for label in labels if writers[label.value]}
    made = {
        region.name: {at for at, one in enumerate(regions) if one.writes in (*region.values, region.writes)}
        for region in regions
    }
    return by_value, {**by_name, **made}


def written_values(model: ModelFolder, only: Sequence[int]) -> tuple[int, ...]:
    """Label value of each number of a restored label map: 0 for classes that are not asked for, and for no region."""
    values = [one.writes for one in model.regions] or [label.value for label in model.labels]
    written = tuple(value if not only or number in only else 0 for number, value in enumerate(values))
    return (0, *written) if model.regions else written


def written_names(model: ModelFolder, only: Sequence[int]) -> dict[int, str]:
    """Name of each label value that is written."""
    if not model.regions:
        return {label.value: label.name for number, label in enumerate(model.labels) if not only or number in only}
    there = {one.writes for number, one in enumerate(model.regions) if not only or number in only}
    return {one.value: one.name for one in model.labels if one.value in there or (one.value == 0 and not only)}


def output_names(model: ModelFolder) -> tuple[str, ...]:
    """Names of the network's outputs."""
    names = [one.name for one in model.regions] or [label.name for label in model.labels]
    return tuple(names)


def kept_classes(model: ModelFolder, only: Sequence[int]) -> Classes:
    """What a file of probabilities holds: all classes or regions, or those that are asked for."""
    if model.regions:
        numbers = tuple(only) or tuple(range(len(model.regions)))
        kept = [model.regions[number] for number in numbers]
        names, values = tuple(one.name for one in kept), tuple(one.writes for one in kept)
        return Classes(names, values, numbers, regions=True)
    return _kept_labels(model.labels, only)


def _kept_labels(labels: Sequence[LabelEntry], only: Sequence[int]) -> Classes:
    numbers = tuple(only) or tuple(range(len(labels)))
    names = tuple(labels[number].name for number in numbers)
    values = tuple(labels[number].value for number in numbers)
    return Classes(names, values, numbers, numbers.index(0) if 0 in numbers else None)
