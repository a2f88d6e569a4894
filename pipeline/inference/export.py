"""Label maps to files: the values of the data set instead of class numbers, on the grid of the source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...errors import UsageError
from ...transforms.volume import Geometry
from ...transforms.writers import write_label_map, write_picture_labels

PICTURE_SUFFIX = ".png"
VOLUME_SUFFIX = ".nii.gz"


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


def write_labels(path: Path, labels: np.ndarray, geometry: Geometry, kind: str) -> None:
    """Write the label values (*geometry.shape) of one case, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "picture":
        write_picture_labels(path, labels.reshape(labels.shape[:2]))
    else:
        write_label_map(path, labels, geometry)
