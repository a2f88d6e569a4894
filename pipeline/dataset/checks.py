"""A case read and proved fit for training: grids that agree, finite voxels, known label values."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from ...errors import CaseError
from ...transforms.geometry import grid_difference
from ...transforms.labels import class_numbers, label_counts, whole_labels
from ...transforms.loading import load, load_channels
from ...transforms.volume import Entry, Geometry, Volume
from ..manifest import Failure
from .cases import Case, LabelInfo

GRID_TOLERANCE_VOXELS = 0.1
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class CaseVoxels:
    """What the files of a case hold.

    Args:
        image: (C, X, Y, Z) in the stored dtype; a picture has one plane.
        labels: (X, Y, Z) values as stored, whole.
        geometry: of both.
        counts: voxels of each label value.
    """

    image: np.ndarray
    labels: np.ndarray
    geometry: Geometry
    counts: dict[int, int]
    modality: str = ""
    notes: tuple[Entry, ...] = ()


def read_case(case: Case, values: Sequence[int] | None = None, *, several_channels: bool = False) -> CaseVoxels:
    """Read a labelled case.

    Args:
        case: with a label map.
        values: label values that may occur; None takes any.
        several_channels: a fourth dimension is declared to be channels.

    Raises:
        CaseError: a file that cannot be read, grids that differ, voxels that are not finite, unknown label values.
    """
    if case.label is None:
        raise CaseError(f"case {case.name} has no label map", "label-missing")
    image = load_channels(case.images) if len(case.images) > 1 else load(case.images[0], channels=several_channels)
    check_finite(image.array, f"case {case.name} ({case.images[0]})")
    label = load(case.label, labels=True)
    check_grid(image.geometry, label.geometry, f"label map {case.label}", f"its image {case.images[0]}")
    labels, rounded = whole_labels(one_channel(label, case), str(case.label))
    counts = label_counts(labels)
    if values is not None and not set(counts) <= set(values):
        class_numbers(labels, values, str(case.label))
    notes = image.notes
    if rounded:
        notes = (*notes, Entry("label-rounded", "label values that were whole within 0.001 were rounded"))
    shape = (*image.geometry.shape, 1)[:3]
    geometry = replace(image.geometry, shape=shape)
    return CaseVoxels(image.array.reshape(-1, *shape), labels.reshape(shape), geometry, counts, image.modality, notes)


def one_channel(label: Volume, case: Case) -> np.ndarray:
    """The label map's only channel; a colour picture with equal channels (grey) counts as one.

    Raises:
        CaseError: channels that differ.
    """
    if any(not np.array_equal(label.array[0], channel) for channel in label.array[1:]):
        raise CaseError(
            f"label map {case.label} has {label.channels} channels that differ; expected one value a voxel",
            "label-channels",
        )
    return label.array[0]


def check_grid(image: Geometry, other: Geometry, what: str, reference: str) -> None:
    """Hold a grid against its image's.

    Raises:
        CaseError: another shape, or corners more than 0.1 voxel away.
    """
    if tuple(image.shape) != tuple(other.shape):
        raise CaseError(
            f"{what} has shape {_times(other.shape)}, {reference} has {_times(image.shape)}; they must lie on "
            "one grid: "
            "correct the pair, or leave the case out",
            "grid-shape",
        )
    if image.has_world != other.has_world and len(image.shape) > 2:
        without = reference if other.has_world else what
        raise CaseError(
            f"{what} and {reference}: {without} has no world coordinates and the other one has, so nothing says that "
            "they lie on one grid; correct the pair, or leave the case out",
            "grid-place",
        )
    if image.has_world != other.has_world:  # a picture and its mask in another format
        return
    apart = grid_difference(image, other)
    if not apart <= GRID_TOLERANCE_VOXELS:
        raise CaseError(
            f"{what} lies up to {apart:.2f} voxels away from {reference} (same shape, other affine; at most "
            f"{GRID_TOLERANCE_VOXELS} is allowed): correct the pair, or make the data set with `voxelwise dataset "
            "--resample-label`",
            "grid-place",
        )


def check_finite(array: np.ndarray, what: str) -> None:
    """Refuse NaN and infinite voxels.

    Raises:
        CaseError: with their number and the first index.
    """
    if array.dtype.kind != "f":
        return
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(array.sum(dtype=np.float64)):  # one pass and no mask; an overflow only costs the second look
            return
    wrong = ~np.isfinite(array)
    if wrong.any():
        first = tuple(int(index) for index in np.argwhere(wrong)[0][1:])
        raise CaseError(
            f"{what}: {int(wrong.sum())} voxels are NaN or infinite (the first at {first}); fill them, or leave "
            "the case out",
            "not-finite",
        )


def voxel_digest(array: np.ndarray) -> str:
    """A hash of the voxels, by which copies are found; "" for a constant image, which is like any other."""
    if array.size == 0 or bool((array == array.flat[0]).all()):
        return ""
    return hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=16).hexdigest()


def find_copies(digests: Mapping[str, str], cases: Sequence[Case]) -> dict[str, CaseError]:
    """Cases that hold the voxels of an earlier one of another patient: they would stand on both sides of a fold.

    Args:
        digests: name of a case -> `voxel_digest` of its image.
        cases: sorted; of those that are alike the first stays.
    """
    first: dict[str, Case] = {}
    copies = {}
    for case in cases:
        digest = digests.get(case.name, "")
        twin = first.setdefault(digest, case) if digest else case
        if twin.patient != case.patient:
            copies[case.name] = CaseError(
                f"case {case.name} ({case.images[0]}) holds the same voxels as case {twin.name}, which belongs "
                "to another "
                "patient; take one away, or give both one patient in patients.csv",
                "case-copied",
            )
    return copies


def each_case(
    cases: Sequence[Case], work: Callable[[Case], Result], workers: int | None = 1
) -> tuple[list[tuple[Case, Result]], list[Failure]]:
    """`work` on every case; a case that raises CaseError is listed and the others go on."""

    def attempt(case: Case) -> Result | Failure:
        try:
            return work(case)
        except CaseError as error:
            return failure_of(case, error)

    if workers is not None and workers > 1:
        with ThreadPoolExecutor(workers) as pool:
            results = list(pool.map(attempt, cases))
    else:
        results = [attempt(case) for case in cases]
    done = [(case, result) for case, result in zip(cases, results, strict=True) if not isinstance(result, Failure)]
    return done, [result for result in results if isinstance(result, Failure)]


def failure_of(case: Case, error: CaseError) -> Failure:
    """The record of a case that was stopped."""
    files = [*case.images, *([case.label] if case.label is not None else [])]
    return Failure(case.name, tuple(file.name for file in files), error.code, str(error))


def labels_found(counts: Sequence[dict[int, int]]) -> tuple[LabelInfo, ...]:
    """The list of labels of a set that brings none: the values found, sorted; the first is the background."""
    values = sorted({value for found in counts for value in found})
    return tuple(
        LabelInfo(value, "background" if number == 0 else f"label {value}") for number, value in enumerate(values)
    )


def _times(shape: Sequence[int]) -> str:
    return " x ".join(str(size) for size in shape)
