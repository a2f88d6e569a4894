"""Label maps to files: the values of the data set instead of class numbers, on the grid of the source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...errors import UsageError
from ...transforms.probabilities import SUFFIX
from ...transforms.volume import Geometry
from ...transforms.writers import write_label_map, write_nifti, write_picture_labels
from ..identity import file_digest

PICTURE_SUFFIX = ".png"
VOLUME_SUFFIX = ".nii.gz"
PROBABILITIES = "probabilities"
MAP_STEPS = 255  # of a map from 0 to 1


def to_values(classes: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """The label value of each class number, in the smallest unsigned type that holds all values of the model.

    Memory: in place where the type stays the same; else one plane beside both arrays.
    """
    largest = max(values)
    dtype = np.uint8 if largest < 256 else np.uint16 if largest < 65536 else np.uint32
    if list(values) == list(range(len(values))):
        return classes.astype(dtype, copy=False)
    result = classes if classes.dtype == dtype else np.empty(classes.shape, dtype)
    table = np.asarray(values, dtype=dtype)
    for plane, numbers in zip(result, classes, strict=True):  # numpy makes eight bytes of each index
        plane[...] = table[numbers]
    return result


def suffix_of(kind: str) -> str:
    """What a label map is written as: PNG for pictures, NIfTI for everything else."""
    return PICTURE_SUFFIX if kind == "picture" else VOLUME_SUFFIX


def check_target(path: Path, kind: str) -> None:
    """Refuse an output file whose name cannot hold the label map of this kind of source.

    Raises:
        UsageError: a NIfTI name for a picture, or the other way round.
    """
    picture = path.name.lower().endswith(PICTURE_SUFFIX)
    if picture != (kind == "picture"):
        wanted = ".png (labels of a picture)" if kind == "picture" else ".nii.gz or .nii (labels of a volume)"
        raise UsageError(f"{path}: this input needs a name that ends in {wanted}")


def write_labels(path: Path, labels: np.ndarray, geometry: Geometry, kind: str) -> str:
    """Write the label values (*geometry.shape) of one case, whole or not at all, and give the SHA-256 of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind != "picture":
        return write_label_map(path, labels, geometry)
    write_picture_labels(path, labels.reshape(labels.shape[:2]))
    return file_digest(path)


def beside(target: Path, case: str, kind: str, names: Sequence[str]) -> dict[str, Path]:
    """Where what is asked for beside a label map goes, by name."""
    suffixes = {name: SUFFIX if name == PROBABILITIES else f"_{name}{suffix_of(kind)}" for name in names}
    return {name: target.with_name(f"{case}{suffix}") for name, suffix in suffixes.items()}


def write_map(path: Path, values: np.ndarray, geometry: Geometry, kind: str) -> str:
    """Write a map from 0 to 1, uint8 in steps of 1/255, and give the SHA-256 of the file: NIfTI readers scale it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind != "picture":
        return write_nifti(path, values, geometry, values.dtype, slope=1 / MAP_STEPS)
    write_picture_labels(path, values.reshape(values.shape[:2]))
    return file_digest(path)
