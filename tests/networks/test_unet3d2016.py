"""Facts of the paper: counts, sizes and reach."""

from __future__ import annotations

import torch
from torch import nn
from voxelwise.networks.registry import count_parameters
from voxelwise.networks.unet3d2016 import UNet3D2016

from .sight import seen


def test_parameters_and_shapes() -> None:
    with torch.device("meta"):
        network = UNet3D2016(3, 3, 3)
        sizes: list[tuple[int, int]] = []
        for stage in (*network.encoder, *reversed(network.decoder)):
            stage.register_forward_hook(lambda module, inputs, result: sizes.append((result.shape[2], result.shape[4])))
        assert network.core(torch.empty(1, 3, 132, 132, 116)).shape == (1, 3, 44, 44, 28)
        assert sizes == [(128, 112), (60, 52), (26, 22), (9, 7), (14, 10), (24, 16), (44, 28)]
        assert network(torch.empty(1, 3, 30, 44, 28)).shape == (1, 3, 30, 44, 28)
    assert count_parameters(network) == 19_075_523
    assert "19,075,523" in (UNet3D2016.__doc__ or "")


def test_parameters_as_printed_by_the_paper() -> None:
    """Without the affine terms of the norms and the bias of the transposed convolutions."""
    with torch.device("meta"):
        network = UNet3D2016(3, 3, 3)
    norms = sum(count_parameters(module) for module in network.modules() if isinstance(module, nn.BatchNorm3d))
    biases = sum(up.bias.numel() for up in network.up)
    assert count_parameters(network) - norms - biases == 19_069_955


def test_channels() -> None:
    network = UNet3D2016(2, 1, 2, width=1)
    assert [[conv.conv.out_channels for conv in stage] for stage in network.encoder] == [
        [1, 2],
        [2, 4],
        [4, 8],
        [8, 16],
    ]
    assert [[conv.conv.out_channels for conv in stage] for stage in network.decoder] == [[2, 2], [4, 4], [8, 8]]
    assert [(up.in_channels, up.out_channels) for up in network.up] == [(4, 4), (8, 8), (16, 16)]


def test_the_bottom_sees_68_voxels() -> None:
    network = UNet3D2016(2, 1, 2, width=1).eval()
    layers = [module for level, stage in enumerate(network.encoder) for module in ([network.pool, stage][level == 0 :])]
    first, last = seen(nn.Sequential(*layers), 1, (132, 92), 0)
    assert set((last - first + 1).tolist()) == {68}


@torch.no_grad()
def test_a_tile_gives_what_the_whole_image_gives() -> None:
    network = UNet3D2016(3, 1, 2, width=1).eval()
    image = torch.randn(1, 1, 100, 92, 92)
    assert network.margin == 44
    whole = network.core(image)
    assert whole.shape[2:] == (12, 4, 4)
    torch.testing.assert_close(network.core(image[:, :, 8:]), whole[:, :, 8:])
