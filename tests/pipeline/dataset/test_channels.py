"""Channels of one case: told by names or folders, brought to the grid of the first, aligned where asked."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import label_phantoms as draw
import numpy as np
import phantoms
import pytest
from scipy.ndimage import gaussian_filter
from voxelwise import dataset
from voxelwise.errors import UsageError
from voxelwise.pipeline.dataset.layouts import read_dataset
from voxelwise.transforms.geometry import apply_affine, reorient_to
from voxelwise.transforms.readers import read_volume
from voxelwise.transforms.regrid import turned_onto

SHAPE = (12, 10, 8)
LIVER = draw.box(SHAPE, (1, 6), (2, 9), (2, 5))
WANTED = LIVER.astype(np.uint8)


@pytest.mark.parametrize("arrangement", ["numbers", "suffixes", "folders"])
def test_channels_come_to_the_grid_of_the_first(tmp_path: Path, arrangement: str) -> None:
    """N22: T1 fine, T2 coarse and oblique, by world position; told by number, suffix or folder."""
    names = {
        "numbers": ("v_0000.nii.gz", "v_0001.nii.gz"),
        "suffixes": ("v_T1.nii.gz", "v_T2.nii.gz"),
        "folders": ("v/T1.nii.gz", "v/t2.nii.gz"),
    }[arrangement]
    places = apply_affine(phantoms.AXIAL, np.moveaxis(np.indices(SHAPE), 0, -1))
    coarse = phantoms.AXIAL @ np.diag([1.6, 1.4, 0.9, 1])
    coarse[:3, 3] -= [-2, -3, 4]
    other = apply_affine(coarse, np.moveaxis(np.indices((14, 12, 14)), 0, -1))
    phantoms.nifti_file(tmp_path / "images" / names[0], (places @ [1, 2, 3]).astype(np.float32))
    phantoms.nifti_file(tmp_path / "images" / names[1], (other @ [3, 1, 2]).astype(np.float32), coarse)
    phantoms.nifti_file(tmp_path / "labels" / "v.nii.gz", WANTED)
    out = tmp_path / "out"
    outcome = dataset(tmp_path / "images", tmp_path / "labels", out, channels=["T1", "T2"])
    assert outcome.done == ("v",)
    assert [entry.code for entry in outcome.notes["v"]] == ["channel-resampled"]
    first, second = (read_volume(out / "imagesTr" / f"v_{number:04d}.nii.gz") for number in (0, 1))
    np.testing.assert_allclose(first.array[0], places @ [1, 2, 3], rtol=1e-5)
    covered = second.array[0] != second.array[0].min()
    assert covered.mean() > 0.8
    np.testing.assert_allclose(second.array[0][covered], (places @ [3, 1, 2])[covered], atol=3.2)
    np.testing.assert_array_equal(first.geometry.affine, second.geometry.affine)
    assert read_dataset(out).channels == ("T1", "T2")


def test_dicom_channels_lie_in_folders(tmp_path: Path) -> None:
    """IMAGES/visit/T1/ and IMAGES/visit/T2/; a label map that refers to the second series belongs to the case."""
    t1 = phantoms.mr_series(tmp_path / "images" / "visit" / "T1", seed=1)
    turned, affine = reorient_to(phantoms.ramp(SHAPE)[np.newaxis] + 100, phantoms.AXIAL, "RAS")
    t2 = phantoms.mr_series(tmp_path / "images" / "visit" / "T2", turned[0], affine, seed=2)
    phantoms.mr_series(tmp_path / "images" / "visit" / "scout", seed=3)
    assert t1
    turned_liver = turned_onto(LIVER, phantoms.AXIAL, read_volume(tmp_path / "images" / "visit" / "T2").geometry)
    assert turned_liver is not None
    draw.seg_file(tmp_path / "labels" / "s.dcm", t2, {"liver": turned_liver})
    out = tmp_path / "out"
    outcome = dataset(tmp_path / "images", tmp_path / "labels", out, channels=["T1", "T2"])
    (name,) = outcome.done
    assert name.startswith("case-")
    assert outcome.notes == {} or all(entry.code != "channel-resampled" for entry in outcome.notes[name])
    first, second = (read_volume(out / "imagesTr" / f"{name}_{number:04d}.nii.gz") for number in (0, 1))
    np.testing.assert_array_equal(first.array, second.array)
    np.testing.assert_array_equal(
        turned_onto(read_volume(out / "labelsTr" / f"{name}.nii.gz").array[0], first.geometry.affine, first.geometry),
        LIVER,
    )
    listed = json.loads((out / "manifest.json").read_text())["facts"]["listed"]
    assert [entry["reason"] for entry in listed] == ["no channel of --channels"]


def test_channels_that_cannot_be_put_together(tmp_path: Path) -> None:
    """One missing, one there twice, one that lies elsewhere."""
    for name in ("a_T1", "b_T1", "b_T2", "b-T2", "c_T1"):
        phantoms.nifti_file(tmp_path / "images" / f"{name}.nii.gz")
    far = phantoms.AXIAL.copy()
    far[:3, 3] += 500
    phantoms.nifti_file(tmp_path / "images" / "c_T2.nii.gz", None, far)
    for name in "abc":
        phantoms.nifti_file(tmp_path / "labels" / f"{name}.nii.gz", WANTED)
    out = tmp_path / "out"
    dataset(tmp_path / "images", tmp_path / "labels", out, channels=["T1", "T2"])
    with (out / "failures.csv").open(newline="") as file:
        told = {row["code"]: row["message"] for row in csv.DictReader(file)}
    assert "case 'a' has the channels T1, expected each of T1, T2 once" in told["channel-missing"]
    assert "case 'b' has the channels T1, T2, T2" in told["channel-doubled"]
    assert "c_T2.nii.gz: does not overlap channel 0 (c_T1.nii.gz)" in told["channel-grids"]


def test_registration_is_kept_in_the_sidecar(tmp_path: Path) -> None:
    """--register rigid: the shift of the second channel is found, applied, and told as a matrix."""
    rng = np.random.default_rng(1)
    image = gaussian_filter(rng.normal(0, 1, (26, 24, 20)), 2)
    image = (1000 * image / image.max()).astype(np.float32)
    affine = np.diag([1.5, 1.5, 2.0, 1.0])
    moved = affine.copy()
    moved[:3, 3] = [2.0, -1.5, 1.0]
    phantoms.nifti_file(tmp_path / "images" / "a_0000.nii.gz", image, affine)
    phantoms.nifti_file(tmp_path / "images" / "a_0001.nii.gz", image, moved)
    phantoms.nifti_file(tmp_path / "labels" / "a.nii.gz", (image > 400).astype(np.uint8), affine)
    out = tmp_path / "out"
    outcome = dataset(tmp_path / "images", tmp_path / "labels", out, register="rigid")
    told = json.loads((out / "imagesTr" / "a.json").read_text())["channels"][1]["registration"]
    matrix = np.array(told["from_channel_0_to_this_one_ras_mm"])
    np.testing.assert_allclose(matrix[:3, 3], [2.0, -1.5, 1.0], atol=0.4)
    assert "aligned (rigid) to channel 0" in outcome.notes["a"][0].detail
    with pytest.raises(UsageError, match="--register 'elastic': expected one of rigid, affine"):
        dataset(tmp_path / "images", tmp_path / "labels", tmp_path / "out2", register="elastic")
