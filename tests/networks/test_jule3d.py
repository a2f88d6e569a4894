"""Counts of the three readings, the paper's width behind the pooling, and codes of length one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from voxelwise.networks.jule3d import JULE3D
from voxelwise.networks.registry import count_parameters


@pytest.mark.parametrize(
    ("options", "count"), [({}, 2_671_710), ({"hidden": 0}, 847_860), ({"pool_after": 3}, 24_001_710)]
)
def test_parameters(options: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        network = JULE3D(3, 1, **options)
        assert network(torch.empty(2, 1, 27, 27, 27)).code.shape == (2, 160)
    assert count_parameters(network) == count
    assert f"{count:,}" in (JULE3D.__doc__ or "")


def test_the_default_pooling_leaves_the_paper_s_width() -> None:
    with torch.device("meta"):
        assert JULE3D(3, 1).convs(torch.empty(1, 1, 27, 27, 27)).shape == (1, 1350)


@torch.no_grad()
def test_codes_have_length_one() -> None:
    network = JULE3D(3, 2, patch=12, kernel=3, width=3, hidden=6, code=4).eval()
    torch.testing.assert_close(network.encode(torch.randn(4, 2, 12, 12, 12)).norm(dim=1), torch.ones(4))


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="convolution 1 to 3, got pool_after=4"):
        JULE3D(3, 1, pool_after=4)
    with pytest.raises(ValueError, match="a patch of side 12 is too small"):
        JULE3D(3, 1, patch=12)


@torch.no_grad()
def test_start() -> None:
    """Normal weights of deviation 0.01, as the authors' code has them."""
    torch.manual_seed(0)
    for layer in JULE3D(2, 1, width=20, hidden=100).modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            assert float(layer.weight.std()) == pytest.approx(0.01, rel=0.1)
            assert not layer.bias.any()


@torch.no_grad()
def test_a_decoder_by_option() -> None:
    network = JULE3D(2, 2, patch=12, kernel=3, width=3, hidden=6, code=4, decoder=True).eval()
    assert network(torch.randn(3, 2, 12, 12)).reconstruction.shape == (3, 2, 12, 12)
