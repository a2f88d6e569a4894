"""Counts, layers, and units between 0 and 1."""

from __future__ import annotations

import pytest
import torch
from voxelwise.networks.registry import count_parameters
from voxelwise.networks.ssae import SSAE


def test_parameters() -> None:
    with torch.device("meta"):
        network = SSAE(3, 2)
    assert count_parameters(network) == 4_984_362
    assert "4,984,362" in (SSAE.__doc__ or "")
    sizes = [2 * 11**3, 800, 400, 100]
    assert [layer.in_features for layer in network.encoder] == sizes[:-1]
    assert [layer.out_features for layer in network.decoder] == sizes[-2::-1]


@torch.no_grad()
def test_units_are_shares_and_intensities_are_not() -> None:
    torch.manual_seed(0)
    network = SSAE(2, 1, patch=4, widths=(8, 6, 3))
    patches = 100 * torch.randn(5, 1, 4, 4)
    for units in network.activations(patches):
        assert 0 <= units.min() < units.max() <= 1
    network.decoder[-1].bias.fill_(-7)
    assert network(patches).reconstruction.min() < -5


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="at least one layer"):
        SSAE(3, 1, widths=())
