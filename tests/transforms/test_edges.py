"""Grids whose edges agree: sizes, and which axis is resampled on its own."""

from __future__ import annotations

import pytest
from phantoms import oblique
from voxelwise.transforms.edges import edges_shape, grid_spacing, nearest_axis_back, separate_axis, stated, with_own


def test_halves_go_to_the_even_number() -> None:
    assert edges_shape((280, 43, 1), (0.6875, 0.5, 1.0), (1.0, 1.0, 9.0)) == (192, 22, 1)


def test_halves_of_a_turned_grid_stay_halves() -> None:
    spacing = grid_spacing(oblique((0.75, 0.75, 3.0)))
    assert spacing == [0.75, 0.75, 3.0]
    assert edges_shape((101, 101, 5), spacing, (1.5, 1.5, 6.0)) == (50, 50, 2)


@pytest.mark.parametrize(
    ("separate", "old", "new", "axis"),
    [
        ("auto", (1, 1, 3), (1, 1, 1), None),  # three times as coarse is not more
        ("auto", (1, 1, 3.1), (1, 1, 1), 2),
        ("auto", (1, 1, 1), (5, 1, 1), 0),  # the new grid counts where the old one is even
        ("auto", (1, 4, 1), (5, 1, 1), 1),
        ("auto", (1, 5, 5), (1, 1, 1), None),  # two coarse axes are none
        ("auto", (1, 5, 5), (9, 1, 1), None),
        ("always", (1, 1.1, 1), (9, 1, 1), 1),
        ("always", (1, 1, 1), (9, 1, 1), None),
        ("never", (1, 1, 9), (1, 1, 1), None),
    ],
)
def test_the_coarse_axis(separate: str, old: tuple[float, ...], new: tuple[float, ...], axis: int | None) -> None:
    assert separate_axis(separate, old, new) == axis


def test_the_way_back_starts_at_the_plan() -> None:
    spline = {"kind": "spline", "scores_separate": "auto", "scores_order_separate": 0}
    assert nearest_axis_back(spline, (5, 1, 1), (1, 1, 5)) == 0
    assert nearest_axis_back(spline, (None, 1, 1), (4, 1, 1)) == 0
    assert nearest_axis_back({**spline, "scores_order_separate": 1}, (5, 1, 1), (1, 1, 5)) is None
    assert nearest_axis_back({"kind": "linear"}, (5, 1, 1), (1, 1, 5)) is None
    assert nearest_axis_back(None, (5, 1, 1), (1, 1, 5)) is None


def test_axes_without_a_spacing_of_the_plan() -> None:
    assert with_own(None, (1, 2, 3)) == (1, 2, 3)
    assert with_own((None, 5, 6), (1, 2, 3)) == (1, 5, 6)
    assert stated((None, 5, 6)) == (5, 5, 6)
    assert stated(None) == (1, 1, 1)
