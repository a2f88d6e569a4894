"""Attention gates: a skip is multiplied by a soft mask that a coarser signal drives.

Two of them. `AttentionGate` takes signal and skip of the same size (the widely used 2D form, and the gate of Ye and
Hua 2022, equations 2 to 5); `GridGate` takes the signal one level coarser (Oktay et al., MIDL 2018, arXiv 1804.03999).
"""

from __future__ import annotations

from torch import Tensor, nn

from .blocks import CONV, NORMS, POINTWISE, Upsample


class AttentionGate(nn.Module):
    """alpha = sigmoid(psi(ReLU(Wg(signal) + Wx(skip)))); the skip is multiplied by alpha.

    Wg, Wx and psi are 1x1x1 convolutions, each with its norm.

    Args:
        signal: channels of the gating signal.
        skip: channels of the skip.
        inner: channels in which the two are added.
    """

    def __init__(self, spatial_dims: int, signal: int, skip: int, inner: int, *, norm: str = "batch") -> None:
        super().__init__()
        conv = POINTWISE[spatial_dims]
        self.signal = nn.Sequential(conv(signal, inner), NORMS[norm](spatial_dims, inner))
        self.skip = nn.Sequential(conv(skip, inner), NORMS[norm](spatial_dims, inner))
        self.psi = nn.Sequential(nn.ReLU(), conv(inner, 1), NORMS[norm](spatial_dims, 1), nn.Sigmoid())

    def alpha(self, signal: Tensor, skip: Tensor) -> Tensor:
        """The mask (N, 1, *S), between 0 and 1."""
        mask: Tensor = self.psi(self.signal(signal) + self.skip(skip))
        return mask

    def forward(self, signal: Tensor, skip: Tensor) -> Tensor:
        """The masked skip (N, skip, *S), of a signal of the same size."""
        return skip * self.alpha(signal, skip)


class GridGate(nn.Module):
    """The gate on a grid: the skip is taken to the size of a signal one level coarser, and the mask back.

    theta is a convolution of side and stride 2 without bias and norm, phi and psi are 1x1x1; the masked skip goes
    through a 1x1x1 convolution with norm.

    Args:
        signal: channels of the gating signal.
        skip: channels of the skip, and those in which the two are added.
    """

    def __init__(self, spatial_dims: int, signal: int, skip: int, *, norm: str = "batch") -> None:
        super().__init__()
        conv = POINTWISE[spatial_dims]
        self.theta = CONV[spatial_dims](skip, skip, 2, stride=2, bias=False)
        self.phi = conv(signal, skip)
        self.psi = nn.Sequential(nn.ReLU(), conv(skip, 1), nn.Sigmoid())
        self.up = Upsample(2, "linear")
        self.combine = nn.Sequential(
            conv(skip, skip), NORMS[norm](spatial_dims, skip), conv(skip, skip), NORMS[norm](spatial_dims, skip)
        )
        self.activation = nn.ReLU()

    def alpha(self, signal: Tensor, skip: Tensor) -> Tensor:
        """The mask (N, 1, *S), of the signal's size, between 0 and 1."""
        mask: Tensor = self.psi(self.theta(skip) + self.phi(signal))
        return mask

    def forward(self, signal: Tensor, skip: Tensor) -> Tensor:
        """The masked skip (N, skip, *S), of a signal of half its size."""
        gated: Tensor = self.activation(self.combine(skip * self.up(self.alpha(signal, skip))))
        return gated
