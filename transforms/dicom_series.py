"""DICOM headers to volumes: what belongs together, in which order, and where it lies in the world.

A series is split only by what its files say of themselves; its slices are sorted by their place along the normal; and
the geometry is proved, slice by slice, or the series is refused. LPS becomes RAS+ here and nowhere else.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from ..errors import CaseError
from .claims import MAX_VOXELS, product
from .dicom_checks import check_series
from .dicom_copies import twins, with_copies, without_copies
from .dicom_gaps import even_grid
from .dicom_geometry import (
    SPACING_TOLERANCE,
    Placed,
    along_normal,
    like_groups,
    placed,
    proved_step,
    thickness_of,
    uneven_gaps,
)
from .dicom_notes import MISSING, count_notes, file_repairs, series_notes, stack_notes, times_notes
from .dicom_parts import chosen_times, interleaved
from .dicom_pictures import is_picture, sort_pictures
from .dicom_record import VOLUME_CLASSES, Slice
from .dicom_stack import SortedSeries, Stack
from .dicom_stated import with_stated
from .dicom_text import shown
from .geometry import SHEAR_LIMIT
from .read_options import DEFAULT, ReadOptions
from .volume import Entry

__all__ = ["SortedSeries", "Stack", "sort_series"]

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
LOCALIZER_ANGLE = np.deg2rad(30.0)


@dataclass
class Sorting:
    """What was found so far, and what holds for the whole series; `alone` says that all its slices are alike."""

    options: ReadOptions
    name: str
    notes: tuple[Entry, ...]
    copies: list[Slice]
    stacks: list[Stack]
    stopped: list[tuple[tuple[Path, ...], CaseError]]
    listed: list[tuple[tuple[Path, ...], str]]
    alone: bool = True

    def add(self, group: list[Placed], suffix: str, wanted: int, notes: Sequence[Entry]) -> None:
        """Prove one stack, or note why it stops."""
        try:
            stack = prove(group, self.options, wanted)
            counted = count_notes(stack.slices) if self.alone else []
            said = {(entry.code, entry.detail): entry for entry in (*notes, *self.notes, *counted, *stack.notes)}
            stack = replace(stack, series=self.name + suffix, notes=tuple(said.values()))
            missing = next((one for one in stack.notes if one.code == MISSING), None)
            if self.options.strict and missing is not None:
                raise CaseError(
                    f"{stack.files[0]}: {missing.detail}; expected all of them with --strict. "
                    "Fetch the missing slices, or leave the option out",
                    MISSING,
                )
            self.stacks.append(with_copies(stack, self.copies))
        except CaseError as error:
            self.stopped.append((files_of(group), error))


def sort_series(slices: Sequence[Slice], options: ReadOptions = DEFAULT) -> SortedSeries:
    """Make volumes of all files that share StudyInstanceUID and SeriesInstanceUID, or what `--group-by` names.

    The order of the files has no say.

    Raises:
        UsageError: the file of `--geometry` cannot be used.
    """
    if not slices:
        return SortedSeries((), (), ())
    everything = sorted(slices, key=lambda one: (one.sop, one.frame or 0, one.tile or (), str(one.path)))
    images = [one for one in everything if one.sop_class in VOLUME_CLASSES or is_picture(one)]
    others = [one for one in everything if not (one.sop_class in VOLUME_CLASSES or is_picture(one))]
    try:
        kept, copies = without_copies(images)
    except CaseError as error:
        return SortedSeries((), ((paths(images), error),), sort_pictures(others, options, beside_volumes=True).listed)
    volumes = [one for one in kept if not is_picture(one)]
    pictures = [one for one in kept if is_picture(one)]
    found = sort_pictures([*pictures, *others], options, beside_volumes=bool(volumes))
    stacks = [with_copies(stack, copies) for stack in found.stacks]
    sorting = Sorting(options, "", (), copies, stacks, list(found.stopped), list(found.listed))
    if volumes:
        try:
            sort_volumes(volumes, len(kept) + len(others), sorting)
        except CaseError as error:
            sorting.stopped.append((paths(volumes), error))
    stop_too_large(sorting)
    with_twins = twins(kept, copies)
    stopped = tuple((with_twins(files), error) for files, error in sorting.stopped)
    return SortedSeries(
        tuple(sorting.stacks), stopped, tuple((with_twins(files), why) for files, why in sorting.listed)
    )


def stop_too_large(sorting: Sorting) -> None:
    """Volumes of more voxels than `--max-voxels`, or than the limit that holds without it."""
    limit = sorting.options.max_voxels or MAX_VOXELS
    for stack in [stack for stack in sorting.stacks if product(stack.shape) > limit]:
        sorting.stacks.remove(stack)
        found = f"{product(stack.shape)} voxels, limit {limit}"
        way_out = f"If you trust it, give --max-voxels {product(stack.shape)}"
        sorting.stopped.append((stack.files, CaseError(f"{stack.files[0]}: {found}. {way_out}", "too-large")))


def sort_volumes(volumes: list[Slice], total: int, sorting: Sorting) -> None:
    """Group, part and prove the slices of a series.

    Args:
        total: number of all images of the series.

    Raises:
        CaseError: the whole series stops.
    """
    stated: list[Entry] = []
    if sorting.options.geometry is not None:
        volumes, stated = with_stated(volumes, sorting.options.geometry)
    check_series(volumes, sorting.options)
    sorting.name = series_name(volumes[0])
    sorting.notes = (*stated, *series_notes(volumes, total))
    groups = [part for group in like_groups([placed(one) for one in volumes]) for part in by_stack(group)]
    kept, small = part_small_groups(sorted(groups, key=len, reverse=True))
    sorting.listed += [(files_of(group), reason) for group, reason in small]
    sorting.alone = len(kept) == 1
    for group in kept:
        suffix = f"/{plane_name(group)}" if len(kept) > 1 else ""
        try:
            sort_group(group, suffix, sorting)
        except CaseError as error:
            sorting.stopped.append((files_of(group), error))


def sort_group(group: list[Placed], suffix: str, sorting: Sorting) -> None:
    """One stack, or several where slices lie at one place and their own tags part them.

    Raises:
        CaseError: no tag parts them, or there is no time point of the wanted number.
    """
    parts = interleaved(group)[1]
    if not parts:
        sorting.add(group, suffix, 0, times_notes((), group, 1))
        return
    kept, others, times = chosen_times(parts, sorting.options)
    notes = times_notes(parts, group, times)
    if others:
        detail = f"one of {times} time points: --time {sorting.options.time}"
        notes.append(Entry("time-chosen", detail))
        taken = {one.slice.path for part in kept for one in part.slices}
        listed = [(files_of(part.slices), reason) for part, reason in others]
        sorting.listed += [(files, reason) for files, reason in listed if taken.isdisjoint(files)]
    for part in kept:
        sorting.add(part.slices, f"{suffix}/{part.suffix}", part.wanted, notes)


def series_name(one: Slice) -> str:
    """What identifies the series: its UID, or a hash of what the user groups by."""
    return f"group-{hashlib.sha256(one.group.encode()).hexdigest()[:32]}" if one.group else one.series


def paths(slices: Iterable[Slice]) -> tuple[Path, ...]:
    """Paths, each once."""
    return tuple(dict.fromkeys(one.path for one in slices))


def files_of(group: Iterable[Placed]) -> tuple[Path, ...]:
    """Paths, each once."""
    return paths(one.slice for one in group)


def by_stack(group: list[Placed]) -> list[list[Placed]]:
    """Frames of an enhanced object by StackID, where each stack has several."""
    stacks = Counter(one.slice.splits.get("StackID") if one.slice.frame is not None else None for one in group)
    if len(stacks) == 1 or min(stacks.values()) == 1:
        return [group]
    return [[one for one in group if one.slice.splits.get("StackID") == name] for name in sorted(stacks, key=str)]


def plane_name(group: list[Placed]) -> str:
    """A name of a group that no other group of its series has: matrix, spacing, orientation, stack."""
    one = min(group, key=lambda one: (one.slice.sop, one.slice.frame or 0))
    turned = ",".join(f"{value + 0.0:.3f}" for value in (*one.row, *one.column))
    spacing = "x".join(f"{value:.6g}" for value in one.spacing)
    stack = one.slice.splits.get("StackID", "") if one.slice.frame is not None else ""
    return f"{one.slice.columns}x{one.slice.rows}_{spacing}_{turned}_{stack}"


def part_small_groups(groups: list[list[Placed]]) -> tuple[list[list[Placed]], list[tuple[list[Placed], str]]]:
    """Groups that are volumes, and localizers beside them.

    Raises:
        CaseError: one or two odd slices that are no localizer: the series is damaged.
    """
    main = groups[0]
    if len(main) <= 2 and (
        all("LOCALIZER" in one.slice.image_type for group in groups for one in group) or three_planes(groups)
    ):
        return [], [(group, "not a volume: a localizer") for group in groups]
    kept, small = [main], []
    for group in groups[1:]:
        if len(group) > 2:
            kept.append(group)
        elif all("LOCALIZER" in one.slice.image_type for one in group) or (turned(group, main) and len(main) > 2):
            small.append((group, "not a volume: a localizer"))
        else:
            odd, usual = group[0], main[0]
            raise CaseError(
                f"{odd.slice.path}: {len(group)} slice(s) unlike the other {len(main)}: {difference(odd, usual)}. "
                "Exclude them, or fetch the series again",
                "odd-slice",
            )
    return kept, small


def turned(group: list[Placed], other: list[Placed]) -> bool:
    """Whether a group lies in another plane, as a localizer does."""
    return bool(np.arccos(np.clip(abs(group[0].normal @ other[0].normal), 0, 1)) > LOCALIZER_ANGLE)


def three_planes(groups: list[list[Placed]]) -> bool:
    """Whether groups without a stack among them lie in three planes or more, all turned against each other."""
    return len(groups) > 2 and all(turned(*pair) for pair in combinations(groups, 2))


def difference(odd: Placed, usual: Placed) -> str:
    """What sets an odd slice apart."""
    if (odd.slice.rows, odd.slice.columns) != (usual.slice.rows, usual.slice.columns):
        own, others = (f"{one.slice.rows} x {one.slice.columns}" for one in (odd, usual))
        return f"Rows x Columns is {own}, the others {others}"
    if not np.allclose(odd.spacing, usual.spacing, rtol=SPACING_TOLERANCE, atol=0):
        return f"PixelSpacing is {shown(odd.slice.spacing)}, the others {shown(usual.slice.spacing)}"
    own, others = shown(odd.slice.orientation), shown(usual.slice.orientation)
    return f"ImageOrientationPatient is {own}, the others {others}"


def prove(group: list[Placed], options: ReadOptions, wanted: int = 0) -> Stack:
    """Sort along the normal and find the one affine that places every slice.

    Args:
        wanted: number of slices that other parts of the series have.

    Raises:
        CaseError: gaps, uneven spacing, slices that wander.
    """
    distances = along_normal(group)
    ordered = [group[index] for index in np.argsort(distances, kind="stable")]
    positions = np.array([one.position for one in ordered])
    repairs: list[Entry] = []
    places: tuple[float, ...] | None = None
    first = ordered[0]
    rows_mm, columns_mm = first.spacing
    if len(ordered) == 1:
        step = first.normal * (thickness_of(first.slice) or 1.0)
    elif options.gaps == "resample" and uneven_gaps(np.diff(positions @ first.normal), first.normal)[1].size:
        step, places, repair = even_grid(ordered, positions)
        repairs.append(repair)
    else:
        step = proved_step(ordered, positions)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = first.row * columns_mm, first.column * rows_mm, step
    affine[:3, 3] = positions[0]
    tilt = float(np.linalg.norm(step - (step @ first.normal) * first.normal) / np.linalg.norm(step))
    if tilt > SHEAR_LIMIT:
        angle = np.rad2deg(np.arcsin(min(1.0, tilt)))
        repairs.append(Entry("gantry-tilt", f"slices sheared by {angle:.2f} degrees; the exact sheared affine is kept"))
    # Rounded to float32, which is what NIfTI stores: a series and the NIfTI made of it lie on one grid, bit for bit.
    ras = (LPS_TO_RAS @ affine).astype(np.float32).astype(np.float64) + 0.0
    ras[3] = [0, 0, 0, 1]
    slices = tuple(one.slice for one in ordered)
    repairs += file_repairs(slices)
    notes = tuple(stack_notes(ordered, wanted))
    return Stack(slices, paths(slices), first.slice.series, ras, tuple(repairs), notes, places=places)
