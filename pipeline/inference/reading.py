"""What reading a case will take, from its headers, so that an image that cannot fit is refused before it is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...errors import CaseError, NoRoomError
from ...transforms.dicom_pixels import is_plain
from ...transforms.dicom_values import stored_dtype
from ...transforms.itk_files import itk_header
from ...transforms.nifti_header import NiftiHeader, read_header
from ...transforms.nifti_voxels import whole
from ...transforms.read_options import DEFAULT, ReadOptions
from ...transforms.readers import dicom_stack
from ...transforms.sources import Source
from ...transforms.zip_files import archive_of
from .budget import Limits, rounded_up
from .footprint import resident

DECODER_BYTES = 250 * 10**6  # the process that runs the codecs of compressed DICOM


def check_reading(sources: Sequence[Source], limit: int | None, options: ReadOptions = DEFAULT) -> None:
    """Refuse a case whose voxels alone do not fit into a limit of memory.

    Raises:
        CaseError: they do not (`memory`), or its headers are refused.
    """
    if limit is None:
        return
    needed = resident() + reading_bytes(sources, options)
    if needed > limit:
        raise CaseError(
            f"{sources[0].files[0]}: reading it takes the process to {needed / 1e9:.2f} GB, --memory is "
            f"{limit / 1e9:.2f} GB; give --memory {rounded_up(needed)} or more",
            "memory",
        )


def check_idle(limits: Limits) -> None:
    """Refuse a limit of memory that the process oversteps before it has read anything.

    Raises:
        NoRoomError: so it is.
    """
    held = resident()
    if limits.ram is not None and held > limits.ram:
        raise NoRoomError(
            f"--memory {limits.ram / 1e9:.2f} GB: the process takes {held / 1e9:.2f} GB with its libraries and the "
            f"network, before it reads an image; give at least {rounded_up(held)} and room for one"
        )


def reading_bytes(sources: Sequence[Source], options: ReadOptions = DEFAULT) -> int:
    """What reading the channels of a case takes at most, packed bytes and copies on the way included."""
    each = [_of_source(source, options) for source in sources]
    return each[0] if len(each) == 1 else 2 * sum(each)  # channels are read one by one and put together


def _of_source(source: Source, options: ReadOptions) -> int:
    if any(archive_of(file) for file in source.files):
        return 4 * math.prod(source.shape or (0,))  # headers lie in the archive: a guess
    if source.kind == "nifti":
        return _of_nifti(read_header(source.files[0], affine=options.affine))
    if source.kind == "itk":
        header = itk_header(source.files[0])
        return math.prod(header.geometry.shape) * header.dtype.itemsize
    if source.kind == "picture":
        return 8 * _size(source.files)  # packed ones are seldom that much larger, and small
    stack = dicom_stack(source, options)
    voxels = math.prod(stack.shape)
    first = stack.slices[0]
    size = max(2, stored_dtype(first).itemsize)
    scales = [(one.slope, one.intercept) for one in stack.slices[:1]]
    fractions = any(not whole(float(str(value).split("\\")[0] or 0)) for pair in scales for value in pair if value)
    copies = 3 if stack.places is not None else 1  # uneven slices are put on an even grid
    packed = 0 if all(is_plain(one) for one in stack.slices) else DECODER_BYTES
    return voxels * (max(4, size) if fractions else size) * copies + packed


def _of_nifti(header: NiftiHeader) -> int:
    packed = header.data_path.stat().st_size if header.gzipped else 0  # mapped while it is unpacked
    slope, inter = float(header.raw["scl_slope"]), float(header.raw["scl_inter"])
    if slope == 0 or not np.isfinite(slope) or (slope, inter) == (1.0, 0.0):
        return header.data_bytes + packed
    size = header.dtype.itemsize
    kept = max(2, size) if header.dtype.kind in "iu" and whole(slope) and whole(inter) else (4 if size <= 4 else 8)
    voxels = header.data_bytes // size
    return header.data_bytes + max(packed, kept * voxels)


def _size(files: Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)
