"""The blocks that networks share: convolution, norm and activation in two or three dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from ..errors import unknown
from .base import memory_format_of
from .norms import InstanceNorm2d, InstanceNorm3d


class _Pointwise3d(nn.Conv3d):
    """A 1x1x1 convolution that keeps the layout; torch's gives a contiguous result of a channels-last image."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image).contiguous(memory_format=memory_format_of(image))


SLOPE = 0.01  # of LeakyReLU, here and in the initialisation

CONV: dict[int, Callable[..., nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
POINTWISE: dict[int, Callable[..., nn.Module]] = {
    2: partial(nn.Conv2d, kernel_size=1),
    3: partial(_Pointwise3d, kernel_size=1),
}
CONV_TRANSPOSE: dict[int, Callable[..., nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
INSTANCE_NORM: dict[int, Callable[[int], nn.Module]] = {2: InstanceNorm2d, 3: InstanceNorm3d}
BATCH_NORM: dict[int, Callable[..., nn.Module]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MAX_POOL: dict[int, Callable[..., nn.Module]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGE_POOL: dict[int, Callable[..., nn.Module]] = {2: nn.AvgPool2d, 3: nn.AvgPool3d}
LINEAR = {2: "bilinear", 3: "trilinear"}  # modes of interpolation

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
    """A convolution, then norm and activation; a strided 1x1x1 one is of every n-th voxel (see `ResidualBlock`).

    Args:
        spatial_dims: 2 or 3.
        kernel: size along each axis; odd, so that the output of stride 1 has the input's size.
        stride: step along each axis.
        norm: a key of `NORMS`.
        activation: a key of `ACTIVATIONS`, or "none".
        dilation: voxels between the taps of the kernel.
        padding: zeros around the image; by default as many as keep its size.
        bias: by default only where no norm follows.
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
        dilation: int = 1,
        padding: int | None = None,
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        one = (1,) * spatial_dims
        step, pointwise = tuple(stride or one), tuple(kernel) == one
        self.step = step if pointwise else one
        conv: Callable[..., nn.Module] = _Pointwise3d if pointwise and spatial_dims == 3 else CONV[spatial_dims]
        self.conv = conv(
            in_channels,
            out_channels,
            tuple(kernel),
            stride=one if pointwise else step,
            padding=tuple(dilation * (size // 2) if padding is None else padding for size in kernel),
            dilation=dilation,
            bias=norm == "none" if bias is None else bias,
        )
        self.norm = NORMS[norm](spatial_dims, out_channels)
        self.activation = nn.Identity() if activation == "none" else ACTIVATIONS[activation](out_channels)

    def forward(self, image: Tensor) -> Tensor:
        """(N, in_channels, *S) to (N, out_channels, *S / stride)."""
        result: Tensor = self.activation(self.norm(self.conv(subsample(image, self.step))))
        return result


def conv_stage(
    spatial_dims: int,
    in_channels: int,
    widths: Sequence[int],
    *,
    norm: str,
    activation: str,
    kernel: Sequence[int] | None = None,
    bias: bool | None = None,
) -> nn.Sequential:
    """A level of a network: one `ConvNormAct` behind the other, of these widths and by default of side 3."""
    return nn.Sequential(
        *(
            ConvNormAct(
                spatial_dims,
                before,
                width,
                kernel=kernel or (3,) * spatial_dims,
                norm=norm,
                activation=activation,
                bias=bias,
            )
            for before, width in pairwise((in_channels, *widths))
        )
    )


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
        total = self.second(self.first(image)).add_(self.shortcut(subsample(image, self.step)))
        result: Tensor = self.activation(total)
        return result


def subsample(image: Tensor, step: Sequence[int]) -> Tensor:
    """Every n-th voxel along each axis, memory format kept: what a strided 1x1x1 convolution looks at."""
    if all(side == 1 for side in step):
        return image
    every: tuple[Any, ...] = (..., *(slice(None, None, side) for side in step))
    coarse = image[every]
    return coarse.contiguous(memory_format=memory_format_of(image))


class Upsample(nn.Module):
    """Interpolation to `scale` times the size, nearest or linear; voxel centres are kept (align_corners=False)."""

    def __init__(self, scale: int, mode: str = "nearest") -> None:
        super().__init__()
        self.scale = scale
        self.mode = mode

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, *S) to (N, C, *S * scale)."""
        scale, layout = float(self.scale), memory_format_of(image)
        if self.mode == "nearest":
            larger = functional.interpolate(image, scale_factor=scale)
        else:
            larger = functional.interpolate(image, scale_factor=scale, mode=LINEAR[image.ndim - 2], align_corners=False)
        return larger.contiguous(memory_format=layout)  # torch loses the layout in 3D


class UpConv(nn.Sequential):
    """Nearest-neighbour interpolation to twice the size, then a convolution of side 3 with norm and activation."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        norm: str = "batch",
        activation: str = "relu",
        bias: bool | None = None,
    ) -> None:
        super().__init__(
            Upsample(2),
            ConvNormAct(
                spatial_dims,
                in_channels,
                out_channels,
                kernel=(3,) * spatial_dims,
                norm=norm,
                activation=activation,
                bias=bias,
            ),
        )


class PointwiseHeads(nn.Module):
    """Several 1x1x1 convolutions, each on its own part of the channels; their results are summed or averaged.

    Args:
        spatial_dims: 2 or 3.
        parts: channels of each part, in order, under the name of its convolution.
        out_channels: classes.
        average: the mean instead of the sum.
    """

    def __init__(self, spatial_dims: int, parts: Mapping[str, int], out_channels: int, *, average: bool) -> None:
        super().__init__()
        self.parts = list(parts.values())
        self.average = average
        self.convs = nn.ModuleDict(
            {name: CONV[spatial_dims](channels, out_channels, 1) for name, channels in parts.items()}
        )

    def each(self, features: Tensor) -> list[Tensor]:
        """Logits of each part."""
        parts = features.split(self.parts, dim=1)
        return [conv(part) for conv, part in zip(self.convs.values(), parts, strict=True)]

    def forward(self, features: Tensor) -> Tensor:
        """(N, sum of the parts, *S) to (N, K, *S)."""
        first, *others = self.each(features)
        for logits in others:
            first = first + logits
        return first / len(self.parts) if self.average else first


def choose(what: str, name: str, choices: Iterable[str]) -> None:
    """Refuse a name that is not among the choices, or no name at all (options come from YAML).

    Raises:
        UsageError: with the nearest choice.
    """
    if not isinstance(name, str) or name not in choices:
        raise unknown(what, str(name), choices)


def initialise(module: nn.Module) -> None:
    """He's normal initialisation of convolutions, biases zero; for `Module.apply`."""
    if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        nn.init.kaiming_normal_(module.weight, a=SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
