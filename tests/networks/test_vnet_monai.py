"""With MONAI's weights it gives MONAI's logits, dropout included; counts are pinned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.networks.nets import VNet as MonaiVNet
from torch import Tensor, nn
from voxelwise.errors import UsageError
from voxelwise.networks.registry import count_parameters
from voxelwise.networks.vnet import VNet
from voxelwise.networks.vnet_monai import VNetMonai

from .same_logits import SIZES, check_counts, check_same, give, random_norms

RENAMED = {
    "out_tr.conv2": "head",
    **{f"down_tr{width}.": f"down.{level}." for level, width in enumerate((32, 64, 128, 256))},
    **{f"up_tr{width}.": f"up.{level}." for level, width in enumerate((256, 128, 64, 32))},
}


def test_parameters() -> None:
    check_counts(VNetMonai, {3: 45_597_898, 2: 9_358_730})


def test_thirty_per_cent_fewer_than_the_papers() -> None:
    with torch.device("meta"):
        assert 0.69 < count_parameters(VNetMonai(3, 1, 2)) / count_parameters(VNet(3, 1, 2)) < 0.71


def test_layers_in_three_dimensions_are_monais() -> None:
    """The same path through layers of the same names and sizes."""
    with torch.device("meta"):
        ours, theirs = VNetMonai(3, 2, 3), MonaiVNet(3, **SIZES)
        give(theirs.state_dict(), ours, RENAMED)
        image = torch.empty(1, 2, 32, 16, 16)
        paths = [sizes_along(network, image) for network in (ours, theirs)]
    assert paths[0] == paths[1]


def sizes_along(network: nn.Module, image: Tensor) -> list[tuple[int, ...]]:
    """What each convolution gives, in the order in which they work."""
    sizes: list[tuple[int, ...]] = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d):
            layer.register_forward_hook(lambda *given: sizes.append(tuple(given[2].shape)))
    network(image)
    return sizes


def test_logits_are_monais() -> None:
    torch.manual_seed(0)
    ours, theirs = VNetMonai(2, 2, 3), MonaiVNet(2, **SIZES)
    random_norms(theirs)
    give(theirs.state_dict(), ours, RENAMED)
    check_same(ours, theirs, torch.randn(1, 2, 32, 16))


def test_dropout_stands_where_monai_has_it() -> None:
    with torch.device("meta"):
        ours, flat, theirs = VNetMonai(3, 2, 3), VNetMonai(2, 2, 3), MonaiVNet(3, **SIZES)
    assert dropped(ours) == [(nn.Dropout3d, 0.5)] * 8
    assert dropped(ours) == dropped(theirs)
    assert dropped(flat) == [(nn.Dropout2d, 0.5)] * 8


def dropped(network: nn.Module) -> list[tuple[type, float]]:
    return [(type(layer), layer.p) for layer in network.modules() if isinstance(layer, nn.Dropout2d | nn.Dropout3d)]


@pytest.mark.parametrize(("dims", "channels"), [(2, 3), (3, 5)])
def test_any_number_of_channels(dims: int, channels: int) -> None:
    with torch.device("meta"):
        network = VNetMonai(dims, channels, 2, width=4)
        assert network(torch.empty(1, channels, *(16,) * dims)).shape == (1, 2, *(16,) * dims)


def test_wrong_options() -> None:
    wrong: dict[str, Any] = {"activation": "gelu"}
    with pytest.raises(UsageError, match="unknown activation 'gelu'"):
        VNetMonai(2, 1, 2, **wrong)
