"""What a gate is, and where its gradient goes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from voxelwise.networks.attention import AttentionGate, GridGate


@torch.no_grad()
@pytest.mark.parametrize("dims", [2, 3])
def test_the_mask_is_one_per_voxel_and_between_0_and_1(dims: int) -> None:
    gate, size = AttentionGate(dims, 6, 4, 2).eval(), (8, 6, 4)[:dims]
    signal, skip = torch.randn(2, 6, *size), torch.randn(2, 4, *size)
    alpha = gate.alpha(signal, skip)
    assert alpha.shape == (2, 1, *size)
    assert 0 < alpha.min() < alpha.max() < 1
    torch.testing.assert_close(gate(signal, skip), alpha * skip)


@torch.no_grad()
def test_the_mask_is_that_of_equations_2_to_5() -> None:
    """alpha = sigmoid(psi(ReLU(Wg(g) + Wx(x)))), each W a 1x1 convolution with its norm."""
    gate = AttentionGate(2, 3, 4, 2)
    signal, skip = torch.randn(2, 3, 5, 5), torch.randn(2, 4, 5, 5)
    (w_g, norm_g), (w_x, norm_x), (_, psi, norm_psi, _) = gate.signal, gate.skip, gate.psi
    assert [conv.kernel_size for conv in (w_g, w_x, psi)] == [(1, 1)] * 3
    inner = (norm_g(w_g(signal)) + norm_x(w_x(skip))).relu()
    torch.testing.assert_close(gate.alpha(signal, skip), norm_psi(psi(inner)).sigmoid())


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
@pytest.mark.parametrize("dims", [2, 3])
def test_the_mask_on_the_grid_has_half_the_resolution(dims: int) -> None:
    gate = GridGate(dims, 8, 4).eval()
    signal, skip = torch.randn(1, 8, *(4, 3, 2)[:dims]), torch.randn(1, 4, *(8, 6, 4)[:dims])
    alpha = gate.alpha(signal, skip)
    assert alpha.shape == (1, 1, *(4, 3, 2)[:dims])
    assert 0 < alpha.min() < alpha.max() < 1
    assert gate(signal, skip).shape == skip.shape


@torch.no_grad()
def test_the_grid_takes_the_skip_by_a_strided_convolution_without_bias() -> None:
    gate = GridGate(2, 8, 4)
    assert (gate.theta.kernel_size, gate.theta.stride, gate.theta.bias) == ((2, 2), (2, 2), None)
    assert gate.phi.bias is not None
    assert not any(isinstance(module, nn.BatchNorm2d) for module in gate.psi)
    assert [type(module) for module in gate.combine[1::2]] == [nn.BatchNorm2d] * 2
