"""Attention U-Net: a U-Net whose skips are masked by what the decoder has seen.

Oktay et al., MIDL 2018, arXiv 1804.03999, in its two layouts:

    gate    widths       gated skips        signal
    same    64 to 1024   all four           the up-sampled decoder map
    grid    16 to 256    all but the first  the decoder map one level below, the deepest by a 1x1x1 convolution

The output is a 1x1x1 convolution; on the grid it joins the class maps of all levels, each up-sampled.
"same" is the widely used 2D form (and the ablation arm of Ye and Hua 2022), "grid" is Oktay's code. Both have two
convolutions of side 3 with batch norm and ReLU a level, and max-pooling. "same" goes up by nearest-neighbour
interpolation and a convolution, "grid" by linear interpolation.

Differs: any number of channels; 2D and 3D for both gates; norm and activation by option; in the grid form the
interpolations keep voxel centres.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import pairwise

from torch import Tensor, cat, nn

from .attention import AttentionGate, GridGate
from .base import SegmentationNetwork
from .blocks import (
    ACTIVATIONS,
    CONV,
    LOCAL_NORMS,
    MAX_POOL,
    NORMS,
    ConvNormAct,
    UpConv,
    Upsample,
    choose,
    conv_stage,
    initialise,
)
from .receptive_field import Reach

LEVELS = 5


class AttentionUNet(SegmentationNetwork):
    """U-Net with attention gates on its skips.

    Parameters (3 channels to 1 class, 2D): 34,878,573 with gate="same", 2,205,932 with gate="grid".

    Args:
        gate: "same" or "grid".
        width: channels of the first level, by default 64 (same) or 16 (grid); each level has twice as many
            as the one above.
        norm: "batch" as published, "instance", "group" or "none".
        activation: a key of `ACTIVATIONS`; ReLU as published, which the gates keep.

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
        gate: str = "same",
        width: int | None = None,
        norm: str = "batch",
        activation: str = "relu",
    ) -> None:
        choose("gate", gate, DECODERS)
        choose("norm", norm, NORMS)
        choose("activation", activation, ACTIVATIONS)
        decoder = DECODERS[gate]
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            stride=(2 ** (LEVELS - 1),) * spatial_dims,
            receptive_field=(decoder.reach(_encoded()),) * spatial_dims if norm in LOCAL_NORMS else None,
        )
        self.at_least_two = norm != "none"
        widths = [(decoder.WIDTH if width is None else width) * 2**level for level in range(LEVELS)]
        self.encoder = nn.ModuleList(
            conv_stage(spatial_dims, before, (side, side), norm=norm, activation=activation, bias=True)
            for before, side in zip((in_channels, *widths[:-1]), widths, strict=True)
        )
        self.pool = MAX_POOL[spatial_dims](2)
        self.decoder = decoder(spatial_dims, widths, out_channels, norm, activation)
        self.head = CONV[spatial_dims](self.decoder.out_channels, out_channels, 1)
        self.apply(initialise)

    def body(self, image: Tensor) -> Tensor:
        """Features of the finest level, or the class maps of all levels, joined."""
        maps: list[Tensor] = []
        for level, stage in enumerate(self.encoder):
            maps.append(stage(self.pool(maps[-1]) if level else image))
        features: Tensor = self.decoder(maps)
        return features


class SameDecoder(nn.Module):
    """All skips are masked, each by the up-sampled map that it is joined with."""

    WIDTH = 64

    def __init__(self, spatial_dims: int, widths: Sequence[int], out_channels: int, norm: str, activation: str) -> None:
        super().__init__()
        self.out_channels = widths[0]
        self.up = nn.ModuleList(
            UpConv(spatial_dims, coarse, side, norm=norm, activation=activation, bias=True)
            for side, coarse in pairwise(widths)
        )
        self.gates = nn.ModuleList(
            AttentionGate(spatial_dims, side, side, side // 2, norm=norm) for side in widths[:-1]
        )
        self.stages = nn.ModuleList(
            conv_stage(spatial_dims, 2 * side, (side, side), norm=norm, activation=activation, bias=True)
            for side in widths[:-1]
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The maps of the encoder, fine to coarse, to the features of the finest level."""
        *skips, decoded = maps
        for level in reversed(range(len(skips))):
            larger = self.up[level](decoded)
            decoded = self.stages[level](cat((larger, self.gates[level](larger, skips[level])), dim=1))
        return decoded

    @staticmethod
    def reach(maps: Sequence[Reach]) -> int:
        """Receptive field along one axis, of what the encoder's maps see."""
        *skips, seen = maps
        for skip in reversed(skips):
            seen = seen.up(2).conv(3).join(skip).conv(3).conv(3)
        return seen.size


class GridDecoder(nn.Module):
    """All skips but the first are masked, by the map one level below; the class maps of all levels are the result."""

    WIDTH = 16

    def __init__(self, spatial_dims: int, widths: Sequence[int], out_channels: int, norm: str, activation: str) -> None:
        super().__init__()
        self.out_channels = (LEVELS - 1) * out_channels
        deepest, one = widths[-1], (1,) * spatial_dims
        self.signal = ConvNormAct(
            spatial_dims, deepest, deepest, kernel=one, norm=norm, activation=activation, bias=True
        )
        self.up = Upsample(2, "linear")
        self.gates = nn.ModuleList(
            GridGate(spatial_dims, coarse, side, norm=norm) for side, coarse in pairwise(widths[1:])
        )
        self.stages = nn.ModuleList(
            conv_stage(spatial_dims, coarse + side, (side, side), norm=norm, activation=activation, bias=True)
            for side, coarse in pairwise(widths)
        )
        self.scales = nn.ModuleList(CONV[spatial_dims](side, out_channels, 1) for side in widths[:-1])
        larger = (Upsample(2**level, "linear") for level in range(1, LEVELS - 1))
        self.to_image = nn.ModuleList([nn.Identity(), *larger])

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The maps of the encoder, fine to coarse, to the class maps of all levels in the image's size, joined."""
        *skips, decoded = maps
        signal = self.signal(decoded)
        classes: list[Tensor] = []
        for level in reversed(range(len(skips))):
            skip = self.gates[level - 1](signal, skips[level]) if level else skips[level]
            signal = decoded = self.stages[level](cat((self.up(decoded), skip), dim=1))
            classes.insert(0, self.to_image[level](self.scales[level](decoded)))
        return cat(classes, dim=1)

    @staticmethod
    def reach(maps: Sequence[Reach]) -> int:
        """Receptive field along one axis, of what the encoder's maps see."""
        *skips, seen = maps
        classes: list[Reach] = []
        for level in reversed(range(len(skips))):
            skip = skips[level]
            if level:
                skip = skip.join(seen.join(skip.conv(2, stride=2)).linear(2))
            seen = seen.linear(2).join(skip).conv(3).conv(3)
            classes.append(seen.linear(2**level) if level else seen)
        return reduce(Reach.join, classes).size


DECODERS: dict[str, type[SameDecoder] | type[GridDecoder]] = {"same": SameDecoder, "grid": GridDecoder}


def _encoded() -> list[Reach]:
    """What each level of the encoder sees along one axis."""
    seen = Reach.of_input(2 ** (LEVELS - 1))
    maps: list[Reach] = []
    for level in range(LEVELS):
        seen = (seen.conv(2, stride=2) if level else seen).conv(3).conv(3)
        maps.append(seen)
    return maps
