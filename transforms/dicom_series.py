"""DICOM headers to volumes: what belongs together, in which order, and where it lies in the world.

A series is split only by what its files say of themselves; its slices are sorted by their place along the normal; and
the geometry is proved, slice by slice, or the series is refused. LPS becomes RAS+ here and nowhere else.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..errors import CaseError
from .dicom import PICTURE_CLASSES, VOLUME_CLASSES, Slice
from .dicom_geometry import Placed, alike, along_normal, numbers, placed, proved_step
from .dicom_parts import part_by_tags, repeated, without_copies
from .geometry import SHEAR_LIMIT
from .read_options import DEFAULT, ReadOptions
from .volume import Entry

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
LOCALIZER_ANGLE = np.deg2rad(30.0)


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices of one volume in order, with the affine that was proved; or one picture, or the frames of one film.

    Args:
        places: where each slice truly lies, in steps of the affine from its first plane, if the slices were put on an
            even grid (`--gaps resample`); None where slice k is plane k.
    """

    slices: tuple[Slice, ...]
    files: tuple[Path, ...]
    series: str
    affine: np.ndarray
    repairs: tuple[Entry, ...] = ()
    notes: tuple[Entry, ...] = ()
    picture: bool = False
    places: tuple[float, ...] | None = None

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


def sort_series(slices: Sequence[Slice], options: ReadOptions = DEFAULT) -> SortedSeries:
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
            stopped.append(
                ((one.path,), CaseError(f"{one.path}: no PixelData. Copy the file again from its source", "no-pixels"))
            )
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
    return Stack(
        (one,), (one.path,), f"{one.series}/{one.sop}", np.diag([*spacing, 1.0, 1.0]), notes=(note,), picture=True
    )


def check_series(slices: Sequence[Slice]) -> None:
    """Everything that stops a whole series: missing pixels, mosaics, mixed patients, mixed frames of reference."""
    for one in slices:
        if not one.pixels:
            raise CaseError(
                f"{one.path}: no PixelData in one slice of a series. Copy the file again from its source", "no-pixels"
            )
        if "MOSAIC" in one.image_type.split("\\"):
            raise CaseError(
                f"{one.path}: a Siemens mosaic (many slices tiled into one image). Convert it with dcm2niix first",
                "mosaic",
            )
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


def files_of(group: Iterable[Placed]) -> tuple[Path, ...]:
    """Paths, each once."""
    return tuple(dict.fromkeys(one.slice.path for one in group))


def part_small_groups(groups: list[list[Placed]]) -> tuple[list[list[Placed]], list[tuple[list[Placed], str]]]:
    """Groups that are volumes, and localizers beside them.

    Raises:
        CaseError: one or two odd slices that are no localizer: the series is damaged.
    """
    main = groups[0]
    if all("LOCALIZER" in one.slice.image_type for group in groups for one in group) and all(
        len(group) <= 2 for group in groups
    ):
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
        own, others = (f"{one.slice.rows} x {one.slice.columns}" for one in (odd, usual))
        return f"Rows x Columns is {own}, the others {others}"
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
        repairs = (
            *repairs,
            Entry("gantry-tilt", f"slices sheared by {angle:.2f} degrees; the exact sheared affine is kept"),
        )
    if any(one.slice.bare for one in ordered):
        repairs = (*repairs, Entry("no-preamble", "files without DICOM preamble or file meta were read as data sets"))
    # Rounded to float32, which is what NIfTI stores: a series and the NIfTI made of it lie on one grid, bit for bit.
    ras = (LPS_TO_RAS @ affine).astype(np.float32).astype(np.float64) + 0.0
    ras[3] = [0, 0, 0, 1]
    slices = tuple(one.slice for one in ordered)
    series = f"{first.slice.series}{suffix}"
    return Stack(slices, tuple(dict.fromkeys(one.path for one in slices)), series, ras, repairs, tuple(notes))


def series_notes(ordered: list[Placed], total: int | None) -> list[Entry]:
    """What a reader of the volume should know."""
    notes = []
    slices = [one.slice for one in ordered]
    instances = [one.instance for one in slices]
    if slices[0].frame is None and len(slices) > 1:
        known = [number for number in instances if number is not None]
        direction = {b > a for a, b in pairwise(known)}
        if len(known) < len(slices) or len(set(known)) < len(known) or len(direction) > 1:
            notes.append(
                Entry(
                    "instance-numbers",
                    "InstanceNumber is absent, repeats or does not follow the position; it was not used",
                )
            )
        elif total is not None and max(known) - min(known) + 1 > max(total, len(known)):
            claim = max(known) - min(known) + 1
            notes.append(
                Entry(
                    "slices-missing",
                    f"{len(known)} of {claim}: InstanceNumber runs over {claim}, slices may be missing",
                )
            )
    stated = max((one.images_in_acquisition or 0 for one in slices), default=0)
    if total is not None and stated > total and slices[0].frame is None:
        notes.append(
            Entry(
                "slices-missing",
                f"{total} of {stated}: ImagesInAcquisition says {stated}, slices may be missing at an end",
            )
        )
    if scrambled_frames(slices):
        notes.append(
            Entry("frames-of-reference", "each slice has a FrameOfReferenceUID of its own; geometry is from positions")
        )
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
