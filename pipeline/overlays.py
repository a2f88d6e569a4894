"""A picture of a case to look at: three planes of the image, beside them the same planes under each label map.

Display is radiological: the patient's right is on the left of axial and coronal planes, anterior is up in axial planes
and left in sagittal ones; letters at the panels say so. Pixels are square in mm whatever the spacing.
"""

from __future__ import annotations

import colorsys
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..transforms.geometry import reorient_to
from ..transforms.volume import Volume

PALETTE = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#d55e00", "#cc79a7", "#0072b2")  # Okabe and Ito, 2008
CT_WINDOW = (-160.0, 240.0)  # soft tissue, width 400 at 40 HU
FILL = 0.38
MARGIN, GAP, TEXT = 10, 6, 15
INK, QUIET, PAPER = (236, 236, 236), (160, 160, 160), (16, 16, 18)
ORIENTATION = "Radiological display: the patient's right (R) is on the left."


@dataclass(frozen=True)
class Plane:
    """One way to cut a RAS+ volume: which axis is fixed, and the letters at left, right, top and bottom."""

    name: str
    axis: int
    letters: tuple[str, str, str, str]


PLANES = (
    Plane("axial", 2, ("R", "L", "A", "P")),
    Plane("coronal", 1, ("R", "L", "S", "I")),
    Plane("sagittal", 0, ("A", "P", "S", "I")),
)


def overlay(
    image: Volume,
    label_maps: Mapping[str, np.ndarray],
    classes: Mapping[int, str],
    *,
    title: str,
    panel_px: int = 270,
    choose_by: np.ndarray | None = None,
) -> bytes:
    """Draw a case.

    Args:
        image: what was segmented; a picture gives one row, a volume three.
        label_maps: heading ("prediction", "reference", ...) -> labels on the grid of the image, (X, Y, Z).
        classes: label value -> name for the legend; value 0 is left unpainted.
        title: first line of the picture.
        panel_px: width of the widest panel.
        choose_by: label map whose classes choose the slices; the first of `label_maps` by default.

    Returns:
        A PNG.
    """
    chosen_by = next(iter(label_maps.values()), None) if choose_by is None else choose_by
    for heading, labels in label_maps.items():
        if tuple(labels.shape) != tuple(image.geometry.shape):
            raise ValueError(f"{heading}: labels {labels.shape} do not lie on the image's grid {image.geometry.shape}")
    grey, maps, spacing = _display_grid(image, label_maps)
    chosen = None if chosen_by is None else _display_grid(image, {"": chosen_by})[1][""]
    planes = PLANES if image.geometry.has_world and min(grey.shape[1:]) > 1 else PLANES[:1]
    extents = [np.delete(np.array(grey.shape[1:]) * spacing, plane.axis) for plane in planes]
    px_per_mm = panel_px / max(extent[0] for extent in extents)
    colours = class_colours(classes)
    rows = []
    for plane in planes:
        index = richest_slice(chosen, plane.axis) if chosen is not None else grey.shape[1 + plane.axis] // 2
        base = _cut(grey, plane, index)
        pixels = _size(base.shape[:2], np.delete(spacing, plane.axis), px_per_mm)
        picture = Image.fromarray(base).resize(pixels, Image.Resampling.BICUBIC)
        row = [_lettered(picture, plane if image.geometry.has_world else None)]
        for labels in maps.values():
            cut = _cut(labels[None], plane, index)[..., 0]
            row.append(_painted(picture, _enlarged(cut, pixels), colours))
        rows.append((f"{plane.name} {index + 1}/{grey.shape[1 + plane.axis]}" if len(planes) > 1 else "", row))
    note = ORIENTATION if image.geometry.has_world else ""
    seen = {int(value) for labels in maps.values() for value in np.unique(labels)}
    legend = {classes[value]: colour for value, colour in colours.items() if value in seen}
    return _compose(title, ["image", *label_maps], rows, legend, note)


def class_colours(classes: Mapping[int, str]) -> dict[int, tuple[int, int, int]]:
    """Label value -> colour of every class but the background, the same in each picture of a data set."""
    values = [value for value in classes if value != 0]
    colours = {}
    for place, value in enumerate(values):
        if place < len(PALETTE):
            text = PALETTE[place]
            colours[value] = (int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16))
        else:
            red, green, blue = colorsys.hsv_to_rgb((place * 0.618034) % 1.0, 0.65, 0.95)
            colours[value] = (round(255 * red), round(255 * green), round(255 * blue))
    return colours


def richest_slice(labels: np.ndarray, axis: int) -> int:
    """The slice that shows most of all classes: each class counts by its share of its own best slice.

    A plain count would pick the tangent plane of a shell, where one class fills the view and the others are away.
    """
    others = tuple(other for other in range(labels.ndim) if other != axis)
    shares = np.zeros(labels.shape[axis])
    for value in np.unique(labels):
        if value != 0:
            found = (labels == value).sum(axis=others)
            shares += found / found.max()
    return int(shares.argmax()) if shares.any() else labels.shape[axis] // 2


def _display_grid(
    image: Volume, label_maps: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Image as (1 or 3, X, Y, Z) uint8, labels as (X, Y, Z), both in RAS+; spacing in mm."""
    shown = _eight_bit(image)
    if not image.geometry.has_world:  # a picture is (X, Y), y downwards: turned so that the axial cut shows it upright
        turned = {heading: labels.reshape(*labels.shape[:2], 1)[::-1, ::-1] for heading, labels in label_maps.items()}
        return shown.reshape(*shown.shape[:3], 1)[:, ::-1, ::-1], turned, np.ones(3)
    affine = image.geometry.affine
    grey, turned_affine = reorient_to(shown, affine, "RAS")
    maps = {heading: reorient_to(labels[None], affine, "RAS")[0][0] for heading, labels in label_maps.items()}
    return grey, maps, np.linalg.norm(turned_affine[:3, :3], axis=0)


def _eight_bit(image: Volume) -> np.ndarray:
    array = image.array
    if array.dtype == np.uint8 and array.shape[0] in (3, 4) and not image.geometry.has_world:
        return array[:3]
    channel = array[:1].astype(np.float32)
    if image.modality == "CT":
        low, high = CT_WINDOW
    else:
        inside = channel[np.isfinite(channel) & (channel != 0)]
        low, high = np.percentile(inside, [1, 99]) if inside.size else (0.0, 1.0)
    scaled = (np.nan_to_num(channel) - low) / max(high - low, 1e-12)
    return np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)


def _cut(array: np.ndarray, plane: Plane, index: int) -> np.ndarray:
    """Slice of (C, X, Y, Z) as rows x columns x channels, in display order (R, A and S come first)."""
    face = np.take(array, index, axis=1 + plane.axis)[:, ::-1, ::-1]
    rows = np.ascontiguousarray(face.transpose(2, 1, 0))
    return np.repeat(rows, 3, axis=2) if rows.shape[2] == 1 and rows.dtype == np.uint8 else rows


def _size(shape: tuple[int, ...], spacing: np.ndarray, px_per_mm: float) -> tuple[int, int]:
    rows, columns = shape
    return max(1, round(columns * float(spacing[0]) * px_per_mm)), max(1, round(rows * float(spacing[1]) * px_per_mm))


def _enlarged(labels: np.ndarray, pixels: tuple[int, int]) -> np.ndarray:
    """Nearest label for each pixel of the display."""
    columns = (np.arange(pixels[0]) * labels.shape[1]) // pixels[0]
    rows = (np.arange(pixels[1]) * labels.shape[0]) // pixels[1]
    return labels[np.ix_(rows, columns)]


def _painted(picture: Image.Image, labels: np.ndarray, colours: Mapping[int, tuple[int, int, int]]) -> Image.Image:
    """The classes in their colours, the outline opaque."""
    pixels = np.asarray(picture).astype(np.float32)
    edge = np.zeros(labels.shape, dtype=bool)
    for axis in (0, 1):
        change = np.diff(labels, axis=axis) != 0
        for pad in ((1, 0), (0, 1)):  # the pixel on either side of a change
            edge |= np.pad(change, [pad if other == axis else (0, 0) for other in (0, 1)])
    for value, colour in colours.items():
        inside = labels == value
        pixels[inside] = (1 - FILL) * pixels[inside] + FILL * np.array(colour)
        pixels[inside & edge] = colour
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def _lettered(picture: Image.Image, plane: Plane | None) -> Image.Image:
    shown = picture.copy()
    if plane is None:
        return shown
    draw, (width, height) = ImageDraw.Draw(shown), shown.size
    font = _font(12)
    places = (
        (3, height // 2, "lm"),
        (width - 3, height // 2, "rm"),
        (width // 2, 2, "mt"),
        (width // 2, height - 2, "mb"),
    )
    for letter, (x, y, anchor) in zip(plane.letters, places, strict=True):
        draw.text((x, y), letter, fill=INK, font=font, anchor=anchor)
    return shown


def _compose(
    title: str,
    headings: Sequence[str],
    rows: Sequence[tuple[str, Sequence[Image.Image]]],
    legend: Mapping[str, tuple[int, int, int]],
    note: str,
) -> bytes:
    """All panels on one sheet: columns are image and label maps, rows are planes."""
    column = max(panel.size[0] for _, row in rows for panel in row)
    font, small = _font(TEXT), _font(12)
    width = max(2 * MARGIN + len(headings) * (column + GAP) - GAP, 2 * MARGIN + int(font.getlength(title)))
    top = MARGIN + TEXT + GAP + TEXT + GAP
    heights = [row[0].size[1] + (12 + GAP if name else 0) for name, row in rows]
    lines = _legend_lines(legend, width - 2 * MARGIN, small)
    height = top + sum(heights) + GAP * len(rows) + 18 * len(lines) + (18 if note else 0) + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, fill=INK, font=font)
    for place, heading in enumerate(headings):
        draw.text((MARGIN + place * (column + GAP), MARGIN + TEXT + GAP), heading, fill=INK, font=small)
    y = top
    for (name, row), used in zip(rows, heights, strict=True):
        if name:
            draw.text((MARGIN, y), name, fill=QUIET, font=small)
        for place, panel in enumerate(row):
            left = MARGIN + place * (column + GAP) + (column - panel.size[0]) // 2
            sheet.paste(panel, (left, y + (12 + GAP if name else 0)))
        y += used + GAP
    for line in lines:
        x = MARGIN
        for name in line:
            draw.rectangle((x, y + 3, x + 11, y + 14), fill=legend[name])
            draw.text((x + 17, y + 2), name, fill=INK, font=small)
            x += 17 + int(small.getlength(name)) + 16
        y += 18
    if note:
        draw.text((MARGIN, y + 2), note, fill=QUIET, font=small)
    stream = io.BytesIO()
    sheet.save(stream, format="PNG")
    return stream.getvalue()


def _legend_lines(legend: Iterable[str], width: int, font: ImageFont.FreeTypeFont) -> list[list[str]]:
    lines: list[list[str]] = [[]]
    x = 0
    for name in legend:
        need = 33 + int(font.getlength(name))
        if x + need > width and lines[-1]:
            lines.append([])
            x = 0
        lines[-1].append(name)
        x += need
    return [line for line in lines if line]


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font: the picture looks the same on each machine."""
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise ValueError("this Pillow was built without FreeType; install the wheel of pillow 11 or later")
    return font
