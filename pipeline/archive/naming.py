"""What the outputs of an archive are called: case ids for DICOM, base names for files, or the user's template.

Two volumes of one base name in different folders get the names of their folders in front (`sub1_scan`, `sub2_scan`), as
few as tell them apart; DICOM volumes of one id get ids from their places, for folders may be called after people.
Nothing is decided by the order in which files were found, so an archive gives the same names
every time. What still clashes is stopped, alone: nothing is ever written over another volume.
"""

from __future__ import annotations

import hashlib
import os
import re
import string
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...errors import CaseError, UsageError
from ...transforms.dicom import read_header
from ...transforms.read_options import DEFAULT, ReadOptions
from ...transforms.readers import Source
from ...transforms.volume import NOTHING
from ...transforms.zip_files import unpacked
from ..identity import case_id
from .records import series_id

FIELDS = ("folder", "path", "name", "series", "study", "patient", "modality", "part", "number")
RESERVED = {"manifest", "timings", "failures", "salt"}  # base names of the files that an output folder keeps for itself
LONGEST_NAME = 200  # bytes: file systems take 255, and suffixes and temporary names need some


@dataclass(frozen=True)
class Origin:
    """Whom a DICOM volume belongs to, as salted ids, and what its first header says without identifiers."""

    study: str | None = None
    patient: str | None = None
    facts: Mapping[str, Any] = field(default_factory=lambda: NOTHING)


def origin_of(source: Source, salt: str, options: ReadOptions = DEFAULT) -> Origin:
    """Study and patient of a volume; both are None where the source knows neither (all but DICOM)."""
    if source.kind != "dicom":
        return Origin()
    try:
        if source.proved is not None:
            first = source.proved[0].slices[0]
        else:
            with unpacked(source.files[:1]) as (files, _):
                first = read_header(files[0], options)[0]
    except CaseError:
        return Origin()
    study = case_id(salt, "study", first.study).removeprefix("case-") if first.study else None
    patient = case_id(salt, "patient", first.patient).removeprefix("case-") if first.patient else None
    return Origin(study, patient, {**first.facts, **first.splits})


def source_id(source: Source, salt: str, root: Path) -> str:
    """The id of a volume: of its series for DICOM, of its place in the archive for files."""
    if source.series and not source.series.startswith("/"):  # it does where the file has no SeriesInstanceUID
        return series_id(salt, source.series)
    home = root.parent if root.is_file() else root  # as `index` has it: members of a zip archive lie below its name
    place = [relative(path, home) for path in source.files]
    if source.kind == "dicom" and source.series:
        place.append(source.series)
    return case_id(salt, *place, *([] if source.part is None else [str(source.part)]))


def ids_of(sources: Sequence[Source], root: Path, salt: str) -> list[str]:
    """The id of each volume; one of its place where DICOM volumes share theirs, as copies in several folders may."""
    ids = [source_id(source, salt, root) for source in sources]
    count = Counter(ids)
    return [
        case_id(salt, one, relative(source.files[0], root)) if source.series and count[one] > 1 else one
        for one, source in zip(ids, sources, strict=True)
    ]


def whole_id(source: Source, salt: str, root: Path) -> str:
    """The id that all volumes of one series have, or all time points of one file."""
    return source_id(replace(source, series=source.series.partition("/")[0], part=None), salt, root)


def files_id(files: Sequence[Path], salt: str, root: Path) -> str:
    """The id of what was found and is no volume, by its first file."""
    home = root.parent if root.is_file() else root
    return case_id(salt, min((relative(path, home) for path in files), default=""))


def case_names(sources: Sequence[Source], root: Path, *, salt: str, template: str | None = None) -> list[str]:
    """One name a volume, in the order of the volumes; arguments as `names_of`.

    Raises:
        UsageError: a wrong template, or volumes whose names clash.
    """
    names = names_of(sources, root, salt=salt, template=template)
    for name in names:
        if isinstance(name, CaseError):
            raise UsageError(str(name))
    return [str(name) for name in names]


def names_of(sources: Sequence[Source], root: Path, *, salt: str, template: str | None = None) -> list[str | CaseError]:
    """One name a volume, in the order of the volumes; the refusal of those whose name others have too.

    Args:
        sources: the volumes.
        root: the input, which names are relative to.
        salt: of the case ids.
        template: the user's own, of `FIELDS`.

    Raises:
        UsageError: a wrong template.
    """
    if template is not None:
        _check_template(template)
        names = [_fit(name) for name in _filled(template, sources, root, salt)]
    else:
        ids = ids_of(sources, root, salt)
        names = _told_apart([source.name or one for source, one in zip(sources, ids, strict=True)], sources, root)
    return without_clashes(names, sources, root)


def relative(path: Path, root: Path) -> str:
    """A path as the user may know it: relative to the input, or the bare name."""
    try:
        return path.relative_to(root).as_posix() if path != root else path.name
    except ValueError:
        return path.name


def _check_template(template: str) -> None:
    way_out = "use " + ", ".join(f"{{{field}}}" for field in FIELDS)
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise UsageError(f"--name {template!r}: {error}; {way_out}") from None
    if strange := fields - set(FIELDS):
        raise UsageError(f"--name {template!r}: unknown field {{{min(strange)}}}; {way_out}")
    if not fields or re.search(r"[/\\\x00-\x1f]", template) or template.startswith((".", "-")):
        raise UsageError(f"--name {template!r}: holds no field, begins with a dot or dash, or holds a slash; {way_out}")


def _filled(template: str, sources: Sequence[Source], root: Path, salt: str) -> list[str]:
    """The template, filled in for every volume."""
    parts: Counter[str] = Counter()
    names = []
    ids = ids_of(sources, root, salt)
    for number, source in enumerate(sources, start=1):
        whole = source.series.partition("/")[0]
        parts[whole] += 1
        part = parts[whole] if whole else source.part or 0
        parents = _parents(source.files[0], root)
        origin = origin_of(source, salt) if "{study" in template or "{patient" in template else Origin()
        values = {
            "folder": parents[-1] if parents else _root_name(source, root),
            "path": "_".join(parents) or _root_name(source, root),
            "name": source.name or source.files[0].stem,
            "series": ids[number - 1].removeprefix("case-"),
            "study": origin.study or "unknown",
            "patient": origin.patient or "unknown",
            "modality": source.modality or "unknown",
            "part": str(part),
            "number": f"{number:04d}",
        }
        names.append(template.format_map({key: _safe(value) for key, value in values.items()}))
    return names


def _parents(path: Path, root: Path) -> list[str]:
    """The folders between the input and a file."""
    return relative(path, root).split("/")[:-1]


def _root_name(source: Source, root: Path) -> str:
    return (root.resolve().parent if source.files[0] == root else root.resolve()).name


def _safe(value: str) -> str:
    return re.sub(r"[^\w.+-]", "_", value).lstrip(".-") or "_"


def _fit(name: str) -> str:
    """A name that file systems take: the beginning and a hash of the whole where it is too long."""
    raw = os.fsencode(name)
    if len(raw) <= LONGEST_NAME:
        return name
    kept = raw[: LONGEST_NAME - 9].decode("utf-8", "ignore")
    return f"{kept}_{hashlib.sha256(raw).hexdigest()[:8]}"


def _key(name: str) -> str:
    """What some file systems hold for one name: case and the form of accents do not count."""
    return unicodedata.normalize("NFC", name).casefold()


def _groups(names: Sequence[str]) -> list[list[int]]:
    """Numbers of the volumes whose names clash with each other, or with the folder's own."""
    by_key: dict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(names):
        by_key[_key(name)].append(number)
    return [numbers for key, numbers in by_key.items() if len(numbers) > 1 or key in RESERVED]


def _told_apart(names: Sequence[str], sources: Sequence[Source], root: Path) -> list[str]:
    """Put folders in front of the names that clash, one more at a time."""
    parents = [[] if source.series else _parents(source.files[0], root) for source in sources]
    depth = [0] * len(names)
    while True:
        tried = [_fit("_".join((*parents[i][len(parents[i]) - depth[i] :], name))) for i, name in enumerate(names)]
        deeper = [i for group in _groups(tried) for i in group if depth[i] < len(parents[i])]
        if not deeper:
            return tried
        for i in deeper:
            depth[i] += 1


def without_clashes(
    names: Sequence[str],
    sources: Sequence[Source],
    root: Path,
    way_out: str = "use --name, such as {folder}_{number}",
) -> list[str | CaseError]:
    """The names, with the refusal of each that another volume or the output folder itself has too."""
    checked: list[str | CaseError] = list(names)
    for group in _groups(names):
        for number in group:
            own = relative(sources[number].files[0], root)
            others = [relative(sources[other].files[0], root) for other in group if other != number]
            if others:
                more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
                text = f"{own} and {others[0]}{more} would be written as {names[number]!r}"
            else:
                text = f"{own}: the name {names[number]!r} is kept for the output folder's own"
            checked[number] = CaseError(f"{text}; {way_out}", "name-clash")
    return checked
