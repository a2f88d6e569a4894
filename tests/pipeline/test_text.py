"""Text of one line."""

from __future__ import annotations

from voxelwise.pipeline.text import printable


def test_control_characters_and_odd_bytes_are_escaped() -> None:
    assert printable("ü a\nb\x1b[31m\udcff") == "ü a\\nb\\x1b[31m\\udcff"
