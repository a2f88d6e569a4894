"""Headers of NIfTI-1 and NIfTI-2 files: read, checked, and turned into what has to be known to read the voxels.

nibabel gives the header's layout; the reading is our own, because a header that contradicts itself has to stop here and
not be corrected in silence.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip_lib, isal_zlib

from .claims import check_size, product, stop
from .nifti_geometry import proved_geometry
from .volume import Entry, Geometry

ISAL_ERROR: Any = igzip_lib.IsalError
GZIP_MAGIC = b"\x1f\x8b"
MAGICS = {b"n+1\0": (1, True), b"ni1\0": (1, False), b"n+2\0": (2, True), b"ni2\0": (2, False)}
VECTOR_INTENT = 1007
RGB24, RGBA32 = 128, 2304


@dataclass(frozen=True, eq=False)
class NiftiHeader:
    """A header that was read and found sound, with what has to be known to read the voxels.

    Args:
        shape: as stored, all dimensions.
        offset: of the first voxel in its file, which is unpacked where it is gzip.
        volumes: time points; a film (`geometry.film`) is one volume.
        channels: declared ones; 3 for RGB24.
    """

    path: Path
    data_path: Path
    raw: Any
    shape: tuple[int, ...]
    offset: int
    dtype: np.dtype
    gzipped: bool
    geometry: Geometry
    volumes: int = 1
    channels: int = 1
    repairs: tuple[Entry, ...] = ()
    notes: tuple[Entry, ...] = ()

    @property
    def data_bytes(self) -> int:
        """Bytes that the voxels take."""
        return product(self.shape) * self.dtype.itemsize


def is_nifti(head: bytes) -> bool:
    """Whether the first 540 or more bytes, unpacked where they were gzip, begin a NIfTI header."""
    if len(head) < 4:
        return False
    size = struct.unpack("<i", head[:4])[0]
    return size in (348, 540) or struct.unpack(">i", head[:4])[0] in (348, 540)


def base_name(path: Path) -> str:
    """The name of a file without the suffixes that say how it is packed."""
    name = path.name
    for suffix in (".gz", ".nii", ".hdr", ".img"):
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            name = name[: -len(suffix)]
    return name


def unpacked_head(path: Path, size: int = 1024) -> tuple[bytes, bool]:
    """The first bytes of a file, unpacked where it is gzip, and whether it is."""
    with open(path, "rb") as file:
        head = file.read(size)
        if not head.startswith(GZIP_MAGIC):
            return head, False
        try:
            return isal_zlib.decompressobj(wbits=31).decompress(head, size), True
        except ISAL_ERROR:
            return b"", True


def read_header(path: Path, *, affine: str | None = None) -> NiftiHeader:
    """Read and check the header, and hold its claim against the size of the file where that needs no unpacking.

    Args:
        affine: "sform" or "qform" where the user has said which one holds.

    Raises:
        CaseError: the header is damaged, contradicts itself or its geometry cannot be proved.
    """
    head, gzipped = unpacked_head(path)
    if not head:
        size = path.stat().st_size
        found = "the file is empty (0 bytes)" if size == 0 else "the gzip stream is damaged at its start"
        raise stop(path, "truncated" if size else "empty-file", found)
    raw, single = raw_header(path, head)
    data_path = path if single else image_file(path)
    if not single:
        gzipped = unpacked_head(data_path, 64)[1]
    repairs: list[Entry] = []
    notes: list[Entry] = []
    suffix_says = data_path.name.lower().endswith(".gz")
    if gzipped != suffix_says:
        was, named = ("gzip", "not") if gzipped else ("not gzip", "so")
        repairs.append(Entry("suffix-lies", f"the file is {was} although its name does {named} say it"))
    shape = stored_shape(path, raw)
    dtype = stored_dtype(path, raw)
    if int(raw["bitpix"]) != dtype.itemsize * 8:
        notes.append(
            Entry(
                "bitpix-conflict",
                f"bitpix {int(raw['bitpix'])} contradicts datatype {dtype}; the datatype was followed",
            )
        )
    offset = data_offset(path, raw, single)
    check_size(path, offset + product(shape) * dtype.itemsize, data_path.stat().st_size, "gzip" if gzipped else "")
    spatial, volumes, channels = split_dimensions(path, raw, shape, repairs)
    geometry = proved_geometry(path, raw, spatial, affine, (repairs, notes))
    if is_film(raw, shape):
        geometry, volumes = film_geometry(raw, shape, geometry), 1
    if dtype.fields is not None:
        channels = len(dtype.fields)
    said = {"repairs": tuple(repairs), "notes": tuple(notes)}
    return NiftiHeader(path, data_path, raw, shape, offset, dtype, gzipped, geometry, volumes, channels, **said)


def raw_header(path: Path, head: bytes) -> tuple[Any, bool]:
    """The header's fields, and whether the voxels lie in the same file."""
    little, big = struct.unpack("<i", head[:4])[0], struct.unpack(">i", head[:4])[0]
    size = little if little in (348, 540) else big
    if not is_nifti(head) or len(head) < size:
        found = f"not a NIfTI header (starts with {head[:4]!r}, {len(head)} bytes could be read)"
        raise stop(path, "not-nifti", found)
    magic = head[344:348] if size == 348 else head[4:8]
    version, single = MAGICS.get(magic, (0, False))
    if (version, size) not in ((1, 348), (2, 540)):
        found = f"magic bytes are {magic!r}, expected one of {', '.join(repr(name) for name in MAGICS)}"
        raise stop(path, "bad-magic", found, "Analyze files hold no orientation; export NIfTI from the source again")
    kind = nib.Nifti1Header if version == 1 else nib.Nifti2Header
    return kind(head[:size], endianness="<" if little == size else ">", check=False), single


def image_file(path: Path) -> Path:
    """The .img of a .hdr."""
    name = base_name(path)
    for suffix in (".img", ".img.gz", ".IMG"):
        if (path.parent / f"{name}{suffix}").is_file():
            return path.parent / f"{name}{suffix}"
    raise stop(
        path, "no-img-file", f"the header belongs to {name}.img, which is not there", "Copy both files into one folder"
    )


def stored_shape(path: Path, raw: Any) -> tuple[int, ...]:
    """dim[1..dim[0]], every number above 0."""
    dim = [int(value) for value in raw["dim"]]
    if not 2 <= dim[0] <= 7 or any(size < 1 for size in dim[1 : dim[0] + 1]):
        found = f"dim is {dim}; dim[0] must be 2 to 7 and the sizes behind it at least 1"
        raise stop(path, "bad-dimensions", found, "Export the file again from its source")
    return tuple(dim[1 : dim[0] + 1])


def stored_dtype(path: Path, raw: Any) -> np.dtype:
    """The voxel type; colour (but of a picture or film without world coordinates) and complex numbers are refused."""
    code = int(raw["datatype"])
    try:
        dtype = raw.get_data_dtype()
    except (KeyError, nib.spatialimages.HeaderDataError):
        dtype = np.dtype("V")
    if dtype.kind in "iuf" or (code == RGB24 and not has_codes(raw)):
        return dtype
    names = {
        RGB24: "RGB24 (a colour overlay)",
        RGBA32: "RGBA32 (a colour overlay)",
        32: "complex64",
        1792: "complex128",
    }
    found = f"datatype {code}{' is ' + names[code] if code in names else ''}; expected whole or real numbers"
    raise stop(path, "bad-datatype", found, "Export the grey values (or the magnitude) as NIfTI")


def data_offset(path: Path, raw: Any, single: bool) -> int:
    """Where the voxels start."""
    value = float(raw["vox_offset"])
    least = int(raw.single_vox_offset) if single else 0
    offset = least if value == 0 else value
    if not np.isfinite(offset) or offset < least or offset != int(offset) or offset > 2**40:
        raise stop(
            path,
            "bad-offset",
            f"vox_offset is {value:g}, expected a whole number from {least} up",
            "Export the file again",
        )
    return int(offset)


def split_dimensions(
    path: Path, raw: Any, shape: tuple[int, ...], repairs: list[Entry]
) -> tuple[tuple[int, ...], int, int]:
    """Spatial shape, number of volumes (time points), number of declared channels.

    A fourth dimension is time unless the header declares vectors; a fifth one of length above 1 is channels only then.
    """
    spatial, rest = shape[:3], shape[3:]
    if rest and max(rest) == 1:
        repairs.append(
            Entry("trailing-dimension", f"{len(rest)} trailing dimension(s) of length 1 dropped from {shape}")
        )
        return spatial, 1, 1
    if not rest:
        return spatial, 1, 1
    if int(raw["intent_code"]) == VECTOR_INTENT and len([size for size in rest if size > 1]) == 1:
        return spatial, 1, max(rest)
    if len([size for size in rest if size > 1]) == 1:
        return spatial, max(rest), 1
    found = f"{len(shape)} dimensions {shape}, and two of them behind the space"
    raise stop(path, "too-many-dimensions", found, "Give one 3D or 4D file for each image")


def has_codes(raw: Any) -> bool:
    """Whether sform_code or qform_code says that there is a place in the world."""
    return int(raw["sform_code"]) != 0 or int(raw["qform_code"]) != 0


def is_film(raw: Any, shape: tuple[int, ...]) -> bool:
    """One plane over time and no place in the world: the frames of an ultrasound or secondary capture."""
    over_time = len(shape) >= 4 and shape[2] == 1 and shape[3] > 1 and max((1, *shape[4:])) == 1
    return over_time and int(raw["intent_code"]) != VECTOR_INTENT and not has_codes(raw)


def film_geometry(raw: Any, shape: tuple[int, ...], plane: Geometry) -> Geometry:
    """Of a film (X, Y, T): the third spacing is seconds, 1 where the header does not say."""
    step = float(raw["pixdim"][4]) * {16: 1e-3, 24: 1e-6}.get(int(raw["xyzt_units"]) & 56, 1.0)
    affine = plane.affine.copy()
    affine[2, 2] = step if np.isfinite(step) and step > 0 else 1.0
    return replace(plane, shape=(*shape[:2], shape[3]), affine=affine, film=True)
