"""DICOM RTSTRUCT: closed contours filled on the slices of the image that they were drawn on.

A voxel is in if its centre is, by the even-odd rule: a keyhole contour and a contour inside another one make a hole. A
centre that lies on a contour counts to one side only, so that contours that touch claim no voxel twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from ..errors import CaseError
from .dicom_seg import DrawnLabels
from .dicom_series import LPS_TO_RAS
from .geometry import apply_affine
from .label_objects import PARSING, LabelObject, Segment, code_of, parsed, public_name, read_dicom
from .regrid import TOLERANCE_VOXELS
from .volume import Entry, Geometry

CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
DIGITS = 6  # of a voxel index: what is finer is noise of the arithmetic


@dataclass(frozen=True, eq=False)
class Contour:
    """One closed contour: ROINumber and its points (n, 3) in RAS+ mm."""

    roi: int
    points: np.ndarray


def rtstruct_header(path: Path) -> LabelObject:
    """References and the ROIs of an RTSTRUCT that have closed contours.

    Raises:
        CaseError: it cannot be parsed.
    """
    dataset = read_dicom(path)
    return parsed(path, lambda: _header(path, dataset))


def read_rtstruct(path: Path, target: Geometry, classes: Mapping[int, int]) -> DrawnLabels:
    """Fill the contours of an RTSTRUCT into a label map; where two classes overlap the higher one stays.

    Args:
        path: the file.
        target: grid of the image.
        classes: ROINumber -> class from 1; other ROIs are left out.

    Raises:
        CaseError: open contours, contours between the slices or beyond them.

    Memory: the label map and the slices of one ROI.
    """
    dataset = read_dicom(path)
    return parsed(path, lambda: _drawn(path, dataset, target, classes))


def _drawn(path: Path, dataset: Dataset, target: Geometry, classes: Mapping[int, int]) -> DrawnLabels:
    """The contours of a data set as a label map."""
    labels = np.zeros(target.shape, dtype=np.uint8 if max(classes.values(), default=0) < 256 else np.uint16)
    back = np.linalg.inv(target.affine)
    drawn: dict[int, list[np.ndarray]] = defaultdict(list)
    for contour in _contours(path, dataset, classes):
        drawn[contour.roi].append(np.round(apply_affine(back, contour.points), DIGITS))
    if not drawn:
        return DrawnLabels(labels)
    axis = _slice_axis([points for contours in drawn.values() for points in contours])
    notes: dict[str, int] = defaultdict(int)
    doubled = 0
    for roi in sorted(drawn, key=lambda number: classes[number]):
        for depth, inside in _filled(path, drawn[roi], axis, target.shape, notes):
            plane = np.moveaxis(labels, axis, 0)[depth]
            doubled += int((inside & (plane > 0) & (plane != classes[roi])).sum())
            plane[inside] = np.maximum(plane[inside], classes[roi])
    return DrawnLabels(labels, _entries(notes), doubled)


def fill(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Which centres of a grid lie inside a closed contour, by the even-odd rule.

    Args:
        points: (n, 2) in voxel indices; the last is joined to the first.
        shape: of the grid.
    """
    start, end = np.asarray(points, dtype=np.float64), np.roll(points, -1, axis=0)
    low = np.clip(np.ceil(np.minimum(start[:, 1], end[:, 1])), 0, shape[1]).astype(int)
    high = np.clip(np.ceil(np.maximum(start[:, 1], end[:, 1])), 0, shape[1]).astype(int)
    crossed = high - low  # lines of each edge; its upper end is left to the next one
    edge = np.repeat(np.arange(len(start)), crossed)
    rows = np.arange(edge.size) - np.repeat(np.cumsum(crossed) - crossed - low, crossed)
    (x, y), (to_x, to_y) = start[edge].T, end[edge].T
    crossing = np.round(x + (rows - y) * (to_x - x) / (to_y - y), DIGITS)
    columns = np.clip(np.ceil(crossing), 0, shape[0]).astype(int)
    toggles = np.bincount(columns * shape[1] + rows, minlength=(shape[0] + 1) * shape[1]).reshape(-1, shape[1])
    return np.asarray(np.cumsum(toggles[:-1], axis=0) % 2 == 1)


def _header(path: Path, dataset: Dataset) -> LabelObject:
    observed = {
        int(one.ReferencedROINumber): code_of(one.get("RTROIIdentificationCodeSequence"), dataset)
        for one in dataset.get("RTROIObservationsSequence", [])
    }
    names = {int(one.ROINumber): str(one.get("ROIName") or "") for one in dataset.get("StructureSetROISequence", [])}
    segments = []
    instances = set()
    for roi in dataset.get("ROIContourSequence", []):
        number = int(roi.ReferencedROINumber)
        contours = roi.get("ContourSequence", [])
        instances |= {
            str(image.ReferencedSOPInstanceUID)
            for contour in contours
            for image in contour.get("ContourImageSequence", [])
        }
        if all(str(contour.ContourGeometricType) == "POINT" for contour in contours):
            continue
        colour = [int(value) for value in roi.get("ROIDisplayColor", None) or ()]
        code = observed.get(number)
        name = public_name((names.get(number, ""), code[2] if code else ""), dataset)
        shown = (colour[0], colour[1], colour[2]) if len(colour) == 3 else None
        segments.append(Segment(number, name, code, shown))
    series = []
    for space in dataset.get("ReferencedFrameOfReferenceSequence", []):
        for study in space.get("RTReferencedStudySequence", []):
            for one in study.get("RTReferencedSeriesSequence", []):
                series.append(str(one.SeriesInstanceUID))
                instances |= {str(image.ReferencedSOPInstanceUID) for image in one.get("ContourImageSequence", [])}
    spaces = [str(one.FrameOfReferenceUID) for one in dataset.get("ReferencedFrameOfReferenceSequence", [])]
    space = spaces[0] if len(set(spaces)) == 1 else str(dataset.get("FrameOfReferenceUID") or "")
    return LabelObject("rtstruct", path, tuple(segments), tuple(dict.fromkeys(series)), frozenset(instances), space)


def _contours(path: Path, dataset: Dataset, classes: Mapping[int, int]) -> Iterator[Contour]:
    """The closed contours of the wanted ROIs.

    Raises:
        CaseError: an open contour, or points that are no numbers.
    """
    for roi in dataset.get("ROIContourSequence", []):
        number = int(roi.ReferencedROINumber)
        if number not in classes:
            continue
        for place, contour in enumerate(roi.get("ContourSequence", []), start=1):
            try:
                kind = str(contour.ContourGeometricType)
                if kind == "POINT":
                    continue
                values = np.array([float(value) for value in contour.ContourData])
                points = values.reshape(-1, 3)
                broken = not np.all(np.isfinite(points))
            except PARSING:
                kind, broken = "", True
            if broken:
                raise CaseError(
                    f"{path}: contour {place} of ROI {number} does not hold three numbers a point; export it again",
                    "contour-points",
                )
            if kind not in CLOSED:
                raise CaseError(
                    f"{path}: contour {place} of ROI {number} is {kind}, expected CLOSED_PLANAR; an open line has no "
                    "inside: leave the ROI out with --classes",
                    "contour-open",
                )
            yield Contour(number, apply_affine(LPS_TO_RAS, points))


def _slice_axis(contours: Sequence[np.ndarray]) -> int:
    """The array axis that the contours are flat along."""
    return int(np.argmin([max(float(np.ptp(points[:, axis])) for points in contours) for axis in range(3)]))


def _filled(
    path: Path, contours: Sequence[np.ndarray], axis: int, shape: Sequence[int], notes: dict[str, int]
) -> Iterator[tuple[int, np.ndarray]]:
    """Each slice of one ROI with the voxels that lie inside.

    Raises:
        CaseError: a contour between two slices, or beyond the last one.
    """
    across = [other for other in range(3) if other != axis]
    size = (int(shape[across[0]]), int(shape[across[1]]))
    slices: dict[int, list[np.ndarray]] = defaultdict(list)
    for points in contours:
        depth = int(np.rint(np.median(points[:, axis])))
        apart = float(np.abs(points[:, axis] - depth).max())
        if apart > TOLERANCE_VOXELS:
            raise CaseError(
                f"{path}: a contour lies {apart:.2f} voxels off slice {depth + 1} of the image (at most "
                f"{TOLERANCE_VOXELS} is allowed); it was drawn on another image: give that one",
                "contour-off-slice",
            )
        if not 0 <= depth < shape[axis]:
            raise CaseError(
                f"{path}: a contour lies outside the {shape[axis]} slices of the image; the image is cropped, or it is "
                "not the one that was drawn on",
                "label-outside",
            )
        flat = points[:, across]
        if any(np.array_equal(flat, other) for other in slices[depth]):
            notes["contour-copies"] += 1
            continue
        if np.any(flat < -0.5) or np.any(flat > np.array(size) - 0.5):
            notes["contour-cut"] += 1
        slices[depth].append(flat)
    ordered = sorted(slices)
    notes["contour-gaps"] += sum(b - a - 1 for a, b in pairwise(ordered))
    for depth in ordered:
        inside = np.zeros(size, dtype=bool)
        for flat in slices[depth]:
            one = fill(flat, size)
            shared = int((inside & one).sum())
            if shared not in (0, int(one.sum()), int(inside.sum())):
                notes["contours-cross"] += 1
            inside ^= one
        yield depth, inside


def _entries(notes: Mapping[str, int]) -> tuple[Entry, ...]:
    texts = {
        "contour-copies": "{} contour(s) that were there twice left out",
        "contour-cut": "{} contour(s) reach beyond the image and were cut at its edge",
        "contour-gaps": "{} slice(s) without a contour lie between slices with one; they stay empty",
        "contours-cross": "{} contour(s) cross another one of their class; what both hold is outside (even-odd rule)",
    }
    return tuple(Entry(code, texts[code].format(count)) for code, count in sorted(notes.items()) if count)
