"""Facts of the paper: counts, sizes, reach, and that tiles agree with the whole image."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from voxelwise.errors import UsageError
from voxelwise.networks.registry import count_parameters
from voxelwise.networks.unet2015 import UNet2015

from .sight import seen


@pytest.mark.parametrize(
    ("classes", "width", "count"), [(2, 64, 31_030_658), (1, 64, 31_030_593), (1, 32, 7_759_521), (1, 35, 9_282_246)]
)
def test_parameters(classes: int, width: int, count: int) -> None:
    with torch.device("meta"):
        assert count_parameters(UNet2015(2, 1, classes, width=width)) == count


def test_shapes_of_the_paper() -> None:
    with torch.device("meta"):
        network = UNet2015(2, 1, 2)
        sizes = []
        for stage in (*network.encoder, *reversed(network.decoder)):
            stage.register_forward_hook(lambda module, inputs, result: sizes.append(result.shape[-1]))
        assert network.core(torch.empty(1, 1, 572, 572)).shape == (1, 2, 388, 388)
        assert sizes == [568, 280, 136, 64, 28, 52, 100, 196, 388]
        assert network(torch.empty(1, 1, 300, 257)).shape == (1, 2, 300, 257)
    assert network.margin == (572 - 388) // 2


def test_the_bottom_sees_140_pixels() -> None:
    network = UNet2015(2, 1, 2, width=1).eval()
    layers = [module for level, stage in enumerate(network.encoder) for module in ([network.pool, stage][level == 0 :])]
    first, last = seen(nn.Sequential(*layers), 1, (572, 188), 0)
    assert set((last - first + 1).tolist()) == {140}


@torch.no_grad()
def test_a_tile_gives_what_the_whole_image_gives() -> None:
    network = UNet2015(2, 1, 2, width=2).eval()
    image = torch.randn(1, 1, 240, 224)
    whole = network.core(image[:, :, 4:, 4:])
    assert whole.shape[2:] == (52, 36)
    tile = network.core(image[:, :, 36:, 20:208])
    assert tile.shape[2:] == (20, 4)
    torch.testing.assert_close(tile, whole[:, :, 32:, 16:20])
    inside = network(image)[:, :, 96:148, 96:132]  # what no mirrored pixel reaches
    torch.testing.assert_close(inside, whole)


@torch.no_grad()
def test_what_is_outside_is_the_mirrored_image() -> None:
    network = UNet2015(2, 1, 2, width=2).eval()
    image = torch.randn(1, 1, 112, 128)
    mirrored = nn.functional.pad(image, (92, 92 + 4, 92, 92 + 4), mode="reflect")
    torch.testing.assert_close(network(image), network.core(mirrored)[:, :, :112, :128])
    assert network(image[:, :, :1, :2]).shape == (1, 2, 1, 2)  # mirrored again and again


def test_dropout_stands_at_the_end_of_the_way_down() -> None:
    """Behind the last two levels, the deeper skip included; nowhere else."""
    network = UNet2015(2, 1, 1, width=1)
    dropped: list[int] = []
    network.dropout.register_forward_hook(lambda module, inputs, result: dropped.append(result.shape[1]))
    network(torch.zeros(1, 1, 16, 16))
    assert (network.dropout.p, dropped) == (0.5, [8, 16])


def test_there_is_no_norm() -> None:
    kinds = {type(module) for module in UNet2015(2, 1, 2, width=1).modules() if not list(module.children())}
    assert kinds - {nn.Identity} == {nn.Conv2d, nn.ConvTranspose2d, nn.MaxPool2d, nn.ReLU, nn.Dropout}


def test_wrong_options() -> None:
    with pytest.raises(UsageError, match="unknown padding 'vallid'; did you mean 'valid'"):
        UNet2015(2, 1, 2, padding="vallid")
