"""Multi-Otsu as a classical arm: grey values parted by thresholds, one part is the foreground, nothing is learned.

Otsu, IEEE Trans. SMC 9 (1979); Liao et al., J. Inf. Sci. Eng. 17 (2001); scikit-image's `threshold_multiotsu`. Channels
are averaged to one grey value. Which end of the grey values is the foreground is looked up on the training cases.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from skimage.filters import threshold_multiotsu
from voxelwise.pipeline.dataset.cases import Case
from voxelwise.pipeline.evaluation.overlap import confusion_matrix, counts, overlap_scores
from voxelwise.pipeline.inference.label_files import suffix_of, write_labels
from voxelwise.transforms.labels import whole_labels
from voxelwise.transforms.loading import load, load_channels
from voxelwise.transforms.readers import only_source

SIDES = ("darkest", "brightest")
BINS = 256


def outer_part(image: np.ndarray, parts: int, side: str) -> np.ndarray:
    """The voxels of the darkest or brightest of `parts` parts; none where it has fewer grey values than parts.

    Shape:
        image: (C, *S).
        returns: (*S), bool.
    """
    grey = image.mean(axis=0, dtype=np.float64)
    counted, edges = np.histogram(grey, bins=BINS)
    if np.count_nonzero(counted) < parts:
        return np.zeros(grey.shape, dtype=bool)
    half = (edges[1] - edges[0]) / 2  # a threshold is the middle of the last bin below it
    levels = threshold_multiotsu(classes=parts, hist=(counted, edges[:-1] + half)) + half
    return np.asarray(grey <= levels[0] if side == "darkest" else grey > levels[-1])


def better_side(cases: Iterable[Case], parts: int, foreground: int) -> str:
    """`darkest` or `brightest`, whichever has the greater Dice over all voxels of the cases (the darkest in a tie)."""
    matrices = {side: np.zeros((2, 2), dtype=np.int64) for side in SIDES}
    for case in cases:
        image = load_channels(case.images).array
        assert case.label is not None
        truth = whole_labels(load(case.label, labels=True).array[0])[0] == foreground
        for side, matrix in matrices.items():
            matrix += confusion_matrix(outer_part(image, parts, side), truth, np.array([False, True]))
    dice = {side: float(overlap_scores(counts(matrix))["dice"][1]) for side, matrix in matrices.items()}
    return max(SIDES, key=lambda side: np.nan_to_num(dice[side]))


def write_parts(cases: Iterable[Case], out: Path, parts: int, side: str, values: tuple[int, int]) -> None:
    """Label maps of cases on the grids of their images.

    Args:
        cases: with their images.
        out: folder.
        parts: of the grey values.
        side: which part is the foreground.
        values: of background and foreground in the label maps.
    """
    for case in cases:
        volume = load_channels(case.images)
        labels = np.where(outer_part(volume.array, parts, side), *reversed(values)).astype(np.uint16)
        kind = only_source(case.images[0]).kind
        write_labels(out / f"{case.name}{suffix_of(kind)}", labels, volume.geometry, kind)
