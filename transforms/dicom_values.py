"""DICOM stored words to values: rubbish bits cut, slope and intercept applied, uneven slices put on an even grid.

Where every slope and intercept is a whole number the arithmetic is done in place, modulo the word length, and the array
is seen through the signed or unsigned type that holds the result; else the values are float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import CaseError
from .cores import on_all_cores
from .dicom import Slice
from .dicom_geometry import numbers
from .dicom_text import shown
from .nifti import smallest_integer, whole
from .volume import Entry

AIR_HU = -1024

Scale = tuple[float, float]


def rescales(slices: Sequence[Slice]) -> list[Scale]:
    """Slope and intercept of each slice.

    Raises:
        CaseError: 0, not a number, or absent in some slices of a series whose others are rescaled.
    """
    scales = [own_scale(one) for one in slices]
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


def own_scale(one: Slice) -> Scale | None:
    """Slope and intercept of a slice; None where it has neither."""
    if one.slope is None and one.intercept is None:
        return None
    try:
        (slope,), (intercept,) = numbers(one.slope or "", 1), numbers(one.intercept or "", 1)
    except ValueError:
        slope, intercept = 0.0, 0.0
    if slope == 0:
        raise CaseError(
            f"{one.path}: RescaleSlope is {shown(one.slope)}, RescaleIntercept is {shown(one.intercept)}; expected two "
            "numbers, the slope not 0. Fetch the series again",
            "bad-rescale",
        )
    return slope, intercept


def stored_dtype(one: Slice) -> np.dtype:
    """Type of the stored words, in this machine's byte order."""
    sizes = (32, 64) if one.float_pixels else (8, 16, 32)
    if one.bits_allocated not in sizes:
        expected = " or ".join(str(size) for size in sizes)
        raise CaseError(
            f"{one.path}: BitsAllocated is {one.bits_allocated}, expected {expected}. Export it again",
            "bits-allocated",
        )
    return np.dtype(f"{'f' if one.float_pixels else 'i' if one.signed else 'u'}{one.bits_allocated // 8}")


def check_bits(one: Slice) -> None:
    """Refuse BitsStored and HighBit that contradict BitsAllocated."""
    shift = one.high_bit + 1 - one.bits_stored
    if not one.float_pixels and (
        not 0 < one.bits_stored <= one.bits_allocated or shift < 0 or one.high_bit >= one.bits_allocated
    ):
        found = f"BitsStored {one.bits_stored}, HighBit {one.high_bit} in BitsAllocated {one.bits_allocated}"
        raise CaseError(f"{one.path}: {found} contradict each other. Export it again", "bits-stored")


def mask_bits(plane: np.ndarray, one: Slice) -> None:
    """Cut rubbish above BitsStored, in place; the sign is that of the highest bit stored."""
    if plane.dtype.kind not in "iu" or one.bits_stored == one.bits_allocated:
        return
    if plane.dtype.kind == "i":
        width = plane.dtype.itemsize * 8
        np.left_shift(plane, width - one.high_bit - 1, out=plane)
        np.right_shift(plane, width - one.bits_stored, out=plane)
    else:
        np.right_shift(plane, one.high_bit + 1 - one.bits_stored, out=plane)
        np.bitwise_and(plane, plane.dtype.type((1 << one.bits_stored) - 1), out=plane)


def padding_voxels(plane: np.ndarray, one: Slice) -> int:
    """How many voxels of a CT slice hold a padding value that is darker than air."""
    if one.modality != "CT" or one.padding is None:
        return 0
    limit = one.padding if one.padding_limit is None else one.padding_limit
    low, high = min(one.padding, limit), max(one.padding, limit)
    slope, intercept = own_scale(one) or (1.0, 0.0)
    if min(low * slope, high * slope) + intercept >= AIR_HU:
        return 0
    return int(np.count_nonzero((plane >= low) & (plane <= high)))


def padding_note(count: int) -> tuple[Entry, ...]:
    """The padding of a CT is kept as it is stored, as all converters keep it; who takes statistics is told."""
    if not count:
        return ()
    return (Entry("padding", f"{count} voxels hold PixelPaddingValue, darker than air; the values were kept"),)


def in_whole_numbers(scales: Sequence[Scale]) -> bool:
    """Whether rescaled integers stay integers."""
    return all(whole(slope) and whole(intercept) for slope, intercept in scales)


def value_dtype(stored: np.dtype, scales: Sequence[Scale], ends: Sequence[tuple[int, int]]) -> np.dtype:
    """The smallest type for whole values.

    Args:
        stored: type of the stored words.
        scales: of each slice.
        ends: lowest and highest stored word of each slice.
    """
    if stored.itemsize == 1 and all(scale == (1.0, 0.0) for scale in scales):
        return stored
    values = [
        word * int(slope) + int(intercept)
        for pair, (slope, intercept) in zip(ends, scales, strict=True)
        for word in pair
    ]
    return smallest_integer(min(values), max(values))


def whole_rescaled(stored: np.ndarray, scales: Sequence[Scale], dtype: np.dtype) -> np.ndarray:
    """Whole slopes and intercepts, modulo the word length; in place where the word is as long as the result's."""
    words = np.dtype(f"u{dtype.itemsize}")
    same = stored.dtype.itemsize == dtype.itemsize
    result = stored.view(words) if same else stored.astype(dtype).view(words)
    modulus = 1 << (8 * dtype.itemsize)

    def rescale(index: int) -> None:
        slope, intercept = scales[index]
        if slope != 1:
            result[index] *= words.type(int(slope) % modulus)
        if intercept:
            result[index] += words.type(int(intercept) % modulus)

    on_all_cores(rescale, [index for index, scale in enumerate(scales) if scale != (1.0, 0.0)])
    return result.view(dtype)


def on_even_grid(planes: np.ndarray, places: Sequence[float], count: int) -> np.ndarray:
    """Planes 0 .. count - 1 of an even grid, each interpolated linearly between the two slices beside it.

    Args:
        planes: (slices, rows, columns).
        places: where each slice lies, in steps of the grid; rising.
        count: planes of the grid.

    Returns:
        The same type; whole numbers are rounded to the nearest (half to even).
    """
    if len(planes) == 1:
        return planes
    known = np.asarray(places, dtype=np.float64)
    result = np.empty((count, *planes.shape[1:]), planes.dtype)

    def interpolate(number: int) -> None:
        below = int(np.clip(np.searchsorted(known, number, side="right") - 1, 0, len(known) - 2))
        weight = float(np.clip((number - known[below]) / (known[below + 1] - known[below]), 0, 1))
        mixed = planes[below] * np.float64(1 - weight) + planes[below + 1] * np.float64(weight)
        result[number] = np.rint(mixed) if planes.dtype.kind in "iu" else mixed

    on_all_cores(interpolate, range(count))
    return result
