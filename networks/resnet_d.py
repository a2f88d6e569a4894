"""The residual block of ResNet-D: its shortcut averages before it projects, so that no voxel is passed over.

He et al., "Bag of Tricks for Image Classification", CVPR 2019, arXiv 1812.01187; the block of nnU-Net's residual
encoders (Isensee et al., MICCAI 2024, arXiv 2404.09556).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any

from torch import Tensor, nn

from .base import memory_format_of
from .blocks import ACTIVATIONS, ConvNormAct


def mean_of_blocks(image: Tensor, step: Sequence[int]) -> Tensor:
    """Mean of each block of `step` voxels, memory format kept: average pooling, whose 3D code in torch loses it.

    On a CPU it is a ninth of torch's time in 3D, where pooling takes nearly as long as a convolution of 32 channels.
    """
    if all(side == 1 for side in step):
        return image
    first, *others = (_every(image, starts, step) for starts in product(*(range(side) for side in step)))
    total = first.clone(memory_format=memory_format_of(image))
    for other in others:
        total = total.add_(other)
    return total.div_(prod(step))


def _every(image: Tensor, starts: Sequence[int], step: Sequence[int]) -> Tensor:
    """Every n-th voxel along each axis from a start on, a view."""
    every: tuple[Any, ...] = (..., *(slice(start, None, side) for start, side in zip(starts, step, strict=True)))
    return image[every]


class ResidualBlockD(nn.Module):
    """Two convolutions and a shortcut, the activation after the sum.

    The shortcut averages over the step, then a 1x1x1 convolution with a norm follows where the width changes.
    Arguments as those of `ConvNormAct`.

    Shape:
        image: (N, in_channels, *S), sides that are multiples of the step.
        returns: (N, out_channels, *S / stride).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        kernel: Sequence[int],
        stride: Sequence[int] | None = None,
        norm: str = "instance",
        activation: str = "leaky_relu",
    ) -> None:
        super().__init__()
        one = (1,) * spatial_dims
        self.step = tuple(stride or one)
        self.first = ConvNormAct(
            spatial_dims, in_channels, out_channels, kernel=kernel, stride=self.step, norm=norm, activation=activation
        )
        self.second = ConvNormAct(spatial_dims, out_channels, out_channels, kernel=kernel, norm=norm, activation="none")
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = ConvNormAct(
                spatial_dims, in_channels, out_channels, kernel=one, norm=norm, activation="none", bias=False
            )
        self.activation = ACTIVATIONS[activation](out_channels)

    def forward(self, image: Tensor) -> Tensor:
        """(N, in_channels, *S) to (N, out_channels, *S / stride)."""
        total = self.second(self.first(image)).add_(self.shortcut(mean_of_blocks(image, self.step)))
        result: Tensor = self.activation(total)
        return result
