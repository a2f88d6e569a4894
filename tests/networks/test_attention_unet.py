"""Facts: counts, what a gate is and where its gradient goes, and both layouts."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from voxelwise.errors import UsageError
from voxelwise.networks.attention import AttentionGate, GridGate
from voxelwise.networks.attention_unet import AttentionUNet
from voxelwise.networks.registry import count_parameters


@pytest.mark.parametrize(("channels", "count"), [(3, 34_878_573), (1, 34_877_421)])
def test_parameters_and_shape(channels: int, count: int) -> None:
    with torch.device("meta"):
        network = AttentionUNet(2, channels, 1)
        assert network(torch.empty(2, channels, 256, 256)).shape == (2, 1, 256, 256)
    assert count_parameters(network) == count
    assert count_parameters(network.gates) == 351_532
    assert "34,878,573" in (AttentionUNet.__doc__ or "")


def test_widths_of_both_layouts() -> None:
    with torch.device("meta"):
        for gate, first in (("same", 64), ("grid", 16)):
            network = AttentionUNet(3, 1, 4, gate=gate)
            assert [stage[1].conv.out_channels for stage in network.encoder] == [first * 2**level for level in range(5)]


@torch.no_grad()
def test_the_mask_is_one_per_voxel_and_between_0_and_1() -> None:
    gate = AttentionGate(3, 4, 4, 2).eval()
    signal, skip = torch.randn(2, 4, 8, 6, 4), torch.randn(2, 4, 8, 6, 4)
    alpha = gate.alpha(signal, skip)
    assert alpha.shape == (2, 1, 8, 6, 4)
    assert alpha.min() > 0
    assert alpha.max() < 1
    torch.testing.assert_close(gate(signal, skip), alpha * skip)


@torch.no_grad()
def test_the_mask_on_the_grid_has_half_the_resolution() -> None:
    gate = GridGate(2, 8, 4).eval()
    signal, skip = torch.randn(1, 8, 4, 3), torch.randn(1, 4, 8, 6)
    assert gate.alpha(signal, skip).shape == (1, 1, 4, 3)
    assert gate(signal, skip).shape == skip.shape


@torch.no_grad()
def test_a_mask_of_one_is_the_plain_network() -> None:
    network = AttentionUNet(2, 1, 2, width=4).eval()
    image = torch.randn(1, 1, 32, 32)
    gated = network(image)
    for gate in network.gates:
        nn.init.constant_(gate.psi[2].bias, 1e4)  # sigmoid(10000) is 1
    ungated = network(image)
    network.gates = nn.ModuleList(_Skip() for _ in network.gates)
    assert torch.equal(network(image), ungated)
    assert not torch.equal(gated, ungated)


class _Skip(nn.Module):
    def forward(self, signal: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return skip


def test_gradient_reaches_the_signal_only_through_the_mask() -> None:
    gate = AttentionGate(2, 4, 4, 4)
    signal, skip = torch.randn(2, 4, 8, 8, requires_grad=True), torch.randn(2, 4, 8, 8)
    gate(signal, skip).sum().backward()
    assert signal.grad is not None
    assert signal.grad.abs().max() > 0
    nn.init.zeros_(gate.psi[1].weight)  # psi is deaf: the mask is constant
    signal.grad = None
    gate(signal, skip).sum().backward()
    assert signal.grad.abs().max() == 0


@torch.no_grad()
def test_the_first_skip_on_the_grid_has_no_gate() -> None:
    network = AttentionUNet(2, 1, 2, gate="grid", width=4)
    assert [type(gate) for gate in network.gates] == [nn.Identity, GridGate, GridGate, GridGate]
    assert network.head.in_channels == 4 * 2


def test_wrong_options() -> None:
    with pytest.raises(UsageError, match="unknown gate 'gird'; did you mean 'grid'"):
        AttentionUNet(2, 1, 2, gate="gird")
