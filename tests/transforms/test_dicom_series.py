"""Sorting of a series: what is one volume, what is parted, what stops, what is said; the order of files has no say."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slice_records import CAPTURE, ENHANCED_MR, REPORT, codes, only, record, stack_records
from voxelwise.errors import CaseError
from voxelwise.transforms.dicom_record import Slice
from voxelwise.transforms.dicom_series import SortedSeries, sort_series
from voxelwise.transforms.dicom_values import rescales
from voxelwise.transforms.read_options import ReadOptions

QUICK = settings(max_examples=25, deadline=None)


def seen(found: SortedSeries) -> list[Any]:
    """Everything that was found, in an order of its own."""
    return [
        sorted((one.series, one.files, one.affine.tolist(), one.repairs, one.notes) for one in found.stacks),
        sorted((files, str(error)) for files, error in found.stopped),
        sorted(found.listed),
    ]


def test_an_ordinary_series_has_no_entry() -> None:
    stack = only(stack_records())
    assert (stack.repairs, stack.notes, stack.shape) == ((), (), (5, 4, 8))
    np.testing.assert_allclose(stack.affine, phantoms.AXIAL, atol=1e-5)


def messy() -> list[Slice]:
    """Two phases, a localizer, a screenshot, a report and a stack of another matrix under one UID."""
    phases = [
        one
        for phase in (1, 2)
        for one in stack_records(6, name=f"p{phase}", splits={"AcquisitionNumber": str(phase)}, instance=None)
    ]
    other = stack_records(4, name="o", rows=2, columns=3, pixel_length=12, splits={"AcquisitionNumber": "1"})
    scout = record(
        "scout", position="0\\0\\0", orientation="0\\1\\0\\0\\0\\-1", spacing="1\\1", image_type="ORIGINAL\\LOCALIZER"
    )
    shot = record("shot", sop_class=CAPTURE, samples=3, bits_allocated=8, pixel_length=60)
    return [*phases, *other, scout, shot, record("report", sop_class=REPORT)]


@QUICK
@given(st.permutations(messy()))
def test_any_order_of_the_files_gives_the_same_stacks(order: list[Slice]) -> None:
    expected, found = sort_series(messy()), sort_series(order)
    assert seen(found) == seen(expected)
    assert [len(stack.slices) for stack in expected.stacks] == [6, 6, 4]
    assert sorted(reason for _, reason in expected.listed) == [
        "not a volume: Basic Text SR Storage",
        "not a volume: Secondary Capture Image Storage in a series of slices",
        "not a volume: a localizer",
    ]


def test_names_of_parts_do_not_depend_on_other_parts() -> None:
    slices = [
        one
        for phase in "357"
        for one in stack_records(name=f"p{phase}", splits={"AcquisitionNumber": phase}, instance=None)
    ]
    names = {stack.series for stack in sort_series(slices).stacks}
    assert names == {f"1.2.3.4/AcquisitionNumber={phase}" for phase in "357"}
    assert {stack.series for stack in sort_series(slices[8:]).stacks} < names


@QUICK
@given(st.integers(4, 12), st.data())
def test_any_inner_slice_that_is_removed_is_missed(count: int, data: st.DataObject) -> None:
    slices = stack_records(count)
    slices.pop(data.draw(st.integers(1, count - 2)))
    with pytest.raises(CaseError, match=r"slices are missing|spacing is uneven"):
        only(slices)


@QUICK
@given(st.lists(st.floats(-1e-4, 1e-4), min_size=8, max_size=8))
def test_rounding_is_no_gap(noise: list[float]) -> None:
    assert codes(only(stack_records(places=np.arange(8) + np.array(noise)))) == set()


angles = st.tuples(*[st.floats(-3.1, 3.1)] * 3)


@QUICK
@given(angles, st.floats(-0.5, 0.5), st.tuples(*[st.floats(-400, 400)] * 3))
def test_any_affine_comes_back(turn: tuple[float, ...], tilt: float, origin: tuple[float, ...]) -> None:
    """Up to a turn of the last axis, whose direction is that of the normal."""
    affine = np.eye(4)
    matrix = np.eye(3)
    for axis, angle in enumerate(turn):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        about = np.eye(3)
        about[a, a] = about[b, b] = np.cos(angle)
        about[a, b], about[b, a] = -np.sin(angle), np.sin(angle)
        matrix = about @ matrix
    affine[:3, :3] = matrix * [0.7, 0.9, 2.5]
    affine[:3, 2] += np.tan(tilt) * 2.5 * matrix[:, 1]
    affine[:3, 3] = origin
    stack = only(stack_records(affine=affine))
    if stack.slices[0].instance == 8:
        affine[:3, 3] += 7 * affine[:3, 2]
        affine[:3, 2] *= -1
    np.testing.assert_allclose(stack.affine, affine, atol=1e-4)
    assert codes(stack) == ({"gantry-tilt"} if abs(np.sin(tilt)) > 1e-3 else set())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patient": "q"}, r"2 values of PatientID \(4 slice.*Records may be merged"),
        ({"study": "9"}, "2 values of StudyInstanceUID.*--group-by StudyInstanceUID,SeriesInstanceUID"),
        ({"frame_of_reference": "9"}, r"2 values of FrameOfReferenceUID \(4"),
        ({"pixels": False}, "no PixelData, expected an image"),
        ({"refusal": ("s: a Siemens mosaic: no count", "mosaic")}, "a Siemens mosaic"),
        ({"frames": 3}, "NumberOfFrames is 3, and no functional groups"),
        ({"position": None}, r"ImagePositionPatient is absent, expected 3 numbers.*--geometry FILE"),
        ({"position": "nan\\0\\0"}, "ImagePositionPatient is 'nan"),
        ({"position": "1e30\\0\\0"}, "within a kilometre"),
        ({"orientation": "1\\0\\0"}, r"ImageOrientationPatient is .*expected 6 numbers"),
        ({"orientation": "1\\0\\0\\0.5\\0.87\\0"}, "stand at right angles.*--geometry FILE"),
        ({"spacing": "0\\0.7"}, "PixelSpacing is .*expected two numbers above 0"),
        ({"spacing": "0,9\\0,7"}, "PixelSpacing is '0,9"),
        ({"rows": 3}, r"Rows 3 x Columns 5 x 1 frame\(s\) need 30 bytes, PixelData has 40"),
        ({"rows": 0}, "Rows 0, Columns 5, expected both above 0"),
    ],
)
def test_what_makes_one_slice_doubtful_stops_the_series(change: dict[str, Any], message: str) -> None:
    slices = [replace(one, **change) if number < 4 else one for number, one in enumerate(stack_records())]
    with pytest.raises(CaseError, match=message) as error:
        only(slices)
    assert str(error.value).startswith(("/series/s0000", "s:"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["position", "orientation", "spacing", "slope"])
def test_text_where_numbers_should_be_is_not_shown(name: str) -> None:
    """A damaged header may hold anything there, a name too."""
    slices = stack_records(**{name: "Canary^Quetzal"})
    with pytest.raises(CaseError, match=r"is text that is no number, (expected|RescaleI)") as error:
        rescales(only(slices).slices)
    assert "anary" not in str(error.value)


def test_two_values_of_one_tag_are_counted_with_a_file_of_each_and_not_shown() -> None:
    slices = stack_records(patient=lambda k: "abc" if k in (2, 5) else "def")
    said = r"2 values of PatientID \(6 slice\(s\) such as /series/s00000, 2 slice\(s\) such as /series/s00002\)"
    with pytest.raises(CaseError, match=said):
        only(slices)


def test_a_frame_of_reference_for_each_slice_is_an_anonymiser() -> None:
    assert codes(only(stack_records(frame_of_reference=lambda k: f"1.2.{k}"))) == {"frames-of-reference"}
    with pytest.raises(CaseError, match="2 values of FrameOfReferenceUID"):
        only(stack_records(2, frame_of_reference=lambda k: f"1.2.{k}"))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"rows": 2, "columns": 10}, "Rows x Columns is 2 x 10, the others 4 x 5"),
        ({"spacing": "0.9\\0.8"}, r"PixelSpacing is '0\.9\\0\.8', the others '"),
        ({"orientation": "1\\0\\0\\0\\0.99985\\0.0173"}, "ImageOrientationPatient is"),
    ],
)
def test_an_odd_slice_stops_wherever_it_lies_and_three_are_a_volume(change: dict[str, Any], found: str) -> None:
    for at in (0, 3, 7):
        slices = stack_records()
        slices[at] = replace(slices[at], **change)
        with pytest.raises(CaseError, match=rf"1 slice\(s\) unlike the other 7: {found}"):
            only(slices)
    both = [*stack_records(), *stack_records(3, name="t", **change)]
    assert [len(stack.slices) for stack in sort_series(both).stacks] == [8, 3]


def test_a_localizer_is_told_by_its_type_or_its_angle() -> None:
    slices = stack_records()
    scout = record("scout", position="0\\0\\0", orientation="0\\1\\0\\0\\0\\-1", spacing="1\\1")
    flat = record(
        "flat", position="0\\0\\0", orientation="1\\0\\0\\0\\1\\0", spacing="1\\1", image_type="A\\B\\LOCALIZER"
    )
    found = sort_series([*slices, scout, flat])
    assert [len(stack.slices) for stack in found.stacks] == [8]
    assert [reason for _, reason in found.listed] == ["not a volume: a localizer"] * 2
    assert [stop[1].code for stop in sort_series([scout, slices[0]]).stopped] == ["odd-slice"]
    own = [replace(scout, image_type="LOCALIZER")]
    assert sort_series(own).listed == (((scout.path,), "not a volume: a localizer"),)


def test_three_planes_without_a_stack_are_localizers() -> None:
    """Some scanners do not say LOCALIZER; two planes alone could be two damaged slices."""
    planes = ("1\\0\\0\\0\\1\\0", "0\\1\\0\\0\\0\\-1", "1\\0\\0\\0\\0\\-1")
    scouts = [
        one
        for k, plane in enumerate(planes)
        for one in stack_records(1 + (k == 1), name=f"p{k}", orientation=plane, image_type="ORIGINAL\\PRIMARY\\M")
    ]
    found = sort_series(scouts)
    assert (found.stacks, found.stopped) == ((), ())
    assert [reason for _, reason in found.listed] == ["not a volume: a localizer"] * 3
    near = [*scouts[:1], *stack_records(1, name="n", orientation="1\\0\\0\\0\\0.98\\0.199"), *scouts[3:]]
    assert [error.code for _, error in sort_series(near).stopped] == ["odd-slice"]


def test_two_reports_of_one_uid_are_listed_and_stop_nothing() -> None:
    report = record("report", sop_class=REPORT, pixels=False)
    found = sort_series([*stack_records(), report, replace(report, path=Path("/series/other"), rows=9)])
    assert (len(found.stacks), found.stopped, len(found.listed)) == (1, (), 2)


def test_a_picture_in_a_series_of_slices_is_listed_and_one_of_its_own_is_a_case() -> None:
    shot = record("shot", sop_class=CAPTURE, samples=3, bits_allocated=8, pixel_length=60)
    found = sort_series([*stack_records(), shot])
    assert (len(found.stacks), [reason for _, reason in found.listed]) == (
        1,
        ["not a volume: Secondary Capture Image Storage in a series of slices"],
    )
    assert [stack.picture for stack in sort_series([shot]).stacks] == [True]


@pytest.mark.parametrize(
    ("values", "said", "words"),
    [
        ({"instance": None}, "instance-numbers", "InstanceNumber is absent, repeats"),
        ({"instance": lambda k: k // 2}, "instance-numbers", "InstanceNumber is absent, repeats"),
        ({"instance": lambda k: (3 * k) % 8}, "instance-numbers", "does not follow the position"),
        ({"instance": lambda k: k + 1 + 4 * (k > 5)}, "slices-missing", "8 of 12: InstanceNumber runs over 12"),
        ({"stated_counts": {"ImagesInAcquisition": 9}}, "slices-missing", "8 of 9: ImagesInAcquisition says 9"),
        ({"stated_counts": {"NumberOfSlices": 12}}, "slices-missing", "8 of 12: NumberOfSlices says 12"),
        ({"stated_counts": {"NumberOfSlicesMR": 12}}, "slices-missing", "8 of 12: NumberOfSlicesMR says 12"),
        ({"photometric": "MONOCHROME1"}, "monochrome1", "values are kept"),
        ({"lossy": "12.5"}, "lossy", r"ratio 12\.5"),
        ({"burned_in": True}, "burned-in", "text may stand in the pixels"),
        ({"executable_preamble": True}, "executable-preamble", "never copied"),
        ({"bare": True}, "no-preamble", "read as data sets"),
        ({"slope": None, "intercept": None}, "not-hu", "without rescale tags"),
        ({"rescale_type": "US"}, "not-hu", "RescaleType is US, not HU"),
        ({"rescale_type": "CANARY"}, "not-hu", "RescaleType is another word"),
    ],
)
def test_what_a_reader_should_know_is_said_once(values: dict[str, Any], said: str, words: str) -> None:
    stack = only(stack_records(**values))
    entries = [*stack.repairs, *stack.notes]
    assert [entry.code for entry in entries] == [said]
    assert re.search(words, entries[0].detail)


def test_an_mr_that_is_rescaled_is_said_to_be() -> None:
    """The scanner may mean another scale, which stands in private tags."""
    mr = {"modality": "MR", "rescale_type": ""}
    assert codes(only(stack_records(**mr, slope="2.5", intercept="0"))) == {"rescaled-mr"}
    assert codes(only(stack_records(**mr, slope="1", intercept="0.0"))) == set()
    assert codes(only(stack_records(**mr, slope=None, intercept=None))) == set()


def test_counts_of_the_scan_are_not_those_of_what_was_made_of_it() -> None:
    counts = {"stated_counts": {"NumberOfSlicesMR": 12}}
    assert codes(only(stack_records(image_type="DERIVED\\SECONDARY", **counts))) == set()
    planes = [*stack_records(**counts), *stack_records(4, name="o", affine=phantoms.oblique(), **counts)]
    assert [codes(stack) for stack in sort_series(planes).stacks] == [set(), set()]


def test_numbers_that_run_down_or_by_frames_are_no_matter() -> None:
    assert codes(only(stack_records(instance=lambda k: 20 - k))) == set()
    enhanced = {"sop_class": ENHANCED_MR, "modality": "MR", "frames": 8, "instance": None, "pixel_length": 320}
    assert codes(only(stack_records(**enhanced, frame=lambda k: k, sop="1.2", path=Path("/series/one")))) == set()


def test_options_of_the_user_stop_a_series() -> None:
    strict = ReadOptions(strict=True)
    assert only(stack_records(), strict).notes == ()
    with pytest.raises(CaseError, match=r"8 of 9: ImagesInAcquisition.*expected all of them with --strict"):
        only(stack_records(stated_counts={"ImagesInAcquisition": 9}), strict)
    with pytest.raises(CaseError, match=r"compressed with loss \(ratio 10\).*--refuse-lossy"):
        only(stack_records(lossy="10"), ReadOptions(refuse_lossy=True))
    with pytest.raises(CaseError, match=r"BurnedInAnnotation is YES.*--refuse-burned-in"):
        only(stack_records(burned_in=True), ReadOptions(refuse_burned_in=True))


def test_one_slice_takes_its_thickness() -> None:
    stack = only(stack_records(1))
    assert codes(stack) == {"single-slice"}
    assert stack.notes[0].detail.endswith("its thickness stands in for it")
    np.testing.assert_allclose(stack.affine, phantoms.AXIAL, atol=1e-5)
    stack = only(stack_records(1, facts={}))
    assert stack.notes[0].detail.endswith("1 mm stands in for it")
    np.testing.assert_allclose(np.linalg.norm(stack.affine[:3, 2]), 1)


def test_facts_of_a_stack_are_those_of_all_its_slices() -> None:
    stack = only(stack_records(facts=lambda k: {"KVP": 120.0, "EchoTime": 0.1 * k, "SliceThickness": 2.5 + 1e-9 * k}))
    assert dict(stack.facts) == {"KVP": 120.0, "SliceThickness": 2.5}


def test_enhanced_stacks_are_parted_by_stack_and_time() -> None:
    one = {"sop_class": ENHANCED_MR, "modality": "MR", "instance": None, "frames": 20, "pixel_length": 800}
    one |= {"sop": "1.2.9", "path": Path("/series/enhanced")}
    head = [
        frame
        for t in (1, 2)
        for frame in stack_records(
            5, **one, frame=lambda k, t=t: 10 + 5 * t + k, splits={"StackID": "1", "TemporalPositionIndex": str(t)}
        )
    ]
    foot = stack_records(
        5,
        places=range(20, 25),
        **one,
        frame=lambda k: k,
        splits={"StackID": "2", "TemporalPositionIndex": "1"},
    )
    found = sort_series([*foot, *head])
    assert sorted(len(stack.slices) for stack in found.stacks) == [5, 5, 5]
    assert len({stack.series for stack in found.stacks}) == 3
    assert found.stopped == ()


def test_grouped_by_the_user_it_is_one_volume() -> None:
    options = ReadOptions(group_by=("PatientID", "SeriesNumber"))
    slices = stack_records(series=lambda k: f"1.{k}", study=lambda k: f"2.{k}", group="CANARY\\3")
    stack = only(slices, options)
    assert stack.shape == (5, 4, 8)
    assert "CANARY" not in stack.series
    with pytest.raises(CaseError, match="2 values of StudyInstanceUID"):
        only(stack_records(study=lambda k: f"2.{k // 4}", group="x"), options)


def test_five_thousand_slices_are_sorted_well_under_a_second() -> None:
    slices = stack_records(5000)
    started = time.process_time()
    assert only(slices).shape == (5, 4, 5000)
    assert time.process_time() - started < 3


@pytest.mark.slow
def test_forty_time_points_of_five_hundred_slices() -> None:
    slices = [
        replace(one, splits={"AcquisitionNumber": str(t), "AcquisitionTime": str(10 * t), "ContentTime": one.sop})
        for t in range(40)
        for one in stack_records(500, name=f"t{t:02d}", instance=lambda k, t=t: 500 * t + k)
    ]
    started = time.process_time()
    assert len(sort_series(slices).stacks) == 40
    assert time.process_time() - started < 6
    turned = [replace(one, orientation=f"1\\0\\0\\0\\{np.cos(k)}\\{np.sin(k)}") for k, one in enumerate(slices[:3000])]
    started = time.process_time()
    sort_series(turned)
    assert time.process_time() - started < 6


def test_the_limit_of_voxels_holds_for_dicom_too() -> None:
    slices = stack_records(4)
    voxels = slices[0].rows * slices[0].columns * 4
    assert len(sort_series(slices, ReadOptions(max_voxels=voxels)).stacks) == 1
    found = sort_series(slices, ReadOptions(max_voxels=voxels - 1))
    assert found.stacks == ()
    assert re.search(rf"{voxels} voxels, limit {voxels - 1}.*--max-voxels {voxels}", str(found.stopped[0][1]))
