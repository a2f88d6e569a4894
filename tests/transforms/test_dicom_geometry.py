"""Numbers of the geometry: read and checked for each slice, gaps found, even grids laid over them where asked for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pytest
from slice_records import only, record, stack_records
from voxelwise.errors import CaseError, UsageError
from voxelwise.transforms.dicom_geometry import check_claim, like_groups, numbers, placed
from voxelwise.transforms.read_options import ReadOptions

RESAMPLE = ReadOptions(gaps="resample")


@pytest.mark.parametrize("text", ["", "1", "1\\2\\3", "1\\nan", "1\\inf", "1,5\\2", "1_0\\2", "a\\b", "1\\"])
def test_only_numbers_are_numbers(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        numbers(text, 2)
    assert numbers(" 1.5 \\-2e1", 2) == (1.5, -20)


def test_groups_are_told_by_matrix_spacing_and_orientation() -> None:
    flat, turned = "1\\0\\0\\0\\1\\0", "1\\0\\0\\0\\0.99999\\0.004"
    slices = [
        *stack_records(5, orientation=flat),
        *stack_records(2, name="near", orientation=turned),
        *stack_records(3, name="far", orientation="1\\0\\0\\0\\0.9998\\0.02"),
        *stack_records(4, name="wide", orientation=flat, rows=2, columns=10),
        *stack_records(1, name="coarse", orientation=flat, spacing="0.9\\0.701"),
    ]
    assert [len(group) for group in like_groups([placed(one) for one in slices])] == [7, 4, 3, 1]


def test_the_length_of_the_pixels_is_held_against_the_header() -> None:
    check_claim(record("odd", rows=3, columns=3, bits_allocated=8, pixel_length=10))
    check_claim(record("packed", transfer_syntax="1.2.840.10008.1.2.4.70", pixel_length=7))
    check_claim(record("half", samples=3, photometric="YBR_FULL_422", bits_allocated=8, pixel_length=40))
    check_claim(record("tile", tile=(4, 0, 8, 10), pixel_length=160))
    with pytest.raises(CaseError, match="NumberOfFrames is 99999 in a file of 1000 bytes"):
        check_claim(record("film", frames=99999, pixel_length=0xFFFFFFFF))
    with pytest.raises(CaseError, match=r"need 80 bytes, PixelData has 40.*Copy the file again"):
        check_claim(record("frames", frames=2))


def test_gaps_are_listed_with_their_places_and_numbers() -> None:
    with pytest.raises(
        CaseError,
        match=r"s00003: ImagePositionPatient: slices are missing: 5\.000 mm behind -6\.50 mm \(InstanceNumber 4 and "
        r"5\); 7\.500 mm behind 3\.50 mm \(InstanceNumber 7 and 8\); the others are 2\.500 mm apart.*--gaps resample",
    ):
        only(stack_records(places=[0, 1, 2, 3, 5, 6, 7, 10, 11, 12]))
    with pytest.raises(CaseError, match=r"spacing is uneven: 3\.250 mm behind -1\.50 mm; the others"):
        only(stack_records(places=[0, 1, 2, 3, 4, 5, 6.3, 7.3], instance=None))


@pytest.mark.parametrize("step_mm", [0.125, 0.5, 0.6, 0.625, 1.0])
@pytest.mark.parametrize("oblique", [False, True])
def test_positions_with_two_decimals_are_even(step_mm: float, oblique: bool) -> None:
    affine = phantoms.oblique((0.7, 0.9, step_mm)) if oblique else np.diag([0.7, 0.9, step_mm, 1])
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    slices = [
        replace(one, position="\\".join(f"{value:.2f}" for value in lps[:3, 3] + k * lps[:3, 2]))
        for k, one in enumerate(stack_records(60, affine=affine))
    ]
    np.testing.assert_allclose(only(slices).affine, affine, atol=0.01)
    del slices[20]
    with pytest.raises(CaseError, match=r"slices are missing|spacing is uneven"):
        only(slices)


def test_a_gap_among_steps_of_a_few_micrometres_is_seen() -> None:
    affine = np.diag([0.005, 0.005, 0.005, 1])
    assert only(stack_records(12, affine=affine)).shape == (5, 4, 12)
    with pytest.raises(CaseError, match="slices are missing"):
        only(stack_records(places=[0, 1, 2, 4, 5, 6, 7, 8], affine=affine))


def test_slices_beside_the_line_stop() -> None:
    slices = stack_records()
    slices[4] = replace(slices[4], position="-14\\-12\\-4")
    with pytest.raises(CaseError, match=r"s00004: ImagePositionPatient: slices do not lie evenly on one line"):
        only(slices)
    with pytest.raises(CaseError, match="do not lie evenly on one line"):
        only(stack_records(places=[*np.arange(200), *(199 + 1.009 * np.arange(1, 200))]))


@pytest.mark.parametrize(
    ("places", "planes", "true"),
    [
        ([0, 1, 2, 5, 6, 7, 8], 9, [0, 1, 2, 5, 6, 7, 8]),
        ([0, 1, 2.1, 3, 4.1, 5], 6, [0, 1, 2.1, 3, 4.1, 5]),
        ([0, 1, 2, 3, 4.6, 5.6], 7, [0, 6 / 5.6, 12 / 5.6, 18 / 5.6, 27.6 / 5.6, 6]),
    ],
)
def test_gaps_are_laid_on_an_even_grid_where_the_user_asks(places: list[float], planes: int, true: list[float]) -> None:
    for affine in (phantoms.AXIAL, phantoms.oblique()):
        stack = only(stack_records(places=places, affine=affine), RESAMPLE)
        assert stack.shape == (5, 4, planes)
        np.testing.assert_allclose(stack.places, true, atol=1e-5)
        assert [entry.code for entry in (*stack.repairs, *stack.notes)][:1] == ["gaps-resampled"]
        first, last = (stack.affine @ [0, 0, place, 1] for place in (0, planes - 1))
        np.testing.assert_allclose(first, affine @ [0, 0, places[0], 1], atol=1e-4)
        np.testing.assert_allclose(last, affine @ [0, 0, places[-1], 1], atol=1e-4)


def test_an_even_stack_is_not_touched_by_the_option() -> None:
    stack = only(stack_records(), RESAMPLE)
    assert (stack.places, stack.repairs, stack.notes, stack.shape) == (None, (), (), (5, 4, 8))


def test_a_tilted_stack_with_a_gap_keeps_its_shear() -> None:
    affine = phantoms.AXIAL.copy()
    affine[1, 2] = 0.6
    stack = only(stack_records(places=[0, 1, 2, 4, 5, 6], affine=affine), RESAMPLE)
    np.testing.assert_allclose(stack.affine, affine, atol=1e-4)
    assert {entry.code for entry in stack.repairs} == {"gaps-resampled", "gantry-tilt"}


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([0, 1, 2, 3, 9, 10, 11], r"a gap of 15\.000 mm behind -6\.50 mm, expected at most 5 usual steps"),
        ([0, 1, 2, 6.9, 11.8, 16.7, 17.7, 18.7], "planes would be invented, expected no more than"),
    ],
)
def test_what_would_be_mostly_invented_is_refused(places: list[float], message: str) -> None:
    with pytest.raises(CaseError, match=message):
        only(stack_records(places=places), RESAMPLE)


def test_resampling_does_not_excuse_slices_beside_the_line() -> None:
    slices = stack_records(places=[0, 1, 2, 4, 5, 6])
    slices[2] = replace(slices[2], position="-14\\-12\\-9")
    with pytest.raises(CaseError, match="do not lie evenly on one line"):
        only(slices, RESAMPLE)


STATED = {
    "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
    "PixelSpacing": [0.9, 0.7],
    "ImagePositionPatient": [-15, -12, -14],
    "SpacingBetweenSlices": 2.5,
}


def stated(folder: Path, **changes: Any) -> ReadOptions:
    """Options with a file of the user; None leaves a field out."""
    values = {name: value for name, value in {**STATED, **changes}.items() if value is not None}
    (folder / "case.json").write_text(json.dumps(values))
    return ReadOptions(geometry=folder / "case.json")


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        ({"spacing": None}, "PixelSpacing: stated"),
        ({"spacing": "0\\0"}, "PixelSpacing: stated"),
        ({"orientation": "1\\0\\0\\0.5\\0.87\\0"}, "ImageOrientationPatient: stated"),
        ({"position": None}, "ImagePositionPatient, SpacingBetweenSlices: stated"),
        (
            {"position": "nan\\0\\0", "orientation": None, "spacing": "0,9\\0,7"},
            "ImageOrientationPatient, PixelSpacing, ImagePositionPatient, SpacingBetweenSlices: stated",
        ),
    ],
)
def test_the_user_states_what_is_absent_or_unusable(tmp_path: Path, lacking: dict[str, Any], said: str) -> None:
    slices = stack_records(**lacking)
    stack = only(slices[::-1], stated(tmp_path))
    np.testing.assert_allclose(stack.affine, phantoms.AXIAL, atol=1e-5)
    assert [one.instance for one in stack.slices] == list(range(1, 9))
    (note,) = stack.notes
    assert note.code == "geometry-stated"
    assert note.detail.startswith(said)


def test_what_the_headers_say_is_kept(tmp_path: Path) -> None:
    stack = only(stack_records(), stated(tmp_path, PixelSpacing=[9, 9], ImagePositionPatient=[0, 0, 0]))
    np.testing.assert_allclose(stack.affine, phantoms.AXIAL, atol=1e-5)
    assert stack.notes == ()


def test_one_place_that_is_absent_is_filled_and_held_against_the_others(tmp_path: Path) -> None:
    slices = stack_records()
    slices[4] = replace(slices[4], position=None)
    np.testing.assert_allclose(only(slices, stated(tmp_path)).affine, phantoms.AXIAL, atol=1e-5)
    with pytest.raises(CaseError, match=r"spacing is uneven|slices are missing|do not lie"):
        only(slices, stated(tmp_path, SpacingBetweenSlices=2.4))


def test_frames_without_a_place_are_laid_in_their_order(tmp_path: Path) -> None:
    lacking = {"position": None, "orientation": None, "spacing": None}
    (one,) = stack_records(1, frames=8, pixel_length=320, **lacking)
    stack = only([one], stated(tmp_path))
    assert [part.frame for part in stack.slices] == list(range(8))
    np.testing.assert_allclose(stack.affine, phantoms.AXIAL, atol=1e-5)


@pytest.mark.parametrize(
    ("lacking", "changes", "message"),
    [
        ({"spacing": None}, {"PixelSpacing": None}, r"s0000\d: PixelSpacing is absent.*State PixelSpacing there"),
        ({"position": None}, {"SpacingBetweenSlices": None}, "State SpacingBetweenSlices there"),
        ({"position": None, "instance": None}, {}, "InstanceNumber: 0 numbers for 8 slices"),
        ({"position": None, "instance": lambda k: k // 2}, {}, "InstanceNumber: 4 numbers for 8 slices"),
        ({"position": None, "instance": lambda k: 2 * k}, {}, "expected an unbroken row without repeats"),
    ],
)
def test_what_is_not_stated_stops(
    tmp_path: Path, lacking: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CaseError, match=message):
        only(stack_records(**lacking), stated(tmp_path, **changes))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[1, 2]", "expected a JSON object"),
        ("{}", "expected a JSON object"),
        ('{"RescaleSlope": 1}', "'RescaleSlope' is none of ImageOrientationPatient"),
        ('{"PixelSpacing": [1]}', r"PixelSpacing: expected 2 finite number\(s\)"),
        ('{"PixelSpacing": [1, true]}', r"PixelSpacing: expected 2 finite number\(s\)"),
        ('{"PixelSpacing": [1, "1"]}', r"PixelSpacing: expected 2 finite number\(s\)"),
        ('{"PixelSpacing": [1, 1' + "0" * 400 + "]}", r"PixelSpacing: expected 2 finite number\(s\)"),
        ('{"ImagePositionPatient": [1, NaN, 3]}', r"ImagePositionPatient: expected 3 finite number\(s\)"),
        ('{"PixelSpacing": [0, 1]}', "PixelSpacing: expected two numbers above 0"),
        ('{"SpacingBetweenSlices": -2}', "SpacingBetweenSlices: expected a number above 0"),
        ('{"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}', "ImageOrientationPatient: two directions"),
    ],
)
def test_a_malformed_file_names_its_field(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "case.json").write_text(text)
    with pytest.raises(UsageError, match=rf"--geometry .*case\.json: {message}"):
        only(stack_records(), ReadOptions(geometry=tmp_path / "case.json"))
    with pytest.raises(UsageError, match=r"none\.json: cannot be read \(No such file"):
        only(stack_records(), ReadOptions(geometry=tmp_path / "none.json"))
