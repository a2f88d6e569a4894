"""Intensity augmentation: each step by its invariant, and the chain by its seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from voxelwise.transforms.augment import (
    Brightness,
    Noise,
    augmentation_steps,
    blur,
    build_augmentation,
    contrast,
    gamma,
    low_resolution,
)

STRENGTH = {
    "rotation_degrees": 15.0, "rotation_probability": 1.0, "scale": 0.2, "scale_probability": 1.0,
    "noise": 0.1, "noise_probability": 1.0, "blur_sigma": 1.0, "blur_probability": 1.0,
    "brightness": 0.2, "brightness_probability": 1.0, "contrast": 0.2, "contrast_probability": 1.0,
    "low_resolution": 0.5, "low_resolution_probability": 1.0, "gamma": 0.3, "gamma_probability": 1.0,
}  # fmt: skip


@pytest.fixture
def image() -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(0).randn(2, 10, 12, 8).astype(np.float32))


def test_blur_keeps_a_constant_and_lowers_the_deviation(image) -> None:
    torch.testing.assert_close(blur(torch.ones(1, 5, 6, 1), 1.0), torch.ones(1, 5, 6, 1))
    assert blur(image, 1.0).std() < 0.5 * image.std()


@pytest.mark.parametrize("invert", [False, True])
def test_gamma_keeps_mean_and_deviation_and_order(image, invert) -> None:
    bent = gamma(image, 1.4, invert)
    torch.testing.assert_close(bent.mean((1, 2, 3)), image.mean((1, 2, 3)), atol=1e-4, rtol=0)
    torch.testing.assert_close(bent.std((1, 2, 3)), image.std((1, 2, 3)), atol=1e-4, rtol=0)
    assert torch.equal(bent[0].flatten().argsort(), image[0].flatten().argsort())


@pytest.mark.parametrize("change", [lambda x: gamma(x, 1.3, False), lambda x: contrast(x, 1.2), lambda x: blur(x, 0.7)])
def test_a_constant_image_stays_finite(change) -> None:
    assert torch.isfinite(change(torch.full((1, 4, 4, 4), 3.0))).all()


def test_contrast_stays_in_range(image) -> None:
    stretched = contrast(image, 1.5)
    assert stretched.max() <= image.max()
    assert stretched.min() >= image.min()


def test_low_resolution_keeps_shape_and_constants() -> None:
    torch.testing.assert_close(low_resolution(torch.full((1, 7, 8, 1), 2.0), 0.5), torch.full((1, 7, 8, 1), 2.0))


def test_noise_has_the_deviation_drawn_and_brightness_the_factor(image) -> None:
    noise = Noise(0.5, 1.0)
    noise.set_random_state(seed=0)
    added = noise({"image": torch.zeros(1, 40, 40, 40)})["image"]
    assert 0 < added.std() <= 0.5
    bright = Brightness(0.2, 1.0)
    bright.set_random_state(seed=0)
    factor = bright({"image": image})["image"] / image
    assert factor.std() < 1e-5
    assert 0.8 <= factor.mean() <= 1.2


def test_the_chain_is_fixed_by_its_seed_alone() -> None:
    """Whatever was drawn before; the stored steps build the same chain."""
    steps = augmentation_steps((8, 8, 8), spacing_mm=[1, 1, 2], mirror_axes=[0], strength=STRENGTH)
    assert [step["name"] for step in steps] == [
        "DrawPatch", "Noise", "Blur", "Brightness", "Contrast", "LowResolution", "Gamma",
    ]  # fmt: skip
    state = np.random.RandomState(1)
    case = {
        "image": state.rand(1, 12, 11, 10).astype(np.float32),
        "labels": state.randint(0, 2, (12, 11, 10)).astype(np.uint8),
        "foreground": {1: np.array([[3, 4, 5]])},
        "force_foreground": True,
    }
    first, second = build_augmentation(steps), build_augmentation(steps)
    second(case)
    results = []
    for chain in (first, second):
        chain.set_random_state(seed=11)
        results.append(chain(case))
    assert torch.equal(results[0]["image"], results[1]["image"])
    assert torch.equal(results[0]["labels"], results[1]["labels"])
    first.set_random_state(seed=12)
    assert not torch.equal(first(case)["image"], results[0]["image"])


def test_steps_without_probability_are_left_out() -> None:
    steps = augmentation_steps((8, 8, 8), spacing_mm=None, mirror_axes=[], strength={"noise": 0.1})
    assert [step["name"] for step in steps] == ["DrawPatch"]
