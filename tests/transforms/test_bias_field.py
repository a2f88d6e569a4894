"""N4: a known shading is taken out; what has none is left."""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor
from voxelwise.transforms.bias_field import CorrectBiasField, correct_bias_field


def test_shading_is_taken_out() -> None:
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (32, 32, 24)), indexing="ij"))
    radius = (places**2).sum(0)
    noise = np.random.default_rng(0).normal(1, 0.02, radius.shape)
    tissue = np.where(radius < 0.3, 200, np.where(radius < 0.9, 100, 0)) * noise
    shaded = tissue * np.exp(0.2 * places[0])
    corrected = correct_bias_field(shaded, (3, 3, 3))
    assert corrected.dtype == np.float32
    outer = (radius > 0.3) & (radius < 0.9)
    assert shaded[outer].std() / shaded[outer].mean() > 0.09
    assert corrected[outer].std() / corrected[outer].mean() < 0.03
    assert (corrected[radius >= 0.9] == 0).all()


def test_constant_zero_and_thin_images_stay() -> None:
    for image in (np.zeros((8, 8, 8)), np.full((8, 8, 8), 3.0), np.full((8, 8, 1), 3.0)):
        np.testing.assert_array_equal(correct_bias_field(image, (1, 1, 1)), image)


def test_step_keeps_the_affine() -> None:
    affine = torch.diag(torch.tensor([2.0, 2, 2, 1], dtype=torch.float64))
    done = CorrectBiasField(["image"])({"image": MetaTensor(torch.zeros(2, 6, 6, 6), affine=affine)})["image"]
    assert done.shape == (2, 6, 6, 6)
    assert torch.equal(done.affine, affine)
