"""Where a NIfTI grid lies: sform and qform read as the standard says, held against each other, proved or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .claims import stop
from .geometry import SHEAR_LIMIT, affine_difference, shear
from .volume import Entry, Geometry

GEOMETRIC_FIELDS = (
    *("srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("pixdim", "sform_code", "qform_code", "xyzt_units"),
)
STOP_VOXELS, NOTE_VOXELS = 0.1, 0.01  # sform against qform, at the corners


def quaternion_affine(raw: Any) -> np.ndarray:
    """The qform as the standard defines it; NaN where it is not defined."""
    b, c, d = (np.float64(raw[f"quatern_{name}"]) for name in "bcd")
    rest = 1.0 - (b * b + c * c + d * d)
    pixdim = np.asarray(raw["pixdim"], dtype=np.float64)
    if not np.isfinite(rest) or rest < -1e-5 or not np.all(pixdim[1:4] > 0):
        return np.full((4, 4), np.nan)
    if rest < 1e-7:  # a half turn: scale (b, c, d) to length 1
        length = np.sqrt(b * b + c * c + d * d)
        a, b, c, d = 0.0, b / length, c / length, d / length
    else:
        a = np.sqrt(rest)
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    affine = np.eye(4)
    affine[:3, :3] = rotation * pixdim[1:4] * [1, 1, -1 if pixdim[0] < 0 else 1]
    affine[:3, 3] = [raw[f"qoffset_{name}"] for name in "xyz"]
    return affine


def usable(affine: np.ndarray) -> bool:
    """Finite and not singular."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return bool(
        np.all(np.isfinite(affine)) and np.all(lengths > 0) and abs(np.linalg.det(affine[:3, :3] / lengths)) > 1e-4
    )


def freed_of_shear(affine: np.ndarray) -> list[np.ndarray]:
    """What a qform can hold of a sheared sform: third axis made perpendicular, and the nearest rotation."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    first, second = affine.copy(), affine.copy()
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    normal /= np.linalg.norm(normal)
    along = float(affine[:3, 2] @ normal)
    first[:3, 2] = normal * along
    left, _, right = np.linalg.svd(affine[:3, :3] / lengths)
    second[:3, :3] = (left @ right) * lengths
    third = first.copy()
    third[:3, 2] = normal * np.sign(along) * lengths[2]
    return [first, second, third]


def proved_geometry(
    path: Path, raw: Any, spatial: tuple[int, ...], choice: str | None, said: tuple[list[Entry], list[Entry]]
) -> Geometry:
    """The grid's place: sform and qform held against each other."""
    repairs, notes = said
    fields = {
        name: np.asarray(raw[name]).astype(np.asarray(raw[name]).dtype.newbyteorder("=")) for name in GEOMETRIC_FIELDS
    }
    sform_code, qform_code = int(raw["sform_code"]), int(raw["qform_code"])
    sform = np.vstack([*(np.asarray(raw[f"srow_{axis}"], dtype=np.float64) for axis in "xyz"), [0, 0, 0, 1]])
    qform = quaternion_affine(raw)
    if choice not in (None, "sform", "qform"):
        raise ValueError(f"affine must be 'sform' or 'qform', got {choice!r}")
    if choice and not (sform_code if choice == "sform" else qform_code):
        raise stop(path, "no-such-affine", f"--affine {choice} was given, and {choice}_code is 0", "Leave it out")
    if not sform_code and not qform_code:
        return without_world(raw, spatial, fields, notes)
    if (choice or ("sform" if sform_code else "qform")) == "sform":
        name, matrix, field = "sform", sform, "srow_x, srow_y, srow_z"
    else:
        name, matrix, field = "qform", qform, "pixdim[1..3], quatern_b, c, d"
    if not usable(matrix):
        code = sform_code if name == "sform" else qform_code
        found = f"{name}_code is {code}, and {field} give no grid: {field_text(raw, name)}"
        other = "qform" if name == "sform" else "sform"
        way_out = f"Export the file again, or give --affine {other} where that one holds"
        raise stop(path, "bad-affine", found, way_out if sform_code and qform_code else "Export the file again")
    if choice:
        notes.append(Entry("affine-chosen", f"{choice} was taken as the user said"))
    elif sform_code and qform_code:
        compare_forms(path, spatial, (sform, qform), notes)
    matrix = in_millimetres(raw, matrix, repairs, notes)
    if shear(matrix) > SHEAR_LIMIT:
        repairs.append(
            Entry("sheared-grid", f"array axes {shear(matrix):.4f} off right angles; the exact affine is kept")
        )
    return Geometry(spatial, matrix, nifti_fields=fields)


def field_text(raw: Any, name: str) -> str:
    """The geometric fields as numbers, for a message."""
    if name == "sform":
        return str([[round(float(value), 4) for value in raw[f"srow_{axis}"]] for axis in "xyz"])
    numbers = [round(float(raw[f"quatern_{axis}"]), 4) for axis in "bcd"]
    return f"pixdim {[round(float(value), 4) for value in raw['pixdim'][1:4]]}, quaternion {numbers}"


def compare_forms(
    path: Path, spatial: tuple[int, ...], forms: tuple[np.ndarray, np.ndarray], notes: list[Entry]
) -> None:
    """Stop where sform and qform place the corners more than 0.1 voxel apart."""
    sform, qform = forms
    apart = affine_difference(spatial, sform, qform)
    if apart <= NOTE_VOXELS:
        return
    if apart <= STOP_VOXELS:
        notes.append(
            Entry("sform-qform-differ", f"sform and qform are {apart:.3f} voxels apart at the corners; sform was taken")
        )
        return
    if (
        shear(sform) > SHEAR_LIMIT
        and min(affine_difference(spatial, free, qform) for free in freed_of_shear(sform)) <= STOP_VOXELS
    ):
        notes.append(Entry("qform-without-shear", "qform is the sform without its shear; sform was taken"))
        return
    size = f"{apart:.1f} voxels apart at the corners" if np.isfinite(apart) else "apart: the qform gives no grid"
    raise stop(
        path,
        "sform-qform-conflict",
        f"sform and qform are {size}, allowed are {STOP_VOXELS:g} voxels",
        "Say which one holds with --affine sform or --affine qform, or set the wrong one's code to 0 in the header",
    )


def without_world(raw: Any, spatial: tuple[int, ...], fields: dict[str, Any], notes: list[Entry]) -> Geometry:
    """A grid of both codes 0: spacing, and no place."""
    pixdim = np.asarray(raw["pixdim"], dtype=np.float64)[1:4]
    affine = np.diag([*(value if np.isfinite(value) and value > 0 else 1.0 for value in pixdim), 1.0])
    notes.append(
        Entry(
            "no-world-coordinates",
            "sform_code and qform_code are 0: the grid has a spacing and no place or orientation",
        )
    )
    return Geometry(spatial, affine, nifti_fields=fields, has_world=False)


def in_millimetres(raw: Any, affine: np.ndarray, repairs: list[Entry], notes: list[Entry]) -> np.ndarray:
    """Apply xyzt_units."""
    unit = int(raw["xyzt_units"]) & 7
    if unit in (1, 3):
        factor, name = (1000.0, "metre") if unit == 1 else (0.001, "micron")
        repairs.append(Entry("units", f"xyzt_units says {name}; the affine was turned into mm"))
        return np.vstack([affine[:3] * factor, affine[3]])
    if unit != 2:
        notes += odd_spacing(affine, "xyzt_units names no unit")
    return affine


def odd_spacing(affine: np.ndarray, why: str) -> list[Entry]:
    """A note where mm are assumed and make a spacing that no scanner has."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() >= 0.02 and spacing.max() <= 50:
        return []
    found = f"{why}; mm assumed, which makes the spacing {spacing.round(4).tolist()} mm"
    return [Entry("units-unknown", found)]
