"""The geometry of DICOM slices: each one's numbers read and checked, and the step from slice to slice proved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import CaseError
from .dicom import UNDEFINED, Slice

ANGLE_LIMIT = 0.01  # radians between the orientations of one stack


COSINE_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Placed:
    """A slice with the numbers of its geometry, read and checked."""

    slice: Slice
    position: np.ndarray
    row: np.ndarray
    column: np.ndarray
    spacing: tuple[float, float]

    @property
    def normal(self) -> np.ndarray:
        """Unit normal of the plane."""
        cross = np.cross(self.row, self.column)
        return np.asarray(cross / np.linalg.norm(cross))


def numbers(text: str, count: int) -> tuple[float, ...]:
    """Exactly `count` finite numbers parted by backslashes."""
    values = tuple(float(part) for part in text.split("\\"))
    if len(values) != count or not np.all(np.isfinite(values)):
        raise ValueError(text)
    return values


def placed(one: Slice) -> Placed:
    """Read and check position, orientation and pixel spacing.

    Raises:
        CaseError: a tag is absent, not a number, zero, or its directions are not at right angles.
    """
    wanted = (
        ("ImagePositionPatient", one.position, 3),
        ("ImageOrientationPatient", one.orientation, 6),
        ("PixelSpacing", one.spacing, 2),
    )
    values = []
    for name, text, count in wanted:
        try:
            values.append(np.array(numbers(text or "", count)))
        except ValueError:
            found = f"is {text!r}" if text else "is absent"
            raise CaseError(
                f"{one.path}: {name} {found}, expected {count} numbers; without it no voxel has a place. "
                "Fetch the series again",
                "no-geometry",
            ) from None
    position, cosines, spacing = values
    row, column = cosines[:3], cosines[3:]
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if (
        min(lengths) < 1 - 1e-2
        or max(lengths) > 1 + 1e-2
        or abs(row @ column) > COSINE_TOLERANCE * lengths[0] * lengths[1]
    ):
        found = (
            f"ImageOrientationPatient is {one.orientation!r}: directions must have length 1 and stand at right angles"
        )
        raise CaseError(f"{one.path}: {found}. Fetch the series again", "skewed-orientation")
    if spacing.min() <= 0 or spacing.max() > 1000:
        raise CaseError(
            f"{one.path}: PixelSpacing is {one.spacing!r}, expected two numbers above 0. Fetch the series again",
            "no-geometry",
        )
    if min(one.rows, one.columns) < 1:
        raise CaseError(
            f"{one.path}: Rows {one.rows}, Columns {one.columns}, expected both above 0. Fetch the series again",
            "no-matrix",
        )
    check_claim(one)
    return Placed(one, position, row / lengths[0], column / lengths[1], (float(spacing[0]), float(spacing[1])))


def check_claim(one: Slice) -> None:
    """Rows x Columns x frames against the length of PixelData, before any memory is taken."""
    if one.pixel_length == UNDEFINED or one.bits_allocated % 8 or not one.native:
        return
    wanted = one.rows * one.columns * one.samples * one.frames * one.bits_allocated // 8
    if not wanted <= one.pixel_length <= wanted + 1:
        claim = f"Rows {one.rows} x Columns {one.columns} x {one.frames} frame(s) need {wanted} bytes"
        found = f"{claim}, PixelData has {one.pixel_length}"
        raise CaseError(f"{one.path}: {found}. Copy the file again from its source", "pixel-length")


def alike(a: Placed, b: Placed) -> bool:
    """Same matrix, pixel spacing (1e-4) and orientation (0.01 rad)."""
    same_matrix = (a.slice.rows, a.slice.columns) == (b.slice.rows, b.slice.columns)
    same_spacing = np.allclose(a.spacing, b.spacing, rtol=1e-4, atol=0)
    apart = max(np.linalg.norm(a.row - b.row), np.linalg.norm(a.column - b.column))
    return bool(same_matrix and same_spacing and apart <= ANGLE_LIMIT)


def along_normal(group: Sequence[Placed]) -> np.ndarray:
    """Place of each slice along the first one's normal, in mm."""
    return np.array([one.position for one in group]) @ group[0].normal


def proved_step(ordered: list[Placed], positions: np.ndarray) -> np.ndarray:
    """The vector from slice to slice, after every one was held against it."""
    steps = np.diff(positions, axis=0)
    along = steps @ ordered[0].normal
    usual = float(np.median(along))
    tolerance = max(0.01, 0.01 * usual)
    bad = np.flatnonzero(np.abs(along - usual) > tolerance)
    if bad.size:
        missing = (
            all(ratio > 1.5 and abs(ratio - round(ratio)) < 0.05 for ratio in along[bad] / usual)
            and bad.size < len(along) / 2
        )
        gaps = "; ".join(gap_text(ordered, positions, int(index), float(along[index])) for index in bad[:5])
        more = f" and {bad.size - 5} more" if bad.size > 5 else ""
        what = "slices are missing" if missing else "spacing is uneven"
        raise CaseError(
            f"{ordered[int(bad[0])].slice.path}: {what}: {gaps}{more}; the others are {usual:.3f} mm apart. "
            "Fetch the missing slices again",
            "missing-slice" if missing else "uneven-spacing",
        )
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    wander = np.linalg.norm(steps - step, axis=1)
    drift = np.linalg.norm(positions - positions[0] - np.arange(len(positions))[:, None] * step, axis=1)
    if wander.max() > max(0.02, 0.02 * usual) or drift.max() > max(0.1, 0.1 * usual):
        worst = ordered[int(np.argmax(drift))]
        raise CaseError(
            f"{worst.slice.path}: slices do not lie on one line: {drift.max():.2f} mm off at slice "
            f"{int(np.argmax(drift)) + 1} of {len(ordered)}. Fetch the series again",
            "uneven-spacing",
        )
    return np.asarray(step)


def gap_text(ordered: list[Placed], positions: np.ndarray, index: int, gap: float) -> str:
    """One gap in words: where, and between which InstanceNumbers."""
    place = positions[index] @ ordered[0].normal
    numbers_ = [one.slice.instance for one in ordered[index : index + 2]]
    return f"{gap:.3f} mm behind {place:.2f} mm (InstanceNumber {numbers_[0]} and {numbers_[1]})"
