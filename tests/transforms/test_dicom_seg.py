"""DICOM SEG -> label maps: every voxel where its frame says, or no label map."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import label_phantoms as draw
import numpy as np
import phantoms
import pydicom
import pytest
from PIL import Image, ImageCms
from voxelwise.errors import CaseError
from voxelwise.transforms.dicom_seg import read_seg, seg_grid, seg_header
from voxelwise.transforms.geometry import ALL_AXIS_CODES, reorient_to, same_grid
from voxelwise.transforms.label_objects import colour_of_lab
from voxelwise.transforms.readers import read_volume
from voxelwise.transforms.regrid import turned_onto
from voxelwise.transforms.volume import Geometry

SHAPE = (12, 10, 8)
LIVER = draw.box(SHAPE, (1, 6), (2, 9), (2, 5))
SPLEEN = draw.box(SHAPE, (7, 11), (1, 4), (4, 8))
WANTED = LIVER + 2 * SPLEEN


@pytest.fixture
def series(tmp_path: Path) -> tuple[list[Path], Geometry]:
    """An oblique CT series, and its geometry."""
    files = phantoms.ct_series(tmp_path / "ct", affine=phantoms.oblique())
    return files, read_volume(tmp_path / "ct").geometry


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
@pytest.mark.parametrize("flip", [(False, False), (True, False), (False, True), (True, True)])
def test_voxels_lie_where_the_frames_say(
    series: tuple[list[Path], Geometry], tmp_path: Path, kind: str, flip: tuple[bool, bool]
) -> None:
    """Whatever the kind, the side that rows and columns begin on, and the frames that are there."""
    files, geometry = series
    path = draw.seg_file(tmp_path / "seg.dcm", files, {"liver": LIVER, "spleen": SPLEEN}, kind=kind, flip=flip)
    drawn = read_seg(path, geometry, {1: 1, 2: 2})
    np.testing.assert_array_equal(drawn.labels, WANTED)
    assert drawn.labels.dtype == np.uint8
    assert drawn.doubled == 0
    assert [note.code for note in drawn.notes] == (["seg-fractional"] if kind == "FRACTIONAL" else [])


@pytest.mark.parametrize("codes", ALL_AXIS_CODES[::5])
def test_any_orientation_of_the_image(series: tuple[list[Path], Geometry], tmp_path: Path, codes: str) -> None:
    """The image may have become a NIfTI file with other axes; a frame is then no slice of it, but a plane."""
    files, geometry = series
    path = draw.seg_file(tmp_path / "seg.dcm", files, {"liver": LIVER, "spleen": SPLEEN})
    wanted, affine = reorient_to(WANTED[np.newaxis], geometry.affine, codes)
    drawn = read_seg(path, Geometry(wanted.shape[1:], affine), {1: 1, 2: 2})
    np.testing.assert_array_equal(drawn.labels, wanted[0])


def test_frames_may_begin_inside_a_byte(tmp_path: Path) -> None:
    """Frames of 35 bits."""
    files = phantoms.ct_series(tmp_path / "odd", phantoms.ramp((5, 7, 8)))
    mask = np.random.default_rng(0).random((5, 7, 8)) > 0.6
    path = draw.seg_file(tmp_path / "seg.dcm", files, {"liver": mask, "other": ~mask})
    geometry = read_volume(tmp_path / "odd").geometry
    np.testing.assert_array_equal(read_seg(path, geometry, {1: 1}).labels, mask)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_frames_does_not_matter(series: tuple[list[Path], Geometry], tmp_path: Path, seed: int) -> None:
    """Frames shuffled, empty ones kept."""
    files, geometry = series
    order = np.random.default_rng(seed).permutation(16)
    segments = {"liver": LIVER, "spleen": SPLEEN}
    path = draw.seg_file(tmp_path / "seg.dcm", files, segments, order=order, keep_empty=True)
    np.testing.assert_array_equal(read_seg(path, geometry, {1: 1, 2: 2}).labels, WANTED)


@pytest.mark.slow  # importing highdicom takes seconds
@pytest.mark.filterwarnings("ignore")
def test_objects_made_by_highdicom(tmp_path: Path) -> None:
    """The second opinion: segments written by highdicom, whose frames end inside a byte and lack where empty."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    shape = (5, 7, 8)
    blank = {"PatientSex": "", "StudyID": "", "StudyTime": "", "AccessionNumber": ""}
    files = phantoms.ct_series(tmp_path / "ct", phantoms.ramp(shape), phantoms.oblique(), **blank)
    geometry = read_volume(tmp_path / "ct").geometry
    liver = np.random.default_rng(0).random(shape) > 0.6
    liver[:, :, 2] = False
    masks = np.stack([liver, ~liver & (np.arange(8) > 3)], axis=-1)
    described = [
        hd.seg.SegmentDescription(
            number,
            name,
            codes.SCT.Organ,
            codes.SCT.Liver,
            hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, name in ((1, "liver"), (2, "rest"))
    ]
    segmentation = hd.seg.Segmentation(
        [pydicom.dcmread(file) for file in files],
        masks.transpose(2, 1, 0, 3).astype(np.uint8),
        hd.seg.SegmentationTypeValues.BINARY,
        described,
        series_instance_uid=hd.UID(),
        series_number=9,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="nobody",
        manufacturer_model_name="none",
        software_versions="1",
        device_serial_number="1",
    )
    path = tmp_path / "seg.dcm"
    segmentation.save_as(path)
    np.testing.assert_array_equal(read_seg(path, geometry, {1: 1, 2: 2}).labels, masks[..., 0] + 2 * masks[..., 1])
    assert [one.name for one in seg_header(path).segments] == ["liver", "rest"]


def test_overlap_is_counted_and_the_higher_class_stays(series: tuple[list[Path], Geometry], tmp_path: Path) -> None:
    """Also where the higher class comes first in the file; a segment that is not wanted is not drawn."""
    files, geometry = series
    core = draw.box(SHAPE, (2, 4), (3, 6), (3, 4))
    path = draw.seg_file(tmp_path / "seg.dcm", files, {"core": core, "liver": LIVER, "spleen": SPLEEN})
    drawn = read_seg(path, geometry, {1: 2, 2: 1})
    np.testing.assert_array_equal(drawn.labels, np.where(core, 2, LIVER))
    assert drawn.doubled == core.sum()


def test_header_tells_references_names_and_colours(series: tuple[list[Path], Geometry], tmp_path: Path) -> None:
    """A name that holds the patient's name gives way to the code."""
    files, _ = series
    path = draw.seg_file(tmp_path / "seg.dcm", files, {"liver": LIVER, "spleen of CANARY": SPLEEN})
    header = seg_header(path)
    first = pydicom.dcmread(files[0])
    assert header.series == (first.SeriesInstanceUID,)
    assert header.instances == {pydicom.dcmread(file).SOPInstanceUID for file in files}
    assert [one.name for one in header.segments] == ["liver", "Organ 2"]
    assert header.segments[0].code == ("SCT", "10200001", "Organ 1")
    assert header.segments[0].colour == (217, 130, 101)


@pytest.mark.parametrize("lab", [(50, 20, -30), (90, -10, 60), (100, 0, 0), (5, 1, 1)])
def test_colours_agree_with_a_colour_manager(lab: tuple[int, int, int]) -> None:
    """CIELab of DICOM (white D50) as sRGB, against littleCMS."""
    stored = [round(lab[0] / 100 * 65535), *(round((value + 128) / 255 * 65535) for value in lab[1:])]
    pixel = Image.new("LAB", (1, 1), (round(lab[0] * 2.55), lab[1] + 128, lab[2] + 128))
    profiles = ImageCms.createProfile("LAB", 5000), ImageCms.createProfile("sRGB")
    theirs = ImageCms.profileToProfile(pixel, *profiles, outputMode="RGB").getpixel((0, 0))
    np.testing.assert_allclose(colour_of_lab(stored), theirs, atol=3)


def test_own_grid_has_the_frames(series: tuple[list[Path], Geometry], tmp_path: Path) -> None:
    """The grid that the frames span: that of the image, from the first labelled slice to the last."""
    files, geometry = series
    grid = seg_grid(draw.seg_file(tmp_path / "seg.dcm", files, {"liver": LIVER, "spleen": SPLEEN}))
    assert grid.shape == (12, 10, 6)
    moved = geometry.affine.copy()
    moved[:3, 3] += 2 * geometry.affine[:3, 2]
    assert same_grid(grid, Geometry(grid.shape, moved), 0.01)


def refused(path: Path, geometry: Geometry, classes: dict[int, int] | None = None) -> str:
    """The message of a refusal."""
    with pytest.raises(CaseError) as caught:
        read_seg(path, geometry, classes or {1: 1})
    return f"{caught.value.code}: {caught.value}"


def test_what_is_refused(series: tuple[list[Path], Geometry], tmp_path: Path) -> None:
    """Tiled, off the grid, outside, too few places, no largest value, cut pixels: each with its reason."""
    files, geometry = series
    one = {"liver": LIVER}
    path = tmp_path / "seg.dcm"
    assert "a tiled segmentation" in refused(draw.seg_file(path, files, one, TotalPixelMatrixRows=10), geometry)
    assert "label-grid: " in refused(draw.seg_file(path, files, one, shift_mm=0.2), geometry)
    assert "not on the grid of its image: 0.29 voxels off" in refused(path, geometry)
    small = Geometry((12, 10, 3), geometry.affine)
    assert "label-outside: " in refused(draw.seg_file(path, files, one), small)
    assert "NumberOfFrames is 5, but 3 frames" in refused(draw.seg_file(path, files, one, NumberOfFrames=5), geometry)
    fractional = draw.seg_file(path, files, one, kind="FRACTIONAL", MaximumFractionalValue=None)
    assert "without MaximumFractionalValue" in refused(fractional, geometry)
    assert "cannot be decoded" in refused(draw.seg_file(path, files, one, PixelData=b"\0\0"), geometry)
    bare = draw.seg_file(path, files, one, SharedFunctionalGroupsSequence=None)
    assert "lacks its place" in refused(bare, geometry)
    doubled = draw.seg_file(path, files, one, order=np.array([0, 1, 2, 1]))
    assert "two frames" in refused(doubled, geometry)
    path.write_bytes(path.read_bytes()[:60])
    assert "cannot be parsed" in refused(path, geometry)


@pytest.mark.parametrize(
    ("case", "seg", "reference"),
    [("ct_3slice", "liver.dcm", "liver_seg.nrrd"), ("ct_24x38x3", "label.dcm", "label.nrrd")],
)
def test_real_segmentations_equal_their_label_maps(
    shared_data: Callable[[str], Path], case: str, seg: str, reference: str
) -> None:
    """dcmqi's SEG objects of two CTs, one with other numbers of rows and columns, against dcmqi's NRRD label maps."""
    folder = shared_data("dicom_seg") / case
    image, label = read_volume(folder / "dicom"), read_volume(folder / "labels_nrrd" / reference)
    drawn = read_seg(folder / "seg" / seg, image.geometry, {1: 1})
    wanted = turned_onto(label.array[0], label.geometry.affine, image.geometry)
    assert wanted is not None
    np.testing.assert_array_equal(drawn.labels, wanted)
    assert drawn.labels.any()


def test_a_frame_that_lies_far_away_makes_no_grid(series: tuple[list[Path], Geometry], tmp_path: Path) -> None:
    path = draw.seg_file(tmp_path / "seg.dcm", series[0], {"liver": LIVER})
    dataset = pydicom.dcmread(path)
    place = dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
    place.ImagePositionPatient = [float(value) * 1e7 for value in place.ImagePositionPatient]
    dataset.save_as(path)
    with pytest.raises(CaseError, match=r"seg\.dcm: (its frames lie \d+ planes apart|frames are unevenly spaced)"):
        seg_grid(path)
