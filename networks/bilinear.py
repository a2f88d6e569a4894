"""Bilinear up-sampling as a transposed convolution: with a kernel that is fixed (FCN), or that starts so (FCRN).

Long, Shelhamer and Darrell, CVPR 2015, arXiv 1411.4038.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def bilinear_kernel(side: int) -> Tensor:
    """The (side, side) kernel that interpolates linearly by a factor of (side + 1) // 2."""
    factor = (side + 1) // 2
    centre = factor - 1 if side % 2 else factor - 0.5
    line = [1 - abs(place - centre) / factor for place in range(side)]
    return torch.tensor([[one * other for other in line] for one in line])  # arithmetic of tensors is slow on meta


class FixedBilinearUp(nn.Module):
    """A transposed convolution of each channel with the same bilinear kernel, which is not learned.

    Args:
        scale: how many times larger the result is.
        side: of the kernel, by default twice the scale.
        padding: rows taken off at each edge of the result; (side - scale) / 2 makes it exactly `scale` times the size.
    """

    kernel: Tensor

    def __init__(self, scale: int, side: int | None = None, padding: int = 0) -> None:
        super().__init__()
        self.scale = scale
        self.side = 2 * scale if side is None else side
        self.padding = padding
        self.register_buffer("kernel", bilinear_kernel(self.side)[None, None])

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, X, Y) to (N, C, (X - 1) * scale + side - 2 * padding, ...)."""
        channels = int(image.shape[1])
        kernel = self.kernel.expand(channels, 1, self.side, self.side)
        return functional.conv_transpose2d(image, kernel, stride=self.scale, padding=self.padding, groups=channels)


class LearnedBilinearUp(nn.ConvTranspose2d):
    """A transposed convolution of each channel by a kernel of its own, bilinear at the start; exactly `scale` times."""

    def __init__(self, channels: int, scale: int) -> None:
        super().__init__(channels, channels, 2 * scale, stride=scale, padding=scale // 2, groups=channels, bias=False)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Make the kernels bilinear; torch's own place for how a layer starts."""
        self.weight.copy_(bilinear_kernel(self.kernel_size[0]).expand_as(self.weight))
