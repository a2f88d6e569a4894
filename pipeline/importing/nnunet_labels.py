"""The labels of an nnU-Net data set, plain or as regions, in our terms.

Plain classes: the network's outputs are the label values in rising order, which must be 0, 1, 2, ... as nnU-Net writes
the place of the largest output. Regions: each unites label values, and writes one; later ones over earlier ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import UsageError

BACKGROUND, IGNORE = "background", "ignore"


@dataclass(frozen=True)
class Labels:
    """Labels and regions of a plan, as plain values.

    Args:
        labels: what label maps hold, background first.
        regions: in the order of the network's outputs; none for plain classes.
        ignore: value that marked what training was not to look at.
    """

    labels: list[dict[str, Any]]
    regions: list[dict[str, Any]]
    ignore: int | None

    @property
    def outputs(self) -> int:
        """Of the network."""
        return len(self.regions) or len(self.labels)


def read_labels(dataset: Mapping[str, Any], where: str) -> Labels:
    """Labels of a dataset.json.

    Args:
        dataset: its content.
        where: the file, for messages.

    Raises:
        UsageError: labels that nnU-Net does not have.
    """
    named = dataset.get("labels")
    if not isinstance(named, Mapping) or BACKGROUND not in named:
        raise UsageError(f'{where}: labels must name values, with {{"{BACKGROUND}": 0, ...}}; found {_shown(named)}')
    values = {str(name): _values(name, value, where) for name, value in named.items() if name != IGNORE}
    if values[BACKGROUND] != [0] or isinstance(named[BACKGROUND], list):
        raise UsageError(f"{where}: background must be 0, found {_shown(named[BACKGROUND])}")
    ignore = named.get(IGNORE)
    if not (ignore is None or isinstance(ignore, int)):
        raise UsageError(f"{where}: the label {IGNORE} must be a number, found {_shown(ignore)}")
    if any(len(united) > 1 for united in values.values()):
        return _with_regions(values, dataset.get("regions_class_order"), ignore, where)
    numbers = sorted({united[0] for united in values.values()})
    if numbers != list(range(len(numbers))):
        raise UsageError(
            f"{where}: labels must be 0, 1, 2, ... without a gap, as nnU-Net has them; found {numbers[:10]}"
        )
    labels = [{"value": number, "name": _name(number, values)} for number in numbers]
    if len(labels) < 2:
        raise UsageError(f"{where}: there is no label but {BACKGROUND}")
    return Labels(labels, [], ignore)


def _with_regions(values: Mapping[str, list[int]], order: Any, ignore: int | None, where: str) -> Labels:
    named = {name: united for name, united in values.items() if set(united) != {0}}
    if not isinstance(order, list) or len(order) != len(named) or not all(isinstance(one, int) for one in order):
        raise UsageError(
            f"{where}: regions_class_order must hold one label value for each of the {len(named)} regions "
            f"({', '.join(named)}); found {_shown(order)}"
        )
    regions = [
        {"name": name, "values": sorted(set(united)), "writes": writes}
        for (name, united), writes in zip(named.items(), order, strict=True)
    ]
    numbers = sorted({0, *order, *(value for united in named.values() for value in united)})
    labels = [{"value": number, "name": _name(number, values)} for number in numbers]
    return Labels(labels, regions, ignore)


def _name(number: int, values: Mapping[str, list[int]]) -> str:
    """The name of what has this value and no other."""
    return next((name for name, united in values.items() if set(united) == {number}), f"label {number}")


def _values(name: object, value: Any, where: str) -> list[int]:
    found = value if isinstance(value, list) else [value]
    numbers = [int(one) if isinstance(one, str) and one.isdecimal() else one for one in found]
    if not numbers or not all(isinstance(one, int) and 0 <= one <= 65535 for one in numbers):
        raise UsageError(
            f"{where}: label {_shown(name)} must be a number from 0 on or a list of them, found {_shown(value)}"
        )
    return numbers


def _shown(value: object) -> str:
    return repr(value)[:80]
