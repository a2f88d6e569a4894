"""NRRD and MetaImage (MHA, MHD) through ITK, after the header's claim was held against the size of the file.

ITK fills what is missing of a cut-off file with zeros and reports success, so the bytes are counted here before it is
asked. SimpleITK brings it: the itk package takes 5 seconds of processor time to load its parts (SimpleITK: 0.3), and
crashed at the end of a process that had also decoded DICOM through gdcm.
"""

from __future__ import annotations

import re
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CaseError
from .geometry import SHEAR_LIMIT, shear
from .volume import Entry, Geometry, Volume

NRRD_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(
        ("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t", "float"), 4
    ),
    **dict.fromkeys(("longlong", "long long", "int64", "int64_t", "ulonglong", "uint64", "uint64_t", "double"), 8),
}
META_TYPES = {
    **dict.fromkeys(("MET_CHAR", "MET_UCHAR"), 1),
    **dict.fromkeys(("MET_SHORT", "MET_USHORT"), 2),
    **dict.fromkeys(("MET_INT", "MET_UINT", "MET_FLOAT", "MET_LONG", "MET_ULONG"), 4),
    **dict.fromkeys(("MET_LONG_LONG", "MET_ULONG_LONG", "MET_DOUBLE"), 8),
}
SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
HEADER_LIMIT = 1 << 20


def is_itk_file(head: bytes) -> bool:
    """Whether the first bytes are those of NRRD or MetaImage."""
    return head.startswith(b"NRRD0") or bool(re.match(rb"\s*(Comment|ObjectType|NDims)\s*=", head))


def header_fields(path: Path) -> tuple[dict[str, str], int]:
    """The header's fields by lower-case name, and the length of the header in bytes."""
    with open(path, "rb") as file:
        head = file.read(HEADER_LIMIT)
    fields: dict[str, str] = {}
    at = 0
    nrrd = head.startswith(b"NRRD0")
    while at < len(head):
        end = head.find(b"\n", at)
        end = len(head) if end < 0 else end
        line = head[at:end].decode("latin-1").strip("\r")
        at = end + 1
        if nrrd and not line.strip():
            break
        name, sign, value = line.partition(":" if nrrd else "=")
        if sign and not line.startswith("#"):
            fields[name.strip().lower()] = value.lstrip("=").strip()
        if not nrrd and name.strip().lower() == "elementdatafile":
            break
    return fields, at


def stop(path: Path, code: str, found: str, way_out: str = "Copy the file again from its source") -> CaseError:
    """A refusal that names the file, what was found, and the way on."""
    return CaseError(f"{path}: {found}. {way_out}", code)


def check_claim(path: Path) -> tuple[dict[str, str], tuple[int, ...]]:
    """Compare the claim of the header with the bytes that are there.

    Raises:
        CaseError: fewer or more bytes, a type or an encoding that is not read.
    """
    fields, length = header_fields(path)
    nrrd = "sizes" in fields
    try:
        shape = tuple(int(size) for size in fields["sizes" if nrrd else "dimsize"].split())
    except (KeyError, ValueError):
        raise stop(path, "bad-header", "no header of NRRD or MetaImage with the size of the grid") from None
    word = (NRRD_TYPES if nrrd else META_TYPES).get(fields.get("type" if nrrd else "elementtype", ""))
    components = 1 if nrrd else int(fields.get("elementnumberofchannels", "1") or 1)
    if word is None or not 2 <= len(shape) <= 3 or components != 1 or min(shape) < 1:
        kind = fields.get("type" if nrrd else "elementtype")
        found = f"a grid {shape} of {kind} with {components} component(s); expected 2 or 3 dimensions of single numbers"
        raise stop(path, "not-scalar", found, "Export one volume of grey values")
    claim = int(np.prod(shape, dtype=object)) * word
    data_file = fields.get("data file", fields.get("datafile")) if nrrd else fields.get("elementdatafile")
    inside = data_file is None or data_file == "LOCAL"
    data = path if inside else path.parent / str(data_file)
    if not inside and (not data.is_file() or data.parent.resolve() != path.parent.resolve()):
        raise stop(
            path,
            "no-data-file",
            f"the voxels are said to lie in {data_file!r}, which is not beside it",
            "Copy both into one folder",
        )
    start = length if inside else 0
    there = data.stat().st_size - start
    packed = (
        fields.get("encoding", "raw").lower() not in ("raw",)
        if nrrd
        else fields.get("compresseddata", "False").lower() == "true"
    )
    if packed:
        encoding = fields.get("encoding", "gzip").lower()
        if encoding not in ("gz", "gzip"):
            raise stop(path, "encoding", f"encoding {encoding!r}; expected raw or gzip", "Export it as raw or gzip")
        if claim > there * 1040:
            raise stop(path, "truncated", f"the header claims {claim} bytes, more than {there} packed bytes can hold")
        there = unpacked_length(path, data, start, claim)
    if there != claim:
        raise stop(
            path,
            "truncated" if there < claim else "data-length",
            f"the header claims {claim} bytes of voxels, {there} are there",
        )
    return fields, shape


def unpacked_length(path: Path, data: Path, start: int, claim: int) -> int:
    """Bytes that a gzip or zlib stream holds; its checksum is compared on the way."""
    stream = zlib.decompressobj(47)
    total = 0
    with open(data, "rb") as file:
        file.seek(start)
        try:
            while not stream.eof and (chunk := stream.unconsumed_tail or file.read(1 << 20)):
                total += len(stream.decompress(chunk, 1 << 24))
                if total > claim:
                    break
        except zlib.error as error:
            raise stop(path, "damaged-gzip", f"the packed voxels are damaged ({error})") from error
    if not stream.eof and total <= claim:
        raise stop(path, "truncated", f"the packed voxels end early: {total} of {claim} bytes are there")
    return total


@contextmanager
def quiet_itk() -> Iterator[Any]:
    """SimpleITK, for as long as the block lasts; its extension module warns while it is loaded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import SimpleITK

        yield SimpleITK


def itk_geometry(path: Path) -> tuple[Geometry, tuple[Entry, ...], tuple[Entry, ...]]:
    """Shape and affine as ITK reads the header, RAS+; repairs and notes."""
    fields, shape = check_claim(path)
    affine = np.eye(4)
    try:
        with quiet_itk() as itk:
            reader = itk.ImageFileReader()
            reader.SetFileName(str(path))
            reader.ReadImageInformation()
            dimensions = reader.GetDimension()
            directions = np.array(reader.GetDirection()).reshape(dimensions, dimensions)
            affine[:dimensions, :dimensions] = directions * np.array(reader.GetSpacing())
            affine[:dimensions, 3] = reader.GetOrigin()
    except RuntimeError as error:
        raise stop(path, "unreadable", f"ITK cannot read its header ({last_line(error)})") from error
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.all(np.isfinite(affine)) or lengths.min() <= 0 or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-4:
        found = f"directions and spacing give no grid: {affine[:3].round(4).tolist()}"
        raise stop(path, "bad-affine", found, "Export it again")
    if not {"space directions", "transformmatrix", "orientation", "rotation"} & set(fields):
        note = Entry(
            "no-world-coordinates", "the header names no directions: the grid has a spacing and no orientation"
        )
        return Geometry(shape, np.diag([*lengths, 1.0]), has_world=False), (), (note,)
    # Rounded to float32, as DICOM is: a volume and the NIfTI made of it lie on one grid.
    ras = (LPS_TO_RAS @ affine).astype(np.float32).astype(np.float64) + 0.0
    sheared = shear(ras)
    repair = (Entry("sheared-grid", f"array axes {sheared:.4f} off right angles; the exact affine is kept"),)
    return Geometry(shape, ras), repair if sheared > SHEAR_LIMIT else (), ()


def last_line(error: Exception) -> str:
    """What ITK says at the end of its long messages."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()[:160]


def read_itk(path: Path) -> Volume:
    """Read one NRRD or MetaImage file.

    Raises:
        CaseError: its claim is not what is there, or it holds more than one number a voxel.
    """
    geometry, repairs, notes = itk_geometry(path)
    try:
        with quiet_itk() as itk:
            array = itk.GetArrayFromImage(itk.ReadImage(str(path)))
    except RuntimeError as error:
        raise stop(path, "unreadable", f"ITK cannot read it ({last_line(error)})") from error
    array = array.T
    if array.shape != geometry.shape:
        raise stop(path, "unreadable", f"ITK gave a grid {array.shape}, the header says {geometry.shape}")
    return Volume(array[np.newaxis], geometry, "", itk_name(path), repairs=repairs, notes=notes)


def itk_name(path: Path) -> str:
    """The name without its suffix."""
    return path.stem if path.suffix.lower() in SUFFIXES else path.name
