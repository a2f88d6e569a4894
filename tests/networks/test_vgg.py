"""Facts of the trunk: maps, reach, and names of torchvision."""

from __future__ import annotations

import torch
from torchvision import models
from voxelwise.networks.registry import count_parameters
from voxelwise.networks.vgg import VGG16, vgg_reach


def test_maps_and_names_of_torchvision() -> None:
    with torch.device("meta"):
        trunk = VGG16(3)
        maps = trunk(torch.empty(1, 3, 64, 96))
        theirs = models.vgg16(weights=None).state_dict()
    assert [tuple(side.shape[1:]) for side in maps] == [
        (64, 32, 48), (128, 16, 24), (256, 8, 12), (512, 4, 6), (512, 2, 3),
    ]  # fmt: skip
    assert [side.shape[1] for side in maps] == trunk.widths
    assert count_parameters(trunk) == 14_714_688
    shapes = {name: value.shape for name, value in trunk.state_dict().items()}
    assert shapes == {name: value.shape for name, value in theirs.items() if name.startswith("features.")}


def test_what_the_poolings_see() -> None:
    assert [seen.size for seen in vgg_reach()] == [6, 16, 44, 100, 212]
