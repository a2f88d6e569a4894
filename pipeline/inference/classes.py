"""`--classes`: which classes a user asks for, by name or by label value.

The label of a voxel is the best of all classes, so all of them are scored whatever is written; what is written is what
the whole prediction would write, with the other classes as background. `--coarse` is what confines work to a region.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import UsageError, unknown
from ...transforms.probabilities import Classes
from ..model_folder import LabelEntry

Wanted = str | Sequence[str | int]  # "liver,spleen", or one word each


def chosen_classes(labels: Sequence[LabelEntry], wanted: Wanted) -> tuple[int, ...]:
    """Numbers of the classes that are asked for, rising; a name that reads as a number is a name first.

    Raises:
        UsageError: a class that the model does not have, or none at all.
    """
    words = wanted.split(",") if isinstance(wanted, str) else [str(word) for word in wanted]
    words = [word.strip() for word in words if word.strip()]
    if not words:
        raise UsageError("--classes names no class; give names or label values, as in --classes liver,spleen")
    by_name = {label.name: number for number, label in enumerate(labels)}
    by_value = {str(label.value): number for number, label in enumerate(labels)}
    lowered = {name.lower(): number for name, number in reversed(by_name.items())}
    found = set()
    for word in words:
        number = by_name.get(word, by_value.get(word, lowered.get(word.lower())))
        if number is None:
            raise unknown("class", word, by_name)
        found.add(number)
    return tuple(sorted(found))


def written_values(labels: Sequence[LabelEntry], only: Sequence[int]) -> tuple[int, ...]:
    """Label value of each class in what is written; 0 for those that are not asked for."""
    return tuple(label.value if not only or number in only else 0 for number, label in enumerate(labels))


def kept_classes(labels: Sequence[LabelEntry], only: Sequence[int]) -> Classes:
    """What a file of probabilities holds: all classes, or those that are asked for."""
    numbers = tuple(only) or tuple(range(len(labels)))
    names = tuple(labels[number].name for number in numbers)
    values = tuple(labels[number].value for number in numbers)
    return Classes(names, values, numbers, numbers.index(0) if 0 in numbers else None)
