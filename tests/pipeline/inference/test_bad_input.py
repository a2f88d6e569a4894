"""Input that a model must not take as if it were good: stopped, refused, or noted; and sides of every length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import phantoms
import pytest
import torch
from voxelwise.errors import UnsafeInputError
from voxelwise.networks.registry import build_network
from voxelwise.pipeline.inference.predict import predict
from voxelwise.pipeline.inference.stitch import padding_before
from voxelwise.pipeline.model_folder import load_network, write_model_folder
from voxelwise.scripts.main import explain
from voxelwise.transforms.window import zscore

OPTIONS: dict[str, Any] = {"widths": [4, 8]}
PATCH = (6, 8, 8)


def make_model(folder: Path, **changes: Any) -> Path:
    fields: dict[str, Any] = {
        "dims": 3,
        "channels": ["T1"],
        "modality": "MR",
        "labels": [{"value": 0, "name": "background"}, {"value": 3, "name": "organ"}],
        "spacing_mm": None,
        "orientation": "RAS",
        "crop": "none",
        "bias_field": False,
        "patch": list(PATCH),
        "network": {"name": "unet", "options": OPTIONS},
        "mirror_axes": [],
        "overlap": 0.5,
        "tta": False,
        **changes,
    }
    fields["normalisation"] = [{"kind": "zscore"}] * len(fields["channels"])
    torch.manual_seed(0)
    network = build_network("unet", fields["dims"], len(fields["channels"]), 2, **OPTIONS)
    write_model_folder(folder, network, OPTIONS, fields)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


def test_weights_that_changed_are_refused_with_5(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    weights = model / "fold_0" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    source = phantoms.nifti_file(tmp_path / "a.nii.gz")
    for workers in (1, 2):
        with pytest.raises(UnsafeInputError, match=r"weights\.safetensors") as raised:
            predict(model, source, tmp_path / "out", workers=workers)
        assert explain(raised.value)[0] == 5
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("named", "channels", "code", "message"),
    [
        (["T2", "T1"], ["T1", "T2"], "channels", "names its channels T2, T1, the model takes T1, T2, in this order"),
        (["t1", " T2"], ["T1", "T2"], "", ""),
        (["first", "second"], ["T1", "T2"], "", ""),
        (["CT"], ["MRI"], "modality", "names its channels CT, the model takes MRI; predict it with a model for these"),
        (["MR"], ["MRI"], "", ""),
    ],
)
def test_channels_that_a_data_set_names_are_the_models(
    tmp_path: Path, named: list[str], channels: list[str], code: str, message: str
) -> None:
    """I07: another order or another modality, said by dataset.json."""
    model = make_model(tmp_path / "model", channels=channels, modality="")
    data = phantoms.blob_dataset(tmp_path / "data", cases=2, shape=(8, 8, 8))
    description = json.loads((data / "dataset.json").read_text())
    for name in ("modality", "channel_names"):
        description.pop(name, None)
    description["modality"] = {str(at): name for at, name in enumerate(named)}
    (data / "dataset.json").write_text(json.dumps(description))
    if len(channels) > 1:
        for path in sorted((data / "images").iterdir()):
            image = nib.load(path)
            array = np.asanyarray(image.dataobj)
            phantoms.nifti_file(path, np.stack([array] * len(channels), axis=3), image.affine)
    outcome = predict(model, data, tmp_path / "out")
    if not code:
        assert len(outcome.done) == 2
        return
    assert (outcome.done, outcome.exit_code) == ((), 4)
    assert [one.code for one in outcome.failures] == [code, code]
    assert message in outcome.failures[0].message


def test_a_constant_volume_is_noted(tmp_path: Path, model: Path) -> None:
    phantoms.nifti_file(tmp_path / "in" / "flat.nii.gz", np.full((12, 10, 8), 70, np.int16))
    phantoms.nifti_file(tmp_path / "in" / "good.nii.gz")
    outcome = predict(model, tmp_path / "in", tmp_path / "out")
    assert outcome.done == ("flat", "good")
    assert [(case, [entry.code for entry in told]) for case, told in outcome.notes.items()] == [("flat", ["constant"])]
    assert "every voxel of channel 0 is 70" in outcome.notes["flat"][0].detail
    assert nib.load(tmp_path / "out" / "flat.nii.gz").shape == (12, 10, 8)


@pytest.mark.parametrize("shape", [(2, 3, 4), (6, 8, 8), (5, 8, 3), (2, 2, 8)])
def test_a_volume_smaller_than_the_patch_is_padded_and_cropped_back(
    tmp_path: Path, model: Path, shape: tuple[int, ...]
) -> None:
    """I04: one window, the volume in its middle, zeros (the mean) around it."""
    array = np.random.default_rng(0).integers(0, 400, shape).astype(np.int16)
    source = phantoms.nifti_file(tmp_path / "a.nii.gz", array, np.diag([1.0, 1.0, 1.0, 1.0]))
    predict(model, source, tmp_path / "out.nii.gz")
    inside = tuple(slice(low, low + side) for low, side in zip(padding_before(shape, PATCH), shape, strict=True))
    window = torch.zeros(1, 1, *PATCH)
    window[0, 0][inside] = zscore(torch.from_numpy(array))
    with torch.no_grad():
        expected = load_network(model)(window).argmax(1)[0][inside].numpy() * 3
    np.testing.assert_array_equal(np.asanyarray(nib.load(tmp_path / "out.nii.gz").dataobj), expected)


@pytest.mark.parametrize("side", [2, 5, 7, 8, 9, 11])
def test_sides_of_every_length_give_a_label_map_of_their_own_size(tmp_path: Path, model: Path, side: int) -> None:
    array = np.random.default_rng(side).integers(0, 400, (side, 3, 13)).astype(np.int16)
    source = phantoms.nifti_file(tmp_path / "a.nii.gz", array)
    assert predict(model, source, tmp_path / "out.nii.gz").exit_code == 0
    assert nib.load(tmp_path / "out.nii.gz").shape == (side, 3, 13)
