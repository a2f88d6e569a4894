"""Reads what a search found: one volume, or its place in the world alone.

`find_sources` reads headers only; `read_source` reads one volume. A failure is a failure: no second reader is tried.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import CaseError
from .dicom import read_header
from .dicom_pixels import read_stack
from .dicom_series import Stack, sort_series
from .finder import find_sources
from .itk_files import itk_geometry, read_itk
from .nifti import read_header as read_nifti_header
from .nifti import read_nifti
from .pictures import picture_shape, read_picture
from .read_options import DEFAULT, ReadOptions
from .sources import Found, NotAVolume, Source, Stopped
from .tree import natural_key, walk
from .volume import Geometry, Volume
from .zip_files import unpacked

__all__ = [
    "Found",
    "NotAVolume",
    "Source",
    "Stopped",
    "dicom_stack",
    "find_sources",
    "natural_key",
    "only_source",
    "read_geometry",
    "read_source",
    "read_volume",
    "source_geometry",
    "walk",
]


def read_source(source: Source, options: ReadOptions = DEFAULT) -> Volume:
    """Read one volume.

    Raises:
        CaseError: anything that makes the voxels or their place uncertain.
        UnsafeInputError: it lies in a zip archive that must not be unpacked.
    """
    with unpacked(source.files) as (files, archives):
        if not archives:
            return _read(source, options)
        try:
            return _read(replace(source, files=files, proved=None), options)
        except CaseError as error:
            raise CaseError(_as_called(str(error), archives), error.code) from error


def _read(source: Source, options: ReadOptions) -> Volume:
    file = source.files[0]
    try:
        if source.kind == "dicom":
            try:
                return read_stack(dicom_stack(source, options))
            except CaseError as error:
                if error.code != "changed":
                    raise
                return read_stack(dicom_stack(replace(source, proved=None), options))  # once, its headers too
        if source.kind == "nifti":
            return read_nifti(file, source.part, affine=options.affine, max_voxels=options.max_voxels)
        if source.kind == "itk":
            return read_itk(file, max_voxels=options.max_voxels)
        return read_picture(file)
    except OSError as error:
        raise CaseError(
            f"{error.filename or file}: cannot be read ({error.strerror or error}). Check the disk", "unreadable"
        ) from error
    except MemoryError as error:
        raise CaseError(
            f"{file}: no memory for its voxels ({source.shape}). Free memory, or cut it smaller", "memory"
        ) from error


def _as_called(text: str, archives: dict[str, str]) -> str:
    """A text with the archives in the place of the folders that they were unpacked into."""
    for folder, archive in archives.items():
        text = text.replace(folder, archive)
    return text


def dicom_stack(source: Source, options: ReadOptions = DEFAULT) -> Stack:
    """The stack of a source: as it was proved in this process if no file changed since, else proved again."""
    if source.proved is not None and source.proved[1] == options and _as_proved(source.proved[0]):
        stack = source.proved[0]
        return replace(
            stack,
            series=source.series or stack.series,
            repairs=stack.repairs if source.repairs is None else source.repairs,
            notes=stack.notes if source.notes is None else source.notes,
        )
    slices = [one for file in source.files for one in read_header(file, options)]
    # One part alone says neither which time points there are nor how many slices its series lacks.
    result = sort_series(slices, replace(options, strict=False, time="all"))
    part = source.series.partition("/")[2]
    stacks = (
        [stack for stack in result.stacks if stack.series == source.series]
        or [stack for stack in result.stacks if len(result.stacks) > 1 and stack.series.partition("/")[2] == part]
        or list(result.stacks)
    )
    if len(stacks) == 1:
        repairs = stacks[0].repairs if source.repairs is None else source.repairs
        notes = stacks[0].notes if source.notes is None else source.notes
        return replace(stacks[0], series=source.series or stacks[0].series, repairs=repairs, notes=notes)
    if result.stopped:
        raise result.stopped[0][1]
    raise CaseError(
        f"{source.files[0].parent}: the series changed while it was read. Run again when it is complete", "changed"
    )


def _as_proved(stack: Stack) -> bool:
    """Whether every file still has the size and the time that it had when its header was read."""
    for path, size, modified in {(one.path, one.size, one.modified) for one in stack.slices}:
        try:
            state = os.stat(path)
        except OSError:
            return False
        if (state.st_size, state.st_mtime_ns) != (size, modified):
            return False
    return True


def only_source(path: Path, options: ReadOptions = DEFAULT) -> Source:
    """The one volume behind a path.

    Raises:
        UsageError: the path does not exist or is empty.
        CaseError: none, several, or one beside files that could not be read.
    """
    found = find_sources(path, options)
    if found.stopped:
        first = found.stopped[0]
        more = f" ({len(found.stopped) - 1} more could not be read)" if len(found.stopped) > 1 else ""
        raise CaseError(f"{first.message}{more}", first.code)
    if len(found.sources) != 1:
        raise CaseError(
            f"{path} holds {len(found.sources)} volumes, expected exactly one. "
            "Give the file or the folder of one series",
            "several-volumes" if found.sources else "no-volume",
        )
    return found.sources[0]


def read_volume(path: Path, options: ReadOptions = DEFAULT) -> Volume:
    """Read the one volume behind a file or a DICOM folder."""
    return read_source(only_source(Path(path), options), options)


def read_geometry(path: Path, options: ReadOptions = DEFAULT) -> tuple[Geometry, int]:
    """Shape and place of the one volume behind a path, and its number of channels; headers only."""
    return source_geometry(only_source(Path(path), options), options)


def source_geometry(source: Source, options: ReadOptions = DEFAULT) -> tuple[Geometry, int]:
    """Shape and place of a source, and its number of channels; headers only."""
    with unpacked(source.files) as (files, archives):
        return _geometry(replace(source, files=files, proved=None) if archives else source, options)


def _geometry(source: Source, options: ReadOptions) -> tuple[Geometry, int]:
    file = source.files[0]
    if source.kind == "nifti":
        header = read_nifti_header(file, affine=options.affine)
        return header.geometry, header.channels
    if source.kind == "itk":
        return itk_geometry(file)[0], 1
    if source.kind == "picture":
        shape, channels = picture_shape(file)
        return Geometry(shape, np.eye(4), has_world=False), channels
    stack = dicom_stack(source, options)
    first = stack.slices[0]
    colour = stack.picture and (first.samples > 1 or first.photometric == "PALETTE COLOR")
    return Geometry(stack.shape, stack.affine, has_world=not stack.picture), 3 if colour else 1
