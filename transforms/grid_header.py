"""What the headers of NRRD and MetaImage have in common: where the voxels lie in a file, and the grid in the world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from .claims import stop
from .geometry import SHEAR_LIMIT, shear
from .nifti_geometry import odd_spacing, usable
from .volume import Entry, Geometry

HEADER_LIMIT = 1 << 20
MILLIMETRES = {
    **dict.fromkeys(("mm", "millimeter", "millimetre", "millimeters", "millimetres"), 1.0),
    **dict.fromkeys(("m", "meter", "metre", "meters", "metres"), 1000.0),
    **dict.fromkeys(("cm", "centimeter", "centimetre", "centimeters", "centimetres"), 10.0),
    **dict.fromkeys(("um", "µm", "micron", "microns", "micrometer", "micrometre", "micrometers"), 1e-3),
}


@dataclass(frozen=True, eq=False)
class GridHeader:
    """A header that was read and found sound.

    Args:
        start: of the voxels in `data_path`; below 0: they are the last bytes of it.
        dtype: with its byte order.
        packing: "gzip" (zlib too), "bzip2" or "".
        packed_bytes: what the header says the packed voxels take; None where it does not say.
    """

    path: Path
    data_path: Path
    start: int
    dtype: np.dtype
    geometry: Geometry
    packing: str = ""
    packed_bytes: int | None = None
    repairs: tuple[Entry, ...] = ()
    notes: tuple[Entry, ...] = ()


def header_lines(path: Path, *, until_empty: bool = False, last: str = "") -> tuple[list[str], int]:
    """Lines of a text header and its length in bytes.

    Args:
        until_empty: an empty line ends it.
        last: lower-case name of the field that ends it.
    """
    with open(path, "rb") as file:
        head = file.read(HEADER_LIMIT)
    lines: list[str] = []
    at = 0
    while at < len(head):
        end = head.find(b"\n", at)
        end = len(head) if end < 0 else end
        line = head[at:end].decode("latin-1").rstrip("\r")
        at = end + 1
        if until_empty and not line:
            break
        lines.append(line)
        if last and line.partition("=")[0].strip().lower() == last:
            break
    return lines, min(at, len(head))


def put_field(path: Path, fields: dict[str, str], name: str, value: str) -> None:
    """Keep a field; a header that says two things stops."""
    if fields.setdefault(name, value) != value:
        raise stop(path, "bad-header", f"the field {name!r} stands there twice with different values")


def whole_numbers(path: Path, field: str, text: str) -> tuple[int, ...]:
    """Numbers of a field."""
    try:
        return tuple(int(word) for word in text.split())
    except ValueError:
        raise stop(path, "bad-header", f"{field} is {text[:60]!r}, expected whole numbers") from None


def numbers(path: Path, field: str, text: str) -> np.ndarray:
    """Numbers of a field."""
    try:
        return np.array([float(word) for word in text.split()])
    except ValueError:
        raise stop(path, "bad-header", f"{field} is {text[:60]!r}, expected numbers") from None


def beside(path: Path, name: str) -> Path:
    """The file in the same folder that a header says holds its voxels.

    Raises:
        CaseError: a name that leads out of the folder, a list or a pattern of files, a file that is not there.
    """
    if name.split()[:1] == ["LIST"] or "%" in name:
        raise stop(path, "several-data-files", "the voxels lie in a list of files", "Export it as one file")
    if PurePosixPath(name).name != name or PureWindowsPath(name).name != name:
        raise stop(
            path,
            "unsafe-path",
            f"the voxels are said to lie in {name!r}; only a file beside the header is opened",
            "Put both into one folder and correct the name in the header",
        )
    if not (path.parent / name).is_file():
        found = f"the voxels are said to lie in {name!r}, which is not beside it"
        raise stop(path, "no-data-file", found, "Copy both into one folder")
    return path.parent / name


def placed(
    path: Path, shape: tuple[int, ...], directions: np.ndarray, origin: np.ndarray, units: Sequence[str]
) -> tuple[Geometry, tuple[Entry, ...], tuple[Entry, ...]]:
    """The grid in the world, repairs and notes.

    Args:
        directions: (3, axes), one step along each axis, RAS+.
        origin: of the first voxel, RAS+.
        units: of each world axis, "" where the header does not say.

    Raises:
        CaseError: NaN, zero lengths, axes that span no space.
    """
    affine = np.eye(4)
    affine[:3, : directions.shape[1]] = directions
    affine[:3, 3] = origin
    if directions.shape[1] == 2:  # a plane: the third axis is its normal
        normal = np.cross(directions[:, 0], directions[:, 1])
        length = float(np.linalg.norm(normal))
        affine[:3, 2] = normal / length if length else 0.0
    repairs: list[Entry] = []
    notes: list[Entry] = []
    factors = [MILLIMETRES.get(unit.strip().lower(), 0.0) for unit in units]
    if any(factor not in (0.0, 1.0) for factor in factors):
        repairs.append(Entry("units", "the header counts in other units; the affine was turned into mm"))
        affine[:3] *= np.array([factor or 1.0 for factor in factors])[:, np.newaxis]
    with np.errstate(invalid="ignore", over="ignore"):
        # Rounded to float32, as DICOM is: a volume and the NIfTI made of it lie on one grid.
        affine = affine.astype(np.float32).astype(np.float64) + 0.0
    if not usable(affine):
        found = f"directions, spacing and origin give no grid: {affine[:3].round(4).tolist()}"
        raise stop(path, "bad-affine", found, "Export it again")
    if 0.0 in factors:
        notes += odd_spacing(affine, "the header names no unit")
    sheared = shear(affine)
    if sheared > SHEAR_LIMIT:
        repairs.append(Entry("sheared-grid", f"array axes {sheared:.4f} off right angles; the exact affine is kept"))
    return Geometry(shape, affine), tuple(repairs), tuple(notes)


def unplaced(shape: tuple[int, ...], spacing: np.ndarray, why: str) -> tuple[Geometry, tuple[Entry, ...]]:
    """A grid with a spacing and no place in the world, and the note that says so."""
    lengths = [float(value) if np.isfinite(value) and value > 0 else 1.0 for value in spacing]
    affine = np.diag([*([*lengths, 1.0, 1.0, 1.0])[:3], 1.0])
    note = Entry("no-world-coordinates", f"{why}: the grid has a spacing and no place or orientation")
    return Geometry(shape, affine, has_world=False), (note,)
