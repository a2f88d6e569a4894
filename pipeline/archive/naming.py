"""What the outputs of an archive are called: case ids for DICOM, base names for files, or the user's template."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from pathlib import Path

from ...errors import UsageError
from ...transforms.readers import Source
from ..identity import case_id

FIELDS = ("folder", "series", "modality", "number")
RESERVED = {"manifest", "timings", "failures", "salt"}  # base names of the files that an output folder keeps for itself


def source_id(source: Source, salt: str, root: Path) -> str:
    """The id of a volume: of its series for DICOM, of its place in the archive for files."""
    if source.series:
        return case_id(salt, source.series)
    place = [relative(path, root) for path in source.files]
    return case_id(salt, *place, *([] if source.part is None else [str(source.part)]))


def case_names(sources: Sequence[Source], root: Path, *, salt: str, template: str | None = None) -> list[str]:
    """One name a volume, in the order of the volumes.

    Args:
        sources: the volumes.
        root: the input, which names are relative to.
        salt: of the case ids.
        template: the user's own, with `{folder}`, `{series}`, `{modality}`, `{number}`.

    Raises:
        UsageError: a wrong template, or two volumes of one name (case ignored, as some file systems do).
    """
    if template is not None:
        _check_template(template)
    names = []
    for number, source in enumerate(sources, start=1):
        series = source_id(source, salt, root)
        if template is None:
            names.append(source.name or series)
            continue
        values = {
            "folder": (source.files[0].parent if source.files[0] != root else root.resolve().parent).name,
            "series": series.removeprefix("case-"),
            "modality": source.modality or "unknown",
            "number": f"{number:04d}",
        }
        names.append(template.format_map({key: _safe(value) for key, value in values.items()}))
    _refuse_clashes(names, sources, root)
    return names


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


def _safe(value: str) -> str:
    return re.sub(r"[^\w.+-]", "_", value).lstrip(".-") or "_"


def _refuse_clashes(names: Sequence[str], sources: Sequence[Source], root: Path) -> None:
    seen: dict[str, Source] = {}
    for name, source in zip(names, sources, strict=True):
        if name.lower() in RESERVED:
            raise UsageError(f"{source.files[0]}: the name {name!r} is kept for the output folder's own; use --name")
        if (other := seen.get(name.lower())) is not None:
            first, second = (relative(one.files[0], root) for one in (other, source))
            raise UsageError(
                f"{first} and {second} would both be written as {name!r}; use --name, such as {{folder}}_{{number}}"
            )
        seen[name.lower()] = source
