"""Gaps that the user has chosen to fill (`--gaps resample`): an even grid over slices that are missing or uneven.

Only the places are worked out here, from the true positions; `dicom_pixels.py` interpolates between the slices.
"""

from __future__ import annotations

import numpy as np

from ..errors import CaseError
from .dicom_geometry import Placed, gaps_text, off_the_line, uneven_gaps
from .volume import Entry

WIDEST_GAP = 5  # usual steps


def even_grid(ordered: list[Placed], positions: np.ndarray) -> tuple[np.ndarray, tuple[float, ...], Entry]:
    """An even grid from the first slice to the last, its planes the median gap apart.

    Where the median does not divide the whole length, the step is the nearest one that does.

    Returns:
        The vector from plane to plane, the place of each slice in steps from the first plane, and what is to be said.

    Raises:
        CaseError: a gap too wide to be filled, more planes invented than there are slices, or slices off their line.
    """
    normal = ordered[0].normal
    places = (positions - positions[0]) @ normal
    usual, bad = uneven_gaps(np.diff(places), normal)
    widest = float(np.diff(places).max())
    planes = round(float(places[-1]) / usual) + 1 if places[-1] <= 1e6 * usual else 10**6
    way = "Fetch the missing slices again"
    if widest > WIDEST_GAP * usual:
        at = int(np.argmax(np.diff(places)))
        raise CaseError(
            f"{ordered[at].slice.path}: --gaps resample: a gap of {widest:.3f} mm behind "
            f"{positions[at] @ normal:.2f} mm, expected at most {WIDEST_GAP} usual steps ({usual:.3f} mm). {way}",
            "gap-too-wide",
        )
    if planes - len(ordered) > len(ordered):
        raise CaseError(
            f"{ordered[0].slice.path}: --gaps resample: {planes - len(ordered)} of {planes} planes would be invented, "
            f"expected no more than there are slices ({len(ordered)}). {way}",
            "gap-too-wide",
        )
    whole = positions[-1] - positions[0]
    off = np.linalg.norm(positions - positions[0] - (places / places[-1])[:, None] * whole, axis=1)
    if off.max() > max(0.1, 0.1 * usual):
        raise off_the_line(ordered, off)
    in_steps = places / places[-1] * (planes - 1)
    detail = (
        f"{len(ordered)} slices put on {planes} even planes, {places[-1] / (planes - 1):.3f} mm apart: "
        f"{gaps_text(ordered, positions, bad, instances=False)}"
    )
    return whole / (planes - 1), tuple(float(place) for place in in_steps), Entry("gaps-resampled", detail)
