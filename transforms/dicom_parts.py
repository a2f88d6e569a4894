"""Slices at one place: copies are dropped, acquisitions are parted by what their tags say, anything else stops."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from itertools import combinations

import numpy as np

from ..errors import CaseError
from .dicom import Slice
from .dicom_geometry import Placed


def without_copies(group: list[Placed]) -> tuple[list[Placed], list[Placed]]:
    """Part off files that are there twice (one SOPInstanceUID, equal pixels)."""
    by_sop: dict[tuple[str, int | None], list[Placed]] = defaultdict(list)
    for one in group:
        by_sop[one.slice.sop or str(one.slice.path), one.slice.frame].append(one)
    kept: list[Placed] = []
    dropped: list[Placed] = []
    for copies in by_sop.values():
        kept.append(copies[0])
        if len(copies) > 1:
            dropped += copies[1:]
            same_place = all(np.array_equal(one.position, copies[0].position) for one in copies)
            if not same_place or len({pixel_digest(one.slice) for one in copies}) > 1:
                names = " and ".join(str(one.slice.path) for one in copies[:2])
                raise CaseError(
                    f"{names}: one SOPInstanceUID, other content. Decide which of them holds and remove the other",
                    "same-uid",
                )
    return kept, dropped


def pixel_digest(one: Slice) -> str:
    """A checksum of the file from its pixels on, or of the whole file where their place is not known."""
    with open(one.path, "rb") as file:
        file.seek(max(0, one.pixel_offset))
        return hashlib.sha256(file.read()).hexdigest()


def same_place_mm(places: np.ndarray) -> float:
    """How near two slices must lie to count as at one place."""
    gaps = np.diff(np.sort(places))
    gaps = gaps[gaps > 1e-6]
    return min(0.01, 0.1 * float(np.median(gaps))) if gaps.size else 0.01


def repeated(places: np.ndarray, limit: float | None = None) -> bool:
    """Whether two slices lie at one place."""
    limit = same_place_mm(places) if limit is None else limit
    return bool(places.size > 1 and np.diff(np.sort(places)).min() < limit)


def part_by_tags(group: list[Placed], places: np.ndarray) -> tuple[str, list[tuple[str, list[Placed]]]]:
    """Part slices at equal places by the tags that tell acquisitions apart.

    Raises:
        CaseError: no tag parts them.
    """
    limit = same_place_mm(places)
    distinct = 1 + int(np.count_nonzero(np.diff(np.sort(places)) >= limit))
    names = list(dict.fromkeys(name for one in group for name in one.slice.splits))
    varying = [name for name in names if len({one.slice.splits.get(name) for one in group}) > 1]
    for complete in (True, False):
        for size in (1, 2):
            for chosen in combinations(varying, size):
                parts: dict[tuple[str, ...], list[int]] = defaultdict(list)
                for index, one in enumerate(group):
                    parts[tuple(one.slice.splits.get(name, "none") for name in chosen)].append(index)
                counts = {len(part) for part in parts.values()}
                fits = counts == {distinct} if complete else min(counts) > 1
                if fits and not any(repeated(places[part], limit) for part in parts.values()):
                    ordered = sorted(parts.items(), key=lambda item: [natural(text) for text in item[0]])
                    return "+".join(chosen), [("+".join(value), [group[i] for i in part]) for value, part in ordered]
    blocks = part_by_instance(group, places, distinct)
    if blocks:
        return "InstanceNumber", blocks
    first, second = same_place_pair(group, places)
    raise CaseError(
        f"{first.slice.path} and {second.slice.path}: two different slices at one place "
        f"({', '.join(f'{value:.2f}' for value in first.position)} mm), and no tag parts them "
        f"({', '.join(varying) or 'all tags are equal'}). Decide which of them holds and remove the other",
        "same-place",
    )


def natural(text: str) -> tuple[float, str]:
    """Sort numbers as numbers."""
    try:
        return float(text), ""
    except ValueError:
        return float("inf"), text


def part_by_instance(group: list[Placed], places: np.ndarray, distinct: int) -> list[tuple[str, list[Placed]]]:
    """Whole blocks of InstanceNumber, each of which covers every place once; empty where there are none."""
    numbers_ = [one.slice.instance for one in group]
    if None in numbers_ or len(set(numbers_)) != len(group) or len(group) % distinct or distinct < 3:
        return []
    order = sorted(range(len(group)), key=lambda index: numbers_[index] or 0)
    count = len(group) // distinct
    by_block = [order[first : first + distinct] for first in range(0, len(group), distinct)]
    by_place = [order[first::count] for first in range(count)]
    for blocks in (by_block, by_place):
        if not any(repeated(places[block]) for block in blocks):
            return [(str(number + 1), [group[i] for i in block]) for number, block in enumerate(blocks)]
    return []


def same_place_pair(group: list[Placed], places: np.ndarray) -> tuple[Placed, Placed]:
    """The first two slices at one place."""
    order = np.argsort(places, kind="stable")
    at = int(np.argmin(np.diff(places[order])))
    return group[order[at]], group[order[at + 1]]
