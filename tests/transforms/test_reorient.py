"""Axes in order, the world in place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from voxelwise.transforms.geometry import apply_affine, axis_codes
from voxelwise.transforms.reorient import Orient, reorient


@pytest.mark.parametrize("codes", ["RAS", "LPI", "SLA", "PSR"])
def test_every_voxel_keeps_its_place(codes: str) -> None:
    affine = np.array([[0, -2.0, 0.1, 4], [0.2, 0, 3, -5], [1, 0, 0, 6], [0, 0, 0, 1]])
    places = apply_affine(affine, np.stack(np.meshgrid(*map(np.arange, (3, 4, 5)), indexing="ij"), axis=-1))
    moved, new = reorient(torch.from_numpy(np.moveaxis(places, -1, 0).copy()), affine, codes)
    assert axis_codes(new) == codes
    there = apply_affine(new, np.stack(np.meshgrid(*map(np.arange, moved.shape[1:]), indexing="ij"), axis=-1))
    np.testing.assert_allclose(np.moveaxis(moved.numpy(), 0, -1), there, atol=1e-12)


def test_in_order_already_is_the_same_tensor() -> None:
    image = torch.zeros(1, 2, 3, 4)
    assert reorient(image, np.eye(4), "RAS")[0] is image


def test_step() -> None:
    affine = torch.diag(torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64))
    image = MetaTensor(torch.arange(3.0).reshape(1, 3, 1, 1), affine=affine)
    done = Orient(["image"], "RAS")({"image": image})["image"]
    assert done.flatten().tolist() == [2, 1, 0]
    assert done.affine[0].tolist() == [1, 0, 0, -2]
