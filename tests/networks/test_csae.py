"""Counts, tied filters, scales, and what the sparsity does to the units."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from voxelwise.networks.csae import CSAE
from voxelwise.networks.feature_losses import activity_sparsity
from voxelwise.networks.registry import count_parameters


@pytest.mark.parametrize(("dims", "count"), [(2, 382_753), (3, 1_926_853)])
def test_parameters(dims: int, count: int) -> None:
    with torch.device("meta"):
        network = CSAE(dims, 1)
        assert network.encode(torch.empty(1, 1, *(16,) * dims)).shape == (1, 100, *(4,) * dims)
    assert count_parameters(network) == count
    assert f"{count:,}" in (CSAE.__doc__ or "")


def test_units_come_close_to_the_wanted_activity() -> None:
    """Over samples (lifetime) and over units (population), while the reconstruction gets better."""
    torch.manual_seed(0)
    network = CSAE(2, 1, widths=(8,), kernels=(3,), scales=(1,))
    images = 0.3 * torch.rand(4, 1, 12, 12, generator=torch.Generator().manual_seed(1))
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    errors, lifetime, population = [], [], []
    for _ in range(80):
        before, maps, result = network.greedy(images, 0)
        error = (result - before).square().mean()
        table = maps.detach().movedim(1, 0).flatten(1)  # units by samples
        errors.append(float(error.detach()))
        lifetime.append(float((table.mean(1) - 0.05).abs().mean()))
        population.append(float((table.mean(0) - 0.05).abs().mean()))
        optimiser.zero_grad()
        (error + 1e-3 * activity_sparsity(maps)).backward()
        optimiser.step()
    assert errors[-1] < 0.1 * errors[0]
    assert lifetime[-1] < 0.7 * lifetime[0]
    assert population[-1] < 0.3 * population[0]


@torch.no_grad()
def test_decoder_is_tied() -> None:
    network = CSAE(2, 1, widths=(3,), kernels=(3,), scales=(1,)).double()
    one, maps = torch.randn(1, 1, 6, 5).double(), torch.randn(1, 3, 6, 5).double()
    nn.init.zeros_(network.encoder[0].bias)
    torch.testing.assert_close((network.encoder[0](one) * maps).sum(), (one * network.undone(0, maps)).sum())


@torch.no_grad()
def test_scales() -> None:
    network = CSAE(2, 1)
    one = torch.randn(1, 1, 16, 16)
    stack = network.stack(one)
    assert stack.shape == (1, 3, 16, 16)
    assert torch.equal(stack[:, :1], one)
    torch.testing.assert_close(network.stack(torch.ones(1, 1, 8, 8)), torch.ones(1, 3, 8, 8))


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="width and an odd kernel"):
        CSAE(2, 1, kernels=(4, 3, 3))
    with pytest.raises(ValueError, match=r"divisors of 4, got \[1, 3\]"):
        CSAE(2, 1, scales=(1, 3))
