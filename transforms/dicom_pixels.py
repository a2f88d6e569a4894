"""DICOM voxels: decoded and rescaled slice by slice into one array of the smallest type that holds them exactly.

Native pixels go from the file into the array; where every slope and intercept is a whole number the arithmetic is done
in place, modulo the word length, and the array is seen through the signed or unsigned type that holds the result.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import UID

from ..errors import CaseError
from .dicom import NATIVE, Slice
from .dicom_series import Stack
from .nifti import smallest_integer, whole
from .volume import Entry, Geometry, Volume

AIR_HU = -1024
INVERTED_CLASSES = ("CR", "DX", "MG", "IO", "PX")


def read_stack(stack: Stack) -> Volume:
    """Read all voxels of a stack.

    Raises:
        CaseError: a file is cut off, its codec is missing, or its rescale tags contradict their neighbours.
    """
    first = stack.slices[0]
    repairs, notes = stack.repairs, stack.notes
    if stack.picture and (first.samples > 1 or first.photometric == "PALETTE COLOR"):
        array = colour_pixels(first)
    else:
        scales = rescales(stack.slices)
        stored = stored_stack(stack.slices)
        mask_bits(stored, stack.slices)
        notes = (*notes, *padding_note(stored, stack.slices))
        if stack.picture and first.photometric == "MONOCHROME1" and first.modality in INVERTED_CLASSES:
            top = 2**first.bits_stored - 1 if not first.signed else -1
            stored = (top - stored.astype(np.int32)).astype(stored.dtype)
            repairs = (*repairs, Entry("monochrome1", "MONOCHROME1: grey values inverted once within BitsStored"))
        values = rescaled(stored, scales)
        array = values.transpose(2, 1, 0)[np.newaxis]
        array = array[..., 0] if stack.picture else array
    geometry = Geometry(tuple(array.shape[1:]), stack.affine, has_world=not stack.picture)
    return Volume(array, geometry, first.modality, "", stack.series, repairs, notes, first.facts)


def rescales(slices: Sequence[Slice]) -> list[tuple[float, float]]:
    """Slope and intercept of each slice.

    Raises:
        CaseError: 0, not a number, or absent in some slices of a series whose others are rescaled.
    """
    scales: list[tuple[float, float] | None] = []
    for one in slices:
        if one.slope is None and one.intercept is None:
            scales.append(None)
            continue
        try:
            slope, intercept = float(one.slope or ""), float(one.intercept or "")
        except ValueError:
            slope, intercept = math.nan, math.nan
        if not (math.isfinite(slope) and math.isfinite(intercept)) or slope == 0:
            raise CaseError(
                f"{one.path}: RescaleSlope is {one.slope!r}, RescaleIntercept {one.intercept!r}; expected two numbers, "
                "the slope not 0. Fetch the series again",
                "bad-rescale",
            )
        scales.append((slope, intercept))
    given = [scale for scale in scales if scale is not None]
    if given and len(given) < len(scales) and any(scale != (1.0, 0.0) for scale in given):
        at = scales.index(None)
        near = next(scale for scale in (*scales[at::-1], *scales[at:]) if scale is not None)
        raise CaseError(
            f"{slices[at].path}: RescaleSlope and RescaleIntercept are absent in {len(scales) - len(given)} of "
            f"{len(scales)} slices; its neighbours have {near[0]:g} and {near[1]:g}. Fetch the series again",
            "rescale-missing",
        )
    return [(1.0, 0.0) if scale is None else scale for scale in scales]


def stored_dtype(one: Slice) -> np.dtype:
    """Type of the stored words."""
    if one.bits_allocated not in (8, 16, 32):
        raise CaseError(
            f"{one.path}: BitsAllocated is {one.bits_allocated}, expected 8, 16 or 32. Export it again",
            "bits-allocated",
        )
    return np.dtype(f"{'i' if one.signed else 'u'}{one.bits_allocated // 8}")


def stored_stack(slices: Sequence[Slice]) -> np.ndarray:
    """Stored words of all slices, (Z, rows, columns)."""
    first = slices[0]
    dtype = np.result_type(*{stored_dtype(one) for one in slices})
    stack = np.empty((len(slices), first.rows, first.columns), dtype=dtype)
    opened: dict[Path, pydicom.FileDataset] = {}
    for index, one in enumerate(slices):
        if one.transfer_syntax in NATIVE and one.pixel_offset >= 0:
            read_native(one, stack[index])
        else:
            stack[index] = decoded(one, opened)
    return stack


def read_native(one: Slice, plane: np.ndarray) -> None:
    """Uncompressed pixels straight from the file."""
    dtype = stored_dtype(one)
    target = plane if plane.dtype == dtype else np.empty(plane.shape, dtype=dtype)
    with open(one.path, "rb") as file:
        file.seek(one.pixel_offset + (one.frame or 0) * target.nbytes)
        count = file.readinto(target.data.cast("B"))
    if count != target.nbytes:
        raise CaseError(
            f"{one.path}: {count} of {target.nbytes} bytes of pixels could be read: the file is cut off. Copy it again",
            "truncated",
        )
    if one.big_endian:
        target.byteswap(inplace=True)
    if target is not plane:
        plane[...] = target


def decoded(one: Slice, opened: dict[Path, pydicom.FileDataset]) -> np.ndarray:
    """Pixels of a compressed or deflated file, one frame."""
    dataset = opened.get(one.path) or open_whole(one)
    opened.clear()
    opened[one.path] = dataset
    array = decode(one, dataset, raw=True)
    if array.shape != (one.rows, one.columns):
        raise CaseError(
            f"{one.path}: the codec gave {array.shape}, expected {(one.rows, one.columns)}. Export it again", "codec"
        )
    return array


def open_whole(one: Slice) -> pydicom.FileDataset:
    """The whole file as pydicom sees it."""
    try:
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            warnings.simplefilter("ignore")
            return pydicom.dcmread(one.path, force=one.bare)
    except Exception as error:
        raise CaseError(
            f"{one.path}: cannot be read ({type(error).__name__}). Copy it again from its source", "truncated"
        ) from error


def decode(one: Slice, dataset: pydicom.FileDataset, *, raw: bool) -> np.ndarray:
    """Decode one frame with whatever codec is there."""
    name = UID(one.transfer_syntax).name
    try:
        decoder = None if one.native else get_decoder(UID(one.transfer_syntax))
    except (NotImplementedError, ValueError) as error:
        raise CaseError(
            f"{one.path}: transfer syntax {name} is not supported. Export it uncompressed", "codec"
        ) from error
    if decoder is not None and not decoder.is_available:
        missing = "; ".join(decoder.missing_dependencies)
        raise CaseError(
            f"{one.path}: no codec for transfer syntax {name} is installed. Install one of: {missing}", "codec-missing"
        )
    try:
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            warnings.simplefilter("ignore")
            if not one.transfer_syntax or "TransferSyntaxUID" not in dataset.file_meta:
                dataset.file_meta.TransferSyntaxUID = UID(one.transfer_syntax)
            return np.asarray(pixel_array(dataset, index=one.frame or 0, raw=raw))
    except Exception as error:
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise CaseError(
            f"{one.path}: PixelData ({name}) cannot be decoded: {text}. Copy the file again", "truncated"
        ) from error


def colour_pixels(one: Slice) -> np.ndarray:
    """A colour picture as (3, X, Y)."""
    dataset = open_whole(one)
    array = decode(one, dataset, raw=False)
    if one.photometric == "PALETTE COLOR":
        array = pydicom.pixels.apply_color_lut(array, dataset)
        array = (array >> 8).astype(np.uint8) if array.dtype == np.uint16 and array.max() > 255 else array
    if array.ndim != 3:
        raise CaseError(
            f"{one.path}: {one.photometric} pixels have shape {array.shape}, expected rows, columns, colours", "codec"
        )
    return np.ascontiguousarray(array.transpose(2, 1, 0))


def mask_bits(stored: np.ndarray, slices: Sequence[Slice]) -> None:
    """Cut rubbish above BitsStored, in place."""
    width = stored.dtype.itemsize * 8
    for plane, one in zip(stored, slices, strict=True):
        shift = one.high_bit + 1 - one.bits_stored
        if not 0 < one.bits_stored <= one.bits_allocated or shift < 0 or one.high_bit >= one.bits_allocated:
            found = f"BitsStored {one.bits_stored}, HighBit {one.high_bit} in BitsAllocated {one.bits_allocated}"
            raise CaseError(f"{one.path}: {found} contradict each other. Export it again", "bits-stored")
        if one.bits_stored == one.bits_allocated:
            continue
        if stored.dtype.kind == "i":
            np.left_shift(plane, width - one.high_bit - 1, out=plane)
            np.right_shift(plane, width - one.bits_stored, out=plane)
        else:
            np.right_shift(plane, shift, out=plane)
            np.bitwise_and(plane, stored.dtype.type((1 << one.bits_stored) - 1), out=plane)


def padding_note(stored: np.ndarray, slices: Sequence[Slice]) -> tuple[Entry, ...]:
    """Count the padding of a CT that is darker than air. The values stay: a CT window cuts them off."""
    count = 0
    for plane, one in zip(stored, slices, strict=True):
        if one.modality != "CT" or one.padding is None:
            continue
        limit = one.padding if one.padding_limit is None else one.padding_limit
        low, high = min(one.padding, limit), max(one.padding, limit)
        slope, intercept = float(one.slope or 1), float(one.intercept or 0)
        if min(low * slope, high * slope) + intercept < AIR_HU:
            count += int(np.count_nonzero((plane >= low) & (plane <= high)))
    if not count:
        return ()
    return (Entry("padding", f"{count} voxels hold PixelPaddingValue, darker than air; the values were kept"),)


def rescaled(stored: np.ndarray, scales: Sequence[tuple[float, float]]) -> np.ndarray:
    """Apply slope and intercept slice by slice."""
    if stored.dtype.itemsize == 1 and all(scale == (1.0, 0.0) for scale in scales):
        return stored
    if not all(whole(slope) and whole(intercept) for slope, intercept in scales):
        result = np.empty(stored.shape, dtype=np.float32)
        for index, (slope, intercept) in enumerate(scales):
            result[index] = stored[index] * np.float64(slope) + intercept
        return result
    ends = [
        int(value) * int(slope) + int(intercept)
        for plane, (slope, intercept) in zip(stored, scales, strict=True)
        for value in (plane.min(), plane.max())
    ]
    return whole_rescaled(stored, scales, smallest_integer(min(ends), max(ends)))


def whole_rescaled(stored: np.ndarray, scales: Sequence[tuple[float, float]], dtype: np.dtype) -> np.ndarray:
    """Whole slopes and intercepts, modulo the word length; in place where the word is as long as the result's."""
    words = np.dtype(f"u{dtype.itemsize}")
    same = stored.dtype.itemsize == dtype.itemsize
    result = stored.view(words) if same else stored.astype(dtype).view(words)
    modulus = 1 << (8 * dtype.itemsize)
    for index, (slope, intercept) in enumerate(scales):
        if slope != 1:
            result[index] *= words.type(int(slope) % modulus)
        if intercept:
            result[index] += words.type(int(intercept) % modulus)
    return result.view(dtype)
