"""Names of classes -> numbers: one name has one number in all cases of a data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import CaseError, UsageError
from .channels import Problem
from .label_items import LabelItem
from .matching import Pair

BACKGROUND = "background"


@dataclass(frozen=True)
class ClassInfo:
    """One class: its number from 1, its name, and where a SEG or RTSTRUCT tells them its code and colour."""

    value: int
    name: str
    code: tuple[str, str, str] | None = None
    colour: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Classes:
    """The classes of a data set.

    Args:
        infos: in the order of their numbers; empty where label files bring numbers and no names.
        chosen: the user named them, so that their order says which one stays where two overlap.
    """

    infos: tuple[ClassInfo, ...] = ()
    chosen: bool = False

    @property
    def values(self) -> tuple[int, ...] | None:
        """The label values that a file may hold; None where any may stand there."""
        return (0, *(info.value for info in self.infos)) if self.infos else None

    def of_segments(self, label: LabelItem) -> dict[int, int]:
        """Number of each segment of a SEG or RTSTRUCT that is taken -> class."""
        numbers = {info.name.casefold(): info.value for info in self.infos}
        segments = label.drawn.segments if label.drawn else ()
        return {one.number: numbers[one.name.casefold()] for one in segments if one.name.casefold() in numbers}


def number_classes(pairs: Sequence[Pair], chosen: Sequence[str] = ()) -> tuple[Classes, list[Problem]]:
    """The classes that the label maps of all pairs hold, and the pairs that have a class without a name.

    Args:
        pairs: images with label maps.
        chosen: names in the order of their numbers; other segments are left out.

    Raises:
        UsageError: a chosen name that is nowhere, or files with numbers beside objects with names and nothing chosen.
    """
    drawn = [pair for pair in pairs if pair.label.drawn is not None]
    if len({name.casefold() for name in chosen} | {BACKGROUND}) < len(chosen) + 1:
        raise UsageError(f"--classes {','.join(chosen)}: each class stands there once, and {BACKGROUND} is class 0")
    if not drawn:
        return Classes(tuple(ClassInfo(number, name) for number, name in enumerate(chosen, start=1)), bool(chosen)), []
    if not chosen and len(drawn) < len(pairs):
        raise UsageError(
            f"{len(drawn)} label maps are SEG or RTSTRUCT with names and {len(pairs) - len(drawn)} are files with "
            "numbers; give --classes with the names in the order of the numbers"
        )
    nameless = {} if chosen else {pair.case.name: _nameless(pair) for pair in drawn if _has_nameless(pair)}
    found = _found(pair for pair in drawn if pair.case.name not in nameless)
    if not chosen:
        infos = tuple(ClassInfo(number, *one[1:]) for number, one in enumerate(found.values(), start=1))
        return Classes(infos), list(nameless.values())
    if len(drawn) == len(pairs) and (missing := [name for name in chosen if name.casefold() not in found]):
        known = ", ".join(sorted(one[1] for one in found.values())) or "none"
        raise UsageError(f"--classes: no segment is called {missing[0]!r} (there are: {known})")
    named = [found.get(name.casefold(), (0, name, None, None)) for name in chosen]
    infos = tuple(
        ClassInfo(number, name, *one[2:]) for number, (name, one) in enumerate(zip(chosen, named, strict=True), start=1)
    )
    return Classes(infos, True), []


def described(classes: Sequence[ClassInfo]) -> dict[str, Any]:
    """Codes and colours of the classes that have some, for dataset.json."""
    told: dict[str, Any] = {}
    for info in classes:
        facts: Mapping[str, Any] = {
            **({"code": dict(zip(("scheme", "value", "meaning"), info.code, strict=True))} if info.code else {}),
            **({"color": list(info.colour)} if info.colour else {}),
        }
        if facts:
            told[info.name] = {"value": info.value, **facts}
    return told


def _found(pairs: Iterable[Pair]) -> dict[str, tuple[int, str, Any, Any]]:
    """Each name without regard to its case: lowest number, name, code, colour; in the order of number and name."""
    seen: dict[str, list[tuple[int, str, Any, Any]]] = {}
    for pair in pairs:
        for one in pair.label.drawn.segments if pair.label.drawn else ():
            if one.name and one.name.casefold() != BACKGROUND:
                entry = (one.number, one.name, one.code, one.colour)
                seen.setdefault(one.name.casefold(), []).append(entry)
    first = {name: min(entries, key=lambda entry: entry[:2]) for name, entries in seen.items()}
    ordered = sorted(first, key=lambda name: (first[name][0], name))
    return {
        name: (
            first[name][0],
            first[name][1],
            next((entry[2] for entry in sorted(seen[name], key=repr) if entry[2]), None),
            next((entry[3] for entry in sorted(seen[name], key=repr) if entry[3]), None),
        )
        for name in ordered
    }


def _has_nameless(pair: Pair) -> bool:
    return pair.label.drawn is not None and any(not one.name for one in pair.label.drawn.segments)


def _nameless(pair: Pair) -> Problem:
    file = pair.label.path.name
    error = CaseError(
        f"{file}: a segment has no name, or one that holds the patient's name or number; name it, or choose the "
        "others with --classes",
        "class-nameless",
    )
    return Problem(pair.case.name, (file,), error)
