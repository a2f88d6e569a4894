"""Modes of prediction: a part of the classes, probabilities, uncertainty, several models, a region, views."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import phantoms
import psutil
import pytest
import torch
from PIL import Image
from torch import Tensor
from voxelwise.errors import UsageError
from voxelwise.networks.base import SegmentationNetwork
from voxelwise.networks.registry import build_network
from voxelwise.pipeline.inference import engines
from voxelwise.pipeline.inference.in_memory import predict_volume
from voxelwise.pipeline.inference.loading import load_predictor
from voxelwise.pipeline.inference.modes import Modes, several
from voxelwise.pipeline.inference.predict import predict
from voxelwise.pipeline.inference.predictor import Predictor
from voxelwise.pipeline.inference.segmentation import Segmented
from voxelwise.pipeline.inference.skipping import SkippingScorer, background_of
from voxelwise.pipeline.inference.uncertainty import mutual_information, sum_up
from voxelwise.pipeline.inference.views import averaged
from voxelwise.pipeline.model_folder import read_model_folder, write_model_folder
from voxelwise.pipeline.start import idle_bytes
from voxelwise.scripts.main import main
from voxelwise.transforms.probabilities import read_probabilities

AFFINE = np.array([[-0.7, 0, 0, 15.0], [0, -0.9, 0, 12.0], [0, 0, 2.5, -14.0], [0, 0, 0, 1]])
OPTIONS: dict[str, Any] = {"widths": [4, 8]}
NAMES = ("background", "liver", "spleen", "vessel", "tumour", "duct")
LABELS = [{"value": 2 * number, "name": name} for number, name in enumerate(NAMES)]


def plan(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "dims": 3,
        "channels": ["image"],
        "modality": "MR",
        "labels": LABELS,
        "spacing_mm": [1.1, 1.2, 1.9],
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
    return {**fields, **changes}


def make_model(folder: Path, *, seed: int = 0, fold: str = "0", **changes: Any) -> Path:
    """A model folder with an untrained network, whose last layer is sharpened so that all of its classes are seen."""
    fields = plan(**changes)
    torch.manual_seed(seed)
    outputs = fields.get("regions") or fields["labels"]
    network = build_network("unet", fields["dims"], len(fields["channels"]), len(outputs), **OPTIONS)
    with torch.no_grad():
        assert network.head is not None
        for weight in network.head.parameters():
            weight.mul_(6)
    write_model_folder(folder, network, OPTIONS, fields, fold=fold)
    return folder


@pytest.fixture(autouse=True)
def with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared with sums of torch is computed by it."""
    monkeypatch.setattr(engines, "_suits", lambda *_: False)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model")


def noise(shape: tuple[int, ...] = (14, 12, 8), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-100, 400, shape).astype(np.int16)


def image_file(folder: Path, name: str = "a", **options: Any) -> Path:
    return phantoms.nifti_file(folder / f"{name}.nii.gz", noise(**options), AFFINE)


def voxels(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


def manifest(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "manifest.json").read_text()))


@pytest.mark.parametrize("asked", ["liver,8", ["tumour", 2], "Liver, TUMOUR"])
def test_chosen_classes_are_those_of_the_whole_prediction(tmp_path: Path, model: Path, asked: Any) -> None:
    path = image_file(tmp_path / "in")
    predict(model, path, tmp_path / "all")
    predict(model, path, tmp_path / "some", classes=asked)
    whole, some = voxels(tmp_path / "all" / "a.nii.gz"), voxels(tmp_path / "some" / "a.nii.gz")
    assert set(np.unique(whole)) >= {0, 2, 8, 10}
    np.testing.assert_array_equal(some, np.where(np.isin(whole, (2, 8)), whole, 0))
    assert manifest(tmp_path / "some")["settings"]["classes"] == ["liver", "tumour"]
    assert "classes" not in manifest(tmp_path / "all")["settings"]


def test_a_class_that_is_not_there_is_named_with_the_nearest(tmp_path: Path, model: Path) -> None:
    path = image_file(tmp_path / "in")
    with pytest.raises(UsageError, match=r"unknown class 'livr'; did you mean 'liver'\? \(there are: background, "):
        predict(model, path, tmp_path / "out", classes="livr")
    with pytest.raises(UsageError, match="--classes names no class"):
        predict(model, path, tmp_path / "out", classes=",")
    predict(model, path, tmp_path / "out")
    with pytest.raises(UsageError, match=r"other settings \(classes: null"):
        predict(model, path, tmp_path / "out", classes="liver")


def test_a_loaded_predictor_has_its_own_modes(model: Path) -> None:
    predictor = load_predictor(model, modes=Modes(classes="liver"))
    assert predictor.classes == {2: "liver"}
    assert set(np.unique(predict_volume(predictor, (noise(), AFFINE)))) == {0, 2}
    with pytest.raises(UsageError, match="a loaded Predictor has its own modes"):
        predict_volume(predictor, (noise(), AFFINE), classes="spleen")


def scores_of(model: Path, path: Path, **options: Any) -> Tensor:
    """The scores (K, *image) of a whole image on its own grid, all at once."""
    found: list[Tensor] = []
    predictor = load_predictor(model, **options)
    network, image = predictor.networks[0], torch.from_numpy(voxels(path).astype(np.float32))
    assert predictor.patch >= tuple(image.shape)
    found.append(network(((image - image.mean()) / image.std(correction=0))[None, None])[0])
    return found[0].detach()


def test_probabilities_are_the_softmax_of_the_scores(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", spacing_mm=None, orientation=None, patch=[14, 12, 8])
    path = image_file(tmp_path / "in")
    outcome = predict(model, path, tmp_path / "out", probabilities=True)
    found = read_probabilities(tmp_path / "out" / "a_probabilities.b2nd")
    wanted = scores_of(model, path).softmax(0).numpy()
    assert np.abs(found.scores - wanted).max() <= 1 / 510 + 1e-4
    assert found.names == NAMES
    np.testing.assert_allclose(found.affine, nib.load(path).affine)
    assert set(manifest(tmp_path / "out")["cases"]["a"]["files"]) == {"a.nii.gz", "a_probabilities.b2nd"}
    assert outcome.done == ("a",)
    assert not list((tmp_path / "out").glob(".*.part"))
    assert predict(model, path, tmp_path / "out", probabilities=True).skipped == ("a",)
    predict(model, path, tmp_path / "plain")
    assert (tmp_path / "plain" / "a.nii.gz").read_bytes() == (tmp_path / "out" / "a.nii.gz").read_bytes()


def test_modes_go_together_in_one_pass(tmp_path: Path, model: Path) -> None:
    """Resampled, in parts, with half of the classes: the label is the largest probability."""
    path = image_file(tmp_path / "in", shape=(24, 20, 12))
    options: dict[str, Any] = {"probabilities": True, "uncertainty": True, "memory": "8GB"}
    predict(model, path, tmp_path / "out", **options)
    found = read_probabilities(tmp_path / "out" / "a_probabilities.b2nd")
    labels = voxels(tmp_path / "out" / "a.nii.gz")
    top = np.array([label["value"] for label in LABELS])[found.scores.argmax(0)]
    best = np.sort(found.scores, axis=0)
    clear = best[-1] - best[-2] > 3 / 255
    np.testing.assert_array_equal(labels[clear], top[clear])
    wanted = -(found.scores * np.log(found.scores + 1e-9)).sum(0) / np.log(6)
    image = nib.load(tmp_path / "out" / "a_uncertainty.nii.gz")
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_allclose(image.get_fdata(), wanted, atol=0.03)
    np.testing.assert_array_equal(image.affine, nib.load(path).affine)
    some = tmp_path / "some"
    predict(model, path, some, classes="tumour,liver", probabilities=True)
    part = read_probabilities(some / "a_probabilities.b2nd")
    assert part.names == ("liver", "tumour")
    np.testing.assert_array_equal(part.scores, found.scores[[1, 4]])
    assert "probabilities, uncertainty" in manifest(tmp_path / "out")["facts"]["plans"]["a"]


def test_the_disagreement_of_folds_is_mapped(tmp_path: Path, model: Path) -> None:
    make_model(tmp_path / "model", seed=1, fold="1")
    path = image_file(tmp_path / "in")
    outcome = predict(model, path, tmp_path / "out", uncertainty=True)
    record = manifest(tmp_path / "out")["cases"]["a"]
    assert set(record["files"]) == {"a.nii.gz", "a_uncertainty.nii.gz", "a_disagreement.nii.gz"}
    labels = voxels(tmp_path / "out" / "a.nii.gz")
    for name in ("uncertainty", "disagreement"):
        values = nib.load(tmp_path / "out" / f"a_{name}.nii.gz").get_fdata()
        assert 0 < values.max() <= 1
        assert record[name] == pytest.approx(values[labels > 0].mean(), abs=1e-4)
    assert record["look"] is True
    assert [note.code for note in outcome.notes["a"]] == ["look-at"]
    predict(model, path, tmp_path / "plain")
    assert (voxels(tmp_path / "plain" / "a.nii.gz") == labels).mean() > 0.999


@pytest.mark.parametrize("regions", [False, True])
def test_labels_agree_with_interpolated_probabilities(tmp_path: Path, regions: bool) -> None:
    """Where the plan says that probabilities are interpolated, the file and the maps are of these too."""
    units = [{"name": name, "values": [2 * at], "writes": 2 * at} for at, name in enumerate(NAMES) if at]
    changes: dict[str, Any] = {"regions": [{"name": "all", "values": [2], "writes": 2}, *units]} if regions else {}
    back = {"kind": "span", "scores": "probabilities"}
    model = make_model(tmp_path / "model", resampling=back, spacing_mm=[1.5, 1.7, 3.9], **changes)
    predict(model, image_file(tmp_path / "in"), tmp_path / "out", probabilities=True, uncertainty=True)
    scores = read_probabilities(tmp_path / "out" / "a_probabilities.b2nd").scores
    values = np.array([0, 2, 2, 4, 6, 8, 10]) if regions else np.arange(0, 12, 2)
    if regions:
        over = np.concatenate([np.ones_like(scores[:1]), scores > 0.5])
        wanted = values[len(over) - 1 - over[::-1].argmax(0)]
        clear = np.abs(scores - 0.5).min(0) > 0.004
    else:
        best = np.sort(scores, axis=0)
        wanted, clear = values[scores.argmax(0)], best[-1] - best[-2] > 0.008
    assert clear.mean() > 0.8
    np.testing.assert_array_equal(voxels(tmp_path / "out" / "a.nii.gz")[clear], wanted[clear])
    shares = np.stack([scores, 1 - scores]) if regions else scores[None].swapaxes(0, 1)
    nats = -(shares * np.log(shares.clip(1e-9))).sum(0)
    found = nib.load(tmp_path / "out" / "a_uncertainty.nii.gz").get_fdata()
    np.testing.assert_allclose(found, nats.max(0) / np.log(2 if regions else len(NAMES)), atol=0.06)


def test_a_case_to_look_at_is_told_from_one_that_is_sure() -> None:
    labels = np.zeros((2, 3, 4), np.uint8)
    numbers, notes = sum_up(labels, {"uncertainty": labels}, 2)
    assert numbers == {"uncertainty": None, "look": True}
    assert "nothing was found" in notes[0].detail
    labels[0] = 3
    for value, look in ((120, False), (140, True)):
        numbers, notes = sum_up(labels, {"uncertainty": np.where(labels, value, 255).astype(np.uint8)}, 2)
        assert numbers == {"uncertainty": round(value / 255, 4), "look": look}
        assert len(notes) == look
    one = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[..., None]
    assert mutual_information(one).item() == pytest.approx(np.log(2))
    assert mutual_information(one[[0, 0]]).item() == pytest.approx(0)


def test_models_are_averaged_as_folds_are(tmp_path: Path, model: Path) -> None:
    other = make_model(tmp_path / "other", seed=1)
    both = make_model(tmp_path / "both")
    make_model(tmp_path / "both", seed=1, fold="1")
    path = image_file(tmp_path / "in")
    predict(model, path, tmp_path / "a", with_model=other)
    predict(both, path, tmp_path / "b")
    np.testing.assert_array_equal(voxels(tmp_path / "a" / "a.nii.gz"), voxels(tmp_path / "b" / "a.nii.gz"))
    assert manifest(tmp_path / "a")["settings"]["with_models"] == [{"0": read_model_folder(other).sha256("0")}]
    far = make_model(tmp_path / "far", patch=[8, 8, 16], spacing_mm=[1.0, 1.0, 2.0])
    with pytest.raises(UsageError, match=r"spacing_mm is \[1.0, 1.0, 2.0\], expected .*; patch is \[8, 8, 16\]"):
        predict(model, path, tmp_path / "c", with_model=[other, far])
    stepped = make_model(tmp_path / "stepped", windows="stepped")
    with pytest.raises(UsageError, match="windows is stepped, expected even"):
        predict(model, path, tmp_path / "c", with_model=stepped)


def test_a_coarse_model_confines_the_work(tmp_path: Path, model: Path) -> None:
    """The label map is that of the box alone, and background around it."""
    array = np.zeros((40, 36, 20), np.int16)
    array[12:22, 10:20, 8:12] = 300
    path = phantoms.nifti_file(tmp_path / "in" / "a.nii.gz", array, AFFINE)
    coarse = make_model(tmp_path / "coarse", spacing_mm=None)
    outcome = predict(confined(model, coarse, margin_mm=5.0), path, tmp_path / "out")
    box = (slice(12 - 8, 22 + 8), slice(10 - 6, 20 + 6), slice(8 - 2, 12 + 2))
    affine = AFFINE.copy()
    affine[:3, 3] += affine[:3, :3] @ [side.start for side in box]
    part = predict_volume(model, (array[box], affine))
    wanted = np.zeros(array.shape, np.uint8)
    wanted[box] = part
    found = voxels(tmp_path / "out" / "a.nii.gz")
    np.testing.assert_array_equal(found, wanted)
    assert found.any()
    assert "the model worked on the voxels 4-29 x 4-25 x 6-13" in outcome.notes["a"][0].detail
    scores = read_probabilities(tmp_path / "out" / "a_probabilities.b2nd").scores
    outside = np.ones(array.shape, bool)
    outside[box] = False
    assert (scores[0, outside] == 1).all()
    assert (scores[1:, outside] == 0).all()
    assert scores[0][~outside].min() < 0.5
    uncertainty = voxels(tmp_path / "out" / "a_uncertainty.nii.gz")
    assert not uncertainty[outside].any()
    assert uncertainty[~outside].any()
    assert manifest(tmp_path / "out")["settings"]["margin_mm"] == 5.0
    with pytest.raises(UsageError, match="--margin 3 is of --coarse MODEL"):
        predict(model, path, tmp_path / "b", margin=3.0)
    other = make_model(tmp_path / "ct", modality="CT")
    with pytest.raises(UsageError, match=r"cannot find the region for .*: its modality is CT, expected MR"):
        predict(model, path, tmp_path / "b", coarse=other)


class Bright(SegmentationNetwork):
    """Takes what is above the mean for an organ."""

    def __init__(self) -> None:
        super().__init__(3, 1, 6, stride=(1, 1, 1), receptive_field=(1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([torch.full_like(image, 0.5), *[image] * 5], dim=1)


def confined(model: Path, coarse: Path, **options: Any) -> Predictor:
    """A model behind one that finds what is bright."""
    predictor = load_predictor(model, modes=Modes(coarse=coarse, probabilities=True, uncertainty=True, **options))
    assert predictor.coarse is not None
    return replace(predictor, coarse=replace(predictor.coarse, networks=(Bright(),)))


def test_nothing_found_is_all_background(tmp_path: Path, model: Path) -> None:
    path = phantoms.nifti_file(tmp_path / "in" / "a.nii.gz", np.zeros((12, 12, 8), np.int16), AFFINE)
    outcome = predict(confined(model, model), path, tmp_path / "out")
    assert outcome.done == ("a",)
    assert not voxels(tmp_path / "out" / "a.nii.gz").any()
    assert [note.code for note in outcome.notes["a"]] == ["constant", "nothing-found", "look-at"]
    assert (read_probabilities(tmp_path / "out" / "a_probabilities.b2nd").scores[0] == 1).all()


def skipping_model(folder: Path, **changes: Any) -> Path:
    window = [{"kind": "window", "low": 0.0, "high": 400.0, "mean": 150.0, "std": 80.0}]
    return make_model(folder, **{"normalisation": window, "spacing_mm": None, **changes})


def test_windows_of_background_are_not_computed(tmp_path: Path) -> None:
    model = skipping_model(tmp_path / "model")
    array = np.full((40, 12, 8), -50, np.int16)
    array[:12] = np.abs(noise((12, 12, 8)))
    path = phantoms.nifti_file(tmp_path / "in" / "a.nii.gz", array, AFFINE)
    outcome = predict(model, path, tmp_path / "out", skip_background=True, probabilities=True)
    predict(model, path, tmp_path / "plain", probabilities=True)
    assert outcome.notes["a"][0].code == "skipped-background"
    assert outcome.notes["a"][0].detail == "12 of 18 windows held only background and were not computed"
    skipped, plain = (voxels(tmp_path / name / "a.nii.gz") for name in ("out", "plain"))
    np.testing.assert_array_equal(skipped[:12], plain[:12])
    assert not skipped[16:].any()
    scores = [read_probabilities(tmp_path / name / "a_probabilities.b2nd").scores for name in ("out", "plain")]
    np.testing.assert_allclose(scores[0][:, :12], scores[1][:, :12], atol=1.01 / 255)
    assert (scores[0][0, 16:] == 1).all()
    assert manifest(tmp_path / "out")["settings"]["skip_background"] is True


def test_an_image_without_background_is_predicted_as_ever(tmp_path: Path) -> None:
    model = skipping_model(tmp_path / "model", spacing_mm=[1.1, 1.2, 1.9])
    path = phantoms.nifti_file(tmp_path / "in" / "a.nii.gz", np.abs(noise()) + 1, AFFINE)
    predict(model, path, tmp_path / "out", skip_background=True)
    predict(model, path, tmp_path / "plain")
    same = voxels(tmp_path / "out" / "a.nii.gz") == voxels(tmp_path / "plain" / "a.nii.gz")
    assert same.mean() > 0.999


def test_background_is_what_the_plan_says(tmp_path: Path, model: Path) -> None:
    path = image_file(tmp_path / "in")
    with pytest.raises(UsageError, match=r"does not say what is background in channel image \(normalisation zscore\)"):
        predict(model, path, tmp_path / "out", skip_background=True)
    with pytest.raises(UsageError, match="--skip-background is of --tiling blend"):
        predict(skipping_model(tmp_path / "b"), path, tmp_path / "out", skip_background=True, tiling="exact")
    first = [{"value": 3, "name": "body"}, *LABELS[1:]]
    with pytest.raises(UsageError, match=r"the first class of .* is body, no background"):
        predict(skipping_model(tmp_path / "c", labels=first), path, tmp_path / "out", skip_background=True)
    kinds = [{"kind": "zscore_nonzero"}, {"kind": "rescale", "low": 5, "high": 9}]
    channels = make_model(tmp_path / "d", channels=["T1", "T2"], normalisation=kinds)
    (low, high), (none, top) = background_of(read_model_folder(channels))
    assert (low, high, none) == (0, 0, -np.inf)
    assert 0 < top < 1e-4


def test_a_slice_model_is_averaged_over_its_views(tmp_path: Path) -> None:
    """Streamed side by side, as one by one on the whole volume."""
    model = make_model(tmp_path / "model", dims=2, patch=[8, 8, 1], spacing_mm=None, overlap=0.0)
    array = noise((8, 8, 8))
    predictor = load_predictor(model, modes=Modes(views="all"))
    found = predict_volume(predictor, (array, np.eye(4)))
    network, image = predictor.networks[0].network, torch.from_numpy(array.astype(np.float32))  # type: ignore[union-attr]
    image = (image - image.mean()) / image.std(correction=0)
    total = torch.zeros(6, 8, 8, 8)
    for axis in range(3):
        with torch.no_grad():
            total += network(image.movedim(axis, 0)[:, None]).movedim(0, 1).movedim(1, axis + 1)
    np.testing.assert_array_equal(found, 2 * total.argmax(0).numpy())
    single = predict_volume(model, (array, np.eye(4)))
    assert (single != found).any()
    np.testing.assert_array_equal(predict_volume(model, (array, np.eye(4)), views="axial"), single)
    path = image_file(tmp_path / "in", shape=(20, 18, 11))
    predict(model, path, tmp_path / "out", views="axial,coronal", uncertainty=True, memory="8GB", tta=True)
    assert manifest(tmp_path / "out")["settings"]["views"] == [2, 1]


def test_views_that_cannot_be(tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = image_file(tmp_path / "in")
    flat = make_model(tmp_path / "flat", dims=2, patch=[8, 8, 1])
    load_predictor(flat, modes=Modes(views="all"))
    assert "voxels of 1.1 x 1.2 x 1.9 mm give pixels that the network was not trained on" in caplog.text
    with pytest.raises(UsageError, match="--views is of 2D models"):
        predict(model, path, tmp_path / "out", views="all")
    with pytest.raises(UsageError, match="unknown view 'coronl'; did you mean 'coronal'"):
        predict(flat, path, tmp_path / "out", views="axial,coronl")
    with pytest.raises(UsageError, match="--views is of --tiling blend"):
        predict(flat, path, tmp_path / "out", views="all", tiling="exact")
    with pytest.raises(UsageError, match="--views names no view"):
        predict(flat, path, tmp_path / "out", views="")


def test_streams_of_other_steps_are_averaged_plane_by_plane() -> None:
    values = torch.randn(3, 2, 12, 4, 5)

    def stream(number: int, steps: list[int]) -> Any:
        start = 0
        for step in steps:
            yield slice(start, start + step), values[number, :, start : start + step]
            start += step

    runs = list(averaged([stream(0, [1] * 12), stream(1, [5, 3, 4]), stream(2, [12])]))
    assert [where.start for where, _ in runs] == list(range(12))
    torch.testing.assert_close(torch.cat([sums for _, sums in runs], dim=1), values.mean(0))


def test_slices_with_their_neighbours(tmp_path: Path) -> None:
    """2.5D: a network of slices sees three of them, also where windows and the volume end."""
    fields = plan(dims=2, patch=[8, 8, 1], spacing_mm=None, slices=3, overlap=0.0)
    torch.manual_seed(0)
    network = build_network("unet", 2, 3, len(LABELS), **OPTIONS)
    write_model_folder(tmp_path / "model", network, OPTIONS, fields)
    array = noise((8, 8, 6))
    found = predict_volume(tmp_path / "model", (array, np.eye(4)))
    image = torch.from_numpy(array.astype(np.float32))
    image = ((image - image.mean()) / image.std(correction=0)).movedim(2, 0)
    padded = torch.cat([image[:1], image, image[-1:]])
    with torch.no_grad():
        scores = network.eval()(torch.stack([padded[:-2], padded[1:-1], padded[2:]], dim=1))
    np.testing.assert_array_equal(found, 2 * scores.argmax(1).movedim(0, 2).numpy())
    wrong = plan(dims=2, patch=[8, 8, 1], slices=2)
    write_model_folder(tmp_path / "wrong", build_network("unet", 2, 2, len(LABELS), **OPTIONS), OPTIONS, wrong)
    with pytest.raises(UsageError, match="its plan says slices: 2, expected an odd number"):
        predict_volume(tmp_path / "wrong", (array, np.eye(4)))


def test_background_of_two_channels_with_their_neighbours(tmp_path: Path) -> None:
    """2.5D, several channels, mirrored, in all views: what is skipped is background, the rest as without skipping."""
    fields = plan(
        dims=2,
        patch=[8, 8, 1],
        spacing_mm=None,
        slices=3,
        channels=["one", "two"],
        normalisation=[{"kind": "zscore_nonzero"}] * 2,
        mirror_axes=[0, 1, 2],
        tta=True,
    )
    network = build_network("unet", 2, 6, len(LABELS), **OPTIONS)
    assert network.head is not None
    with torch.no_grad():
        list(network.head.parameters())[-1][1] += 9  # what is computed is no background
    write_model_folder(tmp_path / "model", network, OPTIONS, fields)
    array = np.stack([noise((24, 10, 6)), noise((24, 10, 6), seed=1)])
    array[:, :16] = 0
    for views in (None, "all"):
        whole = predict_volume(tmp_path / "model", (array, np.eye(4)), views=views)
        found = predict_volume(tmp_path / "model", (array, np.eye(4)), views=views, skip_background=True)
        np.testing.assert_array_equal(found[20:], whole[20:])
        assert not found[:4].any()
        assert whole[:4].any()


def test_all_windows_skipped_is_background(tmp_path: Path) -> None:
    class Never:
        channels = classes = 2
        head = None
        device = torch.device("cpu")

        def __call__(self, windows: Tensor) -> Tensor:
            raise AssertionError("computed")

    scorer = SkippingScorer(Never(), [(-np.inf, 0.0)])
    found = scorer(torch.zeros(3, 1, 4, 4, 4))
    assert scorer.head is not None
    assert (scorer.head(found).argmax(1) == 0).all()
    assert (scorer.seen, scorer.skipped) == (3, 3)


def test_all_modes_are_options_of_the_command_line(tmp_path: Path, model: Path) -> None:
    other = make_model(tmp_path / "other", seed=1)
    path = image_file(tmp_path / "in")
    words = ["--with-model", other, "--coarse", model, "--margin", 4, "--classes", "liver,tumour", "--device", "cpu"]
    words += ["--probabilities", "--uncertainty", "--workers", 1, "--single-process", "--quiet"]
    assert main(["predict", str(model), str(path), str(tmp_path / "out" / "x.nii.gz"), *map(str, words)]) == 0
    files = {one.name for one in (tmp_path / "out").iterdir()}
    made = {f"x_{name}" for name in ("probabilities.b2nd", "uncertainty.nii.gz", "disagreement.nii.gz")}
    assert made | {"x.nii.gz"} <= files
    (books,) = (tmp_path / "out").glob("*manifest.json")
    settings = json.loads(books.read_text())["settings"]
    assert settings["coarse"] == {"0": read_model_folder(model).sha256("0")}
    assert (settings["probabilities"], settings["uncertainty"], settings["margin_mm"]) == (True, True, 4.0)
    flat = make_model(tmp_path / "flat", dims=2, patch=[8, 8, 1])
    assert main(["predict", str(flat), str(path), str(tmp_path / "views"), "--views", "all", "--quiet"]) == 0
    assert main(["predict", str(model), str(path), str(tmp_path / "no"), "--skip-background", "--quiet"]) == 2


def test_pictures_have_their_maps_beside_them(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"orientation": None, "modality": "picture", "dims": 2, "patch": [8, 8, 1]}
    model = make_model(tmp_path / "model", spacing_mm=None, **changes)
    (tmp_path / "in").mkdir()
    Image.fromarray(np.abs(noise((9, 14, 1))[..., 0]).astype(np.uint8)).save(tmp_path / "in" / "cells.png")
    predict(model, tmp_path / "in", tmp_path / "out", probabilities=True, uncertainty=True)
    with Image.open(tmp_path / "out" / "cells_uncertainty.png") as values:
        assert values.size == (14, 9)
    assert read_probabilities(tmp_path / "out" / "cells_probabilities.b2nd").scores.shape == (6, 14, 9, 1)


def test_no_file_of_a_case_is_that_of_another(tmp_path: Path, model: Path) -> None:
    (tmp_path / "x_uncertainty.nii.gz").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"x_uncertainty\.nii\.gz exists and is not ours"):
        predict(model, image_file(tmp_path / "one"), tmp_path / "x.nii.gz", uncertainty=True)
    assert (tmp_path / "x_uncertainty.nii.gz").read_bytes() == b"mine"
    image_file(tmp_path / "in", "a")
    image_file(tmp_path / "in", "a_uncertainty")
    with pytest.raises(UsageError, match=r"a_uncertainty\.nii\.gz would be written for the cases a and a_uncertainty"):
        predict(model, tmp_path / "in", tmp_path / "out", uncertainty=True)


def test_a_case_that_is_stopped_leaves_no_probabilities(tmp_path: Path) -> None:
    network = build_network("unet", 3, 1, 6, **OPTIONS)
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] = float("nan")
    write_model_folder(tmp_path / "model", network, OPTIONS, plan())
    outcome = predict(tmp_path / "model", image_file(tmp_path / "in"), tmp_path / "out", probabilities=True)
    assert [failure.code for failure in outcome.failures] == ["non-finite"]
    assert not [one for one in (tmp_path / "out").iterdir() if "a" in one.name.split(".")[0].split("_")]
    assert not list((tmp_path / "out").glob(".*.part"))


def test_what_other_processes_are_told_can_be_sent(model: Path) -> None:
    modes = Modes(classes="liver", with_models=several([model]), coarse=model, views="all")
    assert pickle.loads(pickle.dumps(modes)) == modes
    assert pickle.loads(pickle.dumps(Segmented(np.zeros((1, 1, 1)), (), None))).maps == {}


@pytest.mark.gpu
def test_modes_on_a_gpu_are_those_on_the_cpu(tmp_path: Path, model: Path) -> None:
    path = image_file(tmp_path / "in", shape=(24, 20, 12))
    options: dict[str, Any] = {"probabilities": True, "uncertainty": True, "precision": "float32"}
    for device in ("cpu", "cuda:0"):
        predict(model, path, tmp_path / device, device=device, **options)
    scores = [read_probabilities(tmp_path / name / "a_probabilities.b2nd").scores for name in ("cpu", "cuda:0")]
    assert np.abs(scores[0] - scores[1]).max() <= 2 / 255
    maps = [voxels(tmp_path / name / "a_uncertainty.nii.gz") for name in ("cpu", "cuda:0")]
    assert np.abs(maps[0] - maps[1]).max() <= 2 / 255


@pytest.mark.slow
def test_an_amount_of_memory_is_held_with_probabilities(tmp_path: Path) -> None:
    """In a process of its own: 25 classes, uncertainty and a region, and never more than named."""
    labels = [{"value": at, "name": f"organ {at}"} for at in range(25)]
    model = make_model(tmp_path / "model", labels=labels, patch=[48, 48, 48], spacing_mm=[1.3, 1.3, 2.4])
    path = image_file(tmp_path / "in", shape=(200, 180, 120))
    amount = round(1.8 * (idle_bytes() or 10**9))
    options = ["--probabilities", "--uncertainty", "--coarse", model, "--memory", amount, "--engine", "torch"]
    words = [sys.executable, "-m", "voxelwise.scripts.main", "predict", model, path, tmp_path / "out", *options]
    with subprocess.Popen([*map(str, words)]) as child:
        peak = 0
        while child.poll() is None:
            with suppress(psutil.Error):
                peak = max(peak, psutil.Process(child.pid).memory_info().rss)
            time.sleep(0.005)
    assert child.returncode == 0
    assert peak <= amount
    assert (tmp_path / "out" / "a_probabilities.b2nd").is_file()
