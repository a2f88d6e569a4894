"""DICOM SEG: its segments as one label map on the grid of the image that it belongs to.

Each frame is placed by its own position and orientation; frames may come in any order, and empty ones may lack. The
pixels go through pydicom frame by frame: highdicom, which costs a second to import and refuses files for attributes
that are not used here, is the second opinion in the tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import iter_pixels
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ..errors import CaseError
from .dicom_geometry import numbers
from .dicom_series import LPS_TO_RAS
from .label_objects import PARSING, LabelObject, Segment, code_of, colour_of_lab, parsed, public_name, read_dicom
from .regrid import TOLERANCE_VOXELS, signed_permutation, steps_between
from .volume import Entry, Geometry

LABELMAP = "LABELMAP"
LITTLE_ENDIAN = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)
OTHER_GRID = "label-grid"
MOST_PLANES = 1 << 16  # of the grid that frames span; more is a damaged position


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame: its number in the file, its segment (None: its pixels are segment numbers), and its place, RAS+ mm."""

    index: int
    segment: int | None
    affine: np.ndarray
    shape: tuple[int, int]


@dataclass(frozen=True, eq=False)
class DrawnLabels:
    """A label map made from a SEG or RTSTRUCT, what was noted, and how many voxels two classes lay claim to."""

    labels: np.ndarray
    notes: tuple[Entry, ...] = ()
    doubled: int = 0


def seg_header(path: Path) -> LabelObject:
    """References and segments of a SEG.

    Raises:
        CaseError: it cannot be parsed.
    """
    dataset = read_dicom(path)
    return parsed(path, lambda: _header(path, dataset))


def read_seg(path: Path, target: Geometry, classes: Mapping[int, int]) -> DrawnLabels:
    """Draw the segments of a SEG into a label map; where two overlap the higher class stays.

    Args:
        path: the file.
        target: grid of the image.
        classes: number of a segment -> class from 1; other segments are left out.

    Raises:
        CaseError: tiled, damaged, frames on another grid (code `label-grid`), voxels outside the image.

    Memory: the label map, the packed pixels, and one frame.
    """
    dataset = read_dicom(path, pixels=True)
    return parsed(path, lambda: _drawn(path, dataset, target, classes))


def _drawn(path: Path, dataset: Dataset, target: Geometry, classes: Mapping[int, int]) -> DrawnLabels:
    """The segments of a data set as a label map."""
    frames = [frame for frame in _frames(path, dataset) if frame.segment is None or frame.segment in classes]
    kind = str(dataset.get("SegmentationType", "BINARY"))
    labels = np.zeros(target.shape, dtype=np.uint8 if max(classes.values(), default=0) < 256 else np.uint16)
    places = [_place(path, frame, target) for frame in frames]
    table = _table(classes) if kind == LABELMAP else None
    half = _half(path, dataset) if kind == "FRACTIONAL" else 1.0
    seen: set[tuple[int | None, int]] = set()
    doubled = 0
    for frame, (first, second, depth), pixels in zip(frames, places, _pixels(path, dataset, frames), strict=True):
        stored = pixels.T  # columns first, as the axes of the frame
        if table is not None:
            values = np.where(stored < len(table), table[np.minimum(stored, len(table) - 1)], 0)
        else:
            values = np.where(stored >= half, classes[frame.segment or 0], 0)
        if not values.any():
            continue
        if (frame.segment, depth) in seen:
            raise CaseError(
                f"{path}: segment {frame.segment} has two frames that are not empty at one place; export it again",
                "seg-doubled-frame",
            )
        seen.add((frame.segment, depth))
        doubled += _draw(path, labels, values.astype(labels.dtype), first, second, depth)
    notes = []
    if kind == "FRACTIONAL":
        notes.append(Entry("seg-fractional", "a fractional segmentation: voxels of one half and more were taken"))
    return DrawnLabels(labels, tuple(notes), doubled)


def seg_grid(path: Path) -> Geometry:
    """The grid that the frames of a SEG span themselves.

    Raises:
        CaseError: the frames are not parallel, or unevenly spaced.
    """
    dataset = read_dicom(path)
    return parsed(path, lambda: _spanned(path, list(_frames(path, dataset))))


def _spanned(path: Path, frames: Sequence[Frame]) -> Geometry:
    """The grid of some frames."""
    first = frames[0]
    normal = first.affine[:3, 2] / np.linalg.norm(first.affine[:3, 2])
    if any(not np.allclose(one.affine[:3, :2], first.affine[:3, :2], atol=1e-4) for one in frames):
        raise CaseError(f"{path}: frames of several orientations; export it on the grid of its image", OTHER_GRID)
    ordered = sorted(frames, key=lambda one: float(one.affine[:3, 3] @ normal))
    along = np.array([one.affine[:3, 3] @ normal for one in ordered])
    gaps = np.diff(along)
    gaps = gaps[gaps > 1e-3]
    step = float(gaps.min()) if gaps.size else float(np.linalg.norm(first.affine[:3, 2]))
    if gaps.size and np.abs(gaps / step - np.rint(gaps / step)).max() > TOLERANCE_VOXELS:
        raise CaseError(f"{path}: frames are unevenly spaced; export it on the grid of its image", OTHER_GRID)
    planes = int(np.rint((along[-1] - along[0]) / step)) + 1
    if planes > MOST_PLANES:
        raise CaseError(f"{path}: its frames lie {planes} planes apart; export it on the grid of its image", OTHER_GRID)
    affine = first.affine.copy()
    affine[:3, 2], affine[:3, 3] = normal * step, ordered[0].affine[:3, 3]
    return Geometry((*first.shape, planes), affine)


def _header(path: Path, dataset: Dataset) -> LabelObject:
    segments = []
    for one in dataset.get("SegmentSequence", []):
        code = code_of(one.get("SegmentedPropertyTypeCodeSequence"), dataset)
        wanted = (str(one.get("SegmentLabel") or ""), code[2] if code else "")
        colour = colour_of_lab(one.get("RecommendedDisplayCIELabValue"))
        segments.append(Segment(int(one.SegmentNumber), public_name(wanted, dataset), code, colour))
    referenced = dataset.get("ReferencedSeriesSequence", [])
    instances = {
        str(item.ReferencedSOPInstanceUID)
        for series in referenced
        for item in series.get("ReferencedInstanceSequence", [])
    }
    for group in _groups(dataset):
        for derivation in group.get("DerivationImageSequence", []):
            for item in derivation.get("SourceImageSequence", []):
                instances.add(str(item.ReferencedSOPInstanceUID))
    series_ids = tuple(dict.fromkeys(str(one.SeriesInstanceUID) for one in referenced))
    space = str(dataset.get("FrameOfReferenceUID") or "")
    return LabelObject("seg", path, tuple(segments), series_ids, frozenset(instances), space)


def _groups(dataset: Dataset) -> list[Dataset]:
    """The functional groups: shared first, then one a frame."""
    return [*dataset.get("SharedFunctionalGroupsSequence", []), *dataset.get("PerFrameFunctionalGroupsSequence", [])]


def _frames(path: Path, dataset: Dataset) -> Iterator[Frame]:
    """Every frame with its place.

    Raises:
        CaseError: tiled, without places, or with other counts than it claims.
    """
    tiled = str(dataset.get("DimensionOrganizationType", "")).startswith("TILED") or "TotalPixelMatrixRows" in dataset
    if tiled:
        raise CaseError(f"{path}: a tiled segmentation (of a microscope slide), which is no volume", "seg-tiled")
    try:
        frames = int(dataset.get("NumberOfFrames") or 1)
        own = list(dataset.get("PerFrameFunctionalGroupsSequence", []))
        shared = (list(dataset.get("SharedFunctionalGroupsSequence", [])) or [Dataset()])[0]
        if len(own) != frames:
            raise CaseError(
                f"{path}: NumberOfFrames is {frames}, but {len(own)} frames have a place; export it again",
                "seg-frames",
            )
        size = int(dataset.Columns), int(dataset.Rows)
        labelmap = str(dataset.get("SegmentationType", "")) == LABELMAP
        for index, group in enumerate(own):
            segment = None
            if not labelmap:
                segment = int(_item(group, shared, "SegmentIdentificationSequence").ReferencedSegmentNumber)
            yield Frame(index, segment, _affine(group, shared), size)
    except PARSING as error:
        raise CaseError(
            f"{path}: a frame lacks its place or its segment ({type(error).__name__}); export it again", "seg-frames"
        ) from error


def _item(group: Dataset, shared: Dataset, name: str) -> Dataset:
    found: Dataset = (group.get(name) or shared[name].value)[0]
    return found


def _affine(group: Dataset, shared: Dataset) -> np.ndarray:
    """Column, row and depth of a frame -> RAS+ mm."""
    position = numbers(_text(_item(group, shared, "PlanePositionSequence").ImagePositionPatient), 3)
    cosines = np.array(numbers(_text(_item(group, shared, "PlaneOrientationSequence").ImageOrientationPatient), 6))
    measures = _item(group, shared, "PixelMeasuresSequence")
    rows_mm, columns_mm = numbers(_text(measures.PixelSpacing), 2)
    depth = float(measures.get("SpacingBetweenSlices") or measures.get("SliceThickness") or 1.0)
    if min(rows_mm, columns_mm, abs(depth)) <= 0:
        raise ValueError("a spacing of 0")
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = cosines[:3] * columns_mm, cosines[3:] * rows_mm
    affine[:3, 2] = np.cross(cosines[:3], cosines[3:]) * abs(depth)
    affine[:3, 3] = position
    return np.asarray(LPS_TO_RAS @ affine)


def _text(values: Any) -> str:
    return "\\".join(str(value) for value in values)


def _place(path: Path, frame: Frame, target: Geometry) -> tuple[tuple[int, np.ndarray], tuple[int, np.ndarray], int]:
    """Axis and indices of the frame's columns, the same of its rows, and the index of its plane.

    Raises:
        CaseError: its pixels do not lie on voxels of the image, within 0.1 voxel.
    """
    step = steps_between(frame.affine, target.affine)[:3]
    turn = signed_permutation(step[:, :2])
    start = np.rint(step[:, 3])
    columns, rows = frame.shape
    if turn is not None:
        corners = np.array([[0, 0], [columns - 1, 0], [0, rows - 1], [columns - 1, rows - 1]], dtype=np.float64).T
        apart = np.abs((step[:, :2] - turn) @ corners + (step[:, 3] - start)[:, None]).max()
    if turn is None or apart > TOLERANCE_VOXELS:
        found = "its pixels lie between voxels of the image" if turn is None else f"{apart:.2f} voxels off"
        raise CaseError(
            f"{path}: frame {frame.index + 1} is not on the grid of its image: {found} (at most {TOLERANCE_VOXELS} is "
            "allowed); export it on that grid, or use --resample-label",
            OTHER_GRID,
        )
    axes = [int(np.flatnonzero(turn[:, axis])[0]) for axis in (0, 1)]
    along = [
        (axis, (start[axis] + turn[axis, number] * np.arange(count)).astype(int))
        for number, (axis, count) in enumerate(zip(axes, frame.shape, strict=True))
    ]
    return along[0], along[1], int(start[3 - sum(axes)])


def _draw(
    path: Path,
    labels: np.ndarray,
    values: np.ndarray,
    first: tuple[int, np.ndarray],
    second: tuple[int, np.ndarray],
    depth: int,
) -> int:
    """Put one frame in place; how many voxels another class had there already."""
    inside = [(index >= 0) & (index < labels.shape[axis]) for axis, index in (first, second)]
    within = values[np.ix_(*inside)]
    plane_axis = 3 - first[0] - second[0]
    if not 0 <= depth < labels.shape[plane_axis] or np.count_nonzero(within) != np.count_nonzero(values):
        raise CaseError(
            f"{path}: labelled voxels lie outside the image; the image is cropped or belongs to another label map",
            "label-outside",
        )
    plane = np.moveaxis(labels, plane_axis, 0)[depth]
    places = [first[1][inside[0]], second[1][inside[1]]]
    if first[0] > second[0]:
        within, places = within.T, places[::-1]
    where = np.ix_(*places)
    before = plane[where]
    plane[where] = np.maximum(before, within)
    return int(((before > 0) & (within > 0) & (before != within)).sum())


def _pixels(path: Path, dataset: Dataset, frames: list[Frame]) -> Iterator[np.ndarray]:
    """The pixels (rows, columns) of some frames."""
    if not frames:
        return
    try:
        if dataset.BitsAllocated == 1 and dataset.file_meta.TransferSyntaxUID in LITTLE_ENDIAN:
            for frame in frames:
                yield _unpacked(dataset, frame.index)
        else:
            yield from iter_pixels(dataset, indices=[frame.index for frame in frames])
    except (NotImplementedError, *PARSING) as error:
        raise CaseError(
            f"{path}: the pixels cannot be decoded ({type(error).__name__}); the file is cut or its codec is missing",
            "undecodable",
        ) from error


def _unpacked(dataset: Dataset, index: int) -> np.ndarray:
    """One frame of single bits, which may begin inside a byte (pydicom 3.0 fails on such a frame alone)."""
    shape = int(dataset.Rows), int(dataset.Columns)
    size = shape[0] * shape[1]
    first, skipped = divmod(index * size, 8)
    packed = np.frombuffer(dataset.PixelData, dtype=np.uint8)[first : first + (skipped + size + 7) // 8]
    bits = np.unpackbits(packed, bitorder="little")[skipped : skipped + size]
    return bits.reshape(shape)


def _half(path: Path, dataset: Dataset) -> float:
    """The stored value from which on a fractional voxel is in."""
    most = int(dataset.get("MaximumFractionalValue") or 0)
    if most < 1:
        raise CaseError(
            f"{path}: a fractional segmentation without MaximumFractionalValue; export it again", "seg-frames"
        )
    return most / 2


def _table(classes: Mapping[int, int]) -> np.ndarray:
    table = np.zeros(max(classes, default=0) + 1, dtype=np.uint16)
    for segment, number in classes.items():
        table[segment] = number
    return table
