"""Whose slice a file that cannot be read may be."""

from __future__ import annotations

import pytest
from voxelwise.transforms.neighbours import neighbours

TWO = [(f"a{k:03d}", "A") for k in range(1, 9) if k != 4] + [(f"b{k:03d}", "B") for k in range(1, 9)]
ONE_AFTER_THE_OTHER = [(f"IM{k}", "A" if k < 20 else "B") for k in range(40) if k not in (20, 25, 26)]


@pytest.mark.parametrize(
    ("name", "others", "wanted"),
    [
        ("a004", TWO, {"A"}),
        ("a009", TWO, {"A"}),
        ("b000", TWO, {"B"}),
        ("IM20", ONE_AFTER_THE_OTHER, {"A", "B"}),
        ("IM25", ONE_AFTER_THE_OTHER, {"B"}),
        ("IM40", ONE_AFTER_THE_OTHER, {"B"}),
        ("IM60", ONE_AFTER_THE_OTHER, {"B"}),
        ("c", [("a7", "A"), ("b1", "B"), ("b9", "B"), ("d1", "D"), ("e", "E")], {"B", "D"}),
        ("s2_i5", [("s1_i4", "1"), ("s1_i6", "1"), ("s2_i4", "2"), ("s3_i5", "3")], {"2"}),
        ("x", [], set()),
    ],
)
def test_the_nearest_in_name_and_number(name: str, others: list[tuple[str, str]], wanted: set[str]) -> None:
    assert neighbours(name, others) == wanted
    assert neighbours(name, reversed(others)) == wanted
