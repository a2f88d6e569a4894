"""Headers of MetaImage files (MHA, and MHD with the voxels in a file beside it).

Read: grey volumes and pictures, raw or zlib. Refused: text, several numbers a voxel, more than three dimensions,
intensity functions, voxels outside of the header's folder.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .claims import check_size, product, stop
from .grid_header import GridHeader, beside, header_lines, numbers, placed, put_field, unplaced, whole_numbers
from .volume import Entry, Geometry

TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
SYNONYMS = {
    **dict.fromkeys(("rotation", "orientation"), "transformmatrix"),
    **dict.fromkeys(("position", "origin"), "offset"),
    "elementbyteordermsb": "binarydatabyteordermsb",
    "elementsize": "element size",
}
TRUE, FALSE = ("true", "1"), ("false", "0")
LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
UNIT_LENGTH = 1e-3


def read_meta_header(path: Path) -> GridHeader:
    """Read and check a header, and hold its claim against the size of the file where that needs no unpacking.

    Raises:
        CaseError: it is damaged, contradicts itself, claims what is not there, or holds what is not read.
    """
    lines, length = header_lines(path, last="elementdatafile")
    fields: dict[str, str] = {}
    for line in lines:
        name, sign, value = line.partition("=")
        if sign:
            name = name.strip().lower()
            put_field(path, fields, SYNONYMS.get(name, name), value.strip())
    sizes, shape, repairs = sizes_of(path, fields)
    order = ">" if flag(path, fields, "binarydatabyteordermsb") else "<"
    word = TYPES.get(fields.get("elementtype", "").upper())
    if word is None or fields.get("elementnumberofchannels", "1") != "1":
        channels = fields.get("elementnumberofchannels", "1")
        found = f"voxels of {channels} x {fields.get('elementtype')}; expected single numbers"
        raise stop(path, "not-scalar", found, "Export one volume of grey values")
    dtype = np.dtype(order + word)
    if not flag(path, fields, "binarydata", default=True):
        raise stop(path, "encoding", "the voxels are written as text (BinaryData = False)", "Export it as binary")
    scaling = [
        numbers(path, name, fields.get(f"elementtointensityfunction{name}", text)).tolist()
        for name, text in (("slope", "1"), ("offset", "0"))
    ]
    if scaling != [[1.0], [0.0]]:
        found = f"ElementToIntensityFunction has slope {scaling[0]} and offset {scaling[1]}, which nobody applies"
        raise stop(path, "bad-scaling", found, "Export the values themselves")
    packing = "gzip" if flag(path, fields, "compresseddata") else ""
    file = fields["elementdatafile"]
    inside = file.upper() == "LOCAL"
    data_path = path if inside else beside(path, file)
    skip = whole_numbers(path, "HeaderSize", fields.get("headersize", "0"))
    if len(skip) != 1 or skip[0] < -1 or (skip[0] and (inside or packing)):
        raise stop(path, "bad-header", f"HeaderSize is {fields['headersize']!r}", "Export it again")
    start = length if inside else skip[0]
    there = data_path.stat().st_size - max(start, 0)
    claim = product(sizes) * dtype.itemsize
    check_size(path, claim, claim if start < 0 and there >= claim else there, packing)
    stated = (
        whole_numbers(path, "CompressedDataSize", fields["compresseddatasize"])
        if packing and ("compresseddatasize" in fields)
        else ()
    )
    if stated and stated[0] > there:
        found = f"CompressedDataSize is {stated[0]}, {there} bytes are there"
        raise stop(path, "truncated", found)
    geometry, more, notes = grid(path, fields, shape)
    packed_bytes = stated[0] if stated else None
    return GridHeader(path, data_path, start, dtype, geometry, packing, packed_bytes, (*repairs, *more), notes)


def sizes_of(path: Path, fields: dict[str, str]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[Entry, ...]]:
    """Sizes of all dimensions, those of space, and the repair where others of length 1 were dropped."""
    if not {"ndims", "dimsize", "elementtype", "elementdatafile"} <= set(fields):
        raise stop(path, "bad-header", "no MetaImage header with NDims, DimSize, ElementType and ElementDataFile")
    sizes = whole_numbers(path, "DimSize", fields["dimsize"])
    if whole_numbers(path, "NDims", fields["ndims"]) != (len(sizes),) or len(sizes) < 2 or min(sizes) < 1:
        raise stop(path, "bad-header", f"NDims {fields['ndims']!r} and DimSize {fields['dimsize']!r} do not fit")
    if max(sizes[3:], default=1) > 1:
        found = f"a grid {sizes}; expected 2 or 3 dimensions"
        raise stop(path, "not-scalar", found, "Export one volume of grey values")
    dropped = Entry("trailing-dimension", f"{len(sizes) - 3} dimension(s) of length 1 dropped from {sizes}")
    return sizes, sizes[:3], (dropped,) if len(sizes) > 3 else ()


def flag(path: Path, fields: dict[str, str], name: str, default: bool = False) -> bool:
    """A field that is True or False."""
    word = fields.get(name, str(default)).lower()
    if word not in (*TRUE, *FALSE):
        raise stop(path, "bad-header", f"{name} is {word!r}, expected True or False")
    return word in TRUE


def grid(
    path: Path, fields: dict[str, str], shape: tuple[int, ...]
) -> tuple[Geometry, tuple[Entry, ...], tuple[Entry, ...]]:
    """Place of the grid, repairs and notes; the header counts in left-posterior-superior."""
    count = len(whole_numbers(path, "DimSize", fields["dimsize"]))
    text = fields.get("elementspacing", fields.get("element size"))
    spacing = np.full(count, np.nan) if text is None else numbers(path, "ElementSpacing", text)
    if text is not None and (len(spacing) != count or not np.all(np.isfinite(spacing) & (spacing > 0))):
        raise stop(
            path, "bad-affine", f"ElementSpacing is {text!r}, expected {count} numbers above 0", "Export it again"
        )
    if "transformmatrix" not in fields or count == 2:
        geometry, notes = unplaced(shape, spacing, "the header names no directions in space")
        return geometry, (), notes
    matrix = numbers(path, "TransformMatrix", fields["transformmatrix"])
    offset = numbers(path, "Offset", fields.get("offset", ""))
    lengths = np.linalg.norm(matrix.reshape(count, count), axis=1) if len(matrix) == count**2 else np.array([])
    if text is None or len(offset) != count or not np.all(np.abs(lengths - 1) < UNIT_LENGTH) or not len(lengths):
        found = "TransformMatrix, Offset and ElementSpacing are not all there, or not axes of length 1"
        raise stop(path, "bad-affine", found, "Export it again")
    columns = matrix.reshape(count, count)[:3, :3].T * spacing[:3] * LPS_TO_RAS[:, np.newaxis]
    unit = fields.get("distanceunits", "")
    return placed(path, shape, columns, offset[:3] * LPS_TO_RAS, [unit] * 3)
