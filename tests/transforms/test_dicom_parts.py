"""Slices at one place: copies dropped, acquisitions parted by their tags, time points chosen, anything else stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pytest
from slice_records import CAPTURE, NUCLEAR, ULTRASOUND, ULTRASOUND_FILM, codes, only, record, stack_records
from voxelwise.errors import CaseError
from voxelwise.transforms.dicom_record import Slice
from voxelwise.transforms.dicom_series import SortedSeries, sort_series
from voxelwise.transforms.read_options import ReadOptions


def phases(*values: dict[str, str], count: int = 6, **more: Any) -> list[Slice]:
    """One stack for each set of tags, at one place, slice by slice from all of them."""
    each = [stack_records(count, name=f"p{k}x", splits=tags, instance=None, **more) for k, tags in enumerate(values)]
    return [one for together in zip(*each, strict=True) for one in together]


def names(found: SortedSeries) -> list[str]:
    """The parts of a series."""
    return [stack.series.partition("/")[2] for stack in found.stacks]


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ([{"AcquisitionNumber": "1", "ContentTime": "10"}, {"AcquisitionNumber": "2", "ContentTime": "11"}], "Acqui"),
        ([{"TemporalPositionIdentifier": k} for k in "123"], "TemporalPositionIdentifier"),
        ([{"EchoNumbers": k, "EchoTime": k} for k in "12"], "EchoNumbers"),
        ([{"TriggerTime": k} for k in "12"], "TriggerTime"),
        ([{"ConvolutionKernel": k} for k in ("B30f", "B60f")], "ConvolutionKernel"),
        ([{"ImageType": k} for k in ("M", "P")], "ImageType"),
        ([{"DiffusionBValue": k} for k in ("0", "50", "1000")], "DiffusionBValue"),
        ([{"AcquisitionNumber": "1"}, {}], "AcquisitionNumber"),
        ([{"EchoTime": e, "FlipAngle": f} for e in "12" for f in "34"], "EchoTime+FlipAngle"),
        ([{"A": a, "B": b, "C": c} for a in "12" for b in "34" for c in "56"], "A+B+C"),
    ],
)
def test_tags_part_what_lies_at_one_place(values: list[dict[str, str]], parts: str) -> None:
    found = sort_series(phases(*values))
    assert (len(found.stacks), found.stopped, found.listed) == (len(values), (), ())
    assert all(stack.shape == (5, 4, 6) for stack in found.stacks)
    assert all(name.startswith(parts) for name in names(found))
    assert len(set(names(found))) == len(values)
    for stack in found.stacks:
        assert len({tuple(one.splits.items()) for one in stack.slices}) == 1


def test_tags_that_differ_from_slice_to_slice_do_not_part() -> None:
    slices = [
        replace(one, splits={**one.splits, "ContentTime": one.sop, "AcquisitionTime": f"{k // 4}"})
        for k, one in enumerate(phases({"TriggerTime": "1"}, {"TriggerTime": "2"}))
    ]
    assert names(sort_series(slices)) == ["TriggerTime=1", "TriggerTime=2"]
    with pytest.raises(CaseError, match=r"two different slices at one place \(-15\.00, .* and no tag parts them \(Acq"):
        only([replace(one, splits={key: one.splits[key] for key in one.splits if "i" in key[:9]}) for one in untold()])


def untold() -> list[Slice]:
    """Eight places, two of them taken twice, and a time for each pair of slices."""
    twice = stack_records(2, name="t", places=[2, 3], instance=None)
    slices = [*stack_records(instance=None), *twice]
    return [replace(one, splits={"AcquisitionTime": f"{k // 2}"}) for k, one in enumerate(slices)]


def test_a_phase_that_lacks_end_slices_is_said() -> None:
    slices = phases({"AcquisitionNumber": "1"}, {"AcquisitionNumber": "2"})
    whole, short = sort_series(slices[:-1]).stacks
    assert (whole.shape[2], short.shape[2], codes(whole)) == (6, 5, {"instance-numbers"})
    assert "5 of 6: other parts of the series have 6" in [entry.detail[:40] for entry in short.notes]
    strict = sort_series(slices[:-1], ReadOptions(strict=True))
    assert (len(strict.stacks), [error.code for _, error in strict.stopped]) == (1, ["slices-missing"])


def test_a_phase_that_lacks_an_inner_slice_stops_alone() -> None:
    slices = phases({"AcquisitionNumber": "1"}, {"AcquisitionNumber": "2"})
    found = sort_series([one for one in slices if one.sop != "1.2.p1x00003"])
    assert names(found) == ["AcquisitionNumber=1"]
    assert [error.code for _, error in found.stopped] == ["missing-slice"]


def test_stations_that_overlap_are_parted() -> None:
    stations = [
        stack_records(places=range(6 * k, 6 * k + 8), name=f"s{k}x", splits={"AcquisitionNumber": str(k)})
        for k in range(3)
    ]
    found = sort_series([one for station in stations for one in station])
    assert names(found) == [f"AcquisitionNumber={k}" for k in range(3)]
    assert all("slices-missing" not in codes(stack) for stack in found.stacks)


def test_blocks_of_instance_numbers_break_the_tie() -> None:
    for number in (lambda phase, k: 8 * phase + k, lambda phase, k: 2 * k + phase):
        slices = [
            one
            for phase in (0, 1)
            for one in stack_records(name=f"p{phase}x", instance=lambda k, phase=phase, number=number: number(phase, k))
        ]
        found = sort_series(slices)
        assert sorted({one.sop[:7] for one in stack.slices} == {f"1.2.p{k}x"} for k, stack in enumerate(found.stacks))
        assert names(found)[0] == "InstanceNumber=0"
    with pytest.raises(CaseError, match=r"and no tag parts them \(all tags are equal\)\. Decide which"):
        only(phases({}, {}))


@pytest.mark.parametrize(("modality", "stacks"), [("CT", 2), ("MR", 1)])
def test_acquisitions_between_each_other_are_phases_of_a_ct(modality: str, stacks: int) -> None:
    """An MR takes odd and even slices of one volume in acquisitions of their own."""
    values = {"modality": modality, "instance": None}
    first = stack_records(6, splits={"AcquisitionNumber": "1"}, **values)
    second = stack_records(6, name="e", places=np.arange(6) + 0.5, splits={"AcquisitionNumber": "2"}, **values)
    assert len(sort_series([*first, *second]).stacks) == stacks


def test_rounding_does_not_hide_that_two_phases_lie_at_one_place() -> None:
    noise = np.random.default_rng(0).uniform(-1e-4, 1e-4, (3, 6))
    slices = [
        one
        for k, row in enumerate(noise)
        for one in stack_records(places=np.arange(6) + row, name=f"p{k}x", splits={"AcquisitionNumber": str(k)})
    ]
    assert len(sort_series(slices).stacks) == 3


def test_echoes_between_each_other_are_no_single_stack() -> None:
    """Half a step apart they would look like one even stack of twice the slices."""
    first = stack_records(6, splits={"AcquisitionNumber": "1", "EchoTime": "5"}, instance=None, modality="MR")
    tags = {"AcquisitionNumber": "2", "EchoTime": "90"}
    between = stack_records(6, name="e", places=np.arange(6) + 0.5, splits=tags, instance=None, modality="MR")
    found = sort_series([*first, *between])
    assert names(found) == ["EchoTime=5", "EchoTime=90"]
    after = stack_records(6, name="e", places=np.arange(6, 12), splits={"EchoTime": "90"}, instance=None)
    assert only([*first, *after]).shape == (5, 4, 12)


DYNAMIC = [{"TemporalPositionIdentifier": str(k)} for k in (1, 2, 10)]


@pytest.mark.parametrize(("choice", "kept"), [("first", "1"), ("0", "1"), ("1", "2"), ("2", "10")])
def test_one_time_point_is_taken_where_the_user_asks(choice: str, kept: str) -> None:
    found = sort_series(phases(*DYNAMIC), ReadOptions(time=choice))
    assert names(found) == [f"TemporalPositionIdentifier={kept}"]
    assert "time-chosen" in codes(found.stacks[0])
    assert len(found.listed) == 2
    assert all("of 3 (from 0), not chosen with --time" in reason for _, reason in found.listed)
    assert len({path for files, _ in found.listed for path in files}) == 12


def test_a_time_point_that_is_not_there_stops() -> None:
    with pytest.raises(CaseError, match=r"--time 3: the series has 3 time points, expected a number from 0 to 2"):
        only(phases(*DYNAMIC), ReadOptions(time="3"))
    assert only(stack_records(), ReadOptions(time="3")).notes == ()


def test_contrast_is_not_time() -> None:
    weighted = [{"DiffusionBValue": b, "AcquisitionNumber": a} for a, b in (("1", "0"), ("2", "1000"), ("3", "1000"))]
    assert names(sort_series(phases(*weighted), ReadOptions(time="first"))) == [
        "AcquisitionNumber=1",
        "AcquisitionNumber=2",
    ]
    echoes = [{"EchoTime": echo, "TemporalPositionIdentifier": t} for echo in ("5", "90") for t in ("1", "2")]
    assert len(sort_series(phases(*echoes), ReadOptions(time="1")).stacks) == 2
    assert len(sort_series(phases({"EchoTime": "5"}, {"EchoTime": "90"}), ReadOptions(time="1")).stacks) == 2


def test_time_points_that_are_missing_are_said() -> None:
    found = sort_series(phases(*DYNAMIC, stated_counts={"NumberOfTemporalPositions": 5}))
    assert all("3 of 5: NumberOfTemporalPositions" in stack.notes[0].detail for stack in found.stacks)


def test_mosaics_are_time_points_file_by_file() -> None:
    tiles = [
        replace(one, sop=f"1.2.9.{t}", path=Path(f"/series/m{t}"), tile=(0, 5 * k, 8, 20), instance=t, pixel_length=320)
        for t in (10, 2)
        for k, one in enumerate(stack_records(6))
    ]
    found = sort_series(tiles)
    assert [stack.files[0].name for stack in found.stacks] == ["m2", "m10"]
    assert [codes(stack) for stack in found.stacks] == [set(), set()]
    assert only(tiles[:6]).shape == (5, 4, 6)
    (kept,) = sort_series(tiles, ReadOptions(time="first")).stacks
    assert kept.files == (Path("/series/m2"),)


def written(folder: Path, slices: list[Slice]) -> list[Slice]:
    """The records, with files of their own."""
    found = []
    for one in slices:
        path = folder / one.path.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(500) + one.sop.encode() + bytes(30))
        found.append(replace(one, path=path))
    return found


def test_copies_are_dropped_wherever_they_lie(tmp_path: Path) -> None:
    slices = written(tmp_path / "a", stack_records())
    copies = written(tmp_path / "b", slices[2:5])
    stack = only([*copies, *slices])
    assert stack.shape == (5, 4, 8)
    assert [(entry.code, entry.detail[:9]) for entry in stack.repairs] == [("duplicate-files", "3 file(s)")]
    assert len(stack.files) == 11
    assert stack.notes == ()


def test_copies_of_what_stops_or_is_listed_are_counted_with_it(tmp_path: Path) -> None:
    shot = record("shot", sop_class=CAPTURE, samples=3, bits_allocated=8, pixel_length=60)
    slices = written(tmp_path / "a", [*stack_records(places=[0, 1, 2, 5, 6]), shot])
    copies = written(tmp_path / "b", slices)
    found = sort_series([*slices, *copies])
    ((stopped, error),) = found.stopped
    assert (len(stopped), error.code, [len(files) for files, _ in found.listed]) == (10, "missing-slice", [2])


@pytest.mark.parametrize(
    ("change", "what"),
    [({}, "PixelData"), ({"slope": "2"}, "slope"), ({"position": "0\\0\\0"}, "position"), ({"rows": 2}, "rows")],
)
def test_one_uid_for_two_contents_names_both_files(tmp_path: Path, change: dict[str, Any], what: str) -> None:
    slices = written(tmp_path / "a", stack_records())
    (other,) = written(tmp_path / "b", slices[2:3])
    if not change:
        other.path.write_bytes(bytes(530))
    with pytest.raises(CaseError, match=rf"a/s00002 and .*b/s00002: one SOPInstanceUID, other content \({what}"):
        only([*slices, replace(other, **change)])


def test_pictures_have_a_pixel_size_and_no_place() -> None:
    values = {"sop_class": ULTRASOUND, "modality": "US", "bits_allocated": 8, "pixel_length": 20, "spacing": "0.2\\0.3"}
    found = sort_series([record("one", **values), record("two", **{**values, "spacing": None}), record("sr", **values)])
    assert [stack.shape for stack in found.stacks] == [(5, 4)] * 3
    assert all(stack.picture and not stack.film and codes(stack) == {"no-world-coordinates"} for stack in found.stacks)
    assert [tuple(np.diag(stack.affine)) for stack in found.stacks] == [
        (0.3, 0.2, 1, 1),
        (0.3, 0.2, 1, 1),
        (1, 1, 1, 1),
    ]
    assert len({stack.series for stack in found.stacks}) == 3


@pytest.mark.parametrize(("seconds", "step"), [(0.04, 0.04), (None, 1.0), (-1.0, 1.0)])
def test_a_film_has_time_for_its_third_axis(seconds: float | None, step: float) -> None:
    film = record("film", sop_class=ULTRASOUND_FILM, frames=7, pixel_length=280, spacing="0.2\\0.3")
    (stack,) = sort_series([replace(film, frame_seconds=seconds)]).stacks
    assert (stack.shape, stack.picture, stack.film) == ((5, 4, 7), True, True)
    np.testing.assert_array_equal(np.diag(stack.affine), [0.3, 0.2, step, 1])


def test_pictures_that_cannot_be_used_stop_alone() -> None:
    slices = [
        record("good", sop_class=CAPTURE),
        record("empty", sop_class=CAPTURE, pixels=False),
        record("cut", sop_class=CAPTURE, rows=9),
        record("lossy", sop_class=CAPTURE, lossy="8", burned_in=True),
        record("nuclear", sop_class=NUCLEAR, frames=60, pixel_length=2400),
    ]
    found = sort_series(slices)
    assert [(stack.files[0].name, codes(stack)) for stack in found.stacks] == [
        ("good", {"no-world-coordinates"}),
        ("lossy", {"no-world-coordinates", "lossy", "burned-in"}),
    ]
    assert [error.code for _, error in found.stopped] == ["pixel-length", "no-pixels"]
    assert [reason for _, reason in found.listed] == [
        "not a volume: Nuclear Medicine Image Storage, 60 frames that are no film"
    ]
    refused = sort_series(slices[3:4], ReadOptions(refuse_lossy=True))
    assert [error.code for _, error in refused.stopped] == ["lossy"]


def test_parts_lie_where_their_slices_lie() -> None:
    for stack in sort_series(phases({"EchoTime": "1"}, {"EchoTime": "2"})).stacks:
        np.testing.assert_allclose(stack.affine, phantoms.AXIAL, atol=1e-5)
