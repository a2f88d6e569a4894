"""The overlay shows the right voxels on the right side, whatever the orientation of the array."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from voxelwise.pipeline.overlays import class_colours, overlay, richest_slice
from voxelwise.transforms.volume import Geometry, Volume

CLASSES = {0: "background", 1: "liver"}


def phantom() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """RAS+ CT of air with one block at the patient's right, in front, and up."""
    image = np.full((20, 16, 8), -1000, dtype=np.int16)
    labels = np.zeros(image.shape, dtype=np.uint8)
    labels[14:18, 10:14, 5:7] = 1
    return image, labels, np.diag([3.0, 3.0, 6.0, 1.0])


def drawn(image: np.ndarray, labels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    volume = Volume(image[None], Geometry(image.shape, affine), modality="CT")
    png = overlay(volume, {"prediction": labels}, CLASSES, title="case")
    return np.asarray(Image.open(io.BytesIO(png)))


def test_right_of_the_patient_is_on_the_left() -> None:
    sheet = drawn(*phantom())
    colour = class_colours(CLASSES)[1]
    rows, columns = np.nonzero((sheet == colour).all(axis=-1))
    axial = (rows > 60) & (rows < 60 + 216) & (columns > 280)  # second column, first row of panels
    left = (columns[axial] - 286) / 270
    upper = (rows[axial] - 60) / 216
    assert left.max() < 0.5  # R is left
    assert upper.max() < 0.5  # A is up


def test_same_picture_from_every_orientation() -> None:
    image, labels, affine = phantom()
    expected = drawn(image, labels, affine)
    flipped = affine @ np.array([[-1, 0, 0, 19], [0, 0, -1, 15], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    # index (i, j, k) of the new array is (19 - i, 15 - k, j) of the old one
    turned, turned_labels = (np.swapaxes(each[::-1, ::-1, :], 1, 2) for each in (image, labels))
    assert np.array_equal(drawn(turned, turned_labels, flipped), expected)


def test_richest_slice_prefers_all_classes() -> None:
    labels = np.zeros((10, 10, 10), dtype=np.uint8)
    labels[:, :, 0] = 1  # a face full of class 1 alone
    labels[2:8, :, 5] = 1
    labels[4:6, 4:6, 5] = 2
    assert richest_slice(labels, 2) == 5
    assert richest_slice(np.zeros((4, 4, 4), dtype=np.uint8), 2) == 2


def test_pictures_are_drawn_upright() -> None:
    pixels = np.zeros((30, 20), dtype=np.uint8)
    labels = np.zeros((30, 20), dtype=np.uint8)
    labels[:10, :5] = 1  # first columns, first rows: upper left
    volume = Volume(pixels[None], Geometry((30, 20), np.eye(4), has_world=False), modality="picture")
    png = overlay(volume, {"prediction": labels}, CLASSES, title="x", panel_px=60)
    sheet = np.asarray(Image.open(io.BytesIO(png)))
    rows, columns = np.nonzero((sheet == class_colours(CLASSES)[1]).all(axis=-1))
    panel = (columns > 70) & (rows < 90)
    assert columns[panel].min() == 76
    assert rows[panel].min() < 60


def test_colours_differ_and_stay() -> None:
    many = {0: "background", **{value: f"class {value}" for value in range(1, 30)}}
    colours = class_colours(many)
    assert len(set(colours.values())) == 29
    assert 0 not in colours


def test_labels_must_lie_on_the_image() -> None:
    image, labels, affine = phantom()
    with pytest.raises(ValueError, match=r"prediction: labels \(19, 16, 8\) do not lie on the image's grid"):
        drawn(image, labels[1:], affine)
