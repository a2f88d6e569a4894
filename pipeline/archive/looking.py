"""What worker processes do for an index: look into files, sort series, read files whole; rows in and rows out."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import CaseError
from ...transforms.dicom import Slice
from ...transforms.grouping import group_series, is_single, series_of_error
from ...transforms.look import Look, look_into, look_into_members
from ...transforms.read_options import ReadOptions
from ...transforms.tree import natural_key
from ..identity import file_digest
from .records import joined, key_token, named, packed, place_of, readable, series_token, token, unpacked
from .rows import Row, rows_of_look, rows_of_series


@dataclass(frozen=True)
class Setting:
    """What all tasks of a run share.

    Args:
        root: the folder that paths are relative to, resolved.
        salt: of ids and tokens.
        options: the ways out that the user has chosen.
        alone: one file is indexed, which the user named.
    """

    root: str
    salt: str
    options: ReadOptions
    alone: bool = False


class Target(NamedTuple):
    """One file to look into, with the size and time that it was met with."""

    path: str
    size: int
    modified: int


class Instance(NamedTuple):
    """What is kept of one file; `volumes` are those of a file that is no slice of a series."""

    folder: str
    name: str
    size: int
    modified: int
    kind: str
    archive: str | None = None
    series: str | None = None
    header: str | None = None
    code: str | None = None
    error: str | None = None
    blames: str | None = None
    volumes: tuple[Row, ...] = ()
    phi: tuple[tuple[str, str], ...] = ()


class Series(NamedTuple):
    """One series to sort: its files in order, and an unreadable file that may belong to it."""

    token: str
    files: Sequence[tuple[str, str, int, int, str]]
    blame: tuple[str, str, str] | None = None


class Sorted(NamedTuple):
    """What one series holds; `single` says to which others it may belong if its UIDs were scrambled."""

    token: str
    files: int
    single: str | None
    volumes: tuple[Row, ...]


def look_at_any(setting: Setting, what: str, *arguments: Any) -> list[Instance]:
    """One task of a scan."""
    return look_at(setting, *arguments) if what == "files" else look_at_members(setting, *arguments)


def look_at(setting: Setting, targets: Sequence[Target]) -> list[Instance]:
    """Look into some files."""
    return [
        instance_of(look_into(Path(target.path), setting.options, alone=setting.alone), target, setting)
        for target in targets
    ]


def look_at_members(setting: Setting, archive: Target, names: Sequence[str]) -> list[Instance]:
    """Look into some files of a zip archive."""
    place = joined(*place_of(archive.path, setting.root))
    try:
        found = list(look_into_members(Path(archive.path), names, setting.options))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # of the temporary folder: nothing is wrong with the archive
            raise
        text = f"{archive.path}: cannot be read ({error.strerror or error}). Check the disk"
        found = [(Path(archive.path, name), Look("broken", error=CaseError(text, "unreadable"))) for name in names]
    return [
        instance_of(look, Target(str(path), archive.size, archive.modified), setting)._replace(archive=place)
        for path, look in found
    ]


def instance_of(look: Look, target: Target, setting: Setting) -> Instance:
    """What is kept of a file that was looked into."""
    root, salt = setting.root, setting.salt
    folder, name = place_of(target.path, root)
    own = Instance(folder, name, target.size, target.modified, look.kind)
    if look.slices:
        first = look.slices[0]
        return own._replace(
            series=series_token(salt, first, setting.options),
            header=packed(look.slices, salt),
            phi=tuple(sorted((key, readable(value)) for key, value in first.phi.items())),
        )
    if look.error is not None:
        own = own._replace(code=look.error.code, error=readable(str(look.error)))
        if look.kind == "broken":
            blames = series_of_error(look.error, setting.options)
            return own._replace(blames=key_token(salt, (blames[0], blames[1] or target.path)) if blames else None)
    rows = rows_of_look(look, target.path, root, salt, setting.options)
    return own._replace(volumes=tuple(rows))


def sort_all(setting: Setting, series: Sequence[Series]) -> list[Sorted]:
    """Sort some series into volumes."""
    return [sort_one(setting, one) for one in series]


def sort_one(setting: Setting, series: Series) -> Sorted:
    """Sort one series into volumes."""
    if not series.files:
        return Sorted(series.token, 0, None, ())
    slices = slices_of(setting, series.files)
    broken = None
    if series.blame is not None:
        path, code, message = series.blame
        broken = (Path(path), CaseError(message, code))
    grouped = group_series(slices, setting.options, broken)
    rows = rows_of_series(grouped, setting.root, setting.salt, slices[0].modality)
    single = None
    if not setting.options.group_by and len(grouped.stacks) == 1 and is_single(grouped.stacks[0]):
        first = grouped.stacks[0].slices[0]
        single = token(setting.salt, "\0".join((first.study, first.series_number, str(first.path.parent))))
    return Sorted(series.token, len(series.files), single, tuple(rows))


def slices_of(setting: Setting, files: Sequence[tuple[str, str, int, int, str]]) -> list[Slice]:
    """The records of files, in the natural order of their paths."""
    ordered = sorted(files, key=lambda file: (natural_key(file[0]), natural_key(file[1])))
    return [
        one
        for folder, name, size, modified, header in ordered
        for one in unpacked(header, Path(setting.root, named(folder), named(name)), size, modified)
    ]


def digests(setting: Setting, paths: Sequence[str]) -> list[tuple[str, str | None]]:
    """SHA-256 of some files; None where one cannot be read."""
    found: list[tuple[str, str | None]] = []
    for path in paths:
        try:
            found.append((path, file_digest(Path(path))))
        except OSError:
            found.append((path, None))
    return found
