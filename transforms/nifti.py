"""NIfTI-1 and NIfTI-2 files: header checked, geometry proved, voxels read to the last byte.

nibabel gives the header's layout; the reading is our own, because a header that contradicts itself has to stop here and
not be corrected in silence, a gzip stream has to be read to the end so that its checksum is compared, and a header's
claim has to be held against the file before memory is taken.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from isal import igzip_lib, isal_zlib

from .nifti_geometry import proved_geometry, stop
from .volume import Entry, Geometry, Volume

ISAL_ERROR: Any = igzip_lib.IsalError
GZIP_MAGIC = b"\x1f\x8b"
MAGICS = {b"n+1\0": (1, True), b"ni1\0": (1, False), b"n+2\0": (2, True), b"ni2\0": (2, False)}
CHUNK = 1 << 20
MAX_VOXELS = 2**31
LARGEST_DEFLATE_RATIO = 1040  # deflate cannot pack better than 1032 : 1
BOMB_RATIO = 200
BOMB_BYTES = 10**9
VECTOR_INTENT = 1007
RGB24, RGBA32 = 128, 2304


@dataclass(frozen=True, eq=False)
class NiftiHeader:
    """A header that was read and found sound, with what has to be known to read the voxels."""

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
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


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
    """Read and check the header.

    Args:
        affine: "sform" or "qform" where the user has said which one holds.

    Raises:
        CaseError: the header is damaged, contradicts itself or its geometry cannot be proved.
    """
    head, gzipped = unpacked_head(path)
    if not head:
        size = path.stat().st_size
        found = "the file is empty (0 bytes)" if size == 0 else "the gzip stream is damaged at its start"
        raise stop(path, "truncated" if size else "empty-file", found, "Copy the file again from its source")
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
    spatial, volumes, channels = split_dimensions(path, raw, shape, repairs)
    geometry = proved_geometry(path, raw, spatial, affine, (repairs, notes))
    return NiftiHeader(
        *(
            path,
            data_path,
            raw,
            shape,
            offset,
            dtype,
            gzipped,
            geometry,
            volumes,
            channels,
            tuple(repairs),
            tuple(notes),
        )
    )


def raw_header(path: Path, head: bytes) -> tuple[Any, bool]:
    """The header's fields, and whether the voxels lie in the same file."""
    little, big = struct.unpack("<i", head[:4])[0], struct.unpack(">i", head[:4])[0]
    size = little if little in (348, 540) else big
    if not is_nifti(head) or len(head) < size:
        found = f"not a NIfTI header (starts with {head[:4]!r}, {len(head)} bytes could be read)"
        raise stop(path, "not-nifti", found, "Copy the file again from its source")
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
    """The voxel type; colour (but of a picture without world coordinates) and complex numbers are refused."""
    code = int(raw["datatype"])
    try:
        dtype = raw.get_data_dtype()
    except (KeyError, nib.spatialimages.HeaderDataError):
        dtype = np.dtype("V")
    picture = int(raw["sform_code"]) == 0 and int(raw["qform_code"]) == 0 and code == RGB24
    if dtype.kind in "iuf" or picture:
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
    """Spatial shape, number of volumes (time points), number of declared channels."""
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


def check_size(header: NiftiHeader, max_voxels: int | None) -> None:
    """Hold the header's claim against the file before any memory is taken."""
    claim = header.offset + header.data_bytes
    size = header.data_path.stat().st_size
    voxels = header.data_bytes // header.dtype.itemsize
    fail = partial(stop, header.path, way_out="Copy the file again from its source")
    if not header.gzipped and size != claim:
        raise fail(
            "truncated" if size < claim else "data-length", f"the header claims {claim} bytes, the file has {size}"
        )
    if header.gzipped and claim > size * LARGEST_DEFLATE_RATIO:
        raise fail("truncated", f"the header claims {claim} bytes, more than {size} bytes of gzip can hold")
    limit = max_voxels or MAX_VOXELS
    if voxels > limit:
        raise stop(header.path, "too-large", f"{voxels} voxels, limit {limit}", "Raise it in Python with max_voxels=")
    if header.gzipped and not max_voxels and claim > BOMB_BYTES and claim > BOMB_RATIO * size:
        found = (
            f"needs {claim / 1e9:.1f} GB unpacked from {size / 1e6:.1f} MB, limit 1.0 GB at a ratio above {BOMB_RATIO}"
        )
        raise stop(header.path, "gzip-bomb", found, "Unpack it if you trust it, or read it in Python with max_voxels=")


def stored_voxels(header: NiftiHeader, max_voxels: int | None) -> tuple[np.ndarray, tuple[Entry, ...]]:
    """All stored numbers in Fortran order and native byte order; notes."""
    check_size(header, max_voxels)
    notes: tuple[Entry, ...] = ()
    if header.gzipped:
        buffer = np.empty(header.data_bytes, dtype=np.uint8)
        with open(header.data_path, "rb") as file:
            notes = unpack_into(header, file, buffer)
    else:
        buffer = np.fromfile(header.data_path, dtype=np.uint8, offset=header.offset)
        if buffer.size != header.data_bytes:
            raise stop(header.path, "changed", "the file changed while it was read", "Run again when it is complete")
    array = buffer.view(header.dtype)
    if header.dtype.byteorder == ">" or (header.dtype.byteorder == "=" and not np.little_endian):
        array = array.byteswap(inplace=True).view(header.dtype.newbyteorder("="))
    return array.reshape(header.shape, order="F"), notes


def unpack_into(header: NiftiHeader, file: BinaryIO, buffer: np.ndarray) -> tuple[Entry, ...]:
    """Unpack gzip to its end, so that every checksum is compared; the voxels go to `buffer`, nothing else is kept."""
    skip, filled, total = header.offset, 0, buffer.size
    target = buffer.data
    fail = partial(stop, header.path, way_out="Copy the file again from its source")
    try:
        packed = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (ValueError, OSError) as error:
        raise fail("empty-file", f"cannot be read ({error})") from error
    at = 0
    while at < len(packed):
        member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        while not member.eof:
            given = packed[at : at + CHUNK] if member.needs_input else b""
            if member.needs_input and not given:
                raise fail("truncated", f"the gzip stream ends early: {filled} of {total} bytes of voxels are there")
            at += len(given)
            try:
                data = member.decompress(given, 4 * CHUNK)
            except ISAL_ERROR as error:
                raise fail("damaged-gzip", f"the gzip stream is damaged ({error}) near byte {at}") from error
            if skip:
                step = min(skip, len(data))
                skip -= step
                data = data[step:]
            if filled + len(data) > total:
                raise fail("data-length", f"the header claims {total} bytes of voxels, the stream holds more")
            target[filled : filled + len(data)] = data
            filled += len(data)
        at -= len(member.unused_data)
        rest = packed[at:]
        if len(rest) and bytes(rest[:2]) != GZIP_MAGIC:
            break
    if filled < total:
        raise fail("truncated", f"{filled} of {total} bytes of voxels are there")
    if at < len(packed):
        if any(packed[at:]):
            raise fail("data-length", f"{len(packed) - at} bytes that are no gzip lie behind the stream")
        return (Entry("bytes-behind-gzip", f"{len(packed) - at} zero bytes behind the gzip stream were left out"),)
    return ()


def whole(value: float) -> bool:
    """A whole number that integers hold."""
    return float(value).is_integer() and abs(value) < 2**31


def smallest_integer(low: int, high: int) -> np.dtype:
    """int16 where it holds both numbers, else the next larger type."""
    for kind in (np.int16, np.uint16, np.int32, np.uint32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return np.dtype(kind)
    return np.dtype(np.int64)


def scaled(header: NiftiHeader, array: np.ndarray) -> np.ndarray:
    """Apply scl_slope and scl_inter: whole numbers stay whole, others become float32."""
    slope, inter = float(header.raw["scl_slope"]), float(header.raw["scl_inter"])
    if slope == 0 or np.isnan(slope):
        return array
    if not np.isfinite(slope) or not np.isfinite(inter):
        raise stop(
            header.path,
            "bad-scaling",
            f"scl_slope {slope:g}, scl_inter {inter:g}; expected numbers",
            "Export the file again",
        )
    if slope == 1 and inter == 0:
        return array
    if array.dtype.kind in "iu" and whole(slope) and whole(inter):
        ends = sorted(int(value) * int(slope) + int(inter) for value in (array.min(), array.max()))
        result = array.astype(smallest_integer(*ends), order="F", casting="unsafe")
        if int(slope) != 1:
            result *= result.dtype.type(int(slope))
        result += np.asarray(int(inter)).astype(result.dtype)
        return result
    result = np.empty(array.shape, dtype=np.float32, order="F")
    for index in range(array.shape[-1]):
        result[..., index] = array[..., index] * np.float64(slope) + inter
    return result


def not_finite_note(array: np.ndarray) -> tuple[Entry, ...]:
    """NaN and inf are handed on and counted."""
    if array.dtype.kind != "f":
        return ()
    bad = ~np.isfinite(array)
    count = int(np.count_nonzero(bad))
    if not count:
        return ()
    first = np.unravel_index(int(np.argmax(bad)), array.shape)
    return (Entry("not-finite", f"{count} voxels are NaN or inf, the first at index {tuple(int(i) for i in first)}"),)


def read_nifti(
    path: Path,
    part: int | None = None,
    *,
    affine: str | None = None,
    channels: bool = False,
    max_voxels: int | None = None,
) -> Volume:
    """Read one volume.

    Args:
        part: which volume of a 4D file, from 0; None where the file must hold exactly one.
        affine: "sform" or "qform" where the user has said which one holds.
        channels: the fourth dimension is declared to be channels.
        max_voxels: a limit that the user has named.

    Raises:
        CaseError: anything that makes the voxels or their place uncertain.
    """
    header = read_header(path, affine=affine)
    if header.volumes > 1 and part is None and not channels:
        found = f"4D, {header.volumes} volumes where one is expected"
        raise stop(
            path,
            "several-volumes",
            found,
            "Cut out the volume that is meant into a file of its own",
        )
    array, read_notes = stored_voxels(header, max_voxels)
    spatial = header.geometry.shape
    if array.dtype.fields is not None:
        return colour_picture(header, array)
    array = array.reshape((*spatial, header.volumes * header.channels), order="F")
    if part is not None:
        if not 0 <= part < header.volumes:
            raise stop(
                path,
                "no-such-part",
                f"volume {part} was asked for, the file holds 0 to {header.volumes - 1}",
                "Choose another",
            )
        array = array[..., part : part + 1]
    array = np.moveaxis(scaled(header, array), -1, 0)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    notes = (*header.notes, *read_notes, *not_finite_note(array))
    name = base_name(path) + ("" if part is None or header.volumes == 1 else f"_t{part:03d}")
    return Volume(array, header.geometry, name=name, repairs=header.repairs, notes=notes)


def colour_picture(header: NiftiHeader, array: np.ndarray) -> Volume:
    """RGB24 without world coordinates: a picture of three channels."""
    if len([size for size in header.shape if size > 1]) > 2:
        raise stop(
            header.path, "bad-datatype", f"RGB24 voxels in a volume {header.shape}", "Export the grey values as NIfTI"
        )
    flat = array.reshape(header.shape[:2], order="F")
    stacked = np.stack([flat[name] for name in ("R", "G", "B")])
    geometry = Geometry(stacked.shape[1:], header.geometry.affine, header.geometry.nifti_fields, has_world=False)
    return Volume(stacked, geometry, "picture", base_name(header.path), "", header.repairs, header.notes)
