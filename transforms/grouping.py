"""DICOM headers to sources: one series at a time, and what only several series together show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import CaseError
from .dicom import Slice, SliceError
from .dicom_series import Stack, sort_series
from .read_options import DEFAULT, ReadOptions
from .sources import NotAVolume, Source, Stopped

FEWEST_SCRAMBLED = 3


@dataclass(frozen=True, eq=False)
class Grouped:
    """What one series holds; `stacks` belong to `sources`, one by one."""

    sources: tuple[Source, ...] = ()
    stacks: tuple[Stack, ...] = ()
    stopped: tuple[Stopped, ...] = ()
    listed: tuple[NotAVolume, ...] = ()


def series_key(one: Slice, options: ReadOptions = DEFAULT) -> tuple[str, str]:
    """What tells the series of a slice apart from others; a file without UIDs is one of its own.

    Not the study: a series that lies in two would come out as two halves, each of which looks whole. It stops instead.
    """
    if options.group_by:
        return ("", one.group or str(one.path))
    return ("", one.series) if one.series else (one.study, str(one.path))


def series_of_error(error: CaseError, options: ReadOptions = DEFAULT) -> tuple[str, str] | None:
    """The series that an unreadable file belongs to, where its header says so."""
    if not isinstance(error, SliceError) or options.group_by:
        return None
    study, series = error.series
    return ("", series) if series else (study, series)


def group_series(
    slices: Sequence[Slice], options: ReadOptions = DEFAULT, broken: tuple[Path, CaseError] | None = None
) -> Grouped:
    """Make volumes of all files of one series.

    Args:
        slices: all of its records.
        options: the ways out that the user has chosen.
        broken: an unreadable file that may belong to it: what may lack a slice is not made into a volume.
    """
    if broken is not None:
        file, error = broken
        files = tuple(dict.fromkeys(one.path for one in slices))
        message = f"{error} (the {len(files)} files of its series were left out with it)"
        return Grouped(stopped=(Stopped(tuple(dict.fromkeys((*files, file))), error.code, message),))
    result = sort_series(slices, options)
    return Grouped(
        tuple(source_of(stack, options) for stack in result.stacks),
        tuple(result.stacks),
        tuple(Stopped(files, error.code, str(error)) for files, error in result.stopped),
        tuple(NotAVolume(files, reason) for files, reason in result.listed),
    )


def source_of(stack: Stack, options: ReadOptions) -> Source:
    """The source of a stack."""
    modality = stack.slices[0].modality
    return Source(
        "dicom",
        stack.files,
        series=stack.series,
        modality=modality,
        shape=stack.shape,
        repairs=stack.repairs,
        notes=stack.notes,
        proved=(stack, options),
    )


def is_single(stack: Stack) -> bool:
    """Whether a stack is one file of one slice, so that it may be part of a series whose UIDs were scrambled."""
    return len(stack.slices) == 1 and not stack.picture and stack.slices[0].frame is None


def scrambled(stacks: Sequence[Stack]) -> Stopped | None:
    """Three or more series of one slice each with one SeriesNumber: an anonymiser gave each file its own UID.

    Args:
        stacks: single slices of one study, one SeriesNumber and one folder.
    """
    alike = [
        stack
        for stack in stacks
        if stack.shape == stacks[0].shape and stack.slices[0].orientation == stacks[0].slices[0].orientation
    ]
    if len(alike) < FEWEST_SCRAMBLED or len({stack.slices[0].position for stack in alike}) < len(alike):
        return None
    files = tuple(file for stack in alike for file in stack.files)
    message = (
        f"{files[0].parent}: {len(alike)} series of 1 slice each: SeriesInstanceUID looks scrambled, so nothing says "
        "which slices belong together. Fetch the series with its own UIDs, or give "
        "--group-by StudyInstanceUID,SeriesNumber"
    )
    return Stopped(files, "scrambled-uids", message)
