"""Pictures: pixels as (C, X, Y), colour as three channels, no place in the world."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from voxelwise.errors import CaseError
from voxelwise.transforms.pictures import picture_shape, read_picture


def codes(path: Path) -> set[str]:
    """Codes of the notes but the one that every picture has."""
    return {note.code for note in read_picture(path).notes} - {"no-world-coordinates"}


def test_grey_and_colour_keep_their_values_and_axes(tmp_path: Path) -> None:
    """X runs along the columns, Y along the rows."""
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    deep = np.arange(12, dtype=np.uint16).reshape(3, 4) * 1000
    colour = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    for name, rows in (
        ("grey.png", grey),
        ("grey.tif", grey),
        ("deep.png", deep),
        ("colour.png", colour),
        ("colour.tif", colour),
    ):
        Image.fromarray(rows).save(tmp_path / name)
        volume = read_picture(tmp_path / name)
        wanted = rows.T[np.newaxis] if rows.ndim == 2 else rows.transpose(2, 1, 0)
        np.testing.assert_array_equal(volume.array, wanted)
        assert volume.array.dtype == rows.dtype
        assert (volume.modality, volume.name) == ("picture", name[:-4])
        assert (volume.geometry.shape, volume.geometry.has_world) == ((4, 3), False)
        assert [note.code for note in volume.notes] == ["no-world-coordinates"]
        assert picture_shape(tmp_path / name) == ((4, 3), len(wanted))


def test_masks_of_one_bit_and_of_grey_palettes_hold_0_and_255(tmp_path: Path) -> None:
    rows = np.array([[0, 255, 0], [255, 255, 0]], dtype=np.uint8)
    Image.fromarray(rows).save(tmp_path / "mask.gif")
    Image.fromarray(rows > 0).save(tmp_path / "mask.png")
    for name in ("mask.gif", "mask.png"):
        np.testing.assert_array_equal(read_picture(tmp_path / name).array[0], rows.T)


def test_a_colour_palette_is_colour_or_label_numbers(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), mode=None).convert("P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.putdata([0, 1, 2, 1])
    image.save(tmp_path / "classes.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "classes.png", labels=True).array[0], [[0, 2], [1, 1]])
    assert read_picture(tmp_path / "classes.png").array.shape == (3, 2, 2)


def test_transparency_is_left_out_and_said(tmp_path: Path) -> None:
    rows = np.full((2, 3, 4), 255, dtype=np.uint8)
    Image.fromarray(rows).save(tmp_path / "opaque.png")
    rows[0, 0, 3] = 7
    Image.fromarray(rows).save(tmp_path / "clear.png")
    assert len(read_picture(tmp_path / "opaque.png").notes) == 1
    clear = read_picture(tmp_path / "clear.png")
    assert clear.array.shape == (3, 3, 2)
    assert clear.notes[1].code == "alpha-dropped"


def test_what_is_no_single_picture_stops(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((2, 2), value, dtype=np.uint8)) for value in (0, 9)]
    frames[0].save(tmp_path / "film.tif", save_all=True, append_images=frames[1:])
    with pytest.raises(CaseError, match=r"film\.tif: 2 frames in one file"):
        read_picture(tmp_path / "film.tif")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(CaseError, match=r"cut\.png: the picture is cut off"):
        read_picture(tmp_path / "cut.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(CaseError, match=r"no picture in PNG, JPEG, TIFF or GIF format \(10 bytes\)"):
        read_picture(tmp_path / "text.png")


def test_deep_and_strange_colours(tmp_path: Path) -> None:
    """Values are kept, or a note says what became of them."""
    deep = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    np.testing.assert_array_equal(read_picture(tmp_path / "deep.tif").array[0], deep.T)
    real = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    Image.fromarray(real).save(tmp_path / "real.tif")
    np.testing.assert_array_equal(read_picture(tmp_path / "real.tif").array[0], real.T)
    Image.fromarray(np.zeros((3, 4, 4), np.uint8), mode=None).convert("CMYK").save(tmp_path / "cmyk.jpg")
    assert codes(tmp_path / "cmyk.jpg") == {"colour-converted"}
    colours = np.zeros((3, 4, 3), ">u2").tobytes()
    rows = b"".join(b"\0" + colours[row * 24 : row * 24 + 24] for row in range(3))
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 4, 3, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    data = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    (tmp_path / "deep_colour.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    assert codes(tmp_path / "deep_colour.png") == {"depth-reduced"}


def test_rows_are_kept_where_a_viewer_would_turn_them(tmp_path: Path) -> None:
    """A mask drawn beside the file may be turned or not: nothing is guessed, and it is said."""
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_picture(tmp_path / "turned.png").array[0], np.asarray(image).T)
    assert codes(tmp_path / "turned.png") == {"exif-orientation"}


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.tif"])
def test_a_cut_or_changed_picture_is_right_or_stops(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(3).integers(0, 255, (40, 30), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    right = read_picture(tmp_path / name).array
    stopped = set()
    for length in (*range(0, len(whole), max(1, len(whole) // 25)), len(whole) - 1):
        (tmp_path / name).write_bytes(whole[:length])
        try:
            np.testing.assert_array_equal(read_picture(tmp_path / name).array, right)
        except CaseError as error:
            stopped.add(error.code)
    assert stopped == {"truncated", "not-a-picture"}


def test_a_bomb_stops_whatever_pillow_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    Image.new("1", (20000, 9000)).save(tmp_path / "bomb.png")
    with pytest.raises(CaseError, match="20000 x 9000 pixels, limit"):
        picture_shape(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(CaseError, match="decompression bomb"):
        read_picture(tmp_path / "bomb.png")


@pytest.mark.parametrize(
    ("name", "channels", "shape"),
    [
        ("2d_retina_drive/images/21_training.tif", 3, (565, 584)),
        ("2d_retina_drive/1st_manual/21_manual1.gif", 1, (565, 584)),
        ("2d_chest_xray/1.jpg", 1, (512, 512)),
        ("2d_chest_xray/1-mask.png", 1, (512, 512)),
    ],
)
def test_real_pictures(shared_data: Callable[[str], Path], name: str, channels: int, shape: tuple[int, int]) -> None:
    volume = read_picture(shared_data(name))
    assert (volume.channels, volume.geometry.shape) == (channels, shape)
    if "manual" in name or "mask" in name:
        assert set(np.unique(volume.array)) == {0, 255}
