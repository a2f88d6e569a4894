"""The label map of a case: read, its values checked, proved to lie on the grid of the image or put there."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from ...errors import CaseError
from ...transforms.dicom_rtstruct import read_rtstruct
from ...transforms.dicom_seg import OTHER_GRID, DrawnLabels, read_seg, seg_grid
from ...transforms.geometry import axis_codes, grid_difference
from ...transforms.label_values import class_numbers, label_counts, whole_labels
from ...transforms.pictures import read_picture
from ...transforms.readers import read_source
from ...transforms.regrid import resampled_onto, turned_onto
from ...transforms.volume import Entry, Geometry
from ...transforms.zip_files import unpacked
from .case_job import Job, times


def read_labels(job: Job, grid: Geometry) -> tuple[np.ndarray, tuple[Entry, ...]]:
    """The label map on the grid of the image, and what was noted.

    Raises:
        CaseError: another grid, values that are not whole or not in the list, segments that overlap.
    """
    if job.label.drawn is not None:
        return _drawn(job, grid)
    source = job.label.source
    if source is None:
        raise ValueError("a label item has a source or a drawn object")
    file = source.files[0]
    volume = read_picture(file, labels=True) if source.kind == "picture" else read_source(source, job.choices.options)
    if any(not np.array_equal(volume.array[0], channel) for channel in volume.array[1:]):
        raise CaseError(
            f"{file}: has {volume.channels} channels that differ; a label map has one value a voxel", "label-channels"
        )
    stored, rounded = whole_labels(volume.array[0], str(file))
    if job.values is not None:
        class_numbers(stored, job.values, str(file))
    labels, notes = _file_on_grid(job, stored, volume.geometry, grid)
    if rounded:
        notes = (Entry("label-rounded", "label values that were whole within 0.001 were rounded"), *notes)
    return labels, (*volume.repairs, *notes)


def _file_on_grid(job: Job, labels: np.ndarray, own: Geometry, grid: Geometry) -> tuple[np.ndarray, tuple[Entry, ...]]:
    """A label map that is a file on the grid of the image: as it is, turned, or resampled where that was asked for."""
    file, image = job.label.path, job.sources[0].files[0].name
    if not (own.has_world and grid.has_world):
        if own.has_world != grid.has_world or own.shape != grid.shape:
            found = f"{times(own.shape)}{'' if own.has_world else ' without world coordinates'}"
            wanted = f"{times(grid.shape)}{'' if grid.has_world else ' without world coordinates'}"
            raise CaseError(f"{file}: is {found}, its image {image} {wanted}; correct the pair", "grid-shape")
        return labels, ()
    if (turned := turned_onto(labels, own.affine, grid)) is not None:
        if axis_codes(own.affine) == axis_codes(grid.affine):
            return turned, ()
        codes = f"{axis_codes(own.affine)} to {axis_codes(grid.affine)}"
        return turned, (Entry("label-turned", f"the axes of the label map were turned from {codes}, no voxel changed"),)
    if not job.choices.resample_label:
        apart = grid_difference(grid, own)
        found = f"{apart:.2f} voxels apart at the corners" if math.isfinite(apart) else times(own.shape)
        raise CaseError(
            f"{file}: is not on the grid of its image {image} ({times(grid.shape)}): {found}; correct the pair, or "
            "use --resample-label to put it there by world position",
            "grid-place" if math.isfinite(apart) else "grid-shape",
        )
    return _resampled(labels, own, grid)


def _resampled(labels: np.ndarray, own: Geometry, grid: Geometry) -> tuple[np.ndarray, tuple[Entry, ...]]:
    moved, outside = resampled_onto(labels, own.affine, grid, nearest=True)
    text = f"put on the grid of the image by world position, nearest; {100 * outside:.2f} % of it lies outside"
    notes = [Entry("label-resampled", text)]
    if lost := sorted(set(label_counts(labels)) - set(label_counts(moved)) - {0}):
        notes.append(Entry("class-lost", f"classes {', '.join(map(str, lost))} are gone after resampling"))
    return moved, tuple(notes)


def _drawn(job: Job, grid: Geometry) -> tuple[np.ndarray, tuple[Entry, ...]]:
    """The segments of a SEG or RTSTRUCT on the grid of the image."""
    path = job.label.path
    with unpacked((path,)) as (files, _):
        try:
            drawn, extra = _placed(files[0], job, grid)
        except CaseError as error:  # a member of a zip archive is called as it is there
            raise CaseError(str(error).replace(str(files[0]), str(path)), error.code) from error
    notes = [*drawn.notes, *extra]
    if drawn.doubled and not job.ordered:
        raise CaseError(
            f"{path}: {drawn.doubled} voxels belong to two segments; give --classes with the names that are wanted, "
            "the ones that stay on top last",
            "label-overlap",
        )
    if drawn.doubled:
        text = f"{drawn.doubled} voxels belong to two segments; the later one of --classes stays"
        notes.append(Entry("label-overlap", text))
    if absent := sorted(set(job.values or ()) - {0} - set(job.classes.values())):
        notes.append(Entry("class-absent", f"no segment of class {', '.join(map(str, absent))}"))
    return drawn.labels, tuple(notes)


def _placed(path: Path, job: Job, grid: Geometry) -> tuple[DrawnLabels, tuple[Entry, ...]]:
    """The segments drawn on the grid, and what was noted on the way there."""
    head = job.label.drawn
    if head is None or not grid.has_world or len(grid.shape) != 3:
        raise CaseError(f"{path}: its image has no place in the world; give the volume that it belongs to", OTHER_GRID)
    other_space = "" not in (job.space, head.frame_of_reference) and job.space != head.frame_of_reference
    if head.kind == "rtstruct":
        if other_space:
            raise CaseError(
                f"{path}: its FrameOfReferenceUID is not that of its image, so its places mean another space; export "
                "it again",
                "frame-of-reference",
            )
        return read_rtstruct(path, grid, job.classes), ()
    notes: tuple[Entry, ...] = ()
    if other_space:
        text = "the FrameOfReferenceUID of the segmentation is not that of its image; its frames lie on its voxels"
        notes = (Entry("frame-of-reference", text),)
    try:
        return read_seg(path, grid, job.classes), notes
    except CaseError as error:
        if error.code != OTHER_GRID or not job.choices.resample_label or other_space:
            raise
    own = seg_grid(path)
    drawn = read_seg(path, own, job.classes)
    labels, resampled = _resampled(drawn.labels, own, grid)
    return DrawnLabels(labels, drawn.notes, drawn.doubled), resampled
