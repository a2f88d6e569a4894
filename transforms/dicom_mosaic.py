"""Siemens mosaics: all slices of a volume as tiles of one picture, each tile given the place that the header proves.

The position of a mosaic is that of a slice as large as the whole picture whose centre is the centre of the first tile.
The next slices follow along the slice normal of the CSA header. Where the protocol lists the slices (sSliceArray), they
must say the same; where nothing is certain, the series stops.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import CaseError
from .dicom_elements import read_elements
from .dicom_geometry import numbers
from .dicom_record import Slice
from .dicom_text import Element, first_number, tag_of, whole_number

CSA_CREATOR, CSA_IMAGE, CSA_SERIES = 0x00290010, 0x00291010, 0x00291020
MR_CREATOR, TILES = 0x00190010, 0x0019100A
SPACING = tag_of("SpacingBetweenSlices")
GRID_TILES = 0x00651050  # United Imaging's form of a mosaic
MOSAIC_TAGS = (CSA_CREATOR, CSA_IMAGE, CSA_SERIES)
PROTOCOL = re.compile(r"sSliceArray\.asSlice\[(\d+)\]\.sPosition\.d(Sag|Cor|Tra)\s*=\s*([-+.\deE]+)")
SLICES = re.compile(r"sSliceArray\.lSize\s*=\s*(\d+)")
TOLERANCE_MM = 0.05
ADVICE = "Export it as single slices or enhanced DICOM, or convert it with dcm2niix"


def is_mosaic(slice_: Slice, texts: Mapping[int, str]) -> bool:
    """Whether one picture holds many slices."""
    return "MOSAIC" in slice_.image_type.split("\\") or (whole_number(texts.get(GRID_TILES)) or 0) > 1


def tiles_of(slice_: Slice, texts: Mapping[int, str]) -> list[Slice]:
    """One record a tile; or the one record, with the reason for which its series stops."""
    try:
        elements = read_elements(slice_.path, MOSAIC_TAGS).elements
        image, series = csa_values(elements, CSA_IMAGE), csa_values(elements, CSA_SERIES)
        count = tile_count(slice_, texts, image)
        positions = tile_positions(slice_, texts, count, image, series)
    except CaseError as error:
        return [replace(slice_, refusal=(str(error), error.code))]
    side = side_of(count)
    rows, columns = slice_.rows // side, slice_.columns // side
    splits = {**slice_.splits, **({} if slice_.instance is None else {"InstanceNumber": str(slice_.instance)})}
    return [
        replace(
            slice_,
            rows=rows,
            columns=columns,
            tile=(index // side * rows, index % side * columns, slice_.rows, slice_.columns),
            position="\\".join(repr(float(value)) for value in position),
            splits=splits,
        )
        for index, position in enumerate(positions)
    ]


def refused_frames(slice_: Slice) -> list[Slice]:
    """The record of an enhanced object whose frames are mosaics: nothing says where their tiles lie."""
    error = refused(slice_.path, "in an enhanced object, whose frames have one place each")
    return [replace(slice_, refusal=(str(error), error.code))]


def refused(path: Path, found: str) -> CaseError:
    """The error of a mosaic whose slices have no certain place."""
    return CaseError(f"{path}: a Siemens mosaic (many slices tiled into one image): {found}. {ADVICE}", "mosaic")


def csa_values(elements: Mapping[int, Element], tag: int) -> dict[str, list[str]]:
    """The values of a CSA header by name; empty where it is absent or damaged."""
    element, creator = elements.get(tag), elements.get(CSA_CREATOR)
    if element is None or creator is None or not isinstance(element.value, bytes):
        return {}
    if not isinstance(creator.value, bytes) or creator.value.strip(b" \0") != b"SIEMENS CSA HEADER":
        return {}
    try:
        return csa_items(element.value)
    except (struct.error, OverflowError):
        return {}


def csa_items(data: bytes) -> dict[str, list[str]]:
    """All values of a CSA header of the second kind ("SV10"), by name; empty for anything else.

    Raises:
        struct.error: it is cut off.
    """
    if not data.startswith(b"SV10"):
        return {}
    values: dict[str, list[str]] = {}
    (tags,) = struct.unpack_from("<I", data, 8)
    at = 16
    for _ in range(tags):
        name, _, _, _, items, _ = struct.unpack_from("<64si4siii", data, at)
        at += 84
        texts = []
        for _ in range(items):
            _, length, _, _ = struct.unpack_from("<4i", data, at)
            at += 16
            if not 0 <= length <= len(data) - at:
                raise struct.error("an item is longer than the header")
            text = data[at : at + length].partition(b"\0")[0].decode("latin-1").strip()
            at += (length + 3) // 4 * 4
            if text:
                texts.append(text)
        values[name.partition(b"\0")[0].decode("latin-1")] = texts
    return values


def tile_count(slice_: Slice, texts: Mapping[int, str], image: Mapping[str, list[str]]) -> int:
    """The number of slices, held against the matrix."""
    stated = {int(value) for value in image.get("NumberOfImagesInMosaic", [])[:1] if value.isdecimal()}
    if texts.get(MR_CREATOR) == "SIEMENS MR HEADER" and TILES in texts:
        stated.add(whole_number(texts[TILES]) or 0)
    if len(stated) != 1 or min(stated) < 1:
        raise refused(slice_.path, f"{len(stated)} different numbers of slices are stated, expected one above 0")
    count = min(stated)
    side = side_of(count)
    if slice_.rows % side or slice_.columns % side or min(slice_.rows, slice_.columns) < side:
        found = f"{count} slices need {side} x {side} tiles, which do not part {slice_.rows} x {slice_.columns} pixels"
        raise refused(slice_.path, found)
    return count


def side_of(count: int) -> int:
    """Tiles along each side of the picture."""
    return int(np.ceil(np.sqrt(count)))


def tile_positions(
    slice_: Slice,
    texts: Mapping[int, str],
    count: int,
    image: Mapping[str, list[str]],
    series: Mapping[str, list[str]],
) -> np.ndarray:
    """Position (LPS, mm) of the first voxel of each tile, (count, 3).

    Raises:
        CaseError: the header does not say it, or says two things.
    """
    try:
        position = np.array(numbers(slice_.position or "", 3))
        cosines = np.array(numbers(slice_.orientation or "", 6))
        spacing = numbers(slice_.spacing or "", 2)
    except ValueError:
        found = "ImagePositionPatient, ImageOrientationPatient or PixelSpacing is absent or not a number"
        raise refused(slice_.path, found) from None
    row, column = cosines[:3], cosines[3:]
    side = side_of(count)
    shift = np.array([slice_.columns, slice_.rows]) * (1 - 1 / side) / 2
    first = position + row * spacing[1] * shift[0] + column * spacing[0] * shift[1]
    if count == 1:
        return first[np.newaxis]
    try:
        normal = np.array([float(value) for value in image.get("SliceNormalVector", [])])
    except ValueError:
        normal = np.zeros(0)
    cross = np.cross(row, column)
    if normal.shape != (3,) or abs(abs(normal @ cross) - 1) > 1e-3:
        found = "the CSA header with SliceNormalVector is absent, or contradicts ImageOrientationPatient"
        raise refused(slice_.path, found)
    normal = cross * np.sign(normal @ cross)  # the header rounds it
    listed = listed_places(series, count, normal)
    step = first_number(texts.get(SPACING))
    if step is None and listed is not None:
        step = float(listed[-1] - listed[0]) / (count - 1)
    if step is None or step <= 0:
        raise refused(slice_.path, "no SpacingBetweenSlices and no protocol says how far its slices lie apart")
    places = first @ normal + step * np.arange(count)
    if listed is not None:
        apart = listed - listed[0] - (places - places[0])
        if np.abs(apart).max() > TOLERANCE_MM:
            found = f"its protocol lists slices up to {np.abs(apart).max():.2f} mm off SpacingBetweenSlices {step:.3f}"
            raise refused(slice_.path, found)
        backwards = abs(listed[-1] - places[0]) < TOLERANCE_MM and abs(listed[0] - places[0]) > TOLERANCE_MM
        if backwards:
            raise refused(slice_.path, "its protocol lists the slices against SliceNormalVector")
    return np.asarray(first + step * np.arange(count)[:, np.newaxis] * normal)


def listed_places(series: Mapping[str, list[str]], count: int, normal: np.ndarray) -> np.ndarray | None:
    """Where the protocol puts its slices along the normal, in mm, ascending; None where it does not list them all."""
    text = next((part for name in ("MrPhoenixProtocol", "MrProtocol") for part in series.get(name, [])[:1]), "")
    size = SLICES.search(text)
    if size is None or int(size[1]) != count:
        return None
    places: dict[int, np.ndarray] = {}
    for index, axis, value in PROTOCOL.findall(text):
        try:
            places.setdefault(int(index), np.zeros(3))[("Sag", "Cor", "Tra").index(axis)] = float(value)
        except ValueError:
            return None
    if set(places) != set(range(count)):
        return None
    return np.asarray(np.sort([places[index] @ normal for index in range(count)]))
