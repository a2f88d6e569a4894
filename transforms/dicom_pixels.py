"""DICOM voxels: read slice by slice into one array of the smallest type that holds their values exactly.

Native pixels go from the file into the array, on all cores; compressed and deflated ones come from the child process of
`codecs.py`. Bits are cut and the range of each slice is found while it is still in the processor's cache.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from ..errors import CaseError
from .codecs import decoded_frames
from .cores import on_all_cores
from .dicom import NATIVE, Slice
from .dicom_pictures import INVERTED_MODALITIES
from .dicom_record import GE_BIG_ENDIAN_PIXELS
from .dicom_stack import Stack
from .dicom_values import (
    check_bits,
    in_whole_numbers,
    mask_bits,
    on_even_grid,
    padding_note,
    padding_voxels,
    rescales,
    stored_dtype,
    value_dtype,
    whole_rescaled,
)
from .volume import Entry, Geometry, Volume


@dataclass(frozen=True, eq=False)
class Image:
    """One stored image: a slice, a frame, or a mosaic with its tiles; `first` is the number of its first slice."""

    first: int
    slices: tuple[Slice, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns as stored."""
        one = self.slices[0]
        return (one.rows, one.columns) if one.tile is None else (one.tile[2], one.tile[3])


@dataclass(frozen=True)
class Found:
    """What was seen in a slice while it was read: its lowest and highest word, padding, what is no number."""

    low: int
    high: int
    padding: int
    not_finite: int = 0


def read_stack(stack: Stack) -> Volume:
    """Read all voxels of a stack.

    Memory: the volume, and a slice for each thread.

    Raises:
        CaseError: a file is cut off or has changed since its header was read (code `changed`), its codec is missing or
            failed, or its rescale tags contradict their neighbours.
    """
    slices = single_frames(stack)
    first = slices[0]
    repairs, notes = stack.repairs, stack.notes
    if stack.picture and (first.samples > 1 or first.photometric == "PALETTE COLOR"):
        planes, more = colour_planes(slices)
        notes = (*notes, *more)
        array = planes.T
    else:
        inverted = stack.picture and first.photometric == "MONOCHROME1" and first.modality in INVERTED_MODALITIES
        planes, seen = grey_planes(slices, inverted=inverted)
        notes = (*notes, *padding_note(sum(found.padding for found in seen)), *finite_note(seen))
        if inverted:
            repairs = (*repairs, Entry("monochrome1", "MONOCHROME1: grey values inverted once within BitsStored"))
        if stack.places is not None:
            planes = on_even_grid(planes, stack.places, stack.shape[2])
        array = planes.transpose(2, 1, 0)[np.newaxis]
    if stack.picture and not stack.film:
        array = array[..., 0]
    geometry = Geometry(tuple(array.shape[1:]), stack.affine, has_world=not stack.picture, film=stack.film)
    return Volume(array, geometry, first.modality, "", stack.series, repairs, notes, stack.facts, first.phi)


def single_frames(stack: Stack) -> tuple[Slice, ...]:
    """The slices of a stack; of a film, one a frame."""
    if not stack.film:
        return stack.slices
    return tuple(replace(stack.slices[0], frame=number) for number in range(stack.slices[0].frames))


def images_of(slices: Sequence[Slice]) -> list[Image]:
    """The stored images behind the slices: tiles of one mosaic are read together."""
    images, first = [], 0
    for _, group in groupby(slices, key=lambda one: (one.path, one.frame, id(one) if one.tile is None else 0)):
        images.append(Image(first, tuple(group)))
        first += len(images[-1].slices)
    return images


def grey_planes(slices: Sequence[Slice], *, inverted: bool = False) -> tuple[np.ndarray, list[Found]]:
    """Values of all slices, (Z, rows, columns), and what was seen of their stored words."""
    scales = rescales(slices)
    for one in slices:
        check_bits(one)
    dtype = np.result_type(*{stored_dtype(one) for one in slices})
    floats = dtype.kind == "f" or not in_whole_numbers(scales)
    kept = np.dtype(np.float64 if dtype == np.float64 else np.float32) if floats else dtype
    planes = np.empty((len(slices), slices[0].rows, slices[0].columns), dtype=kept)
    seen: list[Found] = []
    straight: dict[int, np.ndarray] = {}  # planes that are read in place

    def settle(image: Image, words: np.ndarray) -> list[Found]:
        found = []
        for number, one in enumerate(image.slices, start=image.first):
            own = words if one.tile is None else tile_of(words, one)
            own = own if own.dtype == stored_dtype(one) else own.astype(stored_dtype(one))
            found.append(settled(own, one, inverted=inverted))
            if floats and scales[number] != (1.0, 0.0):
                planes[number] = own * np.float64(scales[number][0]) + scales[number][1]
            elif words is not straight.get(image.first):
                planes[number] = own
        return found

    def read(image: Image) -> list[Found]:
        one, dtype = image.slices[0], stored_dtype(image.slices[0])
        if one.tile is None and dtype == planes.dtype and (not floats or scales[image.first] == (1.0, 0.0)):
            words = straight[image.first] = planes[image.first]
        else:
            words = np.empty(image.shape, dtype)
        read_native(one, words)
        return settle(image, words)

    images = images_of(slices)
    if all(is_plain(one) for one in slices):
        seen = [found for several in on_all_cores(read, images) for found in several]
    else:
        with closing(decoded_frames([image.slices[0] for image in images])) as frames:
            for image, words in zip(images, frames, strict=True):
                if words.ndim != 2:
                    raise CaseError(
                        f"{image.slices[0].path}: the codec gave {words.shape}, expected {image.shape}. "
                        "Export it again",
                        "codec",
                    )
                check_unchanged(image.slices[0])
                seen += settle(image, words)
    if floats:
        return planes, seen
    return whole_rescaled(planes, scales, value_dtype(dtype, scales, [(one.low, one.high) for one in seen])), seen


def is_plain(one: Slice) -> bool:
    """Whether the words of a slice stand in its file one after the other; bytes in big endian words may be swapped."""
    if one.big_endian and one.bits_allocated == 8:
        return False
    return one.transfer_syntax in (*NATIVE, GE_BIG_ENDIAN_PIXELS) and one.pixel_offset >= 0


def tile_of(words: np.ndarray, one: Slice) -> np.ndarray:
    """The part of a mosaic that is one slice."""
    row, column = (one.tile or (0, 0))[:2]
    return words[row : row + one.rows, column : column + one.columns]


def settled(words: np.ndarray, one: Slice, *, inverted: bool) -> Found:
    """Mask, and invert where wanted, the words of one slice in place; tell what they hold."""
    mask_bits(words, one)
    if inverted and words.dtype.kind in "iu":
        np.subtract(words.dtype.type(-1 if one.signed else (1 << one.bits_stored) - 1), words, out=words)
    padding = padding_voxels(words, one)
    if words.dtype.kind == "f":
        return Found(0, 0, padding, int(words.size - np.count_nonzero(np.isfinite(words))))
    return Found(int(words.min()), int(words.max()), padding)


def finite_note(seen: Sequence[Found]) -> tuple[Entry, ...]:
    """Float pixels may hold what is no number."""
    count = sum(found.not_finite for found in seen)
    return (Entry("not-finite", f"{count} voxels are NaN or infinite"),) if count else ()


def read_native(one: Slice, target: np.ndarray) -> None:
    """Uncompressed words straight from the file into an array of their type."""
    try:
        with open(one.path, "rb", buffering=0) as file:
            file.seek(one.pixel_offset + (one.frame or 0) * target.nbytes)
            count = read_into(file.fileno(), target.data.cast("B"))
            check_unchanged(one, os.fstat(file.fileno()))
    except OSError as error:
        raise CaseError(
            f"{one.path}: cannot be read ({error.strerror or error}). Check the disk and the rights", "unreadable"
        ) from error
    if count != target.nbytes:
        raise CaseError(
            f"{one.path}: {count} of {target.nbytes} bytes of pixels could be read: the file is cut off. Copy it again",
            "truncated",
        )
    if one.big_endian:
        target.byteswap(inplace=True)


def read_into(descriptor: int, target: memoryview) -> int:
    """Fill a buffer; fewer bytes only where the file ends."""
    left = target
    while left:
        count = os.readv(descriptor, [left])
        if count == 0:
            break
        left = left[count:]
    return len(target) - len(left)


def check_unchanged(one: Slice, status: os.stat_result | None = None) -> None:
    """Refuse pixels of a file that is no longer the one whose header was read."""
    found = os.stat(one.path) if status is None else status
    if (found.st_size, found.st_mtime_ns) != (one.size, one.modified):
        raise CaseError(
            f"{one.path}: changed while it was read ({one.size} bytes before, {found.st_size} now, or a later date). "
            "Run again when it is complete",
            "changed",
        )


def colour_planes(slices: Sequence[Slice]) -> tuple[np.ndarray, tuple[Entry, ...]]:
    """Frames of a colour picture or film, (frames, rows, columns, 3) in 8 bits, and what was changed for that."""
    first = slices[0]
    planes: np.ndarray | None = None
    deep = False
    with closing(decoded_frames(slices, colour=True)) as frames:
        for number, frame in enumerate(frames):
            if frame.shape[2:] != (3,) or frame.dtype.kind not in "iu":
                raise CaseError(
                    f"{first.path}: {first.photometric} pixels have shape {frame.shape}, expected rows, columns, "
                    "3 colours. Export it as RGB",
                    "codec",
                )
            if frame.dtype.itemsize > 1:
                deep, frame = True, np.right_shift(frame, max(0, first.bits_stored - 8)).astype(np.uint8)
            planes = np.empty((len(slices), *frame.shape), np.uint8) if planes is None else planes
            planes[number] = frame
    check_unchanged(first)
    if planes is None:
        raise CaseError(f"{first.path}: no frame in PixelData. Copy the file again from its source", "truncated")
    note = Entry("colour-depth", f"colours of {first.bits_stored} bits were cut to the upper 8")
    return planes, (note,) if deep else ()
