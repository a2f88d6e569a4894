"""The preprocessing chain: stored as data, equal for train and predict, true in the world."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path

import numpy as np
import phantoms
import pytest
import torch
from monai.data import MetaTensor
from voxelwise.errors import CaseError, UsageError
from voxelwise.transforms.chains import build_chain, preprocessing_steps, run_chain
from voxelwise.transforms.geometry import apply_affine, reorient_to

VALUES = {
    "channels": ["T1"],
    "labels": [{"value": 0, "name": "background"}, {"value": 255, "name": "ball"}],
    "orientation": "RAS",
    "spacing_mm": [1.0, 1.0, 1.0],
    "crop": "none",
    "bias_field": False,
    "normalisation": [{"kind": "zscore"}],
    "batch": 2,
}
ORIENTATIONS = ["".join(codes) for order in permutations(("RL", "AP", "SI")) for codes in product(*order)]


def ball(shape: tuple[int, int, int] = (14, 12, 10)) -> tuple[np.ndarray, np.ndarray]:
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    image = np.random.default_rng(0).normal(100, 5, shape) + places[..., 0] * 10 + places[..., 1]
    return image.astype(np.float32), (((places - [4, 5, 6]) ** 2).sum(-1) < 9).astype(np.uint8) * 255


def in_memory(array: np.ndarray, affine: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(array)), affine=torch.from_numpy(affine))


def test_steps_are_plain_data_and_survive_json() -> None:
    steps = preprocessing_steps(**VALUES)
    assert json.loads(json.dumps(steps)) == steps
    assert [step["name"] for step in steps] == [
        "LoadVolume",
        "CheckImage",
        "ToClasses",
        "Orient",
        "Resample",
        "Normalise",
    ]
    more = preprocessing_steps(**{**VALUES, "crop": "nonzero", "bias_field": True})
    assert [step["name"] for step in more][3:6] == ["CorrectBiasField", "Orient", "CropNonzero"]


def test_splines_come_after_normalisation() -> None:
    steps = preprocessing_steps(**{**VALUES, "resampling": {"kind": "spline", "order": 2, "scores_order": 1}})
    assert [step["name"] for step in steps][3:] == ["Orient", "Normalise", "SplineResample"]
    assert steps[-1]["args"] == {"spacing_mm": [1.0, 1.0, 1.0], "order": 2}
    image, label = ball()
    chain = build_chain(steps, ("image", "label"))
    affine = np.diag([2.0, 1, 1, 1])
    done = run_chain(chain, {"image": in_memory(image[None], affine), "label": in_memory(label[None], affine)}, start=1)
    assert done["image"].shape == done["label"].shape == (1, 28, 12, 10)
    assert done["label"].unique().tolist() == [0, 1]


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_all_orientations_give_the_same_voxels(codes: str) -> None:
    """Image, label and affine turn together: 48 ways to store one case, one result."""
    image, label = ball()
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = [-7, 3, 2]
    chain = build_chain(preprocessing_steps(**VALUES), ("image", "label"))
    expected = run_chain(
        chain, {"image": in_memory(image[None], affine), "label": in_memory(label[None], affine)}, start=1
    )
    (turned, there), (turned_label, _) = (reorient_to(array[None], affine, codes) for array in (image, label))
    done = run_chain(chain, {"image": in_memory(turned, there), "label": in_memory(turned_label, there)}, start=1)
    torch.testing.assert_close(done["image"].as_tensor(), expected["image"].as_tensor())
    assert torch.equal(done["label"].as_tensor(), expected["label"].as_tensor())
    np.testing.assert_allclose(done["image"].affine, affine, atol=1e-12)


def test_file_with_and_without_label_gives_the_same_image(tmp_path: Path) -> None:
    image, label = ball()
    affine = np.array([[0, 0, 2.0, 1], [-1.5, 0, 0, 2], [0, 0.7, 0, 3], [0, 0, 0, 1]])
    files = {
        "image": phantoms.nifti_file(tmp_path / "i.nii.gz", image, affine),
        "label": phantoms.nifti_file(tmp_path / "l.nii.gz", label, affine),
    }
    steps = preprocessing_steps(**VALUES)
    train = run_chain(build_chain(steps, ("image", "label")), files)
    predict = run_chain(build_chain(steps), {"image": files["image"]})
    assert torch.equal(train["image"].as_tensor(), predict["image"].as_tensor())
    assert set(train["label"].unique().tolist()) == {0, 1}
    middle = np.argwhere(train["label"][0].numpy() == 1).mean(0)
    world = apply_affine(affine, np.argwhere(label == 255).mean(0))
    np.testing.assert_allclose(apply_affine(train["label"].affine.numpy(), middle), world, atol=0.5)


def test_grey_pictures_go_with_colour() -> None:
    steps = preprocessing_steps(
        **{
            **VALUES,
            "channels": ["R", "G", "B"],
            "normalisation": [{"kind": "zscore"}] * 3,
            "spacing_mm": None,
            "orientation": None,
        }
    )
    picture = in_memory(np.arange(30, dtype=np.uint8).reshape(1, 6, 5, 1), np.eye(4))
    done = run_chain(build_chain(steps), {"image": picture}, start=1)["image"]
    assert done.shape == (3, 6, 5, 1)
    with pytest.raises(CaseError, match="has 2 channels, expected 3"):
        run_chain(build_chain(steps), {"image": in_memory(np.zeros((2, 6, 5, 1), np.uint8), np.eye(4))}, start=1)


def test_not_finite_is_refused(shared_data: Callable[[str], Path]) -> None:
    chain = build_chain(preprocessing_steps(**VALUES))
    with pytest.raises(CaseError, match="28 voxels are NaN or infinite"):
        run_chain(chain, {"image": shared_data("odd_nifti") / "crafted" / "nan_inf.nii.gz"})


@pytest.mark.parametrize("value", [0.0, 1000.0])
def test_constant_and_tiny_images_are_finite(value: float) -> None:
    chain = build_chain(preprocessing_steps(**{**VALUES, "crop": "nonzero"}))
    done = run_chain(chain, {"image": in_memory(np.full((1, 5, 5, 1), value, np.float32), np.eye(4))}, start=1)
    assert torch.isfinite(done["image"]).all()
    assert done["image"].shape == (1, 5, 5, 1)


def test_unknown_step() -> None:
    with pytest.raises(UsageError, match=r"unknown step of a preprocessing chain 'Resampel'; did you mean 'Resample'"):
        build_chain([{"name": "Resampel", "args": {}}])
