"""Models whose outputs are regions that may overlap: labels, probabilities and the rest are those of the definition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from torch import Tensor
from voxelwise.errors import UsageError
from voxelwise.networks.registry import build_network
from voxelwise.pipeline.inference import engines
from voxelwise.pipeline.inference.frames import FrameSegmenter
from voxelwise.pipeline.inference.in_memory import predict_volume
from voxelwise.pipeline.inference.inferer import StreamingInferer
from voxelwise.pipeline.inference.loading import load_predictor
from voxelwise.pipeline.inference.modes import Modes
from voxelwise.pipeline.inference.predict import predict
from voxelwise.pipeline.inference.skipping import SkippingScorer
from voxelwise.pipeline.inference.stitch import segment
from voxelwise.pipeline.inference.uncertainty import UncertaintyMaps
from voxelwise.pipeline.model_folder import read_model_folder, write_model_folder
from voxelwise.transforms.probabilities import read_probabilities

AFFINE = np.array([[-0.7, 0, 0, 15.0], [0, -0.9, 0, 12.0], [0, 0, 2.5, -14.0], [0, 0, 0, 1]])
SHAPE = (14, 12, 8)
NAMES = ("background", "oedema", "necrosis", "enhancing")
LABELS = [{"value": value, "name": name} for value, name in zip((0, 2, 1, 4), NAMES, strict=True)]
REGIONS = [
    {"name": "whole tumour", "values": [2, 1, 4], "writes": 2},
    {"name": "core", "values": [1, 4], "writes": 1},
    {"name": "enhancing core", "values": [4], "writes": 4},
]
WRITES = np.array([0, 2, 1, 4])


def plan(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "dims": 3,
        "channels": ["image"],
        "modality": "MR",
        "labels": LABELS,
        "regions": REGIONS,
        "spacing_mm": None,
        "orientation": None,
        "crop": "none",
        "bias_field": False,
        "normalisation": [{"kind": "rescale", "low": 0.0, "high": 1.0}],
        "patch": list(SHAPE),
        "network": {"name": "unet", "options": {"widths": [4, 8]}},
        "mirror_axes": [0],
        "overlap": 0.5,
        "tta": False,
    }
    return {**fields, **changes}


def make_model(folder: Path, *, seed: int = 0, fold: str = "0", **changes: Any) -> Path:
    """An untrained network whose last layer is sharpened and shifted, so that each region is somewhere."""
    fields = plan(**changes)
    options = fields["network"]["options"]
    torch.manual_seed(seed)
    network = build_network("unet", fields["dims"], 1, len(fields["regions"]), **options).eval()
    sides = [side for side in fields["patch"] if side > 1]
    with torch.no_grad():
        assert network.head is not None
        middle = network(torch.rand(1, 1, *sides))[0].flatten(1).median(1).values
        weight, bias = network.head.parameters()
        bias.sub_(middle)
        weight.mul_(6)
        bias.mul_(6)
    write_model_folder(folder, network, options, fields, fold=fold)
    return folder


@pytest.fixture(autouse=True)
def with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared with logits of torch is computed by it."""
    monkeypatch.setattr(engines, "_suits", lambda *_: False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(3).random(SHAPE).astype(np.float32)


def image_file(folder: Path, image: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(image, AFFINE), folder / "a.nii.gz")
    return folder / "a.nii.gz"


def voxels(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


def logits_of(model: Path, image: np.ndarray, *, fold: str = "0", **options: Any) -> Tensor:
    """Of the whole image at once."""
    network = load_predictor(model, fold=fold, **options).networks[0]
    with torch.inference_mode():
        return network(torch.from_numpy(image)[None, None])[0]


def definition(logits: Tensor | np.ndarray) -> np.ndarray:
    """Regions in order, each of which writes its value."""
    labels = np.zeros(np.shape(logits)[1:], int)
    for region, logit in zip(REGIONS, np.asarray(logits), strict=True):
        labels[logit > 0] = region["writes"]
    return labels


def test_regions_write_one_over_the_other(model: Path, image: np.ndarray, tmp_path: Path) -> None:
    wanted = definition(logits_of(model, image))
    assert set(np.unique(wanted)) == {0, 1, 2, 4}
    found = predict_volume(model, (image, AFFINE))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, wanted)
    predict(model, image_file(tmp_path / "in", image), tmp_path / "out")
    np.testing.assert_array_equal(voxels(tmp_path / "out" / "a.nii.gz"), wanted)
    predictor = load_predictor(model)
    assert predictor.classes == {0: "background", 2: "oedema", 1: "necrosis", 4: "enhancing"}
    networks = list(predictor.networks)
    numbers = segment(networks, torch.from_numpy(image)[None], patch=(8, 12, 8), regions=True).numpy()
    assert WRITES[numbers].shape == wanted.shape


@pytest.mark.parametrize("memory", [None, "8GB"])
def test_everything_goes_together_on_another_grid(model: Path, tmp_path: Path, memory: str | None) -> None:
    """Resampled, in windows and parts: label, probabilities and uncertainty say the same."""
    folder = make_model(tmp_path / "model", spacing_mm=[1.1, 1.2, 1.9], orientation="RAS", patch=[8, 8, 8])
    image = np.random.default_rng(0).random((22, 19, 11)).astype(np.float32)
    path = image_file(tmp_path / "in", image)
    predict(folder, path, tmp_path / "out", probabilities=True, uncertainty=True, memory=memory)
    found = read_probabilities(tmp_path / "out" / "a_probabilities.b2nd")
    assert (found.names, found.values, found.regions) == (tuple(one["name"] for one in REGIONS), (2, 1, 4), True)
    labels, likely = voxels(tmp_path / "out" / "a.nii.gz"), found.scores
    clear = (np.abs(likely - 0.5) > 1.5 / 255).all(0)
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(labels[clear], definition(likely - 0.5)[clear])
    uncertain = nib.load(tmp_path / "out" / "a_uncertainty.nii.gz").get_fdata()
    np.testing.assert_allclose(uncertain, _entropy(likely), atol=0.04)
    numbers = json.loads((tmp_path / "out" / "manifest.json").read_text())["cases"]["a"]
    assert numbers["uncertainty"] == pytest.approx(uncertain[labels > 0].mean(), abs=0.01)
    predict(folder, path, tmp_path / "plain")
    np.testing.assert_array_equal(voxels(tmp_path / "plain" / "a.nii.gz"), labels)


def _entropy(likely: np.ndarray) -> np.ndarray:
    """The largest of the binary entropies of the regions, in bits."""
    return np.asarray(_bits(likely).max(0))


def _bits(likely: np.ndarray) -> np.ndarray:
    wide = likely.astype(np.float64).clip(1e-12, 1 - 1e-12)
    return np.asarray(-(wide * np.log2(wide) + (1 - wide) * np.log2(1 - wide)))


@pytest.mark.parametrize(
    ("asked", "values", "names"),
    [
        ("whole tumour", {2, 1, 4}, ["whole tumour", "core", "enhancing core"]),
        ("Core", {1, 4}, ["core", "enhancing core"]),
        (["enhancing"], {4}, ["enhancing core"]),
        ("2,4", {2, 4}, ["whole tumour", "enhancing core"]),
    ],
)
def test_a_region_stands_for_the_label_values_that_it_unites(
    model: Path, image: np.ndarray, asked: Any, values: set[int], names: list[str], tmp_path: Path
) -> None:
    whole = definition(logits_of(model, image))
    predictor = load_predictor(model, modes=Modes(classes=asked, probabilities=True))
    np.testing.assert_array_equal(
        predict_volume(predictor, (image, AFFINE)), np.where(np.isin(whole, list(values)), whole, 0)
    )
    assert set(predictor.classes) == values
    predict(model, image_file(tmp_path / "in", image), tmp_path / "out", classes=asked, probabilities=True)
    found = read_probabilities(tmp_path / "out" / "a_probabilities.b2nd")
    assert list(found.names) == names
    every = logits_of(model, image).sigmoid().numpy()
    wanted = every[[[one["name"] for one in REGIONS].index(name) for name in names]]
    assert np.abs(found.scores - wanted).max() <= 1 / 510 + 1e-4


def test_a_region_that_is_not_there_is_named(model: Path) -> None:
    with pytest.raises(UsageError, match="unknown class 'cor'; did you mean 'core'"):
        load_predictor(model, modes=Modes(classes="cor"))


def test_folds_are_averaged_before_the_decision(tmp_path: Path, image: np.ndarray) -> None:
    folder = make_model(tmp_path / "model")
    make_model(folder, seed=1, fold="1")
    both = [logits_of(folder, image, fold=fold) for fold in ("0", "1")]
    mean = torch.stack(both).mean(0)
    np.testing.assert_array_equal(predict_volume(folder, (image, AFFINE)), definition(mean))
    predict(folder, image_file(tmp_path / "in", image), tmp_path / "out", uncertainty=True)
    found = nib.load(tmp_path / "out" / "a_disagreement.nii.gz").get_fdata()
    likely = torch.stack(both).sigmoid().numpy()
    wanted = (_bits(likely.mean(0)) - _bits(likely).mean(0)).max(0)
    np.testing.assert_allclose(found, wanted, atol=1 / 255)


def test_exact_tiles_and_coarse_regions(tmp_path: Path) -> None:
    network = {"name": "unet", "options": {"widths": [4, 8], "norm": "batch"}}
    folder = make_model(tmp_path / "model", network=network, patch=[16, 16, 16])
    image = np.random.default_rng(5).random((24, 24, 16)).astype(np.float32)
    wanted = definition(logits_of(folder, image))
    np.testing.assert_array_equal(predict_volume(folder, (image, AFFINE), tiling="exact"), wanted)
    found = predict_volume(folder, (image, AFFINE), coarse=folder, margin=2.0)
    assert set(np.unique(found)) <= {0, 1, 2, 4}
    assert (found != 0).any()


def test_what_was_skipped_is_in_no_region() -> None:
    class Ones:
        channels, classes, head, device = 3, 3, None, torch.device("cpu")

        def __call__(self, windows: Tensor) -> Tensor:
            return torch.ones(len(windows), 3, *windows.shape[2:])

    scorer = SkippingScorer(Ones(), [(0.0, 0.0)], regions=True)
    windows = torch.zeros(2, 1, 4, 4, 4)
    windows[1] += 1
    assert scorer.head is not None
    found = scorer.head(scorer(windows))
    assert (found[0] < 0).all()
    assert (found[1] > 0).all()


def test_slices_and_frames(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", dims=2, patch=[16, 16, 1], orientation="RAS", mirror_axes=[])
    frame = np.random.default_rng(2).random((13, 15)).astype(np.float32)
    segmenter = FrameSegmenter(folder)
    np.testing.assert_array_equal(segmenter(frame), predict_volume(folder, (frame[..., None], np.eye(4)))[..., 0])
    volume = np.random.default_rng(2).random((13, 15, 9)).astype(np.float32)
    seen = predict_volume(folder, (volume, AFFINE), views="all")
    assert set(np.unique(seen)) == {0, 1, 2, 4}


def test_the_inferer_numbers_regions(model: Path, image: np.ndarray) -> None:
    network = load_predictor(model).networks[0]
    inferer = StreamingInferer(SHAPE, labels=True, regions=True)
    found = inferer(torch.from_numpy(image)[None, None], network)[0, 0].numpy()
    np.testing.assert_array_equal(WRITES[found], definition(logits_of(model, image)))


def test_a_voxel_is_as_uncertain_as_its_least_certain_region() -> None:
    maps = UncertaintyMaps((1, 1, 3), 2, regions=True)
    scores = torch.tensor([[0.0, 50.0, -50.0], [50.0, 50.0, -2.0]]).reshape(2, 1, 1, 3)
    maps.take((slice(0, 1), slice(0, 1), slice(0, 3)), scores)
    share = float(torch.sigmoid(torch.tensor(2.0)))
    bits = -(share * np.log2(share) + (1 - share) * np.log2(1 - share))
    np.testing.assert_allclose(maps.maps["uncertainty"].ravel() / 255, [1, 0, bits], atol=1 / 255)


def test_a_folder_whose_regions_are_not_its_networks_is_refused(model: Path, tmp_path: Path) -> None:
    network = build_network("unet", 3, 1, 3, widths=[4, 8])
    with pytest.raises(ValueError, match="2 regions for a network of 3 classes"):
        write_model_folder(tmp_path / "m", network, {"widths": [4, 8]}, plan(regions=REGIONS[:2]))
    folder = make_model(tmp_path / "model")
    content = yaml.safe_load((folder / "model.yaml").read_text())
    assert [one.model_dump() for one in read_model_folder(folder).regions] == REGIONS
    for wrong, message in (
        (REGIONS[:2], "the plan has 2 regions, and the network 3 outputs"),
        ([{"name": "core"}], "values"),
        ([*REGIONS[:2], {**REGIONS[2], "writes": 9}], "region enhancing core writes 9, which is no label"),
        ({"core": [1]}, "the plan's regions are no list"),
    ):
        content["plan"]["regions"] = wrong
        (folder / "model.yaml").write_text(yaml.safe_dump(content))
        with pytest.raises(UsageError, match=message):
            read_model_folder(folder)


def test_models_of_other_regions_are_not_averaged(model: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", regions=[*REGIONS[:2], {**REGIONS[2], "writes": 1}])
    with pytest.raises(UsageError, match=r"cannot be averaged with .*regions"):
        load_predictor(model, modes=Modes(with_models=(other,)))
