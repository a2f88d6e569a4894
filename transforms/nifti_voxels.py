"""Voxels of a NIfTI file: the claim held against the file, gzip read to its end, the scaling applied.

A gzip stream is read to its last byte so that its checksum is compared, and a header's claim is held against the file
before memory is taken.
"""

from __future__ import annotations

import mmap
from functools import partial
from typing import BinaryIO

import numpy as np
from isal import igzip_lib

from .claims import check_limits, stop
from .nifti_header import GZIP_MAGIC, ISAL_ERROR, NiftiHeader
from .volume import Entry

CHUNK = 1 << 20
FLOAT32_MAX = float(np.finfo(np.float32).max)


def stored_voxels(header: NiftiHeader, max_voxels: int | None) -> tuple[np.ndarray, tuple[Entry, ...]]:
    """All stored numbers in Fortran order and native byte order; notes."""
    packed_bytes = header.data_path.stat().st_size if header.gzipped else 0
    check_limits(header.path, header.shape, header.dtype, packed_bytes, max_voxels)
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
    fail = partial(stop, header.path)
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
    """int16 where it holds both numbers, else the next larger type; int64 at last."""
    for kind in (np.int16, np.uint16, np.int32, np.uint32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return np.dtype(kind)
    return np.dtype(np.int64)


def scaled(header: NiftiHeader, array: np.ndarray) -> np.ndarray:
    """Apply scl_slope and scl_inter: whole numbers stay whole, others become float32, or float64 where that is short.

    A slope of 0 or NaN says "no scaling".
    """
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
        if np.iinfo(np.int64).min <= ends[0] and ends[1] <= np.iinfo(np.int64).max:
            # arithmetic modulo the width of the type: what lies outside on the way comes back in the end
            result = array.astype(smallest_integer(*ends), order="F", casting="unsafe")
            if int(slope) != 1:
                result *= np.asarray(int(slope)).astype(result.dtype)
            result += np.asarray(int(inter)).astype(result.dtype)
            return result
    result = np.empty(array.shape, dtype=scaled_type(array, slope, inter), order="F")
    with np.errstate(over="ignore", invalid="ignore"):  # inf and NaN voxels are counted, not warned about
        for index in np.ndindex(array.shape[2:]):  # plane by plane: no second copy of the volume in float64
            plane = (slice(None), slice(None), *index)
            result[plane] = array[plane] * np.float64(slope) + inter
    return result


def scaled_type(array: np.ndarray, slope: float, inter: float) -> np.dtype:
    """float32 for stored numbers of up to 16 bits and for float32 whose values stay in its range, else float64."""
    if array.dtype.itemsize > (2 if array.dtype.kind in "iu" else 4):
        return np.dtype(np.float64)
    largest = float(np.iinfo(array.dtype).max) if array.dtype.kind in "iu" else 0.0
    if array.dtype.kind == "f" and array.size:
        ends = [float(np.fmin.reduce(array, axis=None)), float(np.fmax.reduce(array, axis=None))]  # NaN left out
        largest = max((abs(end) for end in ends if np.isfinite(end)), default=0.0)
    return np.dtype(np.float32 if largest * abs(slope) + abs(inter) < FLOAT32_MAX else np.float64)


def not_finite_note(array: np.ndarray) -> tuple[Entry, ...]:
    """NaN and inf of (C, X, Y[, Z]) are handed on and counted."""
    if array.dtype.kind != "f":
        return ()
    bad = ~np.isfinite(array)
    count = int(np.count_nonzero(bad))
    if not count:
        return ()
    first = tuple(int(index) for index in np.unravel_index(int(np.argmax(bad)), array.shape)[1:])
    return (Entry("not-finite", f"{count} voxels are NaN or inf, the first at index {first}"),)
