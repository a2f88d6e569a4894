"""Geometry that the user states for headers that lack it (`--geometry FILE`): a JSON file with DICOM keywords.

    {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [0.8, 0.8],
     "ImagePositionPatient": [-100, -100, 0], "SpacingBetweenSlices": 5}

Only what is absent or unusable is filled. The position is that of the first slice by InstanceNumber; the others follow
along the normal (row x column), SpacingBetweenSlices apart.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..errors import CaseError, UsageError
from .dicom_geometry import FARTHEST_MM, check_claim, directions, numbers, pixel_spacing, usable
from .dicom_record import Slice
from .volume import Entry

FIELDS = {"ImageOrientationPatient": 6, "PixelSpacing": 2, "ImagePositionPatient": 3, "SpacingBetweenSlices": 1}


@dataclass(frozen=True)
class StatedGeometry:
    """What the file of the user says, as texts of the DICOM header; "" where it says nothing."""

    file: Path
    orientation: str = ""
    spacing: str = ""
    position: str = ""
    step_mm: float = 0.0


def read_stated(file: Path) -> StatedGeometry:
    """Read and check the user's file.

    Raises:
        UsageError: no such file, no JSON, an unknown keyword, or a value that no geometry can have.
    """
    try:
        return parsed(file, Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise UsageError(f"--geometry {file}: cannot be read ({reason}); give a JSON file") from error


@lru_cache(maxsize=16)
def parsed(file: Path, text: str) -> StatedGeometry:
    """`read_stated` of a text."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--geometry {file}: not JSON; expected an object with {', '.join(FIELDS)}") from error
    if not isinstance(found, dict) or not found:
        raise UsageError(f"--geometry {file}: expected a JSON object with {', '.join(FIELDS)}")
    texts: dict[str, str] = {}
    for name, value in found.items():
        if name not in FIELDS:
            raise UsageError(f"--geometry {file}: {name[:64]!r} is none of {', '.join(FIELDS)}")
        values = value if isinstance(value, list) else [value]
        if len(values) != FIELDS[name] or not all(is_length(one) for one in values):
            raise UsageError(f"--geometry {file}: {name}: expected {FIELDS[name]} finite number(s)")
        texts[name] = "\\".join(repr(float(one)) for one in values)
    stated = StatedGeometry(
        file,
        texts.get("ImageOrientationPatient", ""),
        texts.get("PixelSpacing", ""),
        texts.get("ImagePositionPatient", ""),
        float(texts.get("SpacingBetweenSlices", "0")),
    )
    if stated.orientation and directions(stated.orientation) is None:
        raise UsageError(f"--geometry {file}: ImageOrientationPatient: two directions of length 1 at right angles")
    if stated.spacing and pixel_spacing(stated.spacing) is None:
        raise UsageError(f"--geometry {file}: PixelSpacing: expected two numbers above 0 (mm)")
    if "SpacingBetweenSlices" in texts and stated.step_mm <= 0:
        raise UsageError(f"--geometry {file}: SpacingBetweenSlices: expected a number above 0 (mm)")
    return stated


def is_length(value: object) -> bool:
    """Whether a value is a finite number that a geometry can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return -FARTHEST_MM <= value <= FARTHEST_MM


def with_stated(slices: Sequence[Slice], file: Path) -> tuple[list[Slice], list[Entry]]:
    """Fill what the headers lack with what the user states, and say so.

    Args:
        slices: of one series, without copies.

    Raises:
        UsageError: the file of the user cannot be used.
        CaseError: what the headers lack is not stated, a file claims more than it holds, or nothing gives an order.
    """
    stated = read_stated(file)
    filled: list[Slice] = []
    taken: set[str] = set()
    for one in slices if all(one.frames == 1 or one.frame is not None for one in slices) else one_a_frame(slices):
        if not usable(one.orientation, 6) or directions(one.orientation or "") is None:
            one = replace(one, orientation=said(one, stated, stated.orientation, "ImageOrientationPatient"))
            taken.add("ImageOrientationPatient")
        if not usable(one.spacing, 2) or pixel_spacing(one.spacing or "") is None:
            one = replace(one, spacing=said(one, stated, stated.spacing, "PixelSpacing"))
            taken.add("PixelSpacing")
        filled.append(one)
    if not all(usable(one.position, 3) for one in filled):
        filled = positioned(filled, stated)
        taken |= {"ImagePositionPatient", "SpacingBetweenSlices"} if len(filled) > 1 else {"ImagePositionPatient"}
    if not taken:
        return list(slices), []
    detail = f"{', '.join(name for name in FIELDS if name in taken)}: stated by the user, not by the headers"
    return filled, [Entry("geometry-stated", detail)]


def said(one: Slice, stated: StatedGeometry, text: str, name: str) -> str:
    """What the user states of one tag."""
    if not text:
        raise CaseError(
            f"{one.path}: {name} is absent or cannot be used, expected it in the header or in {stated.file}. "
            f"State {name} there",
            "no-geometry",
        )
    return text


def positioned(slices: Sequence[Slice], stated: StatedGeometry) -> list[Slice]:
    """Give a place to every slice that has none, in the order of InstanceNumber."""
    first = slices[0]
    start = np.array(numbers(said(first, stated, stated.position, "ImagePositionPatient"), 3))
    if len(slices) > 1:
        said(first, stated, str(stated.step_mm or ""), "SpacingBetweenSlices")
    instances = [one.instance for one in slices if one.instance is not None]
    if len(set(instances)) < len(slices) or max(instances) - min(instances) + 1 != len(slices):
        raise CaseError(
            f"{first.path}: InstanceNumber: {len(set(instances))} numbers for {len(slices)} slices, expected an "
            "unbroken row without repeats, for a stated geometry to be laid on. Fetch the series again",
            "instance-numbers",
        )
    found = []
    for one in slices:
        plane = directions(one.orientation or "")
        if usable(one.position, 3) or plane is None or one.instance is None:
            found.append(one)
            continue
        place = start + (one.instance - min(instances)) * stated.step_mm * plane[2]
        found.append(replace(one, position="\\".join(f"{value:.10g}" for value in place)))
    return found


def one_a_frame(slices: Sequence[Slice]) -> list[Slice]:
    """The frames of a multi-frame file without functional groups as slices in their order.

    Raises:
        CaseError: a file claims more frames than it holds.
    """
    for one in slices:
        check_claim(one)
    return [
        replace(one, frame=number, instance=number + 1) if one.frames > 1 and one.frame is None else one
        for one in slices
        for number in range(one.frames if one.frame is None else 1)
    ]
