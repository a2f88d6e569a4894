"""Sizes that no network has: refused before one is built, so that a stranger's file costs neither memory nor hours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from ...errors import UsageError

LARGEST_NUMBER = 1 << 16  # of channels, layers, or voxels along an axis
MOST_PARTS = 10_000  # modules within a network; those with encoders of hundreds of layers have about 3,000
WINDOWS, LARGEST_WINDOW = ("window", "window_size"), 16  # of attention: its table has 16 ** 6 indices


def values_in(value: Any) -> Iterator[Any]:
    """All that stands in nested lists and dictionaries, these included, however deep."""
    left = [value]
    while left:
        one = left.pop()
        yield one
        left.extend(one.values() if isinstance(one, Mapping) else one if isinstance(one, (list, tuple)) else ())


def too_large(value: Any) -> str | None:
    """The first number that is no size, in words; None where there is none."""
    for one in values_in(value):
        if isinstance(one, (int, float)) and not -LARGEST_NUMBER <= one <= LARGEST_NUMBER:
            return f"{one:g}" if isinstance(one, float) or abs(one) < 10**300 else "of more than 300 digits"
        for key in WINDOWS if isinstance(one, Mapping) else ():
            sides = [side for side in values_in(one.get(key)) if isinstance(side, (int, float))]
            if sides and max(sides) > LARGEST_WINDOW:
                return f"{max(sides):g} under {key}"
    return None


@contextmanager
def few_parts(network: str) -> Iterator[None]:
    """Stop the building of a network that has more parts than any.

    Args:
        network: what it is called.

    Raises:
        UsageError: it has.
    """
    parts = count(1)

    def counted(module: nn.Module, name: str, part: nn.Module | None) -> None:
        if next(parts) > MOST_PARTS:
            raise UsageError(f"{network} has more than {MOST_PARTS} parts, which no network has; get the model again")

    handle = register_module_module_registration_hook(counted)
    try:
        yield
    finally:
        handle.remove()
