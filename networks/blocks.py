"""The blocks that networks share: convolution, norm and activation in two or three dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from .base import memory_format_of
from .norms import InstanceNorm2d, InstanceNorm3d

SLOPE = 0.01  # of LeakyReLU, here and in the initialisation

CONV: dict[int, Callable[..., nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSE: dict[int, Callable[..., nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
INSTANCE_NORM: dict[int, Callable[[int], nn.Module]] = {2: InstanceNorm2d, 3: InstanceNorm3d}
BATCH_NORM: dict[int, Callable[..., nn.Module]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}

NORMS: dict[str, Callable[[int, int], nn.Module]] = {
    "instance": lambda dims, width: INSTANCE_NORM[dims](width),
    "batch": lambda dims, width: BATCH_NORM[dims](width),
    "group": lambda dims, width: nn.GroupNorm(math.gcd(8, width), width),
    "none": lambda dims, width: nn.Identity(),
}
LOCAL_NORMS = ("batch", "none")  # in eval mode a voxel's value does not depend on the rest of the window

ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "leaky_relu": lambda width: nn.LeakyReLU(SLOPE, inplace=True),
    "relu": lambda width: nn.ReLU(inplace=True),
    "prelu": lambda width: nn.PReLU(width),
    "elu": lambda width: nn.ELU(inplace=True),
    "silu": lambda width: nn.SiLU(),
    "gelu": lambda width: nn.GELU(),
}


class ConvNormAct(nn.Module):
    """A padded convolution, then norm and activation; it has a bias only where no norm follows.

    Args:
        spatial_dims: 2 or 3.
        kernel: size along each axis; odd, so that the output of stride 1 has the input's size.
        stride: step along each axis.
        norm: a key of `NORMS`.
        activation: a key of `ACTIVATIONS`, or "none".
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
        self.conv = CONV[spatial_dims](
            in_channels,
            out_channels,
            tuple(kernel),
            stride=tuple(stride or (1,) * spatial_dims),
            padding=tuple(size // 2 for size in kernel),
            bias=norm == "none",
        )
        self.norm = NORMS[norm](spatial_dims, out_channels)
        self.activation = nn.Identity() if activation == "none" else ACTIVATIONS[activation](out_channels)

    def forward(self, image: Tensor) -> Tensor:
        """(N, in_channels, *S) to (N, out_channels, *S / stride)."""
        result: Tensor = self.activation(self.norm(self.conv(image)))
        return result


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut, the activation after the sum (He et al., CVPR 2016).

    The shortcut is the input itself, or a 1x1x1 convolution of it where width or size change. Every n-th voxel is
    taken before that convolution and not by its stride: oneDNN (torch 2.15) writes past its memory in the backward
    pass of a strided 2D 1x1 convolution whose channels are last and not a multiple of 16.
    Arguments as those of `ConvNormAct`.
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
        step = tuple(stride or (1,) * spatial_dims)
        self.first = ConvNormAct(
            spatial_dims, in_channels, out_channels, kernel=kernel, stride=step, norm=norm, activation=activation
        )
        self.second = ConvNormAct(spatial_dims, out_channels, out_channels, kernel=kernel, norm=norm, activation="none")
        same = in_channels == out_channels and all(side == 1 for side in step)
        self.step: tuple[int, ...] = step
        self.shortcut = nn.Identity() if same else CONV[spatial_dims](in_channels, out_channels, 1, bias=False)
        self.activation = ACTIVATIONS[activation](out_channels)

    def forward(self, image: Tensor) -> Tensor:
        """(N, in_channels, *S) to (N, out_channels, *S / stride)."""
        total = self.second(self.first(image)).add_(self.shortcut(self._subsampled(image)))
        result: Tensor = self.activation(total)
        return result

    def _subsampled(self, image: Tensor) -> Tensor:
        if all(side == 1 for side in self.step):
            return image
        every: tuple[Any, ...] = (..., *(slice(None, None, side) for side in self.step))
        coarse = image[every]
        return coarse.contiguous(memory_format=memory_format_of(image))


def initialise(module: nn.Module) -> None:
    """He's normal initialisation of convolutions, biases zero; for `Module.apply`."""
    if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        nn.init.kaiming_normal_(module.weight, a=SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
