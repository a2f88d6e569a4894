"""What is put in the place of MONAI's layers gives the same, and keeps the memory format."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from voxelwise.networks.monai_layers import PointwiseDown, in_place_of, keep_layout, take_off

LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
CONV = {2: nn.Conv2d, 3: nn.Conv3d}
INSTANCE_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


def layers(dims: int) -> list[nn.Module]:
    conv, norm = CONV[dims], INSTANCE_NORM[dims]
    several = [conv(4, 6, 1), conv(4, 6, 1, bias=False), conv(4, 6, 1, stride=2), conv(4, 6, 1, stride=2, bias=False)]
    return [*several, norm(4), norm(4, affine=True)]


@pytest.mark.parametrize("dims", [2, 3])
@torch.no_grad()
def test_they_give_the_same_in_the_layout_that_they_get(dims: int) -> None:
    torch.manual_seed(0)
    image = torch.randn(2, 4, *(6, 4, 8)[:dims])
    last = image.contiguous(memory_format=LAST[dims])
    for layer in layers(dims):
        ours = in_place_of(layer)
        torch.testing.assert_close(ours(image), layer(image))
        laid_out = ours(last)
        torch.testing.assert_close(laid_out, layer(image))
        assert laid_out.is_contiguous(memory_format=LAST[dims])


def test_other_layers_stay() -> None:
    for layer in (nn.Conv3d(2, 2, 3), nn.Conv2d(2, 2, 1, stride=2, groups=2), nn.BatchNorm3d(2), nn.ReLU()):
        assert in_place_of(layer) is layer


def test_layers_are_found_at_any_depth() -> None:
    network = nn.Sequential(nn.Sequential(nn.Conv2d(2, 3, 1, stride=2)), nn.ReLU())
    weights = dict(network.state_dict())
    keep_layout(network)
    assert isinstance(network[0][0], PointwiseDown)
    assert {name: one.data_ptr() for name, one in network.state_dict().items()} == {
        name: one.data_ptr() for name, one in weights.items()
    }


def test_a_layer_that_is_taken_off_passes_on_what_it_gets() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1))
    layer = take_off(network, "0")
    image = torch.zeros(1, 1, 2, 2)
    assert isinstance(layer, nn.Conv2d)
    assert network(image) is image
