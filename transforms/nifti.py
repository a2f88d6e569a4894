"""NIfTI-1 and NIfTI-2 files: header checked, geometry proved, voxels read to the last byte.

nibabel gives the header's layout; the reading is our own, because a header that contradicts itself has to stop here and
not be corrected in silence, a gzip stream has to be read to the end so that its checksum is compared, and a header's claim
has to be held against the file before memory is taken.
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

from ..errors import CaseError
from .geometry import SHEAR_LIMIT, affine_difference, shear
from .volume import Entry, Geometry, Volume

GZIP_MAGIC = b"\x1f\x8b"
MAGICS = {b"n+1\0": (1, True), b"ni1\0": (1, False), b"n+2\0": (2, True), b"ni2\0": (2, False)}
GEOMETRIC_FIELDS = (
    *("srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("pixdim", "sform_code", "qform_code", "xyzt_units"),
)
CHUNK = 1 << 20
MAX_VOXELS = 2**31
LARGEST_DEFLATE_RATIO = 1040  # deflate cannot pack better than 1032 : 1
BOMB_RATIO = 200
BOMB_BYTES = 10**9
VECTOR_INTENT = 1007
RGB24, RGBA32 = 128, 2304
STOP_VOXELS, NOTE_VOXELS = 0.1, 0.01  # sform against qform, at the corners


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
        except isal_zlib.error:
            return b"", True


def stop(path: Path, code: str, found: str, way_out: str) -> CaseError:
    """A refusal that names the file, what was found, and the way on."""
    return CaseError(f"{path}: {found}. {way_out}", code)


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
        notes.append(Entry("bitpix-conflict", f"bitpix {int(raw['bitpix'])} contradicts datatype {dtype}; the datatype was followed"))
    offset = data_offset(path, raw, single)
    spatial, volumes, channels = split_dimensions(path, raw, shape, repairs)
    geometry = proved_geometry(path, raw, spatial, affine, (repairs, notes))
    return NiftiHeader(
        *(path, data_path, raw, shape, offset, dtype, gzipped, geometry, volumes, channels, tuple(repairs), tuple(notes))
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
    raise stop(path, "no-img-file", f"the header belongs to {name}.img, which is not there", "Copy both files into one folder")


def stored_shape(path: Path, raw: Any) -> tuple[int, ...]:
    """dim[1..dim[0]], every number above 0."""
    dim = [int(value) for value in raw["dim"]]
    if not 2 <= dim[0] <= 7 or any(size < 1 for size in dim[1 : dim[0] + 1]):
        found = f"dim is {dim}; dim[0] must be 2 to 7 and the sizes behind it at least 1"
        raise stop(path, "bad-dimensions", found, "Export the file again from its source")
    return tuple(dim[1 : dim[0] + 1])


def stored_dtype(path: Path, raw: Any) -> np.dtype:
    """The voxel type; colour and complex numbers are refused, except for the colour of a picture without world coordinates."""
    code = int(raw["datatype"])
    try:
        dtype = raw.get_data_dtype()
    except (KeyError, nib.spatialimages.HeaderDataError):
        dtype = np.dtype("V")
    picture = int(raw["sform_code"]) == 0 and int(raw["qform_code"]) == 0 and code == RGB24
    if dtype.kind in "iuf" or picture:
        return dtype
    names = {RGB24: "RGB24 (a colour overlay)", RGBA32: "RGBA32 (a colour overlay)", 32: "complex64", 1792: "complex128"}
    found = f"datatype {code}{' is ' + names[code] if code in names else ''}; expected whole or real numbers"
    raise stop(path, "bad-datatype", found, "Export the grey values (or the magnitude) as NIfTI")


def data_offset(path: Path, raw: Any, single: bool) -> int:
    """Where the voxels start."""
    value = float(raw["vox_offset"])
    least = int(raw.single_vox_offset) if single else 0
    offset = least if value == 0 else value
    if not np.isfinite(offset) or offset < least or offset != int(offset) or offset > 2**40:
        raise stop(path, "bad-offset", f"vox_offset is {value:g}, expected a whole number from {least} up", "Export the file again")
    return int(offset)


def split_dimensions(path: Path, raw: Any, shape: tuple[int, ...], repairs: list[Entry]) -> tuple[tuple[int, ...], int, int]:
    """Spatial shape, number of volumes (time points), number of declared channels."""
    spatial, rest = shape[:3], shape[3:]
    if rest and max(rest) == 1:
        repairs.append(Entry("trailing-dimension", f"{len(rest)} trailing dimension(s) of length 1 dropped from {shape}"))
        return spatial, 1, 1
    if not rest:
        return spatial, 1, 1
    if int(raw["intent_code"]) == VECTOR_INTENT and len([size for size in rest if size > 1]) == 1:
        return spatial, 1, max(rest)
    if len([size for size in rest if size > 1]) == 1:
        return spatial, max(rest), 1
    found = f"{len(shape)} dimensions {shape}, and two of them behind the space"
    raise stop(path, "too-many-dimensions", found, "Give one 3D or 4D file for each image")


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
    return bool(np.all(np.isfinite(affine)) and np.all(lengths > 0) and abs(np.linalg.det(affine[:3, :3] / lengths)) > 1e-4)


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
    fields = {name: np.asarray(raw[name]).astype(np.asarray(raw[name]).dtype.newbyteorder("=")) for name in GEOMETRIC_FIELDS}
    sform_code, qform_code = int(raw["sform_code"]), int(raw["qform_code"])
    sform = np.vstack([*(np.asarray(raw[f"srow_{axis}"], dtype=np.float64) for axis in "xyz"), [0, 0, 0, 1]])
    qform = quaternion_affine(raw)
    if choice not in (None, "sform", "qform"):
        raise ValueError(f"affine must be 'sform' or 'qform', got {choice!r}")
    if choice and not (sform_code if choice == "sform" else qform_code):
        raise stop(path, "no-such-affine", f"--affine {choice} was asked for, and {choice}_code is 0", "Take the other one")
    if not sform_code and not qform_code:
        return without_world(raw, spatial, fields, notes)
    if (choice or ("sform" if sform_code else "qform")) == "sform":
        name, matrix, field = "sform", sform, "srow_x, srow_y, srow_z"
    else:
        name, matrix, field = "qform", qform, "pixdim[1..3], quatern_b, c, d"
    if not usable(matrix):
        found = f"{name}_code is {sform_code if name == 'sform' else qform_code}, and {field} give no grid: {field_text(raw, name)}"
        raise stop(path, "bad-affine", found, "Export the file again, or name the other one with --affine where it holds")
    if choice:
        notes.append(Entry("affine-chosen", f"{choice} was taken as the user said"))
    elif sform_code and qform_code:
        compare_forms(path, spatial, (sform, qform), notes)
    matrix = in_millimetres(raw, matrix, repairs, notes)
    if shear(matrix) > SHEAR_LIMIT:
        repairs.append(Entry("sheared-grid", f"array axes {shear(matrix):.4f} off right angles; the exact affine is kept"))
    return Geometry(spatial, matrix, nifti_fields=fields)


def field_text(raw: Any, name: str) -> str:
    """The geometric fields as numbers, for a message."""
    if name == "sform":
        return str([[round(float(value), 4) for value in raw[f"srow_{axis}"]] for axis in "xyz"])
    numbers = [round(float(raw[f"quatern_{axis}"]), 4) for axis in "bcd"]
    return f"pixdim {[round(float(value), 4) for value in raw['pixdim'][1:4]]}, quaternion {numbers}"


def compare_forms(path: Path, spatial: tuple[int, ...], forms: tuple[np.ndarray, np.ndarray], notes: list[Entry]) -> None:
    """Stop where sform and qform place the corners more than 0.1 voxel apart."""
    sform, qform = forms
    apart = affine_difference(spatial, sform, qform)
    if apart <= NOTE_VOXELS:
        return
    if apart <= STOP_VOXELS:
        notes.append(Entry("sform-qform-differ", f"sform and qform are {apart:.3f} voxels apart at the corners; sform was taken"))
        return
    if shear(sform) > SHEAR_LIMIT and min(affine_difference(spatial, free, qform) for free in freed_of_shear(sform)) <= STOP_VOXELS:
        notes.append(Entry("qform-without-shear", "qform is the sform without its shear; sform was taken"))
        return
    size = f"{apart:.1f} voxels apart at the corners" if np.isfinite(apart) else "apart: the qform gives no grid"
    raise stop(
        path,
        "sform-qform-conflict",
        f"sform and qform are {size}, allowed are {STOP_VOXELS:g} voxels",
        "Say which one holds with --affine sform or --affine qform",
    )


def without_world(raw: Any, spatial: tuple[int, ...], fields: dict[str, Any], notes: list[Entry]) -> Geometry:
    """A grid of both codes 0: spacing, and no place."""
    pixdim = np.asarray(raw["pixdim"], dtype=np.float64)[1:4]
    affine = np.diag([*(value if np.isfinite(value) and value > 0 else 1.0 for value in pixdim), 1.0])
    notes.append(Entry("no-world-coordinates", "sform_code and qform_code are 0: the grid has a spacing and no place or orientation"))
    return Geometry(spatial, affine, nifti_fields=fields, has_world=False)


def in_millimetres(raw: Any, affine: np.ndarray, repairs: list[Entry], notes: list[Entry]) -> np.ndarray:
    """Apply xyzt_units."""
    unit = int(raw["xyzt_units"]) & 7
    if unit in (1, 3):
        factor, name = (1000.0, "metre") if unit == 1 else (0.001, "micron")
        repairs.append(Entry("units", f"xyzt_units says {name}; the affine was turned into mm"))
        return np.vstack([affine[:3] * factor, affine[3]])
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if unit not in (1, 2, 3) and (spacing.min() < 0.02 or spacing.max() > 50):
        notes.append(Entry("units-unknown", f"xyzt_units names no unit; mm assumed, which makes the spacing {spacing.round(4).tolist()} mm"))
    return affine


def check_size(header: NiftiHeader, max_voxels: int | None) -> None:
    """Hold the header's claim against the file before any memory is taken."""
    claim = header.offset + header.data_bytes
    size = header.data_path.stat().st_size
    voxels = header.data_bytes // header.dtype.itemsize
    fail = partial(stop, header.path, way_out="Copy the file again from its source")
    if not header.gzipped and size != claim:
        raise fail("truncated" if size < claim else "data-length", f"the header claims {claim} bytes, the file has {size}")
    if header.gzipped and claim > size * LARGEST_DEFLATE_RATIO:
        raise fail("truncated", f"the header claims {claim} bytes, more than {size} bytes of gzip can hold")
    limit = max_voxels or MAX_VOXELS
    if voxels > limit:
        raise stop(header.path, "too-large", f"{voxels} voxels, limit {limit}", "Raise the limit with --max-voxels")
    if header.gzipped and not max_voxels and claim > BOMB_BYTES and claim > BOMB_RATIO * size:
        found = f"needs {claim / 1e9:.1f} GB unpacked from {size / 1e6:.1f} MB, limit 1.0 GB at a ratio above {BOMB_RATIO}"
        raise stop(header.path, "gzip-bomb", found, "Where the file is to be trusted, name --max-voxels")


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
    target = memoryview(buffer)
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
            except igzip_lib.IsalError as error:
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
        raise stop(header.path, "bad-scaling", f"scl_slope {slope:g}, scl_inter {inter:g}; expected numbers", "Export the file again")
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
    path: Path, part: int | None = None, *, affine: str | None = None, channels: bool = False, max_voxels: int | None = None
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
        raise stop(path, "several-volumes", found, "Choose one (--time first or a number), or declare the fourth dimension as channels")
    array, read_notes = stored_voxels(header, max_voxels)
    spatial = header.geometry.shape
    if array.dtype.fields is not None:
        return colour_picture(header, array)
    array = array.reshape((*spatial, header.volumes * header.channels), order="F")
    if part is not None:
        if not 0 <= part < header.volumes:
            raise stop(path, "no-such-part", f"volume {part} was asked for, the file holds 0 to {header.volumes - 1}", "Choose another")
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
        raise stop(header.path, "bad-datatype", f"RGB24 voxels in a volume {header.shape}", "Export the grey values as NIfTI")
    flat = array.reshape(header.shape[:2], order="F")
    stacked = np.stack([flat[name] for name in ("R", "G", "B")])
    geometry = Geometry(stacked.shape[1:], header.geometry.affine, header.geometry.nifti_fields, has_world=False)
    return Volume(stacked, geometry, "picture", base_name(header.path), "", header.repairs, header.notes)
