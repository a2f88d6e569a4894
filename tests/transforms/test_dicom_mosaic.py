"""Siemens mosaics: unpacked where the header proves each slice's place, refused everywhere else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import phantoms
import pydicom
import pytest
from pydicom.uid import generate_uid
from voxelwise.errors import CaseError
from voxelwise.transforms.dicom import read_header
from voxelwise.transforms.dicom_mosaic import csa_items
from voxelwise.transforms.geometry import apply_affine
from voxelwise.transforms.readers import find_sources, read_source, read_volume
from voxelwise.transforms.volume import Volume


def assert_same_world(volume: Volume, array: np.ndarray, affine: np.ndarray) -> None:
    """Every voxel has its value at its place, whatever the order of the axes."""
    assert sorted(volume.array.shape[1:]) == sorted(array.shape)
    places = np.stack(np.meshgrid(*map(np.arange, array.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    there = apply_affine(np.linalg.inv(volume.geometry.affine) @ affine, places)
    np.testing.assert_allclose(there, np.rint(there), atol=1e-3)
    np.testing.assert_array_equal(volume.array[0][tuple(np.rint(there).astype(int).T)], array.reshape(-1))


@pytest.mark.parametrize("slices", [1, 2, 4, 7, 9])
@pytest.mark.parametrize("flipped", [False, True])
def test_a_mosaic_is_unpacked_to_its_volume(tmp_path: Path, slices: int, flipped: bool) -> None:
    array = phantoms.ramp((6, 5, slices)) + 100
    affine = phantoms.oblique() @ np.diag([1, 1, -1 if flipped else 1, 1])
    phantoms.siemens_mosaic(tmp_path / "m.dcm", array, affine)
    volume = read_volume(tmp_path)
    assert_same_world(volume, array, affine)
    np.testing.assert_allclose(volume.geometry.spacing_mm[:2], (0.7, 0.9), atol=1e-5)


def test_each_tile_has_a_place_of_its_own(tmp_path: Path) -> None:
    tiles = read_header(phantoms.siemens_mosaic(tmp_path / "m.dcm"))
    assert [one.tile for one in tiles] == [(5 * (k // 3), 6 * (k % 3), 15, 18) for k in range(7)]
    assert {(one.rows, one.columns, one.frame, one.refusal) for one in tiles} == {(5, 6, None, None)}
    assert len({one.position for one in tiles}) == 7


def test_mosaics_of_one_series_are_time_points(tmp_path: Path) -> None:
    array = phantoms.ramp((6, 5, 7)) + 100
    for time in range(3):
        changed = {"AcquisitionNumber": 1, "InstanceNumber": time + 1, "SOPInstanceUID": generate_uid()}
        phantoms.siemens_mosaic(tmp_path / f"t{time}.dcm", array + 1000 * time, **changed)
    sources = find_sources(tmp_path).sources
    assert [source.shape for source in sources] == [(6, 5, 7)] * 3
    for time, source in enumerate(sources):
        assert_same_world(read_source(source), array + 1000 * time, phantoms.oblique())


def test_the_protocol_alone_gives_the_step(tmp_path: Path) -> None:
    phantoms.siemens_mosaic(tmp_path / "m.dcm", SpacingBetweenSlices=None)
    assert_same_world(read_volume(tmp_path), phantoms.ramp((6, 5, 7)) + 100, phantoms.oblique())


def test_a_protocol_on_a_moved_table_is_held_against_the_steps_alone(tmp_path: Path) -> None:
    step = np.array([-1, -1, 1]) * phantoms.oblique()[:3, 2]
    phantoms.siemens_mosaic(tmp_path / "m.dcm", listed=[np.array([0, 0, 500.0]) + k * step for k in range(7)])
    assert_same_world(read_volume(tmp_path), phantoms.ramp((6, 5, 7)) + 100, phantoms.oblique())


STEP = np.array([-1, -1, 1]) * phantoms.oblique()[:3, 2]
START = np.array([-1, -1, 1]) * (phantoms.oblique() @ [3, 2.5, 0, 1])[:3]
UNCERTAIN: list[tuple[str, dict[str, Any], str]] = [
    ("no header", {"image": None, "series": None}, "SliceNormalVector is absent"),
    ("no normal", {"image": {"SliceNormalVector": []}}, "SliceNormalVector is absent"),
    ("other normal", {"image": {"SliceNormalVector": ["1", "0", "0"]}}, "contradicts ImageOrientationPatient"),
    ("two counts", {"count": 8}, "2 different numbers of slices are stated"),
    ("no count", {"count": 0, "image": {"NumberOfImagesInMosaic": ["0"]}}, "expected one above 0"),
    ("other count", {"count": 5, "image": {"NumberOfImagesInMosaic": ["17"]}}, "2 different numbers"),
    ("matrix", {"count": 17, "image": {"NumberOfImagesInMosaic": ["17"]}}, "17 slices need 5 x 5 tiles"),
    ("no step", {"SpacingBetweenSlices": None, "series": None}, "how far its slices lie apart"),
    ("other step", {"SpacingBetweenSlices": "2.7"}, "its protocol lists slices up to 1.20 mm off"),
    ("uneven", {"listed": [START + k * STEP * (1 + 0.1 * (k == 3)) for k in range(7)]}, "its protocol lists slices up"),
    ("backwards", {"listed": [START - k * STEP for k in range(7)]}, "against SliceNormalVector"),
    ("no place", {"ImagePositionPatient": None}, "ImagePositionPatient, .* is absent"),
]


@pytest.mark.parametrize(("options", "message"), [case[1:] for case in UNCERTAIN], ids=[case[0] for case in UNCERTAIN])
def test_a_mosaic_without_certain_places_stops(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    path = phantoms.siemens_mosaic(tmp_path / "m.dcm", **options)
    with pytest.raises(CaseError, match=f"a Siemens mosaic .*{message}.*convert it with dcm2niix") as caught:
        read_volume(tmp_path)
    assert caught.value.code == "mosaic"
    (slice_,) = read_header(path)
    assert (slice_.tile, slice_.refusal) == (None, (str(caught.value), "mosaic"))


def test_a_damaged_private_header_stops_and_never_crashes(tmp_path: Path) -> None:
    path = phantoms.siemens_mosaic(tmp_path / "m.dcm")
    dataset = pydicom.dcmread(path)
    whole = dataset[0x00291010].value
    for data in (whole[:30], whole[:200], b"", b"SV10", whole.replace(b"SV10", b"SV11"), whole[:8] + b"\xff" * 400):
        dataset[0x00291010].value = data
        dataset.save_as(path)
        with pytest.raises(CaseError, match="a Siemens mosaic"):
            read_volume(tmp_path)


def test_private_headers_are_read_by_name(shared_data: Callable[[str], Path]) -> None:
    path = shared_data("dicom_mosaic/cor_desc_35sl_17/dicom/0001.dcm")
    values = csa_items(pydicom.dcmread(path, stop_before_pixels=True)[0x00291010].value)
    assert values["NumberOfImagesInMosaic"] == ["35"]
    assert [float(text) for text in values["SliceNormalVector"]] == [0, 0.98822844, -0.15298548]
    assert values["B_value"] == []


@pytest.mark.parametrize("case", ["ax_asc_35sl_6", "cor_desc_35sl_17", "sag_int_35sl_24"])
def test_real_mosaics_are_as_dcm2niix_has_them(shared_data: Callable[[str], Path], case: str) -> None:
    folder = shared_data(f"dicom_mosaic/{case}")
    reference = nib.load(folder / "ref_upstream" / f"{case}.nii")
    found = find_sources(folder / "dicom")
    assert (len(found.sources), found.stopped) == (2, ())
    for time, source in enumerate(found.sources):
        assert_same_world(read_source(source), np.asarray(reference.dataobj)[..., time], reference.affine)


def test_tiles_in_an_enhanced_object_or_in_the_grid_of_another_maker_stop(tmp_path: Path) -> None:
    path = phantoms.enhanced_ct(tmp_path / "enhanced.dcm")
    dataset = pydicom.dcmread(path)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]
    dataset.save_as(path)
    with pytest.raises(CaseError, match=r"a Siemens mosaic .* in an enhanced object"):
        read_volume(tmp_path)
    (grid,) = phantoms.mr_series(tmp_path / "grid", phantoms.ramp((12, 12, 1)))
    dataset = pydicom.dcmread(grid)
    dataset.add_new(0x00650010, "LO", "Image Private Header")
    dataset.add_new(0x00651050, "DS", "9")
    dataset.save_as(grid)
    with pytest.raises(CaseError, match=r"SliceNormalVector is absent|numbers of slices"):
        read_volume(tmp_path / "grid")
