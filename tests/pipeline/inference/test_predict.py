"""Prediction from files to files: labels on the source grid bit for bit, one bad case stopped alone, the rest kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import phantoms
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image
from torch import Tensor
from voxelwise.errors import CaseError, NoRoomError, UnsafeInputError, UsageError
from voxelwise.networks.registry import build_network
from voxelwise.pipeline.archive.convert import convert
from voxelwise.pipeline.inference import cases as stage
from voxelwise.pipeline.inference.in_memory import predict_volume
from voxelwise.pipeline.inference.loading import load_predictor
from voxelwise.pipeline.inference.predict import predict
from voxelwise.pipeline.inference.predictor import Predictor
from voxelwise.pipeline.model_folder import write_model_folder
from voxelwise.scripts.main import explain
from voxelwise.transforms.geometry import apply_affine, axis_codes
from voxelwise.transforms.writers import write_json

AFFINE = np.array([[-0.7, 0, 0, 15.0], [0, -0.9, 0, 12.0], [0, 0, 2.5, -14.0], [0, 0, 0, 1]])
OPTIONS: dict[str, Any] = {"widths": [4, 8]}
LABELS = [{"value": 0, "name": "background"}, {"value": 3, "name": "organ"}, {"value": 7, "name": "vessel"}]


def plan(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "dims": 3,
        "channels": ["image"],
        "modality": "MR",
        "labels": LABELS,
        "spacing_mm": None,
        "orientation": "RAS",
        "crop": "none",
        "bias_field": False,
        "normalisation": [{"kind": "zscore"}],
        "patch": [8, 8, 8],
        "network": {"name": "unet", "options": OPTIONS},
        "mirror_axes": [0],
        "overlap": 0.5,
        "tta": False,
    }
    fields.update(changes)
    fields["normalisation"] = fields["normalisation"] * len(fields["channels"])
    return fields


def make_model(folder: Path, *, seed: int = 0, fold: str = "0", **changes: Any) -> Path:
    """A model folder with an untrained network, which gives all of its classes on noise."""
    fields = plan(**changes)
    torch.manual_seed(seed)
    network = build_network("unet", fields["dims"], len(fields["channels"]), len(LABELS), **OPTIONS)
    write_model_folder(folder, network, OPTIONS, fields, fold=fold)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model")


def noise(shape: tuple[int, ...] = (12, 10, 8), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-100, 400, shape).astype(np.int16)


def voxels(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


def test_labels_lie_on_the_grid_of_the_image_bit_for_bit(tmp_path: Path, model: Path) -> None:
    affine = AFFINE.copy()
    affine[:3, 3] += 1 / 3  # not a number of float32
    source = phantoms.nifti_file(tmp_path / "in" / "liver_007.nii.gz", noise(), affine, qform_code=2, sform_code=4)
    outcome = predict(model, source.parent, tmp_path / "out")
    assert outcome.done == ("liver_007",)
    assert outcome.exit_code == 0
    written, image = nib.load(tmp_path / "out" / "liver_007.nii.gz"), nib.load(source)
    assert written.shape == image.shape
    assert written.get_data_dtype() == np.uint8
    for field in (
        "srow_x",
        "srow_y",
        "srow_z",
        "quatern_b",
        "qoffset_x",
        "sform_code",
        "qform_code",
        "pixdim",
        "xyzt_units",
    ):
        np.testing.assert_array_equal(written.header[field], image.header[field])
    assert set(np.unique(voxels(tmp_path / "out" / "liver_007.nii.gz"))) == {0, 3, 7}
    assert written.header["descrip"].item() == b""


def test_dicom_and_the_nifti_converted_from_it_give_identical_labels(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", modality="CT", normalisation=[{"kind": "window", "low": -100, "high": 400}])
    array = noise()
    phantoms.ct_series(tmp_path / "dicom", array, AFFINE)
    flipped = AFFINE.copy()  # a converter's own axis order: the voxels are stored the other way round
    flipped[:3, 3] += AFFINE[:3, 1] * (array.shape[1] - 1)
    flipped[:3, 1] *= -1
    phantoms.nifti_file(tmp_path / "nifti" / "scan.nii.gz", array[:, ::-1], flipped)
    first = predict(model, tmp_path / "dicom", tmp_path / "a")
    second = predict(model, tmp_path / "nifti", tmp_path / "b")
    assert len(first.done) == len(second.done) == 1
    assert first.done[0].startswith("case-")
    a = nib.load(tmp_path / "a" / f"{first.done[0]}.nii.gz")
    b = nib.load(tmp_path / "b" / "scan.nii.gz")
    assert len(np.unique(np.asanyarray(a.dataobj))) == 3
    if axis_codes(a.affine) == axis_codes(b.affine):
        np.testing.assert_array_equal(np.asanyarray(a.dataobj), np.asanyarray(b.dataobj))
    else:
        np.testing.assert_array_equal(np.asanyarray(a.dataobj)[:, ::-1], np.asanyarray(b.dataobj))
    places = np.array([[0, 0, 0], [11, 9, 7]])
    np.testing.assert_allclose(
        sorted(apply_affine(a.affine, places)[:, 2]), sorted(apply_affine(b.affine, places)[:, 2])
    )


def test_dicom_and_what_convert_makes_of_it_give_identical_files(tmp_path: Path) -> None:
    """The grid of the converted file is the reader's, so the label maps are equal array by array, resampled or not."""
    phantoms.ct_series(tmp_path / "dicom", noise((14, 12, 6)), AFFINE)
    convert(tmp_path / "dicom", tmp_path / "nifti")
    for number, spacing in enumerate((None, [1.1, 1.0, 1.7])):
        model = make_model(tmp_path / f"model{number}", modality="CT", spacing_mm=spacing)
        first = predict(model, tmp_path / "dicom", tmp_path / f"a{number}")
        second = predict(model, tmp_path / "nifti", tmp_path / f"b{number}")
        a = nib.load(tmp_path / f"a{number}" / f"{first.done[0]}.nii.gz")
        b = nib.load(tmp_path / f"b{number}" / f"{second.done[0]}.nii.gz")
        np.testing.assert_array_equal(np.asanyarray(a.dataobj), np.asanyarray(b.dataobj))
        np.testing.assert_allclose(a.affine, b.affine, atol=1e-5)
        assert len(np.unique(np.asanyarray(a.dataobj))) > 1


def test_a_resampling_model_comes_back_to_the_source_grid(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", spacing_mm=[1.5, 1.5, 1.5])
    source = phantoms.nifti_file(tmp_path / "scan.nii.gz", noise((13, 11, 9)), AFFINE)
    predict(model, source, tmp_path / "out.nii.gz")
    written = nib.load(tmp_path / "out.nii.gz")
    assert written.shape == (13, 11, 9)
    np.testing.assert_array_equal(written.affine, nib.load(source).affine)
    assert len(np.unique(np.asanyarray(written.dataobj))) > 1


def test_a_slice_model_predicts_volumes(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", dims=2, patch=[8, 8, 1])
    phantoms.nifti_file(tmp_path / "scan.nii.gz", noise((12, 10, 5)), AFFINE)
    predict(model, tmp_path / "scan.nii.gz", tmp_path / "out.nii.gz")
    assert voxels(tmp_path / "out.nii.gz").shape == (12, 10, 5)


def test_pictures_give_png_on_the_same_pixels(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"orientation": None, "modality": "picture", "dims": 2, "patch": [8, 8, 1]}
    model = make_model(tmp_path / "model", **changes)
    (tmp_path / "in").mkdir()
    Image.fromarray(noise((9, 14)).astype(np.uint8)).save(tmp_path / "in" / "cells.png")
    outcome = predict(model, tmp_path / "in", tmp_path / "out")
    assert outcome.done == ("cells",)
    with Image.open(tmp_path / "out" / "cells.png") as labels:
        assert labels.size == (14, 9)
        assert set(np.unique(labels)) <= {0, 3, 7}
    with pytest.raises(UsageError, match=r"needs a name that ends in \.png"):
        predict(model, tmp_path / "in", tmp_path / "one.nii.gz")


def test_finished_cases_are_skipped_and_cut_ones_done_again(tmp_path: Path, model: Path) -> None:
    for name in ("a", "b"):
        phantoms.nifti_file(tmp_path / "in" / f"{name}.nii.gz", noise(), AFFINE)
    out = tmp_path / "out"
    predict(model, tmp_path / "in", out)
    before = {path.name: path.read_bytes() for path in out.glob("*.nii.gz")}
    (out / "b.nii.gz").write_bytes(before["b.nii.gz"][:-5])
    again = predict(model, tmp_path / "in", out)
    assert again.skipped == ("a",)
    assert again.done == ("b",)
    assert {path.name: path.read_bytes() for path in out.glob("*.nii.gz")} == before
    phantoms.nifti_file(tmp_path / "in" / "a.nii.gz", noise(seed=1), AFFINE)
    assert predict(model, tmp_path / "in", out).done == ("a",)


def test_previews_are_made_where_they_are_asked_for(tmp_path: Path, model: Path) -> None:
    path = phantoms.nifti_file(tmp_path / "in" / "a.nii.gz", noise(), AFFINE)
    predict(model, path, tmp_path / "out")
    assert predict(model, path, tmp_path / "out", preview=True).done == ("a",)
    assert (tmp_path / "out" / "previews" / "a.png").is_file()
    assert predict(model, path, tmp_path / "out", preview=True).skipped == ("a",)


def test_other_settings_are_refused_unless_overwrite(tmp_path: Path, model: Path) -> None:
    phantoms.nifti_file(tmp_path / "in" / "a.nii.gz", noise(), AFFINE)
    predict(model, tmp_path / "in", tmp_path / "out")
    with pytest.raises(UsageError, match=r"other settings \(overlap: 0.5 -> 0.25\)"):
        predict(model, tmp_path / "in", tmp_path / "out", overlap=0.25)
    other = make_model(tmp_path / "other", seed=1)
    with pytest.raises(UsageError, match=r"other settings \(model: "):
        predict(other, tmp_path / "in", tmp_path / "out")
    assert predict(model, tmp_path / "in", tmp_path / "out", overlap=0.25, overwrite=True).done == ("a",)


def test_one_bad_case_stops_alone(tmp_path: Path, model: Path) -> None:
    for name in ("a", "cut", "nan", "rgb"):
        phantoms.nifti_file(tmp_path / "in" / f"{name}.nii.gz", noise(), AFFINE)
    cut = tmp_path / "in" / "cut.nii.gz"
    cut.write_bytes(cut.read_bytes()[:-300])
    damaged = noise().astype(np.float32)
    damaged[3, 4, 5] = np.nan
    phantoms.nifti_file(tmp_path / "in" / "nan.nii.gz", damaged, AFFINE)
    colour = np.zeros((12, 10, 8), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    phantoms.nifti_file(tmp_path / "in" / "rgb.nii.gz", colour, AFFINE)
    outcome = predict(model, tmp_path / "in", tmp_path / "out")
    assert outcome.done == ("a",)
    assert outcome.exit_code == 3
    codes = {failure.files[0]: failure.code for failure in outcome.failures}
    assert set(codes) == {"cut.nii.gz", "nan.nii.gz", "rgb.nii.gz"}
    assert codes["nan.nii.gz"] == "not-finite"
    messages = {failure.files[0]: failure.message for failure in outcome.failures}
    assert all(name in message for name, message in messages.items())
    assert "NaN or infinite (the first at (3, 4, 5))" in messages["nan.nii.gz"]
    table = (tmp_path / "out" / "failures.csv").read_text()
    assert table.count("\n") == 4
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["a.nii.gz"]


def test_the_only_case_being_bad_is_exit_4(tmp_path: Path, model: Path) -> None:
    damaged = np.full((8, 8, 8), np.nan, dtype=np.float32)
    phantoms.nifti_file(tmp_path / "nan.nii.gz", damaged, AFFINE)
    assert predict(model, tmp_path / "nan.nii.gz", tmp_path / "out").exit_code == 4
    assert not list((tmp_path / "out").glob("*.nii.gz"))


def test_logits_that_are_not_finite_stop_the_case(tmp_path: Path) -> None:
    network = build_network("unet", 3, 1, 3, **OPTIONS)
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] = float("nan")
    write_model_folder(tmp_path / "model", network, OPTIONS, plan())
    phantoms.nifti_file(tmp_path / "a.nii.gz", noise(), AFFINE)
    outcome = predict(tmp_path / "model", tmp_path / "a.nii.gz", tmp_path / "out")
    assert outcome.exit_code == 4
    assert outcome.failures[0].code == "non-finite"
    assert "a.nii.gz: the network gave NaN or inf" in outcome.failures[0].message


def test_another_modality_stops_the_case(tmp_path: Path, model: Path) -> None:
    phantoms.ct_series(tmp_path / "ct", noise(), AFFINE)
    outcome = predict(model, tmp_path / "ct", tmp_path / "out")
    assert [failure.code for failure in outcome.failures] == ["modality"]
    assert "the image is CT, the model was trained on MR" in outcome.failures[0].message


@pytest.mark.parametrize("kind", ["no rescale", "other unit", "values"])
def test_a_ct_without_hounsfield_units_stops(tmp_path: Path, kind: str) -> None:
    model = make_model(tmp_path / "model", modality="CT")
    if kind == "values":
        phantoms.nifti_file(tmp_path / "in" / "a.nii.gz", noise() + np.int16(1024), AFFINE)
    elif kind == "no rescale":
        phantoms.ct_series(
            tmp_path / "in",
            noise() + 100,
            AFFINE,
            intercept=0.0,
            RescaleSlope=None,
            RescaleIntercept=None,
            RescaleType=None,
        )
    else:
        phantoms.ct_series(tmp_path / "in", noise(), AFFINE, RescaleType="US")
    outcome = predict(model, tmp_path / "in", tmp_path / "out")
    assert [failure.code for failure in outcome.failures] == ["not-hu"]
    assert "the values are no Hounsfield units" in outcome.failures[0].message


def test_channels_belong_together_by_their_numbers(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", channels=["T1", "T2"])
    for name in ("a_0000", "a_0001", "b_0000", "c"):
        phantoms.nifti_file(tmp_path / "in" / f"{name}.nii.gz", noise(), AFFINE)
    phantoms.nifti_file(tmp_path / "in" / "d.nii.gz", np.stack([noise(), noise(seed=1)], axis=3), AFFINE)
    outcome = predict(model, tmp_path / "in", tmp_path / "out")
    assert outcome.done == ("a", "d")
    assert {failure.case: failure.code for failure in outcome.failures} == {"b": "channels", "c": "channels"}
    message = next(failure.message for failure in outcome.failures if failure.case == "b")
    assert "found the channels 0000, the model takes the channels 0000 to 0001" in message
    assert "has 1 channels, expected 2" in next(failure.message for failure in outcome.failures if failure.case == "c")


def test_channels_of_other_grids_stop_the_case(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", channels=["T1", "T2"])
    moved = AFFINE.copy()
    moved[0, 3] += 0.5
    phantoms.nifti_file(tmp_path / "in" / "a_0000.nii.gz", noise(), AFFINE)
    phantoms.nifti_file(tmp_path / "in" / "a_0001.nii.gz", noise(), moved)
    outcome = predict(model, tmp_path / "in", tmp_path / "out")
    assert [failure.code for failure in outcome.failures] == ["channel-grids"]


def test_nnunets_channel_suffix_is_taken_off_the_name(tmp_path: Path, model: Path) -> None:
    for name in ("la_003_0000", "time_0003", "both_0000", "both_0001"):
        phantoms.nifti_file(tmp_path / "in" / f"{name}.nii.gz", noise(), AFFINE)
    outcome = predict(model, tmp_path / "in", tmp_path / "out")
    assert outcome.done == ("la_003", "time_0003")
    assert [failure.case for failure in outcome.failures] == ["both"]


def test_names_follow_the_template_and_never_clash(tmp_path: Path, model: Path) -> None:
    for folder in ("p1", "p2"):
        phantoms.nifti_file(tmp_path / "in" / folder / "image.nii.gz", noise(), AFFINE)
    assert predict(model, tmp_path / "in", tmp_path / "out").done == ("p1_image", "p2_image")
    with pytest.raises(UsageError, match=r"would both|use --name|clash"):
        predict(model, tmp_path / "in", tmp_path / "same", name="{modality}x")
    assert predict(model, tmp_path / "in", tmp_path / "named", name="{folder}_x").done == ("p1_x", "p2_x")


def test_one_volume_may_go_to_a_file(tmp_path: Path, model: Path) -> None:
    phantoms.nifti_file(tmp_path / "in" / "a.nii.gz", noise(), AFFINE)
    outcome = predict(model, tmp_path / "in" / "a.nii.gz", tmp_path / "labels.nii")
    assert outcome.done == ("labels",)
    assert voxels(tmp_path / "labels.nii").shape == (12, 10, 8)
    phantoms.nifti_file(tmp_path / "in" / "b.nii.gz", noise(), AFFINE)
    with pytest.raises(UsageError, match=r"holds 2 cases, .* is one file; give a folder as OUT"):
        predict(model, tmp_path / "in", tmp_path / "two.nii.gz")
    with pytest.raises(UsageError, match=r"needs a name that ends in \.nii\.gz or \.nii"):
        predict(model, tmp_path / "in" / "a.nii.gz", tmp_path / "labels.png")


def test_nothing_is_written_over_what_is_read(tmp_path: Path, model: Path) -> None:
    path = phantoms.nifti_file(tmp_path / "in" / "a.nii.gz", noise(), AFFINE)
    before = path.read_bytes()
    for target in (path, path.parent):
        with pytest.raises(UsageError, match=r"is the input|is an input|is not empty"):
            predict(model, path, target)
        with pytest.raises(UsageError, match=r"is the input|is an input"):
            predict(model, path, target, overwrite=True)
    with pytest.raises(UsageError, match="lies inside the input"):
        predict(model, path.parent, path.parent / "out")
    assert path.read_bytes() == before


def test_wrong_use_is_named(tmp_path: Path, model: Path) -> None:
    path = phantoms.nifti_file(tmp_path / "in" / "a.nii.gz", noise(), AFFINE)
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="nowhere does not exist; give a file, a folder with images"):
        predict(model, tmp_path / "nowhere", out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty is empty"):
        predict(model, tmp_path / "empty", out)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "readme.txt").write_text("hello")
    with pytest.raises(UsageError, match="text holds no volume"):
        predict(model, tmp_path / "text", out)
    with pytest.raises(UsageError, match=r"--overlap 1: windows share a part"):
        predict(model, path, out, overlap=1.0)
    with pytest.raises(UsageError, match=r"unknown --device 'gpu'"):
        predict(model, path, out, device="gpu")
    with pytest.raises(UsageError, match=r"unknown --precision 'half'"):
        predict(model, path, out, precision="half")
    with pytest.raises(UsageError, match=r"has no such fold \(there are: 0\)"):
        predict(model, path, out, fold=3)
    assert not out.exists()


def test_unsafe_weights_are_refused_before_anything_is_done(tmp_path: Path, model: Path) -> None:
    path = phantoms.nifti_file(tmp_path / "in" / "a.nii.gz", noise(), AFFINE)
    (model / "fold_0" / "weights.safetensors").write_bytes(b"\x80\x04\x95 pickled")
    with pytest.raises(UnsafeInputError, match="is a pickle"):
        predict(model, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_fold_predicts_its_validation_cases(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    make_model(tmp_path / "model", seed=1, fold="1")
    data = phantoms.blob_dataset(tmp_path / "data", cases=4, shape=(8, 8, 8))
    with pytest.raises(UsageError, match=r"has no folds.json, so nothing says which cases"):
        predict(model, data, tmp_path / "out", fold=0)
    names = [f"blob_{number:02d}" for number in range(4)]
    folds = {"0": {"train": names[2:], "validation": names[:2]}, "1": {"train": names[:2], "validation": names[2:]}}
    write_json(model / "folds.json", folds)
    assert predict(model, data, tmp_path / "out", fold="1").done == ("blob_02", "blob_03")
    assert predict(model, data / "dataset.json", tmp_path / "all").done == tuple(names)
    write_json(model / "folds.json", [{"train": names[2:], "val": [*names[:2], "blob_77"]}])
    outcome = predict(model, data, tmp_path / "nnunet", fold=0)
    assert outcome.done == ("blob_00", "blob_01")
    assert [(failure.case, failure.code) for failure in outcome.failures] == [("blob_77", "case-missing")]
    with pytest.raises(UsageError, match=r"folds.json names no such fold"):
        predict(model, data, tmp_path / "none", fold=1)
    write_json(model / "folds.json", [{"train": ["x"], "val": ["y"]}])
    with pytest.raises(UsageError, match=r"none of the cases that .*folds.json names is in"):
        predict(model, data, tmp_path / "none", fold=0)


def test_images_of_a_data_set_need_no_label_map(tmp_path: Path, model: Path) -> None:
    """With a fold they are left out as training left them out."""
    data = phantoms.blob_dataset(tmp_path / "data", cases=3, shape=(8, 8, 8))
    (data / "labels" / "blob_01.nii.gz").unlink()
    outcome = predict(model, data, tmp_path / "listed")
    assert (outcome.done, outcome.exit_code) == (("blob_00", "blob_01", "blob_02"), 0)
    (data / "dataset.json").unlink()
    outcome = predict(model, data, tmp_path / "plain")
    assert (len(outcome.done), outcome.exit_code) == (3, 0)
    write_json(model / "folds.json", [{"train": ["blob_02"], "val": ["blob_00", "blob_01"]}])
    outcome = predict(model, data, tmp_path / "fold", fold=0)
    assert outcome.done == ("blob_00",)
    assert [(failure.case, failure.code) for failure in outcome.failures] == [("blob_01", "label-missing")]


def test_a_full_disk_ends_the_run_and_the_next_one_finishes(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        phantoms.nifti_file(tmp_path / "in" / f"{name}.nii.gz", noise(), AFFINE)
    with monkeypatch.context() as patched:
        phantoms.full_disk(patched, "b.nii.gz")
        with pytest.raises(NoRoomError, match=r"b\.nii\.gz: no space left on its disk") as raised:
            predict(model, tmp_path / "in", tmp_path / "out")
    assert explain(raised.value)[0] == 6
    assert [path.name for path in sorted((tmp_path / "out").glob("*.nii.gz"))] == ["a.nii.gz"]
    assert not list((tmp_path / "out").glob(".*.part"))
    outcome = predict(model, tmp_path / "in", tmp_path / "out")
    assert (outcome.skipped, outcome.done) == (("a",), ("b", "c"))


def test_folds_are_averaged(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    make_model(tmp_path / "model", seed=1, fold="1")
    path = phantoms.nifti_file(tmp_path / "a.nii.gz", noise(), AFFINE)
    results = []
    for number, fold in enumerate((None, 0, 1)):
        predict(model, path, tmp_path / f"{number}.nii.gz", fold=fold)
        results.append(voxels(tmp_path / f"{number}.nii.gz"))
    assert not np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])
    assert json.loads((tmp_path / "0.manifest.json").read_text())["settings"]["folds"] == ["0", "1"]


def test_no_memory_for_one_case_leaves_the_others(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        phantoms.nifti_file(tmp_path / "in" / f"{name}.nii.gz", noise(), AFFINE)
    segment = Predictor.segment
    errors = iter([MemoryError()])

    def fails_once(self: Predictor, image: Any, on_plan: Any = None) -> Any:
        for error in errors:
            raise error
        return segment(self, image, on_plan)

    monkeypatch.setattr(Predictor, "segment", fails_once)
    outcome = predict(model, tmp_path / "in", tmp_path / "out")
    assert outcome.done == ("b",)
    assert outcome.failures[0].code == "memory"
    monkeypatch.setattr(stage, "write_labels", lambda *_: 1 / 0)
    outcome = predict(model, tmp_path / "in", tmp_path / "out2")
    assert {failure.code for failure in outcome.failures} == {"internal"}


def kinds(array: np.ndarray) -> dict[str, tuple[Any, Callable[[Any], np.ndarray]]]:
    channels = array if array.ndim == 4 else array[np.newaxis]
    tensor: Tensor = MetaTensor(torch.from_numpy(channels), affine=torch.from_numpy(AFFINE))
    stored = np.moveaxis(array, 0, -1) if array.ndim == 4 else array
    return {
        "tuple": ((array, AFFINE), lambda labels: labels),
        "nibabel": (nib.Nifti1Image(stored, AFFINE), lambda labels: np.asanyarray(labels.dataobj)),
        "metatensor": (tensor, lambda labels: labels.numpy()[0]),
    }


@pytest.mark.parametrize("channels", [1, 2])
def test_predict_volume_gives_back_the_kind_it_got(tmp_path: Path, channels: int) -> None:
    model = make_model(tmp_path / "model", channels=["x"] * channels, spacing_mm=[1.1, 1.0, 2.0])
    array = noise((12, 10, 8)) if channels == 1 else noise((2, 12, 10, 8))
    results = {}
    for kind, (image, take) in kinds(array).items():
        labels = predict_volume(model, image)
        results[kind] = take(labels)
        assert results[kind].shape == (12, 10, 8)
        assert results[kind].dtype == np.uint8
        if kind != "tuple":
            assert type(labels) is type(image)
            np.testing.assert_array_equal(np.asarray(labels.affine), AFFINE)
    np.testing.assert_array_equal(results["tuple"], results["nibabel"])
    np.testing.assert_array_equal(results["tuple"], results["metatensor"])
    assert len(np.unique(results["tuple"])) > 1


def test_predict_volume_equals_predict(tmp_path: Path, model: Path) -> None:
    path = phantoms.nifti_file(tmp_path / "a.nii.gz", noise(), AFFINE)
    predict(model, path, tmp_path / "out.nii.gz")
    image = nib.load(path)
    before = np.asanyarray(image.dataobj).copy()
    labels = predict_volume(load_predictor(model), image)
    np.testing.assert_array_equal(np.asanyarray(labels.dataobj), voxels(tmp_path / "out.nii.gz"))
    assert labels.header["sform_code"] == image.header["sform_code"]
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), before)


def test_predict_volume_says_what_it_takes(tmp_path: Path, model: Path) -> None:
    with pytest.raises(TypeError, match=r"takes \(array, affine\), a nibabel image or a MetaTensor, got ndarray"):
        predict_volume(model, noise())
    with pytest.raises(ValueError, match=r"needs a finite \(4, 4\) affine"):
        predict_volume(model, (noise(), np.full((4, 4), np.nan)))
    with pytest.raises(ValueError, match=r"got an array of 1 dimensions"):
        predict_volume(model, (noise()[0, 0], AFFINE))
    with pytest.raises(ValueError, match="an image holds real numbers, got complex64"):
        predict_volume(model, (noise().astype(np.complex64), AFFINE))
    with pytest.raises(CaseError, match="has 2 channels, expected 1"):
        predict_volume(model, (noise((2, 8, 8, 8)), AFFINE))
    shutil.rmtree(model)
    with pytest.raises(UsageError, match="model does not exist"):
        predict_volume(model, (noise(), AFFINE))


@pytest.mark.gpu
def test_gpu_label_maps_are_those_of_the_cpu(tmp_path: Path, model: Path) -> None:
    path = phantoms.nifti_file(tmp_path / "a.nii.gz", noise((40, 36, 30)), AFFINE)
    for device in ("cpu", "cuda:0"):
        predict(model, path, tmp_path / f"{device[:3]}.nii.gz", device=device, precision="float32")
    assert (voxels(tmp_path / "cpu.nii.gz") == voxels(tmp_path / "cud.nii.gz")).mean() >= 0.9999


def test_a_zip_archive_gives_the_labels_of_its_folder(tmp_path: Path) -> None:
    """DICOM and NIfTI inside: the same names and bytes, done once, and done again when the archive changed."""
    model = make_model(tmp_path / "model")
    phantoms.mr_series(tmp_path / "in" / "mr", noise())
    phantoms.nifti_file(tmp_path / "in" / "a.nii.gz", noise(seed=1))
    (tmp_path / "salt").write_text("a salt of ours")
    archive = Path(shutil.make_archive(str(tmp_path / "in"), "zip", tmp_path / "in"))
    folder = predict(model, tmp_path / "in", tmp_path / "a", salt=tmp_path / "salt")
    zipped = predict(model, archive, tmp_path / "b", salt=tmp_path / "salt")
    assert (zipped.done, len(zipped.done), zipped.failures) == (folder.done, 2, ())
    for case in folder.done:
        name = f"{case}.nii.gz"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert predict(model, archive, tmp_path / "b", salt=tmp_path / "salt").skipped == zipped.done
    phantoms.nifti_file(tmp_path / "in" / "a.nii.gz", noise(seed=2))
    shutil.make_archive(str(tmp_path / "in"), "zip", tmp_path / "in")
    assert "a" in predict(model, archive, tmp_path / "b", salt=tmp_path / "salt").done
