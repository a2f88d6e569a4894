"""DICOM headers to volumes: what belongs together, in which order, and where it lies in the world.

A series is split only by what its files say of themselves; its slices are sorted by their place along the normal; and the
geometry is proved, slice by slice, or the series is refused. LPS becomes RAS+ here and nowhere else.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from pydicom.uid import UID

from ..errors import CaseError
from .dicom import PICTURE_CLASSES, VOLUME_CLASSES, Slice
from .geometry import SHEAR_LIMIT
from .volume import Entry

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
ANGLE_LIMIT = 0.01  # radians between the orientations of one stack
LOCALIZER_ANGLE = np.deg2rad(30.0)
COSINE_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices of one volume in order, with the affine that was proved; or one picture."""

    slices: tuple[Slice, ...]
    files: tuple[Path, ...]
    series: str
    affine: np.ndarray
    repairs: tuple[Entry, ...] = ()
    notes: tuple[Entry, ...] = ()
    picture: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape."""
        first = self.slices[0]
        return (first.columns, first.rows) if self.picture else (first.columns, first.rows, len(self.slices))


@dataclass(frozen=True, eq=False)
class SortedSeries:
    """Everything that one series was found to hold."""

    stacks: tuple[Stack, ...]
    stopped: tuple[tuple[tuple[Path, ...], CaseError], ...]
    listed: tuple[tuple[tuple[Path, ...], str], ...]


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


def sort_series(slices: Sequence[Slice]) -> SortedSeries:
    """Make volumes of all files that share StudyInstanceUID and SeriesInstanceUID."""
    stacks: list[Stack] = []
    stopped: list[tuple[tuple[Path, ...], CaseError]] = []
    listed: list[tuple[tuple[Path, ...], str]] = []
    volumes = [one for one in slices if one.sop_class in VOLUME_CLASSES and one.samples == 1]
    for one in slices:
        if one.sop_class in VOLUME_CLASSES and one.samples == 1:
            continue
        if not is_picture(one):
            listed.append(((one.path,), f"not a volume: {one.class_name}"))
        elif volumes:
            listed.append(((one.path,), f"not a volume: {one.class_name} in a series of slices"))
        elif one.frames > 1:
            listed.append(((one.path,), f"not a volume: {one.class_name}, a film of {one.frames} frames"))
        elif not one.pixels:
            stopped.append(((one.path,), CaseError(f"{one.path}: no PixelData. Copy the file again from its source", "no-pixels")))
        else:
            stacks.append(picture_stack(one))
    if volumes:
        try:
            check_series(volumes)
            groups = like_groups([placed(one) for one in volumes])
            kept, small = part_small_groups(groups)
            listed += [(files_of(group), reason) for group, reason in small]
        except CaseError as error:
            stopped.append((tuple(dict.fromkeys(one.path for one in volumes)), error))
            return SortedSeries(tuple(stacks), tuple(stopped), tuple(listed))
        total = len(volumes)
        for number, group in enumerate(kept):
            suffix = f"/{number}" if len(kept) > 1 else ""
            try:
                stacks += volumes_of(group, suffix, total)
            except CaseError as error:
                stopped.append((files_of(group), error))
    return SortedSeries(tuple(stacks), tuple(stopped), tuple(listed))


def is_picture(one: Slice) -> bool:
    """Single images that are never stacked; colour in a CT or MR class counts as one."""
    return one.sop_class in PICTURE_CLASSES or (one.sop_class in VOLUME_CLASSES and one.samples > 1)


def picture_stack(one: Slice) -> Stack:
    """One picture: pixel size where it is told, no place in the world."""
    try:
        rows, columns = numbers(one.spacing or "1\\1", 2)
        spacing = (columns, rows) if min(rows, columns) > 0 else (1.0, 1.0)
    except ValueError:
        spacing = (1.0, 1.0)
    note = Entry("no-world-coordinates", "a picture: pixels have no place in the world")
    return Stack((one,), (one.path,), f"{one.series}/{one.sop}", np.diag([*spacing, 1.0, 1.0]), notes=(note,), picture=True)


def numbers(text: str, count: int) -> tuple[float, ...]:
    """Exactly `count` finite numbers parted by backslashes."""
    values = tuple(float(part) for part in text.split("\\"))
    if len(values) != count or not np.all(np.isfinite(values)):
        raise ValueError(text)
    return values


def check_series(slices: Sequence[Slice]) -> None:
    """Everything that stops a whole series: missing pixels, mosaics, mixed patients, mixed frames of reference."""
    for one in slices:
        if not one.pixels:
            raise CaseError(f"{one.path}: no PixelData in one slice of a series. Copy the file again from its source", "no-pixels")
        if "MOSAIC" in one.image_type.split("\\"):
            raise CaseError(f"{one.path}: a Siemens mosaic (many slices tiled into one image). Convert it with dcm2niix first", "mosaic")
        if one.frames > 1 and one.frame is None:
            found = f"{one.frames} frames without functional groups, so without a place for each"
            raise CaseError(f"{one.path}: {found}. Export single-frame or enhanced DICOM", "multi-frame")
    first = slices[0].path
    for what, values in (
        ("PatientID", Counter(one.patient for one in slices)),
        ("FrameOfReferenceUID", Counter(one.frame_of_reference for one in slices)),
    ):
        if len(values) == 1 or (what == "FrameOfReferenceUID" and scrambled_frames(slices)):
            continue
        hashed = {hashlib.sha256(value.encode()).hexdigest()[:8]: count for value, count in values.items()}
        found = ", ".join(f"{count} slices with {value}" for value, count in sorted(hashed.items()))
        raise CaseError(
            f"{first}: one series holds {len(values)} values of {what} (hashed: {found}), expected one. "
            "Records may be merged: fetch the series again",
            "mixed-patients" if what == "PatientID" else "mixed-frames-of-reference",
        )


def scrambled_frames(slices: Sequence[Slice]) -> bool:
    """Each slice with a FrameOfReferenceUID of its own: an anonymiser's doing."""
    return len(slices) >= 3 and len({one.frame_of_reference for one in slices}) == len(slices)


def placed(one: Slice) -> Placed:
    """Read and check position, orientation and pixel spacing.

    Raises:
        CaseError: a tag is absent, not a number, zero, or its directions are not at right angles.
    """
    wanted = (("ImagePositionPatient", one.position, 3), ("ImageOrientationPatient", one.orientation, 6), ("PixelSpacing", one.spacing, 2))
    values = []
    for name, text, count in wanted:
        try:
            values.append(np.array(numbers(text or "", count)))
        except ValueError:
            found = f"is {text!r}" if text else "is absent"
            raise CaseError(
                f"{one.path}: {name} {found}, expected {count} numbers; without it no voxel has a place. Fetch the series again",
                "no-geometry",
            ) from None
    position, cosines, spacing = values
    row, column = cosines[:3], cosines[3:]
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if min(lengths) < 1 - 1e-2 or max(lengths) > 1 + 1e-2 or abs(row @ column) > COSINE_TOLERANCE * lengths[0] * lengths[1]:
        found = f"ImageOrientationPatient is {one.orientation!r}: directions must have length 1 and stand at right angles"
        raise CaseError(f"{one.path}: {found}. Fetch the series again", "skewed-orientation")
    if spacing.min() <= 0 or spacing.max() > 1000:
        raise CaseError(f"{one.path}: PixelSpacing is {one.spacing!r}, expected two numbers above 0. Fetch the series again", "no-geometry")
    if min(one.rows, one.columns) < 1:
        raise CaseError(f"{one.path}: Rows {one.rows}, Columns {one.columns}, expected both above 0. Fetch the series again", "no-matrix")
    check_claim(one)
    return Placed(one, position, row / lengths[0], column / lengths[1], (float(spacing[0]), float(spacing[1])))


def check_claim(one: Slice) -> None:
    """Rows x Columns x frames against the length of PixelData, before any memory is taken."""
    if one.pixel_length == 0xFFFFFFFF or one.bits_allocated % 8 or (UID(one.transfer_syntax).is_compressed and one.pixel_offset >= 0):
        return
    wanted = one.rows * one.columns * one.samples * one.frames * one.bits_allocated // 8
    if not wanted <= one.pixel_length <= wanted + 1:
        found = f"Rows {one.rows} x Columns {one.columns} x {one.frames} frame(s) need {wanted} bytes, PixelData has {one.pixel_length}"
        raise CaseError(f"{one.path}: {found}. Copy the file again from its source", "pixel-length")


def like_groups(slices: Sequence[Placed]) -> list[list[Placed]]:
    """Groups of one matrix, one pixel spacing, one orientation; the largest first."""
    groups: list[list[Placed]] = []
    for one in slices:
        for group in groups:
            if alike(group[0], one):
                group.append(one)
                break
        else:
            groups.append([one])
    return sorted(groups, key=len, reverse=True)


def alike(a: Placed, b: Placed) -> bool:
    """Same matrix, pixel spacing (1e-4) and orientation (0.01 rad)."""
    same_matrix = (a.slice.rows, a.slice.columns) == (b.slice.rows, b.slice.columns)
    same_spacing = np.allclose(a.spacing, b.spacing, rtol=1e-4, atol=0)
    apart = max(np.linalg.norm(a.row - b.row), np.linalg.norm(a.column - b.column))
    return bool(same_matrix and same_spacing and apart <= ANGLE_LIMIT)


def files_of(group: Iterable[Placed]) -> tuple[Path, ...]:
    """Paths, each once."""
    return tuple(dict.fromkeys(one.slice.path for one in group))


def part_small_groups(groups: list[list[Placed]]) -> tuple[list[list[Placed]], list[tuple[list[Placed], str]]]:
    """Groups that are volumes, and localizers beside them.

    Raises:
        CaseError: one or two odd slices that are no localizer: the series is damaged.
    """
    main = groups[0]
    if all("LOCALIZER" in one.slice.image_type for group in groups for one in group) and all(len(group) <= 2 for group in groups):
        return [], [(group, "not a volume: a localizer") for group in groups]
    kept, small = [main], []
    for group in groups[1:]:
        angle = np.arccos(np.clip(abs(group[0].normal @ main[0].normal), 0, 1))
        if len(group) > 2:
            kept.append(group)
        elif all("LOCALIZER" in one.slice.image_type for one in group) or (angle > LOCALIZER_ANGLE and len(main) > 2):
            small.append((group, "not a volume: a localizer"))
        else:
            odd, usual = group[0], main[0]
            raise CaseError(
                f"{odd.slice.path}: {len(group)} slice(s) unlike the other {len(main)}: {difference(odd, usual)}. "
                "Exclude them, or fetch the series again",
                "odd-slice",
            )
    return kept, small


def difference(odd: Placed, usual: Placed) -> str:
    """What sets an odd slice apart."""
    if (odd.slice.rows, odd.slice.columns) != (usual.slice.rows, usual.slice.columns):
        return f"Rows x Columns is {odd.slice.rows} x {odd.slice.columns}, the others {usual.slice.rows} x {usual.slice.columns}"
    if not np.allclose(odd.spacing, usual.spacing, rtol=1e-4, atol=0):
        return f"PixelSpacing is {odd.slice.spacing}, the others {usual.slice.spacing}"
    return f"ImageOrientationPatient is {odd.slice.orientation}, the others {usual.slice.orientation}"


def volumes_of(group: list[Placed], suffix: str, total: int) -> list[Stack]:
    """One stack, or several where slices lie at one place and their own tags part them."""
    kept, copies = without_copies(group)
    places = along_normal(kept)
    if not repeated(places):
        return [with_copies(prove(kept, suffix, total), copies)]
    name, parts = part_by_tags(kept, places)
    stacks = [prove(part, f"{suffix}/{name}={value}", None) for value, part in parts]
    return [with_copies(stack, copies) for stack in stacks]


def with_copies(stack: Stack, copies: list[Placed]) -> Stack:
    """Count the files that are there twice to the stack that holds their twins."""
    own = {one.sop for one in stack.slices}
    files = tuple(one.slice.path for one in copies if one.slice.sop in own and one.slice.path not in stack.files)
    if not files:
        return stack
    repair = Entry("duplicate-files", f"{len(files)} file(s) that were there twice left out")
    return replace(stack, files=(*stack.files, *files), repairs=(*stack.repairs, repair))


def without_copies(group: list[Placed]) -> tuple[list[Placed], list[Placed]]:
    """Part off files that are there twice (one SOPInstanceUID, equal pixels)."""
    by_sop: dict[tuple[str, int | None], list[Placed]] = defaultdict(list)
    for one in group:
        by_sop[one.slice.sop or str(one.slice.path), one.slice.frame].append(one)
    kept: list[Placed] = []
    dropped: list[Placed] = []
    for copies in by_sop.values():
        kept.append(copies[0])
        if len(copies) > 1:
            dropped += copies[1:]
            same_place = all(np.array_equal(one.position, copies[0].position) for one in copies)
            if not same_place or len({pixel_digest(one.slice) for one in copies}) > 1:
                names = " and ".join(str(one.slice.path) for one in copies[:2])
                raise CaseError(f"{names}: one SOPInstanceUID, other content. Decide which of them holds and remove the other", "same-uid")
    return kept, dropped


def pixel_digest(one: Slice) -> str:
    """A checksum of the file from its pixels on, or of the whole file where their place is not known."""
    with open(one.path, "rb") as file:
        file.seek(max(0, one.pixel_offset))
        return hashlib.sha256(file.read()).hexdigest()


def along_normal(group: Sequence[Placed]) -> np.ndarray:
    """Place of each slice along the first one's normal, in mm."""
    return np.array([one.position for one in group]) @ group[0].normal


def same_place_mm(places: np.ndarray) -> float:
    """How near two slices must lie to count as at one place."""
    gaps = np.diff(np.sort(places))
    gaps = gaps[gaps > 1e-6]
    return min(0.01, 0.1 * float(np.median(gaps))) if gaps.size else 0.01


def repeated(places: np.ndarray, limit: float | None = None) -> bool:
    """Whether two slices lie at one place."""
    limit = same_place_mm(places) if limit is None else limit
    return bool(places.size > 1 and np.diff(np.sort(places)).min() < limit)


def part_by_tags(group: list[Placed], places: np.ndarray) -> tuple[str, list[tuple[str, list[Placed]]]]:
    """Part slices at equal places by the tags that tell acquisitions apart.

    Raises:
        CaseError: no tag parts them.
    """
    limit = same_place_mm(places)
    distinct = 1 + int(np.count_nonzero(np.diff(np.sort(places)) >= limit))
    names = list(dict.fromkeys(name for one in group for name in one.slice.splits))
    varying = [name for name in names if len({one.slice.splits.get(name) for one in group}) > 1]
    for complete in (True, False):
        for size in (1, 2):
            for chosen in combinations(varying, size):
                parts: dict[tuple[str, ...], list[int]] = defaultdict(list)
                for index, one in enumerate(group):
                    parts[tuple(one.slice.splits.get(name, "none") for name in chosen)].append(index)
                counts = {len(part) for part in parts.values()}
                fits = counts == {distinct} if complete else min(counts) > 1
                if fits and not any(repeated(places[part], limit) for part in parts.values()):
                    ordered = sorted(parts.items(), key=lambda item: [natural(text) for text in item[0]])
                    return "+".join(chosen), [("+".join(value), [group[i] for i in part]) for value, part in ordered]
    blocks = part_by_instance(group, places, distinct)
    if blocks:
        return "InstanceNumber", blocks
    first, second = same_place_pair(group, places)
    raise CaseError(
        f"{first.slice.path} and {second.slice.path}: two different slices at one place "
        f"({', '.join(f'{value:.2f}' for value in first.position)} mm), and no tag parts them "
        f"({', '.join(varying) or 'all tags are equal'}). Decide which of them holds and remove the other",
        "same-place",
    )


def natural(text: str) -> tuple[float, str]:
    """Sort numbers as numbers."""
    try:
        return float(text), ""
    except ValueError:
        return float("inf"), text


def part_by_instance(group: list[Placed], places: np.ndarray, distinct: int) -> list[tuple[str, list[Placed]]]:
    """Whole blocks of InstanceNumber, each of which covers every place once; empty where there are none."""
    numbers_ = [one.slice.instance for one in group]
    if None in numbers_ or len(set(numbers_)) != len(group) or len(group) % distinct or distinct < 3:
        return []
    order = sorted(range(len(group)), key=lambda index: numbers_[index] or 0)
    count = len(group) // distinct
    by_block = [order[first : first + distinct] for first in range(0, len(group), distinct)]
    by_place = [order[first::count] for first in range(count)]
    for blocks in (by_block, by_place):
        if not any(repeated(places[block]) for block in blocks):
            return [(str(number + 1), [group[i] for i in block]) for number, block in enumerate(blocks)]
    return []


def same_place_pair(group: list[Placed], places: np.ndarray) -> tuple[Placed, Placed]:
    """The first two slices at one place."""
    order = np.argsort(places, kind="stable")
    at = int(np.argmin(np.diff(places[order])))
    return group[order[at]], group[order[at + 1]]


def prove(group: list[Placed], suffix: str, total: int | None) -> Stack:
    """Sort along the normal and find the one affine that places every slice.

    Args:
        total: number of slices of the whole series, where its count can be compared with what the files state.

    Raises:
        CaseError: gaps, uneven spacing, slices that wander.
    """
    places = along_normal(group)
    ordered = [group[index] for index in np.argsort(places, kind="stable")]
    positions = np.array([one.position for one in ordered])
    notes = series_notes(ordered, total)
    repairs: tuple[Entry, ...] = ()
    first = ordered[0]
    rows_mm, columns_mm = first.spacing
    if len(ordered) == 1:
        thickness = first.slice.facts.get("SliceThickness")
        step = first.normal * (thickness if thickness and thickness > 0 else 1.0)
        notes.append(Entry("single-slice", "one slice: the distance to the next is unknown, its thickness was taken"))
    else:
        step = proved_step(ordered, positions)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = first.row * columns_mm, first.column * rows_mm, step
    affine[:3, 3] = positions[0]
    tilt = float(np.linalg.norm(step - (step @ first.normal) * first.normal) / np.linalg.norm(step))
    if tilt > SHEAR_LIMIT:
        angle = np.rad2deg(np.arcsin(min(1.0, tilt)))
        repairs = (*repairs, Entry("gantry-tilt", f"slices sheared by {angle:.2f} degrees; the exact sheared affine is kept"))
    if any(one.slice.bare for one in ordered):
        repairs = (*repairs, Entry("no-preamble", "files without DICOM preamble or file meta were read as data sets"))
    # Entries are rounded to float32, which is what NIfTI stores: a series and the NIfTI made of it lie on one grid, bit for bit.
    ras = (LPS_TO_RAS @ affine).astype(np.float32).astype(np.float64) + 0.0
    ras[3] = [0, 0, 0, 1]
    slices = tuple(one.slice for one in ordered)
    series = f"{first.slice.series}{suffix}"
    return Stack(slices, tuple(dict.fromkeys(one.path for one in slices)), series, ras, repairs, tuple(notes))


def proved_step(ordered: list[Placed], positions: np.ndarray) -> np.ndarray:
    """The vector from slice to slice, after every one was held against it."""
    steps = np.diff(positions, axis=0)
    along = steps @ ordered[0].normal
    usual = float(np.median(along))
    tolerance = max(0.01, 0.01 * usual)
    bad = np.flatnonzero(np.abs(along - usual) > tolerance)
    if bad.size:
        missing = all(ratio > 1.5 and abs(ratio - round(ratio)) < 0.05 for ratio in along[bad] / usual) and bad.size < len(along) / 2
        gaps = "; ".join(gap_text(ordered, positions, int(index), float(along[index])) for index in bad[:5])
        more = f" and {bad.size - 5} more" if bad.size > 5 else ""
        what = "slices are missing" if missing else "spacing is uneven"
        raise CaseError(
            f"{ordered[int(bad[0])].slice.path}: {what}: {gaps}{more}; the others are {usual:.3f} mm apart. Fetch the missing slices again",
            "missing-slice" if missing else "uneven-spacing",
        )
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    wander = np.linalg.norm(steps - step, axis=1)
    drift = np.linalg.norm(positions - positions[0] - np.arange(len(positions))[:, None] * step, axis=1)
    if wander.max() > max(0.02, 0.02 * usual) or drift.max() > max(0.1, 0.1 * usual):
        worst = ordered[int(np.argmax(drift))]
        raise CaseError(
            f"{worst.slice.path}: slices do not lie on one line: {drift.max():.2f} mm off at slice {int(np.argmax(drift)) + 1} of "
            f"{len(ordered)}. Fetch the series again",
            "uneven-spacing",
        )
    return np.asarray(step)


def gap_text(ordered: list[Placed], positions: np.ndarray, index: int, gap: float) -> str:
    """One gap in words: where, and between which InstanceNumbers."""
    place = positions[index] @ ordered[0].normal
    numbers_ = [one.slice.instance for one in ordered[index : index + 2]]
    return f"{gap:.3f} mm behind {place:.2f} mm (InstanceNumber {numbers_[0]} and {numbers_[1]})"


def series_notes(ordered: list[Placed], total: int | None) -> list[Entry]:
    """What a reader of the volume should know."""
    notes = []
    slices = [one.slice for one in ordered]
    instances = [one.instance for one in slices]
    if slices[0].frame is None and len(slices) > 1:
        known = [number for number in instances if number is not None]
        direction = {bool(b > a) for a, b in zip(known, known[1:], strict=False)}
        if len(known) < len(slices) or len(set(known)) < len(known) or len(direction) > 1:
            notes.append(Entry("instance-numbers", "InstanceNumber is absent, repeats or does not follow the position; it was not used"))
        elif total is not None and max(known) - min(known) + 1 > max(total, len(known)):
            claim = max(known) - min(known) + 1
            notes.append(Entry("slices-missing", f"{len(known)} of {claim}: InstanceNumber runs over {claim}, slices may be missing"))
    stated = max((one.images_in_acquisition or 0 for one in slices), default=0)
    if total is not None and stated > total and slices[0].frame is None:
        notes.append(Entry("slices-missing", f"{total} of {stated}: ImagesInAcquisition says {stated}, slices may be missing at an end"))
    if scrambled_frames(slices):
        notes.append(Entry("frames-of-reference", "each slice has a FrameOfReferenceUID of its own; geometry is from positions"))
    if any(one.lossy for one in slices):
        ratio = next(one.lossy for one in slices if one.lossy)
        notes.append(Entry("lossy", f"pixels were compressed with loss (ratio {ratio})"))
    if slices[0].photometric == "MONOCHROME1":
        notes.append(Entry("monochrome1", "MONOCHROME1: shown inverted; the values are kept as they are"))
    if slices[0].modality == "CT":
        if slices[0].slope is None and slices[0].intercept is None:
            notes.append(Entry("not-hu", "CT without rescale tags: the values may not be HU"))
        elif slices[0].rescale_type not in ("", "HU"):
            notes.append(Entry("not-hu", f"RescaleType is {slices[0].rescale_type}, not HU"))
    return notes


