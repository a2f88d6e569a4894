"""DICOM series: sorted by place, geometry proved, values exact; anything uncertain stops and says why."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pydicom
import pytest
from pydicom.sequence import Sequence
from pydicom.uid import generate_uid
from voxelwise.errors import CaseError
from voxelwise.transforms.geometry import ALL_AXIS_CODES, apply_affine, reorient_to
from voxelwise.transforms.readers import find_sources, read_source, read_volume
from voxelwise.transforms.volume import Volume


def codes(volume: Volume) -> set[str]:
    """Codes of all repairs and notes."""
    return {entry.code for entry in (*volume.repairs, *volume.notes)}


def edit(path: Path, **tags: Any) -> None:
    """Set or remove (None) tags of a file."""
    dataset = pydicom.dcmread(path)
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    dataset.save_as(path)


def test_a_ct_series_is_read_exactly(tmp_path: Path) -> None:
    phantoms.ct_series(tmp_path)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array[0], phantoms.ramp())
    np.testing.assert_allclose(volume.geometry.affine, phantoms.AXIAL, atol=1e-6)
    assert volume.array.dtype == np.int16
    assert (volume.modality, volume.name, codes(volume)) == ("CT", "", set())
    kind = ["ORIGINAL", "PRIMARY", "AXIAL"]
    assert volume.facts == {"ImageType": kind, "KVP": 120.0, "SliceThickness": 2.5, "PatientPosition": "HFS"}


@pytest.mark.parametrize("maker", [phantoms.ct_series, phantoms.mr_series])
@pytest.mark.parametrize("codes_of_axes", ALL_AXIS_CODES[::7])
def test_every_orientation_keeps_value_and_place(tmp_path: Path, maker: Callable[..., Any], codes_of_axes: str) -> None:
    """Slices come sorted along the normal, so a left-handed stack comes back with its last axis turned round."""
    array, affine = reorient_to(phantoms.ramp((4, 5, 6))[np.newaxis] + 100, phantoms.oblique(), codes_of_axes)
    maker(tmp_path, array[0], affine)
    volume = read_volume(tmp_path)
    for index in ((0, 0, 0), (3, 1, 2)):
        place = apply_affine(affine, np.array(index))
        there = np.rint(apply_affine(np.linalg.inv(volume.geometry.affine), place)).astype(int)
        np.testing.assert_allclose(apply_affine(volume.geometry.affine, there), place, atol=1e-4)
        assert volume.array[(0, *there)] == array[(0, *index)]


def test_names_and_instance_numbers_do_not_decide(tmp_path: Path) -> None:
    order = [3, 0, 7, 1, 6, 2, 5, 4]
    phantoms.ct_series(tmp_path / "names", names=[f"{k}" for k in order])
    phantoms.ct_series(tmp_path / "numbers", InstanceNumber=lambda k: order[k])
    phantoms.ct_series(tmp_path / "none", InstanceNumber=None)
    for name, said in (("names", set()), ("numbers", {"instance-numbers"}), ("none", {"instance-numbers"})):
        volume = read_volume(tmp_path / name)
        np.testing.assert_array_equal(volume.array[0], phantoms.ramp())
        assert codes(volume) == said


@pytest.mark.parametrize(
    ("slope", "intercept", "signed", "dtype"),
    [
        (1, -1024, False, np.int16),
        (1, 0, True, np.int16),
        (2, 0, True, np.int16),
        (1, 40000, True, np.uint16),
        (0.5, 0, True, np.float32),
    ],
)
def test_values_are_exact_in_the_smallest_type(
    tmp_path: Path, slope: float, intercept: float, signed: bool, dtype: type
) -> None:
    array = phantoms.ramp() * 2 if dtype is not np.uint16 else phantoms.ramp().astype(np.int64) + 40200
    phantoms.ct_series(tmp_path, array, slope=slope, intercept=intercept, signed=signed)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array[0], array)
    assert volume.array.dtype == dtype


def test_each_slice_has_its_own_rescale(tmp_path: Path) -> None:
    phantoms.ct_series(
        tmp_path, np.zeros((3, 4, 5), np.int16), RescaleSlope=lambda k: str(1 + 0.1 * k), intercept=-1000
    )
    volume = read_volume(tmp_path)
    assert volume.array.dtype == np.float32
    np.testing.assert_allclose(volume.array[0, 0, 0], 1000 * (1 + 0.1 * np.arange(5)) - 1000, atol=1e-3)


def test_bits_above_bits_stored_are_cut(tmp_path: Path) -> None:
    for path in phantoms.ct_series(tmp_path, BitsStored=12, HighBit=11):
        dataset = pydicom.dcmread(path)
        dataset.PixelData = (np.frombuffer(dataset.PixelData, "<u2") | 0xF000).tobytes()
        dataset.save_as(path)
    np.testing.assert_array_equal(read_volume(tmp_path).array[0], phantoms.ramp())


def test_padding_darker_than_air_is_said(tmp_path: Path) -> None:
    array = phantoms.ramp()
    array[:2] = -2000
    for path in phantoms.ct_series(tmp_path, array, signed=True, intercept=0):
        dataset = pydicom.dcmread(path)
        dataset.add_new(0x00280120, "SS", -2000)
        dataset.save_as(path)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array[0], array)
    assert volume.notes[0].detail.startswith("160 voxels hold PixelPaddingValue")


def test_gantry_tilt_keeps_the_exact_sheared_affine(tmp_path: Path) -> None:
    affine = phantoms.AXIAL.copy()
    affine[1, 2] = 0.6
    phantoms.ct_series(tmp_path, affine=affine)
    volume = read_volume(tmp_path)
    np.testing.assert_allclose(volume.geometry.affine, affine, atol=1e-5)
    assert codes(volume) == {"gantry-tilt"}


def test_two_series_and_two_phases_are_parted(tmp_path: Path) -> None:
    phantoms.ct_series(tmp_path / "x", names=[f"a{k}" for k in range(8)])
    phantoms.ct_series(tmp_path / "x", phantoms.ramp() + 500, names=[f"b{k}" for k in range(8)], seed=1)
    phantoms.ct_series(tmp_path / "y", ImagesInAcquisition=16, names=[f"a{k}" for k in range(8)])
    for k, path in enumerate(
        phantoms.ct_series(tmp_path / "y", phantoms.ramp() + 500, names=[f"b{k}" for k in range(8)])
    ):
        edit(path, AcquisitionNumber=2, SOPInstanceUID=generate_uid(), InstanceNumber=9 + k, ImagesInAcquisition=16)
    for folder in ("x", "y"):
        found = find_sources(tmp_path / folder)
        assert (len(found.sources), found.stopped) == (2, ())
        assert len({source.series for source in found.sources}) == 2
        volumes = [read_source(source) for source in found.sources]
        assert sorted(int(volume.array[0, 0, 0, 0]) for volume in volumes) == [-100, 400]
        assert all(codes(volume) == set() for volume in volumes)
    with pytest.raises(CaseError, match="holds 2 volumes, expected exactly one"):
        read_volume(tmp_path / "x")


def test_blocks_of_instance_numbers_part_what_no_tag_parts(tmp_path: Path) -> None:
    phantoms.mr_series(tmp_path, names=[f"a{k}" for k in range(8)])
    for k, path in enumerate(phantoms.mr_series(tmp_path, phantoms.ramp() + 500, names=[f"b{k}" for k in range(8)])):
        edit(path, SOPInstanceUID=generate_uid(), InstanceNumber=9 + k)
    found = find_sources(tmp_path)
    assert sorted(int(read_source(source).array.min()) for source in found.sources) == [0, 400]


def test_a_localizer_is_listed(tmp_path: Path) -> None:
    paths = phantoms.ct_series(tmp_path)
    scout = tmp_path / "scout.dcm"
    shutil.copy(paths[0], scout)
    edit(
        scout,
        SOPInstanceUID=generate_uid(),
        ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
    )
    shutil.copy(scout, tmp_path / "own.dcm")
    edit(tmp_path / "own.dcm", SOPInstanceUID=generate_uid(), SeriesInstanceUID=generate_uid())
    found = find_sources(tmp_path)
    assert [source.shape for source in found.sources] == [(12, 10, 8)]
    assert [listed.reason for listed in found.listed] == ["not a volume: a localizer"] * 2


def test_a_copy_is_dropped_and_said(tmp_path: Path) -> None:
    paths = phantoms.ct_series(tmp_path)
    shutil.copy(paths[3], tmp_path / "copy.dcm")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array[0], phantoms.ramp())
    assert codes(volume) == {"duplicate-files"}


def test_no_preamble_is_read_and_said(tmp_path: Path) -> None:
    for path in phantoms.ct_series(tmp_path):
        dataset = pydicom.dcmread(path)
        bare = pydicom.Dataset()
        bare.update(dataset)
        pydicom.dcmwrite(path, bare, implicit_vr=True, little_endian=True, enforce_file_format=False)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array[0], phantoms.ramp())
    assert codes(volume) == {"no-preamble"}


def test_rubbish_is_counted_and_reports_are_listed(tmp_path: Path) -> None:
    phantoms.ct_series(tmp_path)
    (tmp_path / "README.txt").write_text("not an image")
    (tmp_path / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(500))
    (tmp_path / "._IM0001.dcm").write_bytes(b"\0\5\x16\7" + bytes(200))
    (tmp_path / "weights.npy").write_bytes(b"\x93NUMPY")
    report = phantoms.ct_series(tmp_path / "report", np.zeros((3, 3, 1)))[0]
    edit(report, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", SOPInstanceUID=generate_uid(), PixelData=None)
    found = find_sources(tmp_path)
    assert (len(found.sources), found.stopped, found.rubbish) == (1, (), 3)
    assert {listed.reason for listed in found.listed} == {
        "no image in a format that is read",
        "not a volume: Basic Text SR Storage",
    }


def test_an_icon_is_not_taken_for_the_pixels(tmp_path: Path) -> None:
    icon = pydicom.Dataset()
    icon.Rows = icon.Columns = 4
    icon.BitsAllocated = icon.BitsStored = 8
    icon.SamplesPerPixel, icon.PixelRepresentation = 1, 0
    icon.PixelData = bytes(16)
    phantoms.ct_series(tmp_path, IconImageSequence=Sequence([icon]))
    np.testing.assert_array_equal(read_volume(tmp_path).array[0], phantoms.ramp())


def test_one_slice_says_that_its_distance_is_unknown(tmp_path: Path) -> None:
    phantoms.ct_series(tmp_path, phantoms.ramp((5, 4, 1)))
    volume = read_volume(tmp_path)
    assert volume.array.shape == (1, 5, 4, 1)
    assert codes(volume) == {"single-slice"}


def test_missing_end_slices_are_said_where_files_state_the_count(tmp_path: Path) -> None:
    for path in phantoms.ct_series(tmp_path, ImagesInAcquisition=8)[-3:]:
        path.unlink()
    assert [entry.detail[:6] for entry in read_volume(tmp_path).notes] == ["5 of 8"]


def cut(path: Path, keep: float) -> None:
    """Cut a file off."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def deep(path: Path) -> None:
    """Put 4000 nested sequences into a file."""
    data = path.read_bytes()
    at = data.rindex(b"\xe0\x7f\x10\x00OW")
    head = struct.pack("<HH2sHI", 0x5401, 0x0100, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    tail = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    path.write_bytes(data[:at] + head * 4000 + tail * 4000 + data[at:])


def change_voxel(path: Path) -> None:
    """A copy under the same SOPInstanceUID with other content."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    (path.parent / "other.dcm").write_bytes(bytes(data))


def comma(path: Path) -> None:
    """PixelSpacing with a decimal comma."""
    path.write_bytes(path.read_bytes().replace(b"0.9\\0.7", b"0,9\\0,7"))


DAMAGE: list[tuple[str, Callable[[list[Path]], Any], str]] = [
    ("gap", lambda p: p[4].unlink(), r"slices are missing: 5\.000 mm behind -6\.50 mm \(InstanceNumber 4 and 6\)"),
    ("uneven", lambda p: edit(p[7], ImagePositionPatient=[-15, -12, 4.5]), "spacing is uneven"),
    ("wander", lambda p: edit(p[4], ImagePositionPatient=[-14, -12, -4]), "do not lie evenly on one line"),
    ("place", lambda p: edit(p[4], ImagePositionPatient=[-15, -12, -6.5]), "two different slices at one place"),
    ("cut", lambda p: cut(p[7], 0.9), "PixelData claims 240 bytes, .* the file is cut off"),
    ("header", lambda p: cut(p[7], 0.2), r"IM0007\.dcm"),
    ("empty", lambda p: p[7].write_bytes(b""), r"IM0007\.dcm: the file is empty \(0 bytes\)"),
    ("pixels", lambda p: edit(p[4], PixelData=None), r"IM0004\.dcm: an image without PixelData"),
    ("matrix", lambda p: edit(p[4], Rows=5), "Rows 5 x Columns 12 .* need 120 bytes, PixelData has 240"),
    ("spacing", lambda p: edit(p[4], PixelSpacing=[1.8, 1.4]), r"1 slice\(s\) unlike the other 7: PixelSpacing"),
    (
        "turned",
        lambda p: edit(p[4], ImageOrientationPatient=[1, 0, 0, 0, 0.995, 0.0998]),
        "unlike the other 7: ImageOrientation",
    ),
    (
        "zero",
        lambda p: [edit(q, PixelSpacing=[0, 0]) for q in p],
        "PixelSpacing is '0.*0', expected two numbers above 0",
    ),
    ("no spacing", lambda p: [edit(q, PixelSpacing=None) for q in p], "PixelSpacing is absent"),
    ("no position", lambda p: edit(p[4], ImagePositionPatient=None), "ImagePositionPatient is absent"),
    ("no orientation", lambda p: edit(p[4], ImageOrientationPatient=None), "ImageOrientationPatient is absent"),
    ("skewed", lambda p: [edit(q, ImageOrientationPatient=[1, 0, 0, 0.5, 0.9, 0]) for q in p], "stand at right angles"),
    ("comma", lambda p: [comma(q) for q in p], "PixelSpacing is '0,9"),
    ("slope", lambda p: [edit(q, RescaleSlope="0") for q in p], "RescaleSlope is '0'"),
    (
        "no slope",
        lambda p: edit(p[4], RescaleSlope=None, RescaleIntercept=None),
        "absent in 1 of 8 slices; its neighbours have 1 and -1024",
    ),
    ("frame", lambda p: [edit(q, FrameOfReferenceUID="1.2.3") for q in p[4:]], "2 values of FrameOfReferenceUID"),
    ("patient", lambda p: [edit(q, PatientID="OTHER") for q in p[4:]], "2 values of PatientID"),
    ("deep", lambda p: deep(p[4]), "nested too deeply"),
    ("same uid", lambda p: change_voxel(p[4]), "one SOPInstanceUID, other content"),
    (
        "scrambled",
        lambda p: [edit(q, SeriesInstanceUID=generate_uid()) for q in p],
        "8 series of 1 slice each: SeriesInstanceUID looks scrambled",
    ),
    ("mosaic", lambda p: [edit(q, ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]) for q in p], "a Siemens mosaic"),
    (
        "frames",
        lambda p: [edit(q, NumberOfFrames=2, Rows=5) for q in p],
        "NumberOfFrames is 2, and no functional",
    ),
]


@pytest.mark.parametrize(("damage", "message"), [case[1:] for case in DAMAGE], ids=[case[0] for case in DAMAGE])
def test_damage_stops_the_series_and_nothing_else(
    tmp_path: Path, damage: Callable[[list[Path]], Any], message: str
) -> None:
    damage(phantoms.ct_series(tmp_path / "damaged"))
    phantoms.ct_series(tmp_path / "good", seed=1)
    found = find_sources(tmp_path)
    said = [stop.message for stop in found.stopped]
    volumes = []
    for source in found.sources:
        try:
            volumes.append(read_source(source))
        except CaseError as error:
            said.append(str(error))
    assert len(said) == 1, said
    assert re.search(message, said[0]), said
    assert "damaged" in said[0]
    assert not re.search("(?i)canary|quetzal|7731", said[0])
    assert len(volumes) == 1


def test_an_unknown_transfer_syntax_is_named(tmp_path: Path) -> None:
    for path in phantoms.ct_series(tmp_path):
        path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.8\0"))
    with pytest.raises(CaseError, match=r"transfer syntax 1\.2\.840\.10008\.1\.2\.8 is not supported"):
        read_volume(tmp_path)


def test_rounded_positions_are_no_gap(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-1e-4, 1e-4, 8)
    phantoms.ct_series(tmp_path, ImagePositionPatient=lambda k: [-15, -12, f"{-14 + 2.5 * k + noise[k]:.6f}"])
    assert codes(read_volume(tmp_path)) == set()


@pytest.mark.parametrize(
    "case",
    [
        "dicom_brain_mr/study3_two_series_one_folder",
        "dicom_prostatex/t2_cor_oblique",
        "dicom_patient_position/t1_sag_HFP",
        "dicom_enhanced/ge_ct_24x38x3_multiframe",
        "dicom_icometrix/generic_compressed_rle_001",
        "dicom_icometrix/generic_compressed_jpeg_001",
        "dicom_ct_head/philips_5mm_no_tilt",
    ],
)
def test_real_series_agree_with_independent_readers(shared_data: Callable[[str], Path], case: str) -> None:
    """Shape, place and probed values, whatever the order of the axes."""
    folder = shared_data(case)
    references = json.loads((folder / "reference.json").read_text())["references"]
    volumes = [read_source(source) for source in find_sources(folder / "dicom").sources]
    for reference in references.values():
        matches = 0
        for volume in volumes:
            array, affine = reorient_to(volume.array, volume.geometry.affine, "RAS")
            if list(array.shape[1:]) != reference["canonical_RAS_shape"]:
                continue
            if not np.allclose(affine, reference["canonical_RAS_affine"], atol=2e-2):
                continue
            places = np.array([probe[:3] for probe in reference["probes_RAS_mm_value"]])
            index = np.rint(apply_affine(np.linalg.inv(affine), places)).astype(int)
            values = [probe[3] for probe in reference["probes_RAS_mm_value"]]
            matches += bool(np.allclose(array[0][tuple(index.T)], values, atol=1e-2))
        assert matches == 1


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("odd_dicom_series/missing_two_middle_slices", "slices are missing"),
        ("odd_dicom_series/truncated_file", "cut off"),
        ("odd_dicom_series/no_position_in_one", "ImagePositionPatient is absent"),
        ("odd_dicom_series/foreign_files_in_folder", "the file is empty"),
        ("dicom_prostatex/hbv_missing_slice/dicom", "slices are missing"),
        ("dicom_icometrix/failing_sliceincrement_001/dicom", "slices are missing|spacing is uneven"),
    ],
)
def test_real_damaged_series_stop(shared_data: Callable[[str], Path], case: str, message: str) -> None:
    with pytest.raises(CaseError, match=message):
        read_volume(shared_data(case))


def test_real_odd_series_that_can_be_read(shared_data: Callable[[str], Path]) -> None:
    intact = read_volume(shared_data("dicom_prostatex/adc/dicom"))
    shuffled = read_volume(shared_data("odd_dicom_series/shuffled_names_instance_numbers_removed"))
    np.testing.assert_array_equal(shuffled.array, intact.array)
    np.testing.assert_array_equal(shuffled.geometry.affine, intact.geometry.affine)
    assert codes(read_volume(shared_data("odd_dicom_series/duplicate_slice"))) == {"duplicate-files"}
    tilted = read_volume(shared_data("dicom_ct_head/philips_tilt_plus16.5/dicom"))
    assert codes(tilted) == {"gantry-tilt"}


@pytest.mark.parametrize("case", ["enhanced_ordered", "enhanced_shuffled"])
def test_an_enhanced_object_is_sorted_by_its_frames(tmp_path: Path, case: str) -> None:
    order = np.arange(8) if case == "enhanced_ordered" else np.random.default_rng(0).permutation(8)
    phantoms.enhanced_ct(tmp_path / "enhanced.dcm", order=order)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array[0], phantoms.ramp())
    np.testing.assert_allclose(volume.geometry.affine, phantoms.AXIAL, atol=1e-6)
    assert codes(volume) == set()
