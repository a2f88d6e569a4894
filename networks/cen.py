"""Convolutional encoder networks: a convolutional pathway and its mirror, trained on whole volumes.

Brosch, Tang, Yoo, Li, Traboulsee and Tam, IEEE TMI 35 (2016); MICCAI 2015. Convolution, average pooling and a second
convolution, all without padding, then the transposed convolutions and the un-pooling that undo them. `CENS` adds a
shortcut: a transposed convolution from the first feature maps to the output. It may start from convolutional RBMs
(`convert_rbms` in conv_rbm.py).

In the manner of the paper: its sides and widths were not to be had, 9 and 32 are ours; un-pooling repeats voxels; any
number of classes, and logits where the paper has a sigmoid (it belongs to the loss). The initialisation is that of the
authors' library.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from .base import SegmentationNetwork, memory_format_of
from .blocks import AVERAGE_POOL, CONV, CONV_TRANSPOSE, Upsample
from .receptive_field import Reach


class CEN(SegmentationNetwork):
    """Convolutional encoder network of two layers, without a shortcut.

    Parameters (3 channels to 1 class, 3D): 1,586,401.

    Args:
        width: feature maps of both layers.
        kernel: side of all convolutions, odd.

    Shape:
        image: (N, in_channels, *S), padded to even sides of at least 3 * kernel - 1.
        returns: logits (N, out_channels, *S).
    """

    has_shortcut = False

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, *, width: int = 32, kernel: int = 9
    ) -> None:
        if kernel % 2 == 0:
            raise ValueError(f"kernels are odd, so that sizes are kept; got {kernel=}")
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            stride=(2,) * spatial_dims,
            receptive_field=(_reach(kernel, self.has_shortcut),) * spatial_dims,
        )
        self.kernel = kernel
        conv, transposed = CONV[spatial_dims], CONV_TRANSPOSE[spatial_dims]
        self.encoder = nn.ModuleList([conv(in_channels, width, kernel), conv(width, width, kernel)])
        self.pool = AVERAGE_POOL[spatial_dims](2)
        self.unpool = Upsample(2)
        self.decoder = nn.ModuleList([transposed(width, width, kernel), transposed(width, out_channels, kernel)])
        self.shortcut = transposed(width, out_channels, kernel, bias=False) if self.has_shortcut else None
        self.activation = nn.ReLU(inplace=True)
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
                _initialise(layer, shares=self.has_shortcut and layer in (self.decoder[1], self.shortcut))

    def aligned_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Even sides, from what the second convolution needs."""
        least = 3 * self.kernel - 1
        return tuple(max(side, least) for side in super().aligned_size(size))

    def forward_aligned(self, image: Tensor) -> Tensor:
        """Logits of an image whose sides are even."""
        first, second = self.encoder
        maps = self.activation(first(image))
        across = None if self.shortcut is None else self.shortcut(maps)
        layout = memory_format_of(maps)
        maps = self.pool(maps).contiguous(memory_format=layout)  # torch loses the layout in 3D
        deep = self.activation(second(maps))
        logits: Tensor = self.decoder[1](self.unpool(self.activation(self.decoder[0](deep))))
        return logits if across is None else logits + across


class CENS(CEN):
    """CEN-s: the convolutional encoder network with a shortcut from the first feature maps to the output.

    Parameters (3 channels to 1 class, 3D): 1,609,729.

    Arguments and shapes as those of `CEN`.
    """

    has_shortcut = True


def _initialise(layer: nn.Module, *, shares: bool) -> None:
    """Normal weights: half the deviation for fan in and half for fan out; less where two layers share an output."""
    weight = cast(Tensor, layer.weight)
    taps = math.prod(weight.shape[2:])
    inputs, outputs = cast(int, layer.in_channels) * taps, cast(int, layer.out_channels) * taps
    nn.init.normal_(weight, std=0.5 * math.sqrt(2 / inputs) + 0.5 * math.sqrt((1 if shares else 2) / outputs))
    if isinstance(layer.bias, torch.Tensor):
        nn.init.zeros_(layer.bias)


def _reach(kernel: int, shortcut: bool) -> int:
    """Receptive field of the logits along one axis."""
    maps = Reach.of_input(2).conv(kernel, padding=0)
    deep = maps.conv(2, stride=2, padding=0).conv(kernel, padding=0)
    seen = deep.up(1, kernel).up(2).up(1, kernel)
    return (seen.join(maps.up(1, kernel)) if shortcut else seen).size
