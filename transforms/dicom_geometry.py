"""The geometry of DICOM slices: each one's numbers read and checked, and the step from slice to slice proved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..errors import CaseError
from .dicom_record import UNDEFINED, Slice
from .dicom_text import shown

ANGLE_LIMIT = 0.01  # radians between the orientations of one stack
SPACING_TOLERANCE = 1e-4
LENGTH_TOLERANCE = 1e-2
COSINE_TOLERANCE = 1e-3
FARTHEST_MM = 1e6
WIDEST_MM, NARROWEST_MM = 1e3, 1e-6
GAP_MM, GAP_SHARE = 0.01, 0.01  # how far a gap may lie off the usual one, in each coordinate and of itself
SHOWN_GAPS = 8


@dataclass(frozen=True, eq=False)
class Placed:
    """A slice with the numbers of its geometry, read and checked; `normal` has length 1."""

    slice: Slice
    position: np.ndarray
    row: np.ndarray
    column: np.ndarray
    normal: np.ndarray
    spacing: tuple[float, float]


def numbers(text: str, count: int) -> tuple[float, ...]:
    """Exactly `count` finite numbers parted by backslashes."""
    if "_" in text:
        raise ValueError(text)
    values = tuple(float(part) for part in text.split("\\"))
    if len(values) != count or not all(map(math.isfinite, values)):
        raise ValueError(text)
    return values


@lru_cache(maxsize=4096)
def directions(text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Row, column and normal of ImageOrientationPatient; None where they do not stand at right angles.

    Raises:
        ValueError: not six numbers.
    """
    cosines = np.array(numbers(text, 6))
    row, column = cosines[:3], cosines[3:]
    lengths = float(np.linalg.norm(row)), float(np.linalg.norm(column))
    if min(lengths) < 1 - LENGTH_TOLERANCE or max(lengths) > 1 + LENGTH_TOLERANCE:
        return None
    row, column = row / lengths[0], column / lengths[1]
    if abs(row @ column) > COSINE_TOLERANCE:
        return None
    normal = np.cross(row, column)
    return row, column, normal / np.linalg.norm(normal)


@lru_cache(maxsize=4096)
def pixel_spacing(text: str) -> tuple[float, float] | None:
    """Distance of rows and of columns in mm; None where no pixel can have that size.

    Raises:
        ValueError: not two numbers.
    """
    rows, columns = numbers(text, 2)
    return (rows, columns) if min(rows, columns) > NARROWEST_MM and max(rows, columns) <= WIDEST_MM else None


def placed(one: Slice) -> Placed:
    """Read and check position, orientation and pixel spacing.

    Raises:
        CaseError: a tag is absent, not a number, zero, or its directions are not at right angles.
    """
    way = "Fetch the series again, or state what it is with --geometry FILE"
    try:
        position = numbers(one.position or "", 3)
        plane = directions(one.orientation or "")
        spacing = pixel_spacing(one.spacing or "")
    except ValueError:
        raise not_numbers(one, way) from None
    if max(map(abs, position)) > FARTHEST_MM:
        raise CaseError(
            f"{one.path}: ImagePositionPatient is {shown(one.position)}, expected millimetres within a kilometre. "
            f"{way}",
            "no-geometry",
        )
    if plane is None:
        found = f"ImageOrientationPatient is {shown(one.orientation)}"
        raise CaseError(
            f"{one.path}: {found}, expected two directions of length 1 that stand at right angles. {way}",
            "skewed-orientation",
        )
    if spacing is None:
        raise CaseError(
            f"{one.path}: PixelSpacing is {shown(one.spacing)}, expected two numbers above 0 (mm). {way}", "no-geometry"
        )
    check_claim(one)
    return Placed(one, np.array(position), *plane, spacing)


def not_numbers(one: Slice, way: str) -> CaseError:
    """The first tag of the geometry that does not hold its numbers."""
    tags = (
        ("ImagePositionPatient", one.position, 3),
        ("ImageOrientationPatient", one.orientation, 6),
        ("PixelSpacing", one.spacing, 2),
    )
    name, text, count = next(tag for tag in tags if not usable(*tag[1:]))
    return CaseError(
        f"{one.path}: {name} is {shown(text)}, expected {count} numbers; without it no voxel has a place. {way}",
        "no-geometry",
    )


def usable(text: str | None, count: int) -> bool:
    """Whether a text holds that many numbers."""
    try:
        return bool(text) and len(numbers(text or "", count)) == count
    except ValueError:
        return False


def check_claim(one: Slice) -> None:
    """Rows x Columns x frames against the length of PixelData, before any memory is taken.

    Raises:
        CaseError: no row or no column, or another number of bytes.
    """
    rows, columns = (one.rows, one.columns) if one.tile is None else one.tile[2:]
    if min(rows, columns, one.rows, one.columns) < 1:
        raise CaseError(
            f"{one.path}: Rows {one.rows}, Columns {one.columns}, expected both above 0. Fetch the series again",
            "no-matrix",
        )
    if one.frames > max(1, one.size):
        raise CaseError(
            f"{one.path}: NumberOfFrames is {one.frames} in a file of {one.size} bytes, expected fewer. "
            "Copy the file again from its source",
            "pixel-length",
        )
    if one.pixel_length == UNDEFINED or one.bits_allocated % 8 or not one.native:
        return
    samples = 2 if one.photometric == "YBR_FULL_422" and one.samples == 3 else one.samples
    wanted = rows * columns * samples * one.frames * one.bits_allocated // 8
    if not wanted <= one.pixel_length <= wanted + 1:
        claim = f"Rows {rows} x Columns {columns} x {one.frames} frame(s) need {wanted} bytes"
        found = f"{claim}, PixelData has {one.pixel_length}"
        raise CaseError(f"{one.path}: {found}. Copy the file again from its source", "pixel-length")


def like_groups(slices: Sequence[Placed]) -> list[list[Placed]]:
    """Groups of one matrix, one pixel spacing (1e-4) and one orientation (0.01 rad); the largest first.

    Each group is told by its first slice. Slices of equal tags are looked up, so that long series cost no more than
    one comparison for each way of writing them.
    """
    groups: list[list[Placed]] = []
    known: dict[tuple[object, ...], int] = {}
    shapes: dict[tuple[int, int], list[int]] = {}
    marks: dict[tuple[int, int], list[np.ndarray]] = {}
    for one in slices:
        matrix = (one.slice.rows, one.slice.columns)
        key = (*matrix, one.slice.spacing, one.slice.orientation)
        if key not in known:
            mark = np.concatenate([one.spacing, one.row, one.column])
            at = first_like(mark, marks.setdefault(matrix, []))
            numbers_ = shapes.setdefault(matrix, [])
            if at is None:
                marks[matrix].append(mark)
                numbers_.append(len(groups))
                groups.append([])
                at = len(numbers_) - 1
            known[key] = numbers_[at]
        groups[known[key]].append(one)
    return sorted(groups, key=len, reverse=True)


def first_like(mark: np.ndarray, marks: list[np.ndarray]) -> int | None:
    """The first of some (spacing, row, column) that this one lies beside."""
    if not marks:
        return None
    others = np.array(marks[:1] if np.array_equal(mark, marks[0]) else marks)
    same = np.all(np.abs(others[:, :2] - mark[:2]) <= SPACING_TOLERANCE * mark[:2], axis=1)
    for axis in (slice(2, 5), slice(5, 8)):
        same &= np.linalg.norm(others[:, axis] - mark[axis], axis=1) <= ANGLE_LIMIT
    return int(np.argmax(same)) if same.any() else None


def along_normal(group: Sequence[Placed]) -> np.ndarray:
    """Place of each slice along the first one's normal, in mm."""
    return np.array([one.position for one in group]) @ group[0].normal


def uneven_gaps(along: np.ndarray, normal: np.ndarray) -> tuple[float, np.ndarray]:
    """The usual gap of a stack (the median), and the numbers of those gaps that differ from it.

    Positions with two decimals differ by 0.01 mm in each coordinate, which adds up along an oblique normal. Steps of
    some micrometres are held to a quarter of themselves.
    """
    usual = float(np.median(along))
    limit = max(GAP_MM * float(np.abs(normal).sum()), GAP_SHARE * usual) + 1e-6
    return usual, np.flatnonzero(np.abs(along - usual) > min(limit, usual / 4))


def thickness_of(one: Slice) -> float | None:
    """SliceThickness in mm; None where it is not stated, or no slice can be so thick."""
    thickness = one.facts.get("SliceThickness")
    return thickness if isinstance(thickness, float) and NARROWEST_MM < thickness <= WIDEST_MM else None


def proved_step(ordered: list[Placed], positions: np.ndarray) -> np.ndarray:
    """The vector from slice to slice, after every one was held against it.

    Raises:
        CaseError: a gap is larger or smaller than the others, or slices lie beside the line of the others.
    """
    steps = np.diff(positions, axis=0)
    along = steps @ ordered[0].normal
    usual, bad = uneven_gaps(along, ordered[0].normal)
    if bad.size:
        ratios = along[bad] / usual
        missing = bool(np.all((ratios > 1.5) & (np.abs(ratios - np.rint(ratios)) < 0.05)) and bad.size < len(along) / 2)
        what = "slices are missing" if missing else "spacing is uneven"
        raise CaseError(
            f"{ordered[int(bad[0])].slice.path}: ImagePositionPatient: {what}: {gaps_text(ordered, positions, bad)}; "
            f"the others are {usual:.3f} mm apart. Fetch the missing slices again, or resample from the true places "
            "with --gaps resample",
            "missing-slice" if missing else "uneven-spacing",
        )
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    wander = np.linalg.norm(steps - step, axis=1)
    drift = np.linalg.norm(positions - positions[0] - np.arange(len(positions))[:, None] * step, axis=1)
    if wander.max() > max(0.02, 0.02 * usual) or drift.max() > max(0.1, 0.1 * usual):
        raise off_the_line(ordered, drift)
    return np.asarray(step)


def off_the_line(ordered: list[Placed], drift: np.ndarray) -> CaseError:
    """Slices that lie beside the line of the others, or ahead of it."""
    at = int(np.argmax(drift))
    return CaseError(
        f"{ordered[at].slice.path}: ImagePositionPatient: slices do not lie evenly on one line: slice {at + 1} of "
        f"{len(ordered)} is {drift.max():.2f} mm off. Fetch the series again",
        "uneven-spacing",
    )


def gaps_text(ordered: list[Placed], positions: np.ndarray, bad: np.ndarray, *, instances: bool = True) -> str:
    """Gaps in words: how wide, where, and between which InstanceNumbers."""
    places = positions @ ordered[0].normal
    texts = []
    for index in bad[:SHOWN_GAPS]:
        pair = [one.slice.instance for one in ordered[index : index + 2]]
        between = f" (InstanceNumber {pair[0]} and {pair[1]})" if instances and None not in pair else ""
        texts.append(f"{places[index + 1] - places[index]:.3f} mm behind {places[index]:.2f} mm{between}")
    more = f" and {bad.size - SHOWN_GAPS} more" if bad.size > SHOWN_GAPS else ""
    return "; ".join(texts) + more
