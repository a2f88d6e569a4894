"""Diffusion weighting of a slice or frame: b-value and direction, from the standard's tags or the vendors' own.

The direction is a unit vector in world coordinates, mm, RAS+ (DICOM stores LPS): it does not turn with the image, so
bvec files, which are in image axes, need it turned by the affine. It is left out where there is none (b = 0, trace
images), where its length is not 1 to 5 %, and for GE, whose directions are in axes of the scan that no tag of the image
proves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .dicom_text import first_number, tag_of

B_VALUE = tag_of("DiffusionBValue")
DIRECTION = tag_of("DiffusionGradientOrientation")
SIEMENS, GE_ACQUISITION, GE_PARAMETERS, PHILIPS, PHILIPS_MR = 0x00190010, 0x00190010, 0x00430010, 0x20010010, 0x20050010
SIEMENS_B, SIEMENS_DIRECTION = 0x0019100C, 0x0019100E
PHILIPS_B, PHILIPS_DIRECTION = 0x20011003, (0x200510B0, 0x200510B1, 0x200510B2)
GE_B, GE_DIRECTIONS, GE_DIRECTION = 0x00431039, 0x001910E0, (0x001910BB, 0x001910BC, 0x001910BD)
DIFFUSION_TAGS = (
    *(B_VALUE, DIRECTION, SIEMENS, GE_PARAMETERS, PHILIPS, PHILIPS_MR, SIEMENS_B, SIEMENS_DIRECTION),
    *(PHILIPS_B, *PHILIPS_DIRECTION, GE_B, GE_DIRECTIONS, *GE_DIRECTION),
)
GE_OFFSET = 1e9
LARGEST_B = 1e5


def diffusion_facts(texts: Mapping[int, str]) -> dict[str, Any]:
    """`DiffusionBValue` (s/mm2) and `DiffusionGradientOrientation` (unit vector, RAS+ world), where they are stated."""
    b_value = b_value_of(texts)
    if b_value is None:
        return {}
    facts: dict[str, Any] = {"DiffusionBValue": b_value}
    direction = direction_of(texts) if b_value > 0 else None
    if direction is not None:
        facts["DiffusionGradientOrientation"] = direction
    return facts


def diffusion_splits(texts: Mapping[int, str]) -> dict[str, str]:
    """What parts diffusion volumes at one place: the b-value, and the direction in whatever axes it is stored."""
    splits = {}
    b_value = b_value_of(texts)
    if b_value is not None:
        splits["DiffusionBValue"] = f"{b_value:g}"
    stored = [texts.get(DIRECTION), texts.get(SIEMENS_DIRECTION)]
    for group in (PHILIPS_DIRECTION, GE_DIRECTION):
        parts = [texts[tag] for tag in group if tag in texts]
        stored.append("\\".join(parts) if len(parts) == 3 else None)
    direction = next((one for one in stored if one), None)
    if direction:
        splits["DiffusionGradientOrientation"] = direction
    return splits


def b_value_of(texts: Mapping[int, str]) -> float | None:
    """The b-value in s/mm2, not below 0."""
    value = first_number(texts.get(B_VALUE))
    if value is None and texts.get(SIEMENS) == "SIEMENS MR HEADER":
        value = first_number(texts.get(SIEMENS_B))
    if value is None and texts.get(PHILIPS, "").startswith("Philips Imaging DD"):
        value = first_number(texts.get(PHILIPS_B))
    if value is None and texts.get(GE_PARAMETERS, "").startswith("GEMS_PARM"):
        value = first_number(texts.get(GE_B))
        value = value - GE_OFFSET if value is not None and value >= GE_OFFSET else value
        weighted = texts.get(GE_ACQUISITION, "").startswith("GEMS_ACQU") and first_number(texts.get(GE_DIRECTIONS))
        if not value and not weighted:
            return None  # other images hold 0 there
    return value if value is not None and 0 <= value < LARGEST_B else None


def direction_of(texts: Mapping[int, str]) -> list[float] | None:
    """The direction of the gradient, turned from LPS to RAS+ and scaled to length 1."""
    stored = texts.get(DIRECTION)
    if stored is None and texts.get(SIEMENS) == "SIEMENS MR HEADER":
        stored = texts.get(SIEMENS_DIRECTION)
    if stored is None and texts.get(PHILIPS_MR, "").startswith("Philips MR Imaging DD"):
        stored = "\\".join(texts.get(tag, "") for tag in PHILIPS_DIRECTION)
    try:
        x, y, z = (float(part) for part in (stored or "").split("\\"))
    except ValueError:
        return None
    length = (x * x + y * y + z * z) ** 0.5
    if not abs(length - 1) < 0.05:
        return None
    return [-x / length + 0.0, -y / length + 0.0, z / length + 0.0]
