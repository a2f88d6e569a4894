"""Which image files belong to one case: one volume each, or the channels of one visit by their names or folders.

Channels are told by nnU-Net's numbers (NAME_0000, NAME_0001), by a suffix (NAME_T1, NAME-t1c), or by a folder a case
that holds T1.nii.gz, T2.nii.gz or the DICOM folders T1/, T2/.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ...errors import CaseError
from ...transforms.readers import Source
from ..archive.naming import relative, source_id

NUMBERED = re.compile(r"(.+)_(\d{4})")


@dataclass(frozen=True)
class Problem:
    """Something that is stopped: what to call it, its files relative to their folders, and why."""

    name: str
    files: tuple[str, ...]
    error: CaseError


@dataclass(frozen=True)
class ImageCase:
    """The image of one case.

    Args:
        name: what its outputs are called; a salted hash for DICOM.
        sources: one a channel, in order.
        keys: names that a label map may call it by.
    """

    name: str
    sources: tuple[Source, ...]
    keys: tuple[str, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of all channels, each once."""
        return tuple(dict.fromkeys(file for source in self.sources for file in source.files))


@dataclass(frozen=True)
class _Member:
    """A source, and the place that its name gives it: the case's folder and stem, and the number of the channel."""

    source: Source
    folder: str
    stem: str
    channel: int


def group_images(
    sources: Sequence[Source], root: Path, channels: Sequence[str], salts: Sequence[str], labels: Collection[str] = ()
) -> tuple[list[ImageCase], list[Problem], list[Source]]:
    """The cases that some volumes make.

    Args:
        sources: what was found below `root`.
        root: names are relative to it.
        channels: names of the channels in order; empty where numbers alone tell.
        salts: of case ids, the one that names outputs first.
        labels: base names of the label maps; an image numbered as one of them is a case and no channel.

    Returns:
        Cases, cases whose channels are not complete, and volumes that are no channel.
    """
    members: dict[tuple[str, str], list[_Member]] = defaultdict(list)
    alone: list[Source] = []
    for source in sources:
        member = _member(source, root, channels, labels)
        if member is None:
            alone.append(source)
        else:
            members[member.folder, member.stem].append(member)
    named = bool(channels) and any(_by_name(member, channels) for group in members.values() for member in group)
    wanted = len(channels) or _usual_number(members.values())
    cases, problems = [], []
    for (_, stem), group in members.items():
        numbers = sorted(member.channel for member in group)
        if numbers == list(range(wanted)):
            ordered = [member.source for member in sorted(group, key=lambda member: member.channel)]
            cases.append(_case(ordered, root, stem, salts))
        elif not channels and 0 not in numbers:  # numbers of cases, not of channels
            alone += [member.source for member in group]
        else:
            problems.append(_incomplete(stem, group, root, channels, wanted))
    if len(channels) > 1 or named:
        return cases, problems, alone
    return [*cases, *(_case([source], root, "", salts) for source in alone)], problems, []


def clashes(cases: Iterable[ImageCase], root: Path) -> dict[str, Problem]:
    """Cases whose names differ in upper and lower case at most: they would overwrite one another on some disks."""
    groups: dict[str, list[ImageCase]] = defaultdict(list)
    for case in cases:
        groups[case.name.casefold()].append(case)
    found = {}
    for group in groups.values():
        if len(group) < 2:
            continue
        files = tuple(relative(case.files[0], root) for case in group)
        names = sorted({case.name for case in group})
        text = f"{' and '.join(files)} would both be case {' or '.join(repr(name) for name in names)}; rename one, "
        error = CaseError(f"{text}or give --channels where they are the channels of one case", "case-clash")
        found.update({name: Problem(name, files, error) for name in names})
    return found


def _member(source: Source, root: Path, channels: Sequence[str], labels: Collection[str]) -> _Member | None:
    parent = source.files[0].parent
    folder = relative(parent, root)
    lower = [name.casefold() for name in channels]
    if source.kind == "dicom":
        if parent.name.casefold() in lower and parent not in (root, root.parent):
            return _Member(
                source, relative(parent.parent, root), parent.parent.name, lower.index(parent.name.casefold())
            )
        return None
    if source.part is not None:
        return None
    match = NUMBERED.fullmatch(source.name)
    if match and source.name not in labels and (not channels or int(match[2]) < len(channels)):
        return _Member(source, folder, match[1], int(match[2]))
    if source.name.casefold() in lower and parent != root:
        return _Member(source, relative(parent.parent, root), parent.name, lower.index(source.name.casefold()))
    for number in sorted(range(len(lower)), key=lambda number: -len(lower[number])):
        ending = lower[number]
        stem = source.name[: -len(ending) - 1]
        if source.name.casefold().endswith((f"_{ending}", f"-{ending}")) and stem:
            return _Member(source, folder, stem, number)
    return None


def _by_name(member: _Member, channels: Sequence[str]) -> bool:
    """Whether a channel was told by its name, not by a number."""
    return not NUMBERED.fullmatch(member.source.name) or member.source.kind == "dicom"


def _usual_number(groups: Iterable[Sequence[_Member]]) -> int:
    """Channels that most of the cases with a channel 0000 have."""
    counts = [len(group) for group in groups if any(member.channel == 0 for member in group)]
    return max(sorted(set(counts)), key=counts.count, default=1)


def _incomplete(stem: str, group: Sequence[_Member], root: Path, channels: Sequence[str], wanted: int) -> Problem:
    files = tuple(relative(member.source.files[0], root) for member in group)
    words = list(channels) or [f"{number:04d}" for number in range(wanted)]
    found = [words[one.channel] if one.channel < len(words) else f"{one.channel:04d}" for one in group]
    doubled = len(set(found)) < len(found)
    text = f"{', '.join(files)}: case {stem!r} has the channels {', '.join(sorted(found))}, expected each of "
    error = CaseError(
        f"{text}{', '.join(words)} once; add what is missing, or take the case away",
        "channel-doubled" if doubled else "channel-missing",
    )
    return Problem(stem, files, error)


def _case(sources: Sequence[Source], root: Path, stem: str, salts: Sequence[str]) -> ImageCase:
    """One case; its keys are its names, ids of its series under each salt, and what a sidecar of `convert` says."""
    first = sources[0]
    keys = [stem] if stem else []
    for source in sources:
        if source.kind == "dicom":
            keys += [source_id(source, salt, root) for salt in salts]
            keys += [source.series.split("/")[0], source.files[0].parent.name if source.files[0].parent != root else ""]
        else:
            keys += [source.name, *_sidecar_words(source)]
    name = source_id(first, salts[0], root) if first.kind == "dicom" else stem or first.name
    return ImageCase(name, tuple(sources), tuple(dict.fromkeys(key for key in keys if key)))


def _sidecar_words(source: Source) -> list[str]:
    content = sidecar_of(source)
    return [word for key in ("case", "series") if isinstance(word := content.get(key), str)]


def sidecar_of(source: Source) -> dict[str, object]:
    """What stands in the JSON file beside a volume, as `convert` writes one; empty where there is none."""
    path = source.files[0].with_name(f"{source.name}.json")
    with suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
    return {}
