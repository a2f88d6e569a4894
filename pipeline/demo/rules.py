"""SAT and VAT by rules: a HU threshold for fat, then a watershed from markers, slice by slice as this is usually done.

Fat between skin and muscle ring is SAT, fat inside the ring is VAT. Gaps in the ring up to about two voxels are closed
first. That is a fair method: where the ring is closed it is right to within the partial volume of the edges. Where a
gap stays open the flood from the skin runs through it, and no threshold helps: both kinds of fat have the same HU.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.morphology import disk
from skimage.segmentation import watershed

from .anatomy import SAT, VAT

FAT_HU = (-190.0, -30.0)  # the usual window
BODY_HU = -500.0
SMOOTHING_VOXELS = (0.5, 0.5, 0.3)
CLOSING_MM = 3.0
SKIN_VOXELS = 2.5  # fat this close to the outline of the body is under the skin for sure
IN_PLANE = ndimage.generate_binary_structure(2, 1)[:, :, None]


def rule_based(image_hu: np.ndarray, spacing_mm: tuple[float, ...]) -> np.ndarray:
    """Label SAT and VAT.

    Args:
        image_hu: axial slices along the last axis, (X, Y, Z).
        spacing_mm: voxel size.

    Returns:
        (X, Y, Z) uint8: 0 background, 1 SAT, 2 VAT.
    """
    smooth = ndimage.gaussian_filter(image_hu.astype(np.float32), SMOOTHING_VOXELS, truncate=3.0)
    body = body_mask(smooth)
    fat = body & (smooth > FAT_HU[0]) & (smooth < FAT_HU[1])
    tissue = body & (smooth >= FAT_HU[1])
    radius = max(1, round(CLOSING_MM / spacing_mm[0]))
    closed = tissue | _closing(tissue, radius)
    free = fat & ~closed
    markers = np.zeros(fat.shape, dtype=np.int32)
    for index in range(fat.shape[2]):
        deep = ndimage.distance_transform_edt(np.pad(body[:, :, index], 1))[1:-1, 1:-1]
        region, _ = ndimage.label(free[:, :, index])
        under_skin = np.unique(region[free[:, :, index] & (deep < SKIN_VOXELS)])
        reached = np.isin(region, under_skin[under_skin > 0])
        markers[:, :, index] = np.where(reached, SAT, np.where(region > 0, VAT, 0))
    flooded = watershed(np.zeros(fat.shape, dtype=np.uint8), markers, mask=fat, connectivity=IN_PLANE)
    lonely = fat & (flooded == 0)  # specks of fat between the fibres of the wall, which no marker reaches
    flooded[lonely] = VAT
    return flooded.astype(np.uint8)


def body_mask(image_hu: np.ndarray) -> np.ndarray:
    """The patient without the couch: the largest connected piece of what is denser than air, holes filled."""
    dense = ndimage.binary_opening(image_hu > BODY_HU, IN_PLANE, iterations=2)
    pieces, number = ndimage.label(dense)
    if number == 0:
        return np.zeros(image_hu.shape, dtype=bool)
    body = pieces == 1 + int(np.bincount(pieces.ravel())[1:].argmax())
    return np.stack([ndimage.binary_fill_holes(body[:, :, index]) for index in range(body.shape[2])], axis=2)


def _closing(mask: np.ndarray, radius: int) -> np.ndarray:
    """Close gaps of up to twice the radius within each slice; the border of the picture is no wall."""
    padded = np.pad(mask, ((radius, radius), (radius, radius), (0, 0)))
    closed = ndimage.binary_closing(padded, disk(radius)[:, :, None])
    return closed[radius:-radius, radius:-radius]
