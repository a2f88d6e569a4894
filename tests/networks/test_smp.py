"""Ours compute what segmentation-models-pytorch's classes do, with the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from voxelwise.networks.base import SegmentationNetwork
from voxelwise.networks.deeplabv3plus import DeepLabV3Plus
from voxelwise.networks.resnet34_unet import ResNet34UNet

smp = pytest.importorskip("segmentation_models_pytorch")


def give(ours: SegmentationNetwork, theirs: nn.Module) -> None:
    """The other's weights, in the order in which both are built; encoders agree by name."""
    given = theirs.state_dict()
    renamed: dict[str, Tensor] = {name: given[name] for name in given if name.startswith("encoder.")}
    left = [name for name in ours.state_dict() if not name.startswith("encoder.")]
    for name, value in zip(left, (given[name] for name in given if not name.startswith("encoder.")), strict=True):
        renamed[name] = value
    ours.load_state_dict(renamed)


@torch.no_grad()
def test_resnet34_unet() -> None:
    theirs = smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=2).eval()
    ours = ResNet34UNet(2, 1, 2, depth=18).eval()
    give(ours, theirs)
    image = torch.randn(1, 1, 64, 96)
    torch.testing.assert_close(ours(image), theirs(image), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_deeplabv3plus() -> None:
    theirs = smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=2, decoder_atrous_rates=(6, 12, 18)).eval()
    theirs.decoder.up.align_corners = theirs.segmentation_head[1].align_corners = False
    ours = DeepLabV3Plus(2, 3, 2, encoder="resnet18").eval()
    give(ours, theirs)
    image = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(ours(image), theirs(image), rtol=1e-4, atol=1e-4)
