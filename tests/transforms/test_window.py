"""Intensity normalisation: windows, z-scores, constants, the chain step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from voxelwise.transforms.window import Normalise, normalise, rescale, window, zscore


def test_window_clips_and_scales() -> None:
    image = torch.tensor([-2000, -100, 0, 100, 3000], dtype=torch.int16)
    torch.testing.assert_close(window(image, -100, 100, mean=0, std=50), torch.tensor([-2.0, -2, 0, 2, 2]))
    torch.testing.assert_close(rescale(image, -100, 100), torch.tensor([0, 0, 0.5, 1, 1]))


def test_window_needs_low_below_high() -> None:
    with pytest.raises(ValueError, match="low < high, got low=5, high=5"):
        window(torch.zeros(3), 5, 5)


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(1e-3, 1e6), shift=st.floats(-1e3, 1e3), seed=st.integers(0, 100))
def test_zscore_forgets_scale_and_shift(scale: float, shift: float, seed: int) -> None:
    """Six orders of magnitude between files must not matter."""
    image = torch.from_numpy(np.random.default_rng(seed).normal(100, 30, (6, 5, 4))).float()
    done = zscore(image * scale + shift * scale)
    assert abs(float(done.mean())) < 1e-3
    assert float(done.std(correction=0)) == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(done, zscore(image), atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize("value", [0.0, 7.0, 1.7e6, -3e-5])
@pytest.mark.parametrize("nonzero", [False, True])
def test_constant_image_becomes_zero(value: float, nonzero: bool) -> None:
    assert (zscore(torch.full((4, 4, 4), value), nonzero=nonzero) == 0).all()


def test_zscore_of_nonzero_voxels_leaves_the_outside() -> None:
    image = torch.zeros(6, 6, 6)
    image[2:4, 2:4, 2:4] = torch.arange(8.0).reshape(2, 2, 2) + 1
    done = zscore(image, nonzero=True)
    assert (done[0] == 0).all()
    assert abs(float(done[2:4, 2:4, 2:4].mean())) < 1e-6


def test_source_is_not_changed() -> None:
    image = torch.arange(27.0).reshape(3, 3, 3)
    before = image.clone()
    zscore(image)
    window(image, 0, 5)
    assert torch.equal(image, before)


def test_normalise_step_keeps_affine_and_treats_channels_apart() -> None:
    affine = torch.diag(torch.tensor([2.0, 3, 4, 1], dtype=torch.float64))
    sample = {"image": MetaTensor(torch.arange(16).reshape(2, 2, 2, 2).to(torch.int16), affine=affine), "label": 1}
    done = Normalise(["image"], [{"kind": "rescale", "low": 0, "high": 7}, {"kind": "zscore"}])(sample)
    assert torch.equal(done["image"].affine, affine)
    assert done["image"].dtype == torch.float32
    assert float(done["image"][0].max()) == 1
    assert done["label"] == 1
    with pytest.raises(ValueError, match="2 channels, 1 normalisations"):
        Normalise(["image"], [{"kind": "zscore"}])(sample)


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="unknown normalisation 'nyul'"):
        normalise(torch.zeros(2), "nyul", 0, 1)
    with pytest.raises(ValueError, match="window needs low and high"):
        normalise(torch.zeros(2), "window")
