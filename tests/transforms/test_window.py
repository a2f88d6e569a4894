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


def test_zscore_within_the_filled_mask_of_all_channels() -> None:
    """What the mask encloses counts, though it is 0; what lies beyond keeps its value."""
    voxels = torch.zeros(2, 7, 7, 7)
    voxels[0, 1:6, 1:6, 1:6] = torch.arange(125.0).reshape(5, 5, 5) + 3
    voxels[:, 3, 3, 3] = 0
    voxels[1, 2:4, 2:4, 0] = 5
    inside = torch.zeros(7, 7, 7, dtype=torch.bool)
    inside[1:6, 1:6, 1:6] = True
    inside[2:4, 2:4, 0] = True
    done = Normalise(["image"], [{"kind": "zscore_mask"}] * 2)({"image": voxels})["image"].as_tensor()
    for channel, found in zip(voxels, done, strict=True):
        counted = channel[inside]
        wanted = torch.where(inside, (channel - counted.mean()) / counted.std(correction=0), channel)
        torch.testing.assert_close(found, wanted)


def test_the_own_range_and_no_normalisation() -> None:
    image = torch.tensor([-2, 0, 6], dtype=torch.int16)
    torch.testing.assert_close(normalise(image, "rescale_own"), torch.tensor([0.0, 0.25, 1.0]))
    torch.testing.assert_close(normalise(image, "none"), torch.tensor([-2.0, 0, 6]))
    assert not normalise(torch.full((3,), 5.0), "rescale_own").any()
    to_two = normalise(image, "rescale_own", mean=0.5, std=0.5)
    torch.testing.assert_close(to_two, torch.tensor([-1.0, -0.5, 1.0]))


def test_the_range_of_nonzero_voxels() -> None:
    """Zeros lie where the mean of the others does."""
    image = torch.tensor([0, -2, 6, 2, 0, 2], dtype=torch.int16)
    done = normalise(image, "rescale_nonzero", mean=0.5, std=0.5)
    torch.testing.assert_close(done, torch.tensor([0.0, -1.0, 1.0, 0.0, 0.0, 0.0]))
    skewed = normalise(torch.tensor([0.0, 1.0, 1.0, 5.0, 9.0]), "rescale_nonzero")
    torch.testing.assert_close(skewed, torch.tensor([3 / 8, 0.0, 0.0, 0.5, 1.0]))
    assert not normalise(torch.tensor([0.0, 5.0, 5.0]), "rescale_nonzero", mean=0.5, std=0.5).any()
    assert not normalise(torch.zeros(3), "rescale_nonzero").any()


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
