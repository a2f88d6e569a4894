"""Which series a file that cannot be read may belong to: told by the names of the readable files in its folder."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

from .tree import natural_key

Key = TypeVar("Key")
NUMBER = re.compile(r"\d+")
PLAIN_TEXT = "plain-text"  # code of a text whose name has no suffix: a slice that was lost, or a text
NO_SLICE = "plain text, no image"  # what it is where no slice is called like it


class Nearest(Generic[Key]):
    """The nearest below and above of what is offered, by distance or by order."""

    def __init__(self) -> None:
        self.below: tuple[Any, Key] | None = None
        self.above: tuple[Any, Key] | None = None

    def offer(self, place: Any, own: Any, key: Key) -> None:
        """Take one in where it is nearer than what is held."""
        if place < own and (self.below is None or place > self.below[0]):
            self.below = (place, key)
        elif place > own and (self.above is None or place < self.above[0]):
            self.above = (place, key)

    def keys(self) -> set[Key]:
        """What is held."""
        return {side[1] for side in (self.below, self.above) if side is not None}

    def adjoining(self, own: int) -> set[Key]:
        """What has the very next numbers; where nothing has, what is held."""
        sides = [side for side in (self.below, self.above) if side is not None]
        return {key for place, key in sides if abs(place - own) == 1} or self.keys()


def neighbours(name: str, others: Iterable[tuple[str, Key]], code: str = "") -> set[Key]:
    """What the files have that `name` stands between.

    Files that are called like it but for one number come first (the last number before the others), those with the very
    next numbers before all; then files of the same pattern; then whatever stands before and after it.

    Args:
        name: of the file that cannot be read.
        others: names of the files in its folder, and what each has; read once, and not kept.
        code: why it cannot be read; a text counts only where files are called like it but for a number.
    """
    pattern, numbers = _form(name)
    place = natural_key(name)
    by_number: dict[int, Nearest[Key]] = {}
    alike: Nearest[Key] = Nearest()
    all_others: Nearest[Key] = Nearest()
    for other, key in others:
        own = natural_key(other)
        all_others.offer(own, place, key)
        other_pattern, other_numbers = _form(other)
        if other_pattern != pattern:
            continue
        alike.offer(own, place, key)
        differing = [k for k, (a, b) in enumerate(zip(numbers, other_numbers, strict=True)) if a != b]
        if len(differing) == 1:
            k = differing[0]
            by_number.setdefault(k, Nearest()).offer(other_numbers[k], numbers[k], key)
    if by_number:
        last = max(by_number)
        return by_number[last].adjoining(numbers[last])
    if code == PLAIN_TEXT:
        return set()
    return alike.keys() or all_others.keys()


def _form(name: str) -> tuple[str, list[int]]:
    """A name with its numbers taken out, and the numbers."""
    return NUMBER.sub("#", name.lower()), [int(number) for number in NUMBER.findall(name)]
