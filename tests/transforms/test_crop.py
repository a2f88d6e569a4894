"""The nonzero box."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor
from voxelwise.transforms.crop import CropNonzero, nonzero_box


@given(st.lists(st.tuples(*(st.integers(0, 6) for _ in range(3))), min_size=1, max_size=5))
def test_box_holds_every_voxel_and_no_more(voxels: list[tuple[int, int, int]]) -> None:
    image = torch.zeros(2, 7, 7, 7)
    for number, voxel in enumerate(voxels):
        image[(number % 2, *voxel)] = -1
    box = nonzero_box(image)
    assert box is not None
    low, high = np.min(voxels, axis=0), np.max(voxels, axis=0)
    assert [(side.start, side.stop - 1) for side in box] == list(zip(low, high, strict=True))


def test_label_follows_the_image_and_the_world_stays() -> None:
    affine = torch.diag(torch.tensor([2.0, 1, 1, 1], dtype=torch.float64))
    image = torch.zeros(1, 6, 5, 4)
    image[0, 2:4, 1:3, 3] = 9
    label = torch.zeros(1, 6, 5, 4, dtype=torch.uint8)
    label[0, 3, 2, 3] = 1
    sample = {"image": MetaTensor(image, affine=affine), "label": MetaTensor(label, affine=affine)}
    done = CropNonzero(["image", "label"])(sample)
    assert done["image"].shape == done["label"].shape == (1, 2, 2, 1)
    assert done["image"].affine[:3, 3].tolist() == done["label"].affine[:3, 3].tolist() == [4, 1, 3]
    assert int(done["label"][0, 1, 1, 0]) == 1


def test_image_of_zeros_is_kept_whole() -> None:
    sample = {"image": MetaTensor(torch.zeros(1, 3, 4, 5))}
    assert CropNonzero(["image"])(sample)["image"].shape == (1, 3, 4, 5)
