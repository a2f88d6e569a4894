"""RTSTRUCT -> label maps: centres inside the contours, by the even-odd rule, on the slices that were drawn on."""

from __future__ import annotations

from pathlib import Path

import label_phantoms as draw
import numpy as np
import phantoms
import pydicom
import pytest
from matplotlib.path import Path as Outline
from voxelwise.errors import CaseError
from voxelwise.transforms.dicom_rtstruct import fill, read_rtstruct, rtstruct_header
from voxelwise.transforms.geometry import reorient_to
from voxelwise.transforms.readers import read_volume
from voxelwise.transforms.volume import Geometry

SHAPE = (12, 10, 8)


@pytest.fixture
def series(tmp_path: Path) -> tuple[list[Path], Geometry]:
    """An oblique CT series, and its geometry."""
    files = phantoms.ct_series(tmp_path / "ct", affine=phantoms.oblique())
    return files, read_volume(tmp_path / "ct").geometry


@pytest.mark.parametrize("seed", range(5))
def test_fill_is_the_even_odd_rule(seed: int) -> None:
    """Random polygons that cross themselves, against matplotlib's rule for one ray at a time."""
    points = np.random.default_rng(seed).uniform(-3, 23, (9, 2))
    inside = fill(points, (20, 17))
    ends = np.roll(points, -1, axis=0)
    for x, y in np.ndindex(20, 17):
        crossed = ((points[:, 1] <= y) != (ends[:, 1] <= y)).nonzero()[0]
        at = [
            points[i, 0] + (y - points[i, 1]) * (ends[i, 0] - points[i, 0]) / (ends[i, 1] - points[i, 1])
            for i in crossed
        ]
        assert inside[x, y] == (sum(place <= x for place in at) % 2 == 1)
    convex = np.array([[2.3, 2.2], [15.1, 4.7], [9.6, 14.2]])
    centres = np.stack(np.indices((20, 17)), axis=-1).reshape(-1, 2)
    np.testing.assert_array_equal(fill(convex, (20, 17)).ravel(), Outline(convex).contains_points(centres))


def test_contours_that_touch_share_no_voxel() -> None:
    """Centres on the common edge belong to one of the two, and none is lost."""
    left = fill(np.array([[1, 1], [5, 1], [5, 8], [1, 8]]), (10, 10))
    right = fill(np.array([[5, 1], [9, 1], [9, 8], [5, 8]]), (10, 10))
    whole = fill(np.array([[1, 1], [9, 1], [9, 8], [1, 8]]), (10, 10))
    assert not (left & right).any()
    np.testing.assert_array_equal(left | right, whole)


def test_holes_by_a_keyhole_and_by_an_inner_contour(series: tuple[list[Path], Geometry], tmp_path: Path) -> None:
    """Both ways of drawing a hole give the same voxels."""
    files, geometry = series
    outer, inner = draw.ring(0.5, 8.5, 3), draw.ring(2.5, 5.5, 3)
    keyhole = np.concatenate([outer, outer[:1], inner, inner[:1]])
    wanted = draw.box(SHAPE, (1, 9), (1, 9), (3, 4)) & ~draw.box(SHAPE, (3, 6), (3, 6), (3, 4))
    for rings in ([keyhole], [outer, inner], [inner, outer]):
        path = draw.rtstruct_file(tmp_path / "rt.dcm", files, {"wall": rings})
        drawn = read_rtstruct(path, geometry, {1: 1})
        np.testing.assert_array_equal(drawn.labels, wanted)
        assert drawn.notes == ()


@pytest.mark.parametrize("codes", ["RAS", "PIR", "SLA"])
def test_any_orientation_of_the_image(series: tuple[list[Path], Geometry], tmp_path: Path, codes: str) -> None:
    """The slices of a contour may run along any axis of a converted image."""
    files, geometry = series
    path = draw.rtstruct_file(tmp_path / "rt.dcm", files, {"a": [draw.ring(0.5, 4.5, k) for k in (2, 3)]})
    wanted, affine = reorient_to(draw.box(SHAPE, (1, 5), (1, 5), (2, 4))[np.newaxis], geometry.affine, codes)
    drawn = read_rtstruct(path, Geometry(wanted.shape[1:], affine), {1: 1})
    np.testing.assert_array_equal(drawn.labels, wanted[0])


def test_overlap_is_counted_and_the_higher_class_stays(series: tuple[list[Path], Geometry], tmp_path: Path) -> None:
    """A target inside an organ."""
    files, geometry = series
    rois = {"target": [draw.ring(2.5, 4.5, 3)], "organ": [draw.ring(0.5, 8.5, 3)]}
    drawn = read_rtstruct(draw.rtstruct_file(tmp_path / "rt.dcm", files, rois), geometry, {1: 2, 2: 1})
    assert drawn.doubled == 4
    assert (drawn.labels == 2).sum() == 4
    assert (drawn.labels == 1).sum() == 60


def test_what_is_noted(series: tuple[list[Path], Geometry], tmp_path: Path) -> None:
    """Contours twice there, gaps between slices, contours cut at the edge of the image or that cross."""
    files, geometry = series
    rings = [draw.ring(0.5, 4.5, 1), draw.ring(0.5, 4.5, 1), draw.ring(0.5, 4.5, 4), draw.ring(3.5, 30, 5)]
    drawn = read_rtstruct(draw.rtstruct_file(tmp_path / "rt.dcm", files, {"a": rings}), geometry, {1: 1})
    assert [note.code for note in drawn.notes] == ["contour-copies", "contour-cut", "contour-gaps"]
    assert "2 slice(s)" in drawn.notes[2].detail
    assert drawn.labels[:, :, 1].sum() == 16
    rings = [draw.ring(0.5, 4.5, 1), draw.ring(2.5, 6.5, 1)]
    drawn = read_rtstruct(draw.rtstruct_file(tmp_path / "rt.dcm", files, {"a": rings}), geometry, {1: 1})
    assert [note.code for note in drawn.notes] == ["contours-cross"]


def test_header_lists_what_is_closed(series: tuple[list[Path], Geometry], tmp_path: Path) -> None:
    """Points (an isocentre) are no class; colours and references are told."""
    files, geometry = series
    path = draw.rtstruct_file(tmp_path / "rt.dcm", files, {"organ": [draw.ring(0.5, 4.5, 1)], "point": []})
    header = rtstruct_header(path)
    assert [(one.number, one.name, one.colour) for one in header.segments] == [(1, "organ", (255, 10, 0))]
    assert header.series == (pydicom.dcmread(files[0]).SeriesInstanceUID,)
    assert len(header.instances) == SHAPE[2]
    assert not read_rtstruct(path, geometry, {2: 1}).labels.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offset": (0, 0, 0.4)}, r"a contour lies 0\.40 voxels off slice 2 of the image"),
        ({"offset": (0, 0, 9)}, "a contour lies outside the 8 slices of the image"),
        ({"kind": "OPEN_PLANAR"}, "contour 1 of ROI 1 is OPEN_PLANAR, expected CLOSED_PLANAR"),
    ],
)
def test_what_is_refused(
    series: tuple[list[Path], Geometry], tmp_path: Path, options: dict[str, object], message: str
) -> None:
    """Contours that were drawn on another image, or that have no inside."""
    files, geometry = series
    path = draw.rtstruct_file(tmp_path / "rt.dcm", files, {"a": [draw.ring(0.5, 4.5, 1)]}, **options)  # type: ignore[arg-type]
    with pytest.raises(CaseError, match=message):
        read_rtstruct(path, geometry, {1: 1})


def test_points_that_are_no_numbers(series: tuple[list[Path], Geometry], tmp_path: Path) -> None:
    """Four numbers are no point and a third."""
    files, geometry = series
    path = draw.rtstruct_file(tmp_path / "rt.dcm", files, {"a": [draw.ring(0.5, 4.5, 1)]})
    dataset = pydicom.dcmread(path)
    dataset.ROIContourSequence[0].ContourSequence[0].ContourData = ["1", "2", "3", "4"]
    dataset.save_as(path)
    with pytest.raises(CaseError, match="does not hold three numbers a point"):
        read_rtstruct(path, geometry, {1: 1})
    del dataset.ROIContourSequence[0].ReferencedROINumber
    dataset.save_as(path)
    with pytest.raises(CaseError, match="a header without what it must have"):
        rtstruct_header(path)
