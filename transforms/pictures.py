"""Pictures (PNG, JPEG, TIFF, GIF) as 2D volumes: pixels without a place in the world, colour as three channels."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import CaseError
from .volume import Entry, Geometry, Volume

MAGICS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".gif")
FORMATS = ("PNG", "JPEG", "TIFF", "GIF")
LARGEST = 2 * 89_478_485  # pixels; where Pillow stops by itself
ORIENTATION_TAG = 0x0112
GREY_MODES = {"L": np.uint8, "I;16": np.uint16, "I;16B": np.uint16, "I": np.int32, "F": np.float32}


def is_picture(head: bytes) -> bool:
    """Whether the first bytes are those of a picture format that we read."""
    return head.startswith(MAGICS)


def picture_name(path: Path) -> str:
    """The name without its picture suffix."""
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def read_picture(path: Path, *, labels: bool = False) -> Volume:
    """Read one picture as (C, X, Y).

    Args:
        labels: a colour palette holds label values by number, and is not to be turned into colours.

    Raises:
        CaseError: not a picture, cut off, several frames, too large.
    """
    with opened(path) as image:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                said = said_of(image)
                frames = getattr(image, "n_frames", 1)
                rows, notes = pixels(image, labels) if frames == 1 else (np.empty((0, 0), np.uint8), ())
        except (OSError, SyntaxError, ValueError, EOFError, struct.error, TypeError, IndexError) as error:
            raise CaseError(
                f"{path}: the picture is cut off or damaged ({error}). Copy it again", "truncated"
            ) from error
    if frames > 1:
        raise CaseError(
            f"{path}: {frames} frames in one file; frames are not stacked. Split it into one file a frame", "film"
        )
    array = np.moveaxis(rows[..., np.newaxis] if rows.ndim == 2 else rows, (2, 1, 0), (0, 1, 2))
    note = Entry("no-world-coordinates", "a picture: pixels have no place in the world")
    geometry = Geometry(tuple(array.shape[1:]), np.eye(4), has_world=False)
    return Volume(array, geometry, "picture", picture_name(path), notes=(note, *notes, *said))


def picture_shape(path: Path) -> tuple[tuple[int, int], int]:
    """(X, Y) and the number of channels, from the header alone."""
    with opened(path) as image:
        grey = image.mode in (*GREY_MODES, "1", "LA") or (image.mode == "P" and grey_palette(image))
        return (image.width, image.height), 1 if grey else 3


def opened(path: Path) -> Image.Image:
    """Open a picture; its pixels are not read yet."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise CaseError(f"{path}: {error}. Cut it into smaller pictures", "too-large") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, struct.error, TypeError) as error:
        size = path.stat().st_size if path.is_file() else 0
        found = f"no picture in PNG, JPEG, TIFF or GIF format ({size} bytes)"
        raise CaseError(f"{path}: {found}. Copy it again from its source", "not-a-picture") from error
    if image.width * image.height > LARGEST:  # whatever limit other code has set in Pillow
        found = f"{image.width} x {image.height} pixels, limit {LARGEST} pixels"
        image.close()
        raise CaseError(f"{path}: {found}. Cut it into smaller pictures", "too-large")
    return image


def said_of(image: Image.Image) -> tuple[Entry, ...]:
    """Notes on what a reader might expect and does not get; asked before the pixels are read."""
    notes = []
    deep = ";16" in str(getattr(image, "tile", ""))  # gone once the pixels are read, which `getexif` does
    if image.getexif().get(ORIENTATION_TAG, 1) != 1:
        notes.append(Entry("exif-orientation", "rows were kept as stored; viewers turn this picture"))
    if image.mode not in GREY_MODES and deep:
        notes.append(Entry("depth-reduced", "colours of 16 bits were read as 8 bits"))
    if image.mode in ("L", "RGB", "P", "1") and "transparency" in image.info:
        notes.append(Entry("alpha-dropped", "the transparency of the picture was left out"))
    return tuple(notes)


def grey_palette(image: Image.Image) -> bool:
    """Whether a palette holds greys only."""
    palette = image.getpalette("RGB") or []
    return palette[0::3] == palette[1::3] == palette[2::3]


def pixels(image: Image.Image, labels: bool) -> tuple[np.ndarray, tuple[Entry, ...]]:
    """Rows x columns [x 3], and notes."""
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8) * np.uint8(255), ()
    if image.mode == "P":
        if grey_palette(image):
            greys = np.array((image.getpalette("RGB") or [])[0::3], dtype=np.uint8)
            return np.pad(greys, (0, 256 - greys.size))[np.asarray(image)], ()
        if labels:
            return np.array(image), ()
        return np.array(image.convert("RGB")), ()
    if image.mode in GREY_MODES:
        return np.array(image).astype(GREY_MODES[image.mode], copy=False), ()
    if image.mode == "RGB":
        return np.array(image), ()
    if image.mode in ("LA", "RGBA"):
        array = np.array(image)
        opaque = bool((array[..., -1] == 255).all())
        note = () if opaque else (Entry("alpha-dropped", "the transparency of the picture was left out"),)
        return (array[..., 0] if image.mode == "LA" else array[..., :3]), note
    return np.array(image.convert("RGB")), (Entry("colour-converted", f"{image.mode} colours were turned into RGB"),)
