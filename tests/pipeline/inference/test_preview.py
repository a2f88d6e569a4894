"""Previews: all planes in one picture, radiological, labels in colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from voxelwise.pipeline.inference.preview import COLOURS, HEIGHT_PX, write_preview
from voxelwise.transforms.volume import Geometry, Volume


@pytest.mark.parametrize("flipped", [False, True])
def test_the_patients_right_is_on_the_left(tmp_path: Path, flipped: bool) -> None:
    """The same place in the world is painted at the same place of the picture, however the array is stored."""
    array, labels = np.zeros((1, 10, 10, 10), dtype=np.int16), np.zeros((10, 10, 10), dtype=np.uint8)
    array[0, 7:, :, :] = 100
    labels[8:, 8:, 5] = 4  # right, anterior
    affine = np.eye(4)
    if flipped:
        array, labels = array[:, ::-1], labels[::-1]
        affine[0, 0], affine[0, 3] = -1, 9
    write_preview(tmp_path / "a.png", Volume(array, Geometry((10, 10, 10), affine)), labels, (0, 4))
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture).astype(int)
    assert pixels.shape == (HEIGHT_PX, 3 * HEIGHT_PX, 3)
    colour = np.ptp(pixels, axis=2) > 20
    rows, columns = np.nonzero(colour[:, :HEIGHT_PX])
    assert rows.max() < HEIGHT_PX * 0.3
    assert columns.max() < HEIGHT_PX * 0.3
    assert COLOURS[0][0] > COLOURS[0][2]
    assert pixels[10, 10, 0] > pixels[10, 10, 2]


def test_a_picture_is_one_panel_and_a_constant_image_is_drawn(tmp_path: Path) -> None:
    geometry = Geometry((20, 10), np.eye(4), has_world=False)
    volume = Volume(np.zeros((1, 20, 10), dtype=np.uint8), geometry, "picture")
    write_preview(tmp_path / "a.png", volume, np.zeros((20, 10), dtype=np.uint8), (0, 1))
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (2 * HEIGHT_PX, HEIGHT_PX)
