"""R2U-Net: a U-Net of recurrent residual units.

Alom et al., arXiv 1802.06955. A unit projects by a 1x1x1 convolution and runs two recurrent layers, each one
convolution that is applied again and again to its input plus its last result; the projection is added. Max-pooling
down, nearest-neighbour interpolation and a convolution up.

Differs from the paper: any number of channels, two or three dimensions, norm and activation by option.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, cat, nn

from .base import SegmentationNetwork
from .blocks import (
    ACTIVATIONS,
    CONV,
    LOCAL_NORMS,
    MAX_POOL,
    NORMS,
    POINTWISE,
    UpConv,
    choose,
    conv_stage,
    initialise,
)
from .receptive_field import Reach

LEVELS = 5


class R2UNet(SegmentationNetwork):
    """Recurrent residual U-Net.

    Parameters: 39,091,393 (3 channels to 1 class, 2D), 39,091,265 (1 to 1), whatever the steps.

    Args:
        width: channels of the first level; the others have 2, 4, 8 and 16 times as many.
        steps: how often a recurrent layer goes back to its input.
        norm: "batch" as published, "instance", "group" or "none".
        activation: a key of `ACTIVATIONS`; ReLU as published.

    Shape:
        image: (N, in_channels, *S), padded to multiples of 16.
        returns: logits (N, out_channels, *S).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 64,
        steps: int = 2,
        norm: str = "batch",
        activation: str = "relu",
    ) -> None:
        choose("norm", norm, NORMS)
        choose("activation", activation, ACTIVATIONS)
        if steps < 0:
            raise ValueError(f"a recurrent layer goes back 0 times or more, got {steps=}")
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            stride=(2 ** (LEVELS - 1),) * spatial_dims,
            receptive_field=(_reach(steps),) * spatial_dims if norm in LOCAL_NORMS else None,
        )
        self.at_least_two = norm != "none"
        widths = [width * 2**level for level in range(LEVELS)]
        self.pool = MAX_POOL[spatial_dims](2)

        def unit(channels: int, side: int) -> RecurrentResidual:
            return RecurrentResidual(spatial_dims, channels, side, steps, norm, activation)

        self.encoder = nn.ModuleList(
            unit(before, side) for before, side in zip((in_channels, *widths[:-1]), widths, strict=True)
        )
        self.up = nn.ModuleList(
            UpConv(spatial_dims, coarse, side, norm=norm, activation=activation, bias=True)
            for side, coarse in pairwise(widths)
        )
        self.decoder = nn.ModuleList(unit(2 * side, side) for side in widths[:-1])
        self.head = CONV[spatial_dims](width, out_channels, 1)
        self.apply(initialise)

    def body(self, image: Tensor) -> Tensor:
        """Features of the finest level."""
        skips: list[Tensor] = []
        for level, unit in enumerate(self.encoder):
            skips.append(unit(self.pool(skips[-1]) if level else image))
        decoded = skips.pop()
        for up, unit in zip(reversed(self.up), reversed(self.decoder), strict=True):
            decoded = unit(cat((skips.pop(), up(decoded)), dim=1))
        return decoded


class RecurrentResidual(nn.Module):
    """A 1x1x1 projection plus what two recurrent layers make of it."""

    def __init__(
        self, spatial_dims: int, in_channels: int, width: int, steps: int, norm: str, activation: str = "relu"
    ) -> None:
        super().__init__()
        self.steps = steps
        self.project = POINTWISE[spatial_dims](in_channels, width)
        self.layers = conv_stage(spatial_dims, width, (width, width), norm=norm, activation=activation, bias=True)

    def forward(self, image: Tensor) -> Tensor:
        """(N, in_channels, *S) to (N, width, *S)."""
        start: Tensor = self.project(image)
        features = start
        for layer in self.layers:
            result = layer(features)
            for _ in range(self.steps):
                result = layer(features + result)
            features = result
        return start + features


def _reach(steps: int) -> int:
    """Receptive field of the logits along one axis."""
    unit = 2 * (steps + 1)  # convolutions of a unit
    seen = Reach.of_input(2 ** (LEVELS - 1)).convs(3, unit)
    skips: list[Reach] = []
    for _ in range(LEVELS - 1):
        skips.append(seen)
        seen = seen.conv(2, stride=2).convs(3, unit)
    for skip in reversed(skips):
        seen = seen.up(2).conv(3).join(skip).convs(3, unit)
    return seen.size
