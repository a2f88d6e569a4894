"""Headers of NRRD files (http://teem.sourceforge.net/nrrd/format.html), voxels attached or in a file beside them.

Read: grey volumes and pictures, raw, gzip or bzip2. Refused: text and hex encodings, axes of vectors, colours or time
longer than 1, voxels outside of the header's folder.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from .claims import check_size, product, stop
from .grid_header import GridHeader, beside, header_lines, numbers, placed, put_field, unplaced, whole_numbers
from .volume import Entry, Geometry

TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}
PACKING = {"raw": "", "gz": "gzip", "gzip": "gzip", "bz2": "bzip2", "bzip2": "bzip2"}
# signs that turn a space into right-anterior-superior
SPACES = {
    **dict.fromkeys(("right-anterior-superior", "ras"), (1, 1, 1)),
    **dict.fromkeys(("left-anterior-superior", "las"), (-1, 1, 1)),
    **dict.fromkeys(("left-posterior-superior", "lps"), (-1, -1, 1)),
}
SPATIAL_KINDS = ("domain", "space", "???", "none", "")
SYNONYMS = {
    "centers": "centerings",
    "datafile": "data file",
    "lineskip": "line skip",
    "byteskip": "byte skip",
    "axismins": "axis mins",
    "axismaxs": "axis maxs",
}


def read_nrrd_header(path: Path) -> GridHeader:
    """Read and check a header, and hold its claim against the size of the file where that needs no unpacking.

    Raises:
        CaseError: it is damaged, contradicts itself, claims what is not there, or holds what is not read.
    """
    lines, length = header_lines(path, until_empty=True)
    fields: dict[str, str] = {}
    for line in lines[1:]:
        name, sign, value = line.partition(": ")
        if sign and not line.startswith("#") and ":=" not in name:
            name = name.strip().lower()
            put_field(path, fields, SYNONYMS.get(name, name), value.strip())
    sizes, kept, repairs = axes(path, fields)
    dtype = voxel_type(path, fields)
    encoding = fields.get("encoding", "").lower()
    if encoding not in PACKING:
        found = f"encoding {encoding!r}; expected raw, gzip or bzip2"
        raise stop(path, "encoding", found, "Export it as raw or gzip")
    data_path = beside(path, fields["data file"]) if "data file" in fields else path
    start = first_byte(path, fields, PACKING[encoding], length if data_path == path else 0)
    there = data_path.stat().st_size - max(start, 0)
    claim = product(sizes) * dtype.itemsize
    check_size(path, claim, claim if start < 0 and there >= claim else there, PACKING[encoding])
    shape = tuple(sizes[axis] for axis in kept)
    geometry, more, notes = grid(path, fields, shape, kept)
    return GridHeader(path, data_path, start, dtype, geometry, PACKING[encoding], None, (*repairs, *more), notes)


def axes(path: Path, fields: dict[str, str]) -> tuple[tuple[int, ...], list[int], tuple[Entry, ...]]:
    """Sizes, which axes are those of space, and the repair where others of length 1 were dropped."""
    if not {"dimension", "sizes", "type", "encoding"} <= set(fields):
        raise stop(path, "bad-header", "no NRRD header with dimension, sizes, type and encoding")
    sizes = whole_numbers(path, "sizes", fields["sizes"])
    if whole_numbers(path, "dimension", fields["dimension"]) != (len(sizes),) or not sizes or min(sizes) < 1:
        raise stop(path, "bad-header", f"dimension {fields['dimension']!r} and sizes {fields['sizes']!r} do not fit")
    kinds = [kind.lower() for kind in fields.get("kinds", "").split()] or [""] * len(sizes)
    ways = directions(path, fields)
    if len(kinds) != len(sizes) or (ways and len(ways) != len(sizes)):
        found = f"{len(sizes)} axes, {len(kinds)} kinds and {len(ways)} space directions"
        raise stop(path, "bad-header", found)
    spatial = [axis for axis, kind in enumerate(kinds) if kind in SPATIAL_KINDS and not (ways and ways[axis] is None)]
    if len(spatial) == len(sizes) > 3 and max(sizes[3:]) == 1:
        spatial = [0, 1, 2]
    rest = [sizes[axis] for axis in range(len(sizes)) if axis not in spatial]
    if not 2 <= len(spatial) <= 3 or any(size > 1 for size in rest):
        found = f"a grid {sizes} with kinds {' '.join(kinds)}; expected 2 or 3 axes of space and single numbers"
        raise stop(path, "not-scalar", found, "Export one volume of grey values")
    dropped = (Entry("trailing-dimension", f"{len(rest)} dimension(s) of length 1 dropped from {sizes}"),)
    return sizes, spatial, dropped if rest else ()


def directions(path: Path, fields: dict[str, str]) -> list[np.ndarray | None]:
    """One vector or None for each axis; empty where the header has none."""
    found = re.findall(r"none|\([^()]*\)", fields.get("space directions", ""))
    return [None if word == "none" else vector(path, "space directions", word) for word in found]


def vector(path: Path, field: str, text: str) -> np.ndarray:
    """Numbers of "(x,y,z)"."""
    return numbers(path, field, text.strip().strip("()").replace(",", " "))


def voxel_type(path: Path, fields: dict[str, str]) -> np.dtype:
    """With the byte order, which has to be there where it matters."""
    word = TYPES.get(fields["type"].lower())
    if word is None:
        raise stop(path, "bad-datatype", f"type {fields['type']!r}; expected a number type", "Export grey values")
    endian = {"little": "<", "big": ">"}.get(fields.get("endian", "").lower())
    if endian is None and not word.endswith("1"):
        raise stop(path, "bad-header", f"endian is {fields.get('endian')!r}, expected little or big", "Export it again")
    return np.dtype((endian or "<") + word)


def first_byte(path: Path, fields: dict[str, str], packing: str, start: int) -> int:
    """Where the voxels start; -1 where they are the last bytes of the file."""
    skips = [whole_numbers(path, name, fields.get(name, "0")) for name in ("line skip", "byte skip")]
    lines, count = skips[0][:1], skips[1][:1]
    if lines == (0,) and count == (0,):
        return start
    if lines != (0,) or packing or not count or count[0] < -1:
        raise stop(path, "encoding", "line skip or byte skip before packed voxels", "Export it as raw or gzip")
    return -1 if count[0] == -1 else start + count[0]


def grid(
    path: Path, fields: dict[str, str], shape: tuple[int, ...], kept: list[int]
) -> tuple[Geometry, tuple[Entry, ...], tuple[Entry, ...]]:
    """Place of the grid, repairs and notes."""
    ways = directions(path, fields)
    spacings = numbers(path, "spacings", fields["spacings"]) if "spacings" in fields else np.array([])
    stated = spacings[kept] if len(spacings) > max(kept) else np.full(len(kept), np.nan)
    signs = SPACES.get(fields.get("space", "").lower())
    vectors = [way for axis, way in enumerate(ways) if axis in kept and way is not None]
    if signs is None or len(vectors) != len(kept):
        lengths = np.array([np.linalg.norm(one) for one in vectors]) if vectors else stated
        why = "the header names no directions in a space of the patient"
        geometry, notes = unplaced(shape, lengths, why)
        return geometry, (), notes
    origin = vector(path, "space origin", fields["space origin"]) if "space origin" in fields else np.array([])
    if len(origin) != 3 or any(len(one) != 3 for one in vectors):
        found = f"space origin is {fields.get('space origin')!r} and the directions are no vectors of three numbers"
        raise stop(path, "bad-affine", found, "Export it again with its origin")
    units = re.findall(r'"([^"]*)"', fields.get("space units", ""))
    columns = np.stack(vectors, axis=1) * np.array(signs)[:, np.newaxis]
    return placed(path, shape, columns, origin * signs, units if len(units) == 3 else [""] * 3)
