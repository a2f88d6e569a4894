"""What a model does not take: holes, single slices, films, other units and modalities, an output over its input."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import phantoms
import pytest
import torch
from voxelwise.errors import CaseError, UsageError
from voxelwise.networks.registry import build_network
from voxelwise.pipeline.inference.checks import check_modality, filled
from voxelwise.pipeline.inference.predict import predict
from voxelwise.pipeline.model_folder import write_model_folder
from voxelwise.transforms.geometry import affine_difference
from voxelwise.transforms.read_options import ReadOptions
from voxelwise.transforms.volume import Entry, Geometry, Volume

OPTIONS: dict[str, Any] = {"widths": [4, 8]}


def make_model(folder: Path, **changes: Any) -> Path:
    """A model folder with an untrained network of two classes."""
    fields: dict[str, Any] = {
        "dims": 3,
        "channels": ["image"],
        "modality": "MR",
        "spacing_mm": None,
        "orientation": "RAS",
        "labels": [{"value": 0, "name": "background"}, {"value": 1, "name": "organ"}],
        "crop": "none",
        "bias_field": False,
        "normalisation": [{"kind": "zscore"}],
        "patch": [8, 8, 8],
        "network": {"name": "unet", "options": OPTIONS},
        "mirror_axes": [],
        "overlap": 0.5,
        "tta": False,
        **changes,
    }
    torch.manual_seed(0)
    network = build_network("unet", fields["dims"], 1, 2, **OPTIONS)
    write_model_folder(folder, network, OPTIONS, fields)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


def with_holes() -> np.ndarray:
    array = phantoms.ramp().astype(np.float32)
    array[1, 2, 3], array[4, 5, 6] = np.nan, np.inf
    return array


def test_holes_stop_a_case_unless_the_user_fills_them(tmp_path: Path, model: Path) -> None:
    source = phantoms.nifti_file(tmp_path / "in" / "a.nii.gz", with_holes())
    stopped = predict(model, source.parent, tmp_path / "out")
    assert [failure.code for failure in stopped.failures] == ["not-finite"]
    assert "2 voxels are NaN or infinite (the first at (1, 2, 3)); fill them (predict has --fill-nan min)" in (
        stopped.failures[0].message
    )
    done = predict(model, source.parent, tmp_path / "filled", fill_nan="min")
    assert [entry.code for entry in done.notes["a"]] == ["not-finite-filled", "not-finite"]
    array = with_holes()
    array[~np.isfinite(array)] = -100
    phantoms.nifti_file(tmp_path / "in2" / "a.nii.gz", array)
    predict(model, tmp_path / "in2", tmp_path / "whole")
    first, second = (np.asanyarray(nib.load(tmp_path / out / "a.nii.gz").dataobj) for out in ("filled", "whole"))
    np.testing.assert_array_equal(first, second)
    with pytest.raises(UsageError, match="--fill-nan 'mean': expected min"):
        predict(model, source.parent, tmp_path / "out", fill_nan="mean")
    with pytest.raises(UsageError, match=r"other settings|overwrite"):
        predict(model, source.parent, tmp_path / "filled")


def test_filling_touches_nothing_else() -> None:
    volume = Volume(with_holes()[np.newaxis], Geometry((12, 10, 8), np.eye(4)))
    before = volume.array.copy()
    new = filled(volume)
    assert np.isfinite(new.array).all()
    np.testing.assert_array_equal(volume.array, before)
    same = np.isfinite(before)
    np.testing.assert_array_equal(new.array[same], before[same])
    whole = Volume(phantoms.ramp()[np.newaxis], Geometry((12, 10, 8), np.eye(4)))
    assert filled(whole) is whole
    with pytest.raises(CaseError, match="no voxel of a channel is finite"):
        filled(Volume(np.full((1, 2, 2, 2), np.nan, np.float32), Geometry((2, 2, 2), np.eye(4))))


@pytest.mark.parametrize("shape", [(12, 10), (12, 10, 1)])
def test_one_slice_is_for_models_of_slices(tmp_path: Path, model: Path, shape: tuple[int, ...]) -> None:
    source = phantoms.nifti_file(tmp_path / "in" / "a.nii.gz", phantoms.ramp(shape), phantoms.oblique())
    stopped = predict(model, source.parent, tmp_path / "out")
    assert [failure.code for failure in stopped.failures] == ["one-slice"]
    flat = make_model(tmp_path / "flat", dims=2, patch=[8, 8, 1], orientation=None)
    assert predict(flat, source.parent, tmp_path / "out2").done == ("a",)
    written, image = nib.load(tmp_path / "out2" / "a.nii.gz"), nib.load(source)
    assert written.shape == shape
    np.testing.assert_array_equal(written.affine, image.affine)


def test_a_film_is_for_models_of_slices(tmp_path: Path, model: Path) -> None:
    array = np.random.default_rng(0).integers(0, 255, (16, 12, 1, 5)).astype(np.uint8)
    fields = {"sform_code": 0, "qform_code": 0, "pixdim": [1, 1, 1, 1, 0.04, 1, 1, 1]}
    source = phantoms.nifti_file(tmp_path / "in" / "film.nii.gz", array, **fields)
    stopped = predict(model, source.parent, tmp_path / "out")
    assert [failure.code for failure in stopped.failures] == ["film"]
    flat = make_model(tmp_path / "flat", dims=2, patch=[8, 8, 1], orientation=None)
    assert predict(flat, source.parent, tmp_path / "out2").done == ("film",)
    written = nib.load(tmp_path / "out2" / "film.nii.gz")
    assert written.shape == (16, 12, 1, 5)
    assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == (0, 0)


def test_a_file_without_codes_comes_back_with_its_header(tmp_path: Path, model: Path) -> None:
    """N02: noted, and the geometric fields of the input stand in the output bit for bit."""
    source = phantoms.nifti_file(tmp_path / "in" / "a.nii.gz", sform_code=0, qform_code=0)
    outcome = predict(model, source.parent, tmp_path / "out")
    assert [entry.code for entry in outcome.notes["a"]] == ["no-world-coordinates"]
    written, image = nib.load(tmp_path / "out" / "a.nii.gz"), nib.load(source)
    for field in ("srow_x", "quatern_b", "qoffset_x", "pixdim", "sform_code", "qform_code", "xyzt_units"):
        np.testing.assert_array_equal(written.header[field], image.header[field])


def test_a_trailing_dimension_comes_back_as_three(tmp_path: Path, model: Path) -> None:
    source = phantoms.nifti_file(tmp_path / "in" / "a.nii.gz", phantoms.ramp()[..., np.newaxis])
    assert predict(model, source.parent, tmp_path / "out").done == ("a",)
    written, image = nib.load(tmp_path / "out" / "a.nii.gz"), nib.load(source)
    assert written.shape == (12, 10, 8)
    np.testing.assert_array_equal(written.affine, image.affine)
    np.testing.assert_array_equal(written.header["pixdim"], image.header["pixdim"])


def test_a_contradiction_is_settled_by_the_user(tmp_path: Path, model: Path) -> None:
    source = phantoms.nifti_file(tmp_path / "in" / "a.nii.gz", qoffset_x=45)
    stopped = predict(model, source.parent, tmp_path / "out")
    assert [failure.code for failure in stopped.failures] == ["sform-qform-conflict"]
    done = predict(model, source.parent, tmp_path / "out2", options=ReadOptions(affine="qform"))
    assert [entry.code for entry in done.notes["a"]] == ["affine-chosen"]
    assert affine_difference((12, 10, 8), nib.load(tmp_path / "out2" / "a.nii.gz").affine, nib.load(source).affine) == 0


def test_time_points_may_be_chosen(tmp_path: Path, model: Path) -> None:
    array = np.stack([phantoms.ramp()] * 3, axis=-1)
    source = phantoms.nifti_file(tmp_path / "in" / "a.nii.gz", array)
    assert len(predict(model, source.parent, tmp_path / "all").done) == 3
    assert predict(model, source.parent, tmp_path / "one", options=ReadOptions(time="1")).done == ("a_t001",)


@pytest.mark.parametrize("link", ["symlink", "hardlink"])
def test_nothing_is_written_over_its_input(tmp_path: Path, model: Path, link: str) -> None:
    source = phantoms.nifti_file(tmp_path / "in" / "a.nii.gz")
    before = source.read_bytes()
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "a.nii.gz"
    target.symlink_to(source) if link == "symlink" else os.link(source, target)
    with pytest.raises(UsageError, match=r"is an input; nothing is written over what is read|is the input"):
        predict(model, source.parent, tmp_path / "out", overwrite=True)
    assert source.read_bytes() == before
    with pytest.raises(UsageError, match=r"is the input|is an input"):
        predict(model, source, target, overwrite=True)
    assert source.read_bytes() == before


def test_values_that_are_no_hounsfield_units_stop() -> None:
    """D17: said by the header, or seen in the median."""
    plan = {"modality": "CT"}
    geometry = Geometry((4, 4, 4), np.eye(4))
    air = np.full((1, 4, 4, 4), -900, np.int16)
    check_modality(Volume(air, geometry, "CT"), plan)
    with pytest.raises(CaseError, match=r"no Hounsfield units.*median is 3000, expected -1100 to 500"):
        check_modality(Volume(np.full((1, 4, 4, 4), 3000, np.int16), geometry, "CT"), plan)
    note = Entry("not-hu", "CT without rescale tags: the values may not be HU")
    with pytest.raises(CaseError, match=r"no Hounsfield units.*without rescale"):
        check_modality(Volume(air, geometry, "CT", notes=(note,)), plan)
    check_modality(Volume(np.full((1, 4, 4, 4), 3000, np.int16), geometry, "MR"), {"modality": "MR"})
    with pytest.raises(CaseError, match="the image is MR, the model was trained on CT"):
        check_modality(Volume(air, geometry, "MR"), plan)
