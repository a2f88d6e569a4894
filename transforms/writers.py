"""Files written whole or not at all: NIfTI volumes and label maps, PNG label maps, JSON and text.

Every file is written to a temporary name in its own folder, synced, and renamed; a reader never sees half of one.
NIfTI is written here and not by nibabel's `save`, for three reasons: the geometric header fields of a NIfTI source come
back bit for bit, gzip goes through ISA-L (five times faster), and voxels leave slab by slab without a second copy.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import isal_zlib
from PIL import Image

from ..errors import CaseError, NoRoomError, UsageError
from .geometry import affine_difference
from .volume import Geometry, Volume

TEMPORARY_SUFFIX = ".part"
SLAB_BYTES = 8 << 20
BLOCK_BYTES = 1 << 19
RGB24 = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
VECTOR_INTENT = 1007
QFORM_TOLERANCE_VOXELS = 0.005  # a qform that is further off than this from the sform is not written


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; put it in place when the block ends without an error, remove it otherwise.

    Raises:
        NoRoomError: the disk is full; no part is left.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path.parent).free
            raise NoRoomError(
                f"{path}: no space left on its disk ({free / 1e6:.0f} MB free); nothing was left under that name. "
                "Make room and give the same command again"
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


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


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, obj: Any) -> None:
    """Write JSON atomically, with sorted keys: equal objects give equal bytes."""
    write_text(path, json.dumps(obj, indent=1, sort_keys=True, ensure_ascii=False, default=plain_value) + "\n")


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


def write_label_map(path: Path, labels: np.ndarray, geometry: Geometry) -> None:
    """Write a label map on the grid of its image.

    Args:
        path: ends in .nii.gz or .nii.
        labels: (*geometry.shape), whole numbers from 0.
        geometry: of the image; where it holds the fields of a NIfTI header, they are copied bit for bit.
    """
    if tuple(labels.shape) != tuple(geometry.shape):
        raise ValueError(f"{path.name}: labels have shape {tuple(labels.shape)}, their image {tuple(geometry.shape)}")
    write_nifti(path, labels, geometry, smallest_label_type(labels))


def write_volume(path: Path, volume: Volume) -> None:
    """Write a volume: one channel as it is, colour of a picture as RGB24, other channels as the fourth dimension."""
    array, geometry = volume.array, volume.geometry
    shape = tuple(geometry.shape)
    if tuple(array.shape[1:]) != shape:
        raise ValueError(f"{path.name}: the array has shape {tuple(array.shape)}, expected (channels, {shape})")
    if not fields_hold(geometry):
        geometry = replace(geometry, nifti_fields={})
    if volume.channels == 1:
        write_nifti(path, array[0], geometry, array.dtype)
    elif len(shape) == 2 and volume.channels == 3 and array.dtype == np.uint8:
        colours = np.ascontiguousarray(np.moveaxis(array, 0, -1)).view(RGB24)[..., 0]
        write_nifti(path, colours, geometry, RGB24)
    else:
        data = np.moveaxis(array if len(shape) == 3 else array[..., np.newaxis], 0, -1)
        write_nifti(path, data, geometry, data.dtype)


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


def write_nifti(path: Path, data: np.ndarray, geometry: Geometry, dtype: np.dtype) -> None:
    """Write an array (X, Y[, Z[, C]]) with scl_slope 1 and scl_inter 0.

    Memory: one slab of the array beside the array itself.
    """
    if path.name.endswith(".nii.gz"):
        packer = isal_zlib.compressobj(2, isal_zlib.DEFLATED, 31)
    elif path.name.endswith(".nii"):
        packer = None
    else:
        raise UsageError(f"{path}: label maps and volumes are written as .nii.gz or .nii; give a name that ends so")
    header = nifti_header(data.shape, geometry, dtype)
    length = 0
    with atomic_write(path) as temporary:
        with open(temporary, "wb") as file:
            for block in blocks(header, data, dtype):
                packed = packer.compress(block) if packer else block
                length += file.write(packed)
            if packer:
                length += file.write(packer.flush())
            file.flush()
        if temporary.stat().st_size != length:
            raise OSError(errno.ENOSPC, f"{temporary.stat().st_size} bytes on disk, {length} were written")


def blocks(header: nib.Nifti1Header, data: np.ndarray, dtype: np.dtype) -> Iterator[bytes | memoryview]:
    """The bytes of a NIfTI file: header, no extension, voxels in Fortran order."""
    start = header.binaryblock + b"\0\0\0\0"
    yield start + b"\0" * (int(header["vox_offset"]) - len(start))
    for volume in np.moveaxis(data, -1, 0) if data.ndim == 4 else (data,):
        plane_bytes = max(1, volume[..., :1].size * dtype.itemsize)
        depth = max(1, SLAB_BYTES // plane_bytes)
        for first in range(0, volume.shape[-1], depth):
            yield fortran_order(volume[..., first : first + depth], dtype)


def fortran_order(slab: np.ndarray, dtype: np.dtype) -> memoryview:
    """The bytes of a slab, first axis fastest; C order is turned block by block, which is three times faster."""
    turned = slab.T
    if not turned.flags.c_contiguous or turned.dtype != dtype:
        block = max(1, BLOCK_BYTES // max(1, slab[:1].nbytes))
        turned = np.empty(slab.T.shape, dtype=dtype)
        for first in range(0, slab.shape[0], block):
            turned[..., first : first + block] = slab[first : first + block].T
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
    if len(shape) == 4:
        header["intent_code"] = VECTOR_INTENT  # channels, not time
    header["magic"] = header.single_magic
    header["vox_offset"] = header.single_vox_offset
    if fields:
        for name, value in fields.items():
            header[name] = value
        return header
    header.set_xyzt_units("mm")
    header["pixdim"][1:4] = ([*geometry.spacing_mm, 1.0, 1.0, 1.0])[:3]
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
