"""Slices at one place: acquisitions are parted by what their tags say, time points chosen; anything else stops."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np

from ..errors import CaseError
from .dicom_geometry import Placed, along_normal, uneven_gaps
from .read_options import ReadOptions

FILE, BLOCK = "file", "InstanceNumber"
SPLIT_ORDER = (
    *("AcquisitionNumber", "FrameAcquisitionNumber", "TemporalPositionIdentifier", "TemporalPositionIndex"),
    *("EchoNumbers", "TriggerTime", "ConvolutionKernel", "ImageType", "FrameType"),
)
TIMES = frozenset(
    (
        *("AcquisitionNumber", "FrameAcquisitionNumber", "TemporalPositionIdentifier", "TemporalPositionIndex"),
        *("TriggerTime", "NominalCardiacTriggerDelayTime", "AcquisitionTime", "ContentTime", "FrameReferenceTime"),
        *("TemporalPositionTimeOffset", FILE, BLOCK),
    )
)
CONTRASTS = ("EchoNumbers", "EchoTime", "EffectiveEchoTime", "ConvolutionKernel", "DiffusionBValue")
ACQUISITIONS = ("AcquisitionNumber", "TemporalPositionIdentifier")
LARGEST_CHOICE = 3  # tags that are tried together
MOST_TAGS = 16  # of which three are tried together; of more, two


@dataclass(frozen=True, eq=False)
class Part:
    """The slices of one acquisition, the tags that tell it from the others, and how many the largest of them has."""

    names: tuple[str, ...]
    values: tuple[str, ...]
    slices: list[Placed]
    wanted: int

    @property
    def suffix(self) -> str:
        """What the part is called: its own tags alone, so that no other part and no order of files has a say."""
        return "+".join(self.names) + "=" + "+".join(self.values)


def same_place_mm(places: np.ndarray) -> float:
    """How near two slices must lie to count as at one place."""
    widest = float(np.diff(np.sort(places)).max()) if places.size > 1 else 0.0
    return min(0.01, 0.1 * widest) if widest > 1e-6 else 0.01


def repeated(places: np.ndarray, limit: float | None = None) -> bool:
    """Whether two slices lie at one place."""
    limit = same_place_mm(places) if limit is None else limit
    return bool(places.size > 1 and np.diff(np.sort(places)).min() < limit)


def numbered_places(places: np.ndarray) -> np.ndarray:
    """A number for each slice, equal where they lie at one place."""
    order = np.argsort(places, kind="stable")
    found = np.empty(len(places), dtype=np.int64)
    found[order] = np.concatenate([[0], np.cumsum(np.diff(places[order]) >= same_place_mm(places))])
    return found


def part_by_tags(group: list[Placed], places: np.ndarray) -> list[Part]:
    """Part slices at equal places by the tags that tell acquisitions apart.

    First a tag, then two or three together, whose every value covers all places; then whole blocks of InstanceNumber;
    then tags whose values leave places out.

    Raises:
        CaseError: no tag parts them.
    """
    at = numbered_places(places)
    distinct = int(at.max()) + 1
    most = int(np.bincount(at).max())
    names, columns = varying_tags(group)
    files = file_codes(group)
    if files.max() and all(one.slice.tile is not None or one.slice.frame is not None for one in group):
        names, columns = [*names, FILE], [*columns, files]
    for chosen, codes in choices(names, columns, LARGEST_CHOICE if len(names) <= MOST_TAGS else 2):
        if (codes.max() + 1) * distinct == len(group) and apart(codes, at):
            return parts_of(group, chosen, codes)
    blocks = part_by_instance(group, at, distinct)
    if blocks is not None:
        return parts_of(group, (BLOCK,), blocks)
    for chosen, codes in choices(names, columns, 2):
        counts = np.bincount(codes)
        if not apart(codes, at) or counts.min() < 2:
            continue
        if len(counts) == most or (counts.min() > 2 and all_even(group, places, codes)):
            return parts_of(group, chosen, codes)
    first, second = same_place_pair(group, places)
    raise CaseError(
        f"{first.slice.path} and {second.slice.path}: ImagePositionPatient: two different slices at one place "
        f"({', '.join(f'{value:.2f}' for value in first.position)} mm), and no tag parts them "
        f"({', '.join(names[:8]) or 'all tags are equal'}). Decide which of them holds and remove the other",
        "same-place",
    )


def part_by_contrast(group: list[Placed], places: np.ndarray) -> list[Part]:
    """Part slices that no place parts, but a tag that is never two things in one volume: echo, b-value or kernel.

    The values must lie among each other (stacks that merely follow one another are left whole), each in even steps.
    MR takes one volume in several acquisitions, slice by slice between each other; CT and PET do not.
    """
    tags = (*CONTRASTS, *(ACQUISITIONS if group[0].slice.modality in ("CT", "PT") else ()))
    for name, codes in zip(*varying_tags(group, tags), strict=True):
        counts = np.bincount(codes)
        if counts.min() < 3 or not all_even(group, places, codes):
            continue
        ends = sorted((float(places[codes == code].min()), float(places[codes == code].max())) for code in set(codes))
        if all(low < high for (_, high), (low, _) in pairwise(ends)):
            return parts_of(group, (name,), codes)
    return []


def varying_tags(group: Sequence[Placed], among: Collection[str] = ()) -> tuple[list[str], list[np.ndarray]]:
    """Tags that differ within a group in the order in which they are tried, and for each a number for each value.

    Of tags that part the group in the same way only the first is kept.

    Args:
        among: the tags to look at; empty for all.
    """
    present = list(dict.fromkeys(name for one in group for name in one.slice.splits))
    present = [name for name in present if name in among] if among else present
    names = [name for name in SPLIT_ORDER if name in present]
    names += [name for name in present if name not in SPLIT_ORDER]
    kept: list[str] = []
    columns: list[np.ndarray] = []
    seen: set[bytes] = set()
    for name in names:
        numbers: dict[str | None, int] = {}
        codes = np.array([numbers.setdefault(one.slice.splits.get(name), len(numbers)) for one in group])
        if len(numbers) == 1 or codes.tobytes() in seen:
            continue
        seen.add(codes.tobytes())
        kept.append(name)
        columns.append(codes)
    return kept, columns


def file_codes(group: Sequence[Placed]) -> np.ndarray:
    """A number for each file."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(one.slice.sop or str(one.slice.path), len(numbers)) for one in group])


def choices(
    names: Sequence[str], columns: Sequence[np.ndarray], largest: int
) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """One tag, then two, then three together, with a number for each combination of values."""
    for size in range(1, largest + 1):
        for chosen in combinations(range(len(names)), size):
            codes = columns[chosen[0]]
            for index in chosen[1:]:
                joined = codes * (int(columns[index].max()) + 1) + columns[index]
                codes = np.unique(joined, return_inverse=True)[1].reshape(-1)
            yield tuple(names[index] for index in chosen), codes


def apart(codes: np.ndarray, at: np.ndarray) -> bool:
    """Whether no part has two slices at one place."""
    joined = codes * (int(at.max()) + 1) + at
    return len(np.unique(joined)) == len(joined)


def all_even(group: Sequence[Placed], places: np.ndarray, codes: np.ndarray) -> bool:
    """Whether each part runs in even steps."""
    order = np.lexsort((places, codes))
    for part in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
        if len(part) > 2 and uneven_gaps(np.diff(places[part]), group[0].normal)[1].size:
            return False
    return True


def part_by_instance(group: list[Placed], at: np.ndarray, distinct: int) -> np.ndarray | None:
    """Whole blocks of InstanceNumber, each of which covers every place once; None where there are none."""
    instances = [one.slice.instance for one in group]
    if None in instances or len(set(instances)) != len(group) or len(group) % distinct or distinct < 3:
        return None
    order = np.argsort(np.array(instances), kind="stable")
    count = len(group) // distinct
    codes = np.empty(len(group), dtype=np.int64)
    for blocks in (np.arange(len(group)) // distinct, np.arange(len(group)) % count):
        codes[order] = blocks
        if apart(codes, at):
            return codes
    return None


def parts_of(group: list[Placed], names: tuple[str, ...], codes: np.ndarray) -> list[Part]:
    """The parts in the order of their values, numbers as numbers."""
    by_code: dict[int, list[Placed]] = defaultdict(list)
    for code, one in zip(codes.tolist(), group, strict=True):
        by_code[code].append(one)
    wanted = max(map(len, by_code.values()))
    parts = [Part(names, tuple(own_value(name, part) for name in names), part, wanted) for part in by_code.values()]
    return sorted(parts, key=lambda part: [natural(text) for text in part.values])


def own_value(name: str, part: list[Placed]) -> str:
    """What a part says of one tag; of blocks and files its first InstanceNumber."""
    own = part[0].slice.splits
    if name in own or name not in (BLOCK, FILE):
        return own.get(name, "none")
    instances = [one.slice.instance for one in part if one.slice.instance is not None]
    return f"{min(instances)}" if instances else part[0].slice.sop or str(part[0].slice.path)


def natural(text: str) -> tuple[float, str]:
    """Sort numbers as numbers."""
    try:
        return float(text), ""
    except ValueError:
        return float("inf"), text


def same_place_pair(group: list[Placed], places: np.ndarray) -> tuple[Placed, Placed]:
    """The first two slices at one place."""
    order = np.argsort(places, kind="stable")
    at = int(np.argmin(np.diff(places[order])))
    return group[order[at]], group[order[at + 1]]


def chosen_times(parts: list[Part], options: ReadOptions) -> tuple[list[Part], list[tuple[Part, str]], int]:
    """The time points that the user wants (`--time`), the others with a word on each, and how many there are.

    Time is what tells parts apart that are equal in echo, b-value and direction, kernel and type: number or time of
    the acquisition, temporal position, trigger time, file of a mosaic, block of InstanceNumbers.

    Raises:
        CaseError: there is no time point of that number.
    """
    by_contrast: dict[tuple[tuple[str, str], ...], list[Part]] = defaultdict(list)
    for part in parts:
        by_contrast[contrast(part)].append(part)
    count = max(len(times) for times in by_contrast.values())
    if options.time == "all" or count == 1:
        return parts, [], count
    wanted = 0 if options.time == "first" else int(options.time)
    if wanted >= count:
        raise CaseError(
            f"{parts[0].slices[0].slice.path}: --time {options.time}: the series has {count} time points, expected a "
            f"number from 0 to {count - 1}. Give one of them, or --time all",
            "no-such-time",
        )
    kept = [times[wanted] for times in by_contrast.values() if wanted < len(times)]
    others = [
        (part, f"time point {number} of {len(times)} (from 0), not chosen with --time {options.time}")
        for times in by_contrast.values()
        for number, part in enumerate(times)
        if number != wanted
    ]
    return kept, others, count


def contrast(part: Part) -> tuple[tuple[str, str], ...]:
    """Everything a part says of itself that is not time, of the tags that it shares among its slices."""
    first = part.slices[0].slice.splits
    other = [name for name in first if name not in TIMES and not name.startswith("DimensionIndexValues")]
    steady = [name for name in other if all(one.slice.splits.get(name) == first[name] for one in part.slices)]
    return tuple((name, first[name]) for name in sorted(steady))


def interleaved(group: list[Placed]) -> tuple[np.ndarray, list[Part]]:
    """Places of a group along its normal, and its parts; no part where the group is one stack."""
    places = along_normal(group)
    return places, part_by_tags(group, places) if repeated(places) else part_by_contrast(group, places)
