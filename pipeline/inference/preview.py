"""A small picture of a finished case: three planes of the image with the labels painted over them.

Radiological display: the patient's right is on the left. `evaluate` draws larger pictures, against a reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ...transforms.geometry import reorient_to
from ...transforms.volume import Volume
from ...transforms.writers import atomic_write

COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167), (0, 114, 178))
OPACITY = 0.45
HEIGHT_PX = 256


def write_preview(path: Path, volume: Volume, labels: np.ndarray, values: Sequence[int]) -> None:
    """Write a PNG of the planes that hold most labels.

    Args:
        path: ends in .png.
        volume: what was segmented.
        labels: label values on its grid.
        values: label value of each class; colours follow this order.
    """
    shape = (*volume.geometry.shape, 1)[:3]
    stack = np.stack([volume.array[0].reshape(shape), labels.reshape(shape)])
    turned, affine = reorient_to(stack, volume.geometry.affine, "RAS")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image, painted = turned[0].astype(np.float32), turned[1]
    low, high = np.nanpercentile(image[np.isfinite(image)][:: max(1, image.size // 100_000)], (1, 99))
    grey = (np.nan_to_num((image - low) / max(float(high - low), 1e-6)).clip(0, 1) * 255).astype(np.uint8)
    axes = (2,) if 1 in shape and volume.modality == "picture" else (2, 1, 0)
    panels = [_panel(grey, painted, axis, spacing, values) for axis in axes]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        Image.fromarray(np.concatenate(panels, axis=1)).save(temporary, format="PNG")


def _panel(grey: np.ndarray, labels: np.ndarray, axis: int, spacing: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """One plane (rows, columns, RGB), all of one height."""
    counts = (labels != 0).sum(axis=tuple(other for other in range(3) if other != axis))
    index = int(counts.argmax()) if counts.any() else labels.shape[axis] // 2
    wide, tall = (spacing[other] * labels.shape[other] for other in range(3) if other != axis)
    size = (int(np.clip(HEIGHT_PX * wide / tall, 16, 4 * HEIGHT_PX)), HEIGHT_PX)
    cut = [np.take(array, index, axis=axis)[::-1, ::-1].T for array in (grey, labels)]
    picture = np.asarray(Image.fromarray(cut[0]).resize(size, Image.Resampling.BILINEAR), dtype=np.float32)
    at = np.asarray(Image.fromarray(cut[1].astype(np.int32)).resize(size, Image.Resampling.NEAREST))
    coloured = np.repeat(picture[..., np.newaxis], 3, axis=2)
    for number, value in enumerate(values[1:]):
        colour = np.array(COLOURS[number % len(COLOURS)], dtype=np.float32)
        coloured[at == value] += OPACITY * (colour - coloured[at == value])
    return coloured.astype(np.uint8)
