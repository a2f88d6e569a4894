"""Images that are never stacked: pictures, and films whose frames follow in time; no pixel has a world place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import CaseError
from .dicom_checks import refuse_by_choice
from .dicom_geometry import check_claim, pixel_spacing
from .dicom_notes import file_notes, file_repairs
from .dicom_record import CLASSES, PICTURE_CLASSES, VOLUME_CLASSES, Slice
from .dicom_stack import SortedSeries, Stack
from .read_options import ReadOptions
from .volume import Entry

NUCLEAR, ULTRASOUND_VOLUME = CLASSES + "20", CLASSES + "6.2"
INVERTED_MODALITIES = ("CR", "DX", "MG", "IO", "PX")


def is_picture(one: Slice) -> bool:
    """Whether an image is never stacked; colour in a CT or MR class counts as one."""
    return one.sop_class in PICTURE_CLASSES or (one.sop_class in VOLUME_CLASSES and one.samples > 1)


def sort_pictures(slices: Sequence[Slice], options: ReadOptions, *, beside_volumes: bool) -> SortedSeries:
    """Everything of a series that is no slice of a volume: pictures and films, and what is listed.

    Args:
        slices: without copies.
        beside_volumes: the series holds slices; then a picture in it is a screenshot and no case of its own.
    """
    stacks: list[Stack] = []
    stopped: list[tuple[tuple[Path, ...], CaseError]] = []
    listed: list[tuple[tuple[Path, ...], str]] = []
    seen: set[Path] = set()
    for one in slices:
        if one.path in seen:
            continue
        seen.add(one.path)
        if not is_picture(one):
            listed.append(((one.path,), f"not a volume: {one.class_name}"))
        elif beside_volumes:
            listed.append(((one.path,), f"not a volume: {one.class_name} in a series of slices"))
        elif one.frames > 1 and lies_in_space(one):
            listed.append(((one.path,), f"not a volume: {one.class_name}, {one.frames} frames that are no film"))
        else:
            try:
                stacks.append(picture_stack(replace(one, frame=None), options))
            except CaseError as error:
                stopped.append(((one.path,), error))
    return SortedSeries(tuple(stacks), tuple(stopped), tuple(listed))


def lies_in_space(one: Slice) -> bool:
    """Whether frames follow each other in space, in angle or by detector, and not in time."""
    return one.sop_class == ULTRASOUND_VOLUME or (one.sop_class == NUCLEAR and not one.frame_seconds)


def picture_stack(one: Slice, options: ReadOptions) -> Stack:
    """One picture or film: pixel size and time where they are told, else 1.

    Raises:
        CaseError: no pixels, or another number of bytes than its header claims.
    """
    if one.refusal is not None:
        raise CaseError(*one.refusal)
    if not one.pixels:
        raise CaseError(
            f"{one.path}: no PixelData, expected an image. Copy the file again from its source", "no-pixels"
        )
    check_claim(one)
    refuse_by_choice(one, options)
    film = one.frames > 1
    seconds = one.frame_seconds if film and one.frame_seconds and one.frame_seconds > 0 else 1.0
    rows_mm, columns_mm = pixel_size(one)
    what = "a film: its third axis is time" if film else "a picture"
    notes = [Entry("no-world-coordinates", f"{what}; pixels have no place in the world"), *file_notes([one])]
    if one.photometric == "MONOCHROME1" and one.modality not in INVERTED_MODALITIES:
        notes.append(Entry("monochrome1", "MONOCHROME1: shown inverted; the values are kept as they are"))
    return Stack(
        (one,),
        (one.path,),
        f"{one.series}/{one.sop}",
        np.diag([columns_mm, rows_mm, seconds, 1.0]),
        tuple(file_repairs([one])),
        tuple(notes),
        picture=True,
        film=film,
    )


def pixel_size(one: Slice) -> tuple[float, float]:
    """Distance of rows and of columns in mm; 1 where the source does not say."""
    try:
        return pixel_spacing(one.spacing or "") or (1.0, 1.0)
    except ValueError:
        return (1.0, 1.0)
