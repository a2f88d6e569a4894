"""Files written whole or not at all: NIfTI volumes and label maps, PNG label maps, JSON and text.

Every file is written to a temporary name in its own folder, looked at again, synced and renamed; a reader never sees
half of one. NIfTI is written here and not by nibabel's `save`, for three reasons: the geometric fields of a NIfTI
source come back bit for bit, gzip goes through ISA-L on all cores, and voxels leave slab by slab without a second copy.
The writers give back the SHA-256 of what they wrote, so that nobody reads it again to know it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np
from isal import isal_zlib
from PIL import Image

from ..errors import CaseError, NoRoomError, UsageError
from .cores import is_alone
from .geometry import affine_difference
from .gzip_blocks import Block, gzipped
from .volume import Geometry, Volume

TEMPORARY_SUFFIX = ".part"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NAME_BYTES = 200  # of a name that a temporary one keeps: file systems end at 255
SLAB_BYTES = 2 << 20
TURNED_BYTES = 8 << 20  # turned at a time: whole cache lines of the last axis, where that is the fast one
TILE = (128, 4)
RGB24 = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
VECTOR_INTENT = 1007
QFORM_TOLERANCE_VOXELS = 0.005  # a qform that is further off than this from the sform is not written


@contextmanager
def atomic_write(path: Path, needed: int | None = None) -> Iterator[Path]:
    """Give a temporary path beside `path`; put it in place when the block ends without an error, remove it otherwise.

    Args:
        path: the final name.
        needed: bytes that the file may take at most, for the message of a full disk.

    Raises:
        NoRoomError: the disk is full; no part is left.
    """
    path = Path(path)
    kept = os.fsdecode(os.fsencode(path.name)[:NAME_BYTES])
    temporary = path.with_name(f".{kept}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise NoRoomError(no_room_text(path, needed)) from error
        raise
    finally:
        with suppress(OSError):  # gone already, or a broken disk: its first error is the one to tell
            temporary.unlink()


def no_room_text(path: Path, needed: int | None) -> str:
    """What a full disk comes to, with the numbers that are known."""
    known = [] if needed is None else [f"up to {needed / 1e6:.1f} MB are needed"]
    with suppress(OSError):
        known.append(f"{shutil.disk_usage(path.parent).free / 1e6:.0f} MB free")
    return (
        f"{path}: no space left on its disk ({', '.join(known) or 'free space unknown'}); nothing was left under that "
        "name. Make room and give the same command again"
    )


def sync_folder(folder: Path) -> None:
    """Bring a rename to disk, where the file system offers it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> str:
    """Write UTF-8 text atomically and give its SHA-256; what UTF-8 cannot hold (bytes of odd file names) is escaped."""
    data = text.encode("utf-8", "backslashreplace")
    with atomic_write(path, len(data)) as temporary:
        temporary.write_bytes(data)
        check_length(temporary, len(data))
    return hashlib.sha256(data).hexdigest()


def write_json(path: Path, obj: Any) -> str:
    """Write JSON atomically, with sorted keys: equal objects give equal bytes. Gives its SHA-256."""
    return write_text(path, json.dumps(obj, indent=1, sort_keys=True, ensure_ascii=False, default=plain_value) + "\n")


def check_length(path: Path, length: int) -> None:
    """Hold the bytes on disk against those that were written: some file systems take them and keep fewer."""
    found = path.stat().st_size
    if found != length:
        raise OSError(errno.ENOSPC, f"{found} bytes on disk, {length} were written")


def plain_value(value: Any) -> Any:
    """Numpy numbers, arrays, mappings and paths as JSON knows them."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    try:
        return dict(value)
    except (TypeError, ValueError):
        raise TypeError(f"{type(value).__name__} has no JSON form") from None


def smallest_label_type(labels: np.ndarray) -> np.dtype:
    """The smallest unsigned integer type that holds the labels.

    Raises:
        ValueError: labels that are not whole, negative or above 2**32 - 1.
    """
    if labels.dtype.kind not in "iub":
        raise ValueError(f"a label map holds whole numbers, got an array of {labels.dtype}; round and convert it first")
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    if low < 0 or high > 2**32 - 1:
        raise ValueError(f"label values {low} to {high} do not fit an unsigned type; labels run from 0 up")
    return np.dtype(np.uint8 if high < 256 else np.uint16 if high < 65536 else np.uint32)


def write_label_map(path: Path, labels: np.ndarray, geometry: Geometry) -> str:
    """Write a label map on the grid of its image and give the SHA-256 of the file.

    Args:
        path: ends in .nii.gz or .nii.
        labels: (*geometry.shape), whole numbers from 0.
        geometry: of the image; where it holds the fields of a NIfTI header, they are copied bit for bit.
    """
    if tuple(labels.shape) != tuple(geometry.shape):
        raise ValueError(f"{path.name}: labels have shape {tuple(labels.shape)}, their image {tuple(geometry.shape)}")
    return write_nifti(path, labels, geometry, smallest_label_type(labels))


def write_volume(path: Path, volume: Volume) -> str:
    """Write a volume: one channel as it is, colour of a picture as RGB24, other channels as the fourth dimension.

    Gives the SHA-256 of the file.
    """
    array, geometry = volume.array, volume.geometry
    shape = tuple(geometry.shape)
    if tuple(array.shape[1:]) != shape:
        raise ValueError(f"{path.name}: the array has shape {tuple(array.shape)}, expected (channels, {shape})")
    if not fields_hold(geometry):
        geometry = replace(geometry, nifti_fields={})
    if volume.channels == 1:
        return write_nifti(path, array[0], geometry, array.dtype)
    if (len(shape) == 2 or geometry.film) and volume.channels == 3 and array.dtype == np.uint8:
        colours = np.ascontiguousarray(array.T).view(RGB24)[..., 0].T
        return write_nifti(path, colours, geometry, RGB24)
    if geometry.film:
        raise ValueError(f"{path.name}: a film has one grey or three 8-bit colour channels, got {volume.channels}")
    data = np.moveaxis(array if len(shape) == 3 else array[..., np.newaxis], 0, -1)
    return write_nifti(path, data, geometry, data.dtype)


def fields_hold(geometry: Geometry) -> bool:
    """Whether a NIfTI source's header fields still say what the geometry says: not after a change of units or form."""
    fields = geometry.nifti_fields
    if not fields or int(fields["xyzt_units"]) & 7 in (1, 3):
        return False
    if not np.all(np.asarray(fields["pixdim"])[1 : len(geometry.shape) + 1] > 0):
        return False
    if not geometry.has_world or int(fields["sform_code"]) == 0:
        return True
    return bool(np.array_equal(np.stack([fields[f"srow_{axis}"] for axis in "xyz"]), geometry.affine[:3]))


def write_nifti(path: Path, data: np.ndarray, geometry: Geometry, dtype: np.dtype, *, slope: float = 1.0) -> str:
    """Write an array (X, Y[, Z[, C]]), of a film (X, Y, T), with scl_slope as given and scl_inter 0.

    Memory: a slab of the array for each thread beside the array itself.

    Returns:
        SHA-256 of the file, as hex digits.
    """
    if not path.name.endswith((".nii.gz", ".nii")):
        raise UsageError(f"{path}: label maps and volumes are written as .nii.gz or .nii; give a name that ends so")
    packed = path.name.endswith(".gz")
    header = nifti_header((*data.shape[:2], 1, *data.shape[2:]) if geometry.film else data.shape, geometry, dtype)
    header["scl_slope"] = slope
    start = header.binaryblock + b"\0\0\0\0"
    start += b"\0" * (int(header["vox_offset"]) - len(start))
    pieces = blocks(start, data, dtype)
    digest, length = hashlib.sha256(), 0
    with atomic_write(path, len(start) + data.size * dtype.itemsize) as temporary:
        with (
            nullcontext() if is_alone() else ThreadPoolExecutor(1) as beside,
            open(temporary, "wb", buffering=0) as file,
            closing(gzipped(pieces) if packed else pieces) as stream,
        ):
            for piece in stream:
                hashed = beside.submit(digest.update, piece) if beside else None
                length += write_all(cast(BinaryIO, file), piece)
                if hashed is None:
                    digest.update(piece)
                else:
                    hashed.result()
        check_length(temporary, length)
        check_start(temporary, start, packed)
    return digest.hexdigest()


def write_all(file: BinaryIO, piece: Block) -> int:
    """Write a piece, of which an unbuffered file may take a part at a time."""
    left = memoryview(piece)
    while left:
        left = left[file.write(left) :]
    return len(piece)


def check_start(path: Path, start: bytes, packed: bool) -> None:
    """Hold the header on disk against the one that was written."""
    with open(path, "rb") as file:
        found = file.read(2 * len(start))
    if packed:
        try:
            found = isal_zlib.decompressobj(31).decompress(found, len(start))
        except isal_zlib.error:  # type: ignore[misc]  # its stub takes the class for an object
            found = b""
    if found[: len(start)] != start:
        raise OSError(errno.EIO, f"{path}: the header on disk is not the one that was written")


def blocks(start: bytes, data: np.ndarray, dtype: np.dtype) -> Generator[Block, None, None]:
    """The bytes of a NIfTI file: its header, then the voxels in Fortran order."""
    yield start
    for volume in np.moveaxis(data, -1, 0) if data.ndim == 4 else (data,):
        plane_bytes = max(1, volume[..., :1].size * dtype.itemsize)
        depth = max(1, SLAB_BYTES // plane_bytes)
        turned = not volume.T.flags.c_contiguous
        step = depth * max(1, TURNED_BYTES // (depth * plane_bytes)) if turned else depth
        for first in range(0, volume.shape[-1], step):
            slab = fortran_order(volume[..., first : first + step], dtype)
            for at in range(0, len(slab), depth * plane_bytes):
                yield slab[at : at + depth * plane_bytes]


def fortran_order(slab: np.ndarray, dtype: np.dtype) -> memoryview:
    """The bytes of a slab, first axis fastest; C order is turned tile by tile, which caches like better."""
    turned = slab.T
    if not turned.flags.c_contiguous or turned.dtype != dtype:
        turned = np.empty(slab.T.shape, dtype=dtype)
        starts = (range(0, side, size) for side, size in zip(slab.shape[:-1], TILE, strict=False))
        for corner in product(*starts):
            tile = tuple(slice(at, at + size) for at, size in zip(corner, TILE, strict=False))
            place = (slice(None), *reversed(tile))
            turned[place] = slab[tile].T
    return memoryview(turned.reshape(-1)).cast("B")


def nifti_header(shape: tuple[int, ...], geometry: Geometry, dtype: np.dtype) -> nib.Nifti1Header:
    """A fresh header: nothing is taken from the source but its geometric fields (free text may name the patient)."""
    fields = geometry.nifti_fields
    doubles = bool(fields) and np.asarray(fields["srow_x"]).dtype.itemsize == 8
    kind = nib.Nifti2Header if doubles or max(shape) > 32767 else nib.Nifti1Header
    header = kind(endianness="<")
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header["scl_slope"], header["scl_inter"] = 1, 0
    if len(shape) == 4 and not geometry.film:
        header["intent_code"] = VECTOR_INTENT  # channels, not time
    header["magic"] = header.single_magic
    header["vox_offset"] = header.single_vox_offset
    if fields:
        for name, value in fields.items():
            header[name] = value
        return header
    spacing = (*geometry.spacing_mm, 1.0, 1.0)[:3]
    header.set_xyzt_units("mm", "sec" if geometry.film else None)
    if geometry.film:
        header["pixdim"][1:5] = (*spacing[:2], 1.0, spacing[2])
        return header
    header["pixdim"][1:4] = spacing
    if not geometry.has_world:
        return header
    header.set_sform(geometry.affine, code=1)
    header.set_qform(geometry.affine, code=1, strip_shears=True)
    # Near half turns a float32 quaternion loses the angle; and it cannot hold a shear. Then the sform stands alone.
    if affine_difference(geometry.shape, geometry.affine, header.get_qform()) > QFORM_TOLERANCE_VOXELS:
        header["qform_code"] = 0
    return header


def write_picture_labels(path: Path, labels: np.ndarray) -> None:
    """Write the labels (X, Y) of a picture as a grey PNG of 8 or 16 bits, values as they are."""
    dtype = smallest_label_type(labels)
    if labels.ndim != 2 or dtype.itemsize > 2:
        raise ValueError(
            f"{path.name}: a PNG label map is (X, Y) with values up to 65535, got {labels.shape} of {dtype}"
        )
    if path.suffix.lower() != ".png":
        raise CaseError(f"{path}: labels of pictures are written as .png; give a name that ends so", "output-name")
    rows = np.ascontiguousarray(labels.T.astype(dtype))
    with atomic_write(path) as temporary:
        Image.fromarray(rows).save(temporary, format="PNG")
