"""Facts of the convolutional encoder networks: counts, sizes, adjoint layers, and the shortcut."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from voxelwise.networks.cen import CEN, CENS
from voxelwise.networks.registry import count_parameters


@pytest.mark.parametrize(("build", "count"), [(CEN, 1_586_401), (CENS, 1_609_729)])
def test_parameters_and_shape(build: type[CEN], count: int) -> None:
    with torch.device("meta"):
        network = build(3, 3, 1)
        assert network.forward_aligned(torch.empty(1, 3, 40, 40, 40)).shape == (1, 1, 40, 40, 40)
    assert count_parameters(network) == count
    assert f"{count:,}" in (build.__doc__ or "")


def test_sizes_of_the_maps() -> None:
    with torch.device("meta"):
        network = CEN(3, 1, 1)
        maps = network.encoder[0](torch.empty(1, 1, 40, 40, 40))
        deep = network.encoder[1](network.pool(maps))
    assert maps.shape[2:] == (32, 32, 32)
    assert deep.shape[2:] == (8, 8, 8)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_decoder_has_the_shapes_of_the_encoder(dims: int) -> None:
    """So that filters may be shared, or taken from machines; and the shortcut those of the layer that it ends at."""
    with torch.device("meta"):
        network = CENS(dims, 3, 3)
    outer, inner = network.encoder
    assert outer.weight.shape == network.decoder[1].weight.shape == network.shortcut.weight.shape
    assert inner.weight.shape == network.decoder[0].weight.shape
    assert network.shortcut.bias is None


@torch.no_grad()
def test_a_decoder_with_the_encoders_weights_is_its_adjoint() -> None:
    """<conv(v), h> = <v, conv_transpose(h)>."""
    torch.manual_seed(0)
    network = CEN(3, 2, 2, width=3, kernel=3).double()
    conv, transposed = network.encoder[0], network.decoder[1]
    assert conv.weight.shape == transposed.weight.shape
    transposed.weight.copy_(conv.weight)
    for layer in (conv, transposed):
        nn.init.zeros_(layer.bias)
    image, maps = torch.randn(1, 2, 7, 6, 5).double(), torch.randn(1, 3, 5, 4, 3).double()
    torch.testing.assert_close((conv(image) * maps).sum(), (image * transposed(maps)).sum())


@torch.no_grad()
def test_without_its_shortcut_cen_s_is_cen() -> None:
    torch.manual_seed(0)
    with_it, without = CENS(2, 2, 3, width=4, kernel=3), CEN(2, 2, 3, width=4, kernel=3)
    weights = with_it.state_dict()
    assert set(weights) - set(without.state_dict()) == {"shortcut.weight"}
    without.load_state_dict({name: weight for name, weight in weights.items() if name != "shortcut.weight"})
    image = torch.randn(1, 2, 9, 12)
    assert not torch.equal(with_it(image), without(image))
    nn.init.zeros_(with_it.shortcut.weight)
    torch.testing.assert_close(with_it(image), without(image))


def test_start() -> None:
    """0.5 sqrt(2 / fan in) + 0.5 sqrt(2 / fan out), with 1 for 2 where the shortcut shares the output."""
    torch.manual_seed(0)
    network = CENS(2, 2, 2, width=64)
    taps = 81
    for layer, inputs, outputs, share in (
        (network.encoder[0], 2, 64, 2),
        (network.decoder[0], 64, 64, 2),
        (network.decoder[1], 64, 2, 1),
        (network.shortcut, 64, 2, 1),
    ):
        expected = 0.5 * (2 / (inputs * taps)) ** 0.5 + 0.5 * (share / (outputs * taps)) ** 0.5
        assert float(layer.weight.detach().std()) == pytest.approx(expected, rel=0.03)


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="kernels are odd"):
        CEN(3, 1, 1, kernel=8)
