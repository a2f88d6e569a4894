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
    initialise,
)
from .receptive_field import Reach

LEVELS = 5
WIDTH = {"same": 64, "grid": 16}


class AttentionUNet(SegmentationNetwork):
    """U-Net with attention gates on its skips.

    Parameters (3 channels to 1 class, 2D): 34,878,573 with gate="same".

    Args:
        gate: "same" or "grid".
        width: channels of the first level, by default 64 (same) or 16 (grid); each level has twice as many
            as the one above.
        norm: "batch" as published, "instance", "group" or "none".
        activation: a key of `ACTIVATIONS`.

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
        choose("gate", gate, WIDTH)
        choose("norm", norm, NORMS)
        choose("activation", activation, ACTIVATIONS)
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            stride=(2 ** (LEVELS - 1),) * spatial_dims,
            receptive_field=(_reach(gate),) * spatial_dims if norm in LOCAL_NORMS else None,
        )
        self.at_least_two = norm != "none"
        widths = [(WIDTH[gate] if width is None else width) * 2**level for level in range(LEVELS)]
        conv = CONV[spatial_dims]

        def layer(channels: int, result: int, side: int = 3) -> ConvNormAct:
            kernel = (side,) * spatial_dims
            return ConvNormAct(
                spatial_dims, channels, result, kernel=kernel, norm=norm, activation=activation, bias=True
            )

        def stage(channels: int, result: int) -> nn.Sequential:
            return nn.Sequential(layer(channels, result), layer(result, result))

        self.encoder = nn.ModuleList(
            stage(widths[level - 1] if level else in_channels, widths[level]) for level in range(LEVELS)
        )
        self.pool = MAX_POOL[spatial_dims](2)
        self.gate = gate
        if gate == "same":
            self.up = nn.ModuleList(
                UpConv(spatial_dims, widths[level + 1], widths[level], norm=norm, activation=activation, bias=True)
                for level in range(LEVELS - 1)
            )
            self.gates = nn.ModuleList(
                AttentionGate(spatial_dims, side, side, side // 2, norm=norm) for side in widths[:-1]
            )
            self.decoder = nn.ModuleList(stage(2 * side, side) for side in widths[:-1])
            self.head = conv(widths[0], out_channels, 1)
        else:
            self.up = nn.ModuleList(Upsample(2, "linear") for _ in range(LEVELS - 1))
            self.signal = layer(widths[-1], widths[-1], side=1)
            self.gates = nn.ModuleList(
                nn.Identity() if level == 0 else GridGate(spatial_dims, widths[level + 1], widths[level], norm=norm)
                for level in range(LEVELS - 1)
            )
            self.decoder = nn.ModuleList(
                stage(widths[level + 1] + widths[level], widths[level]) for level in range(LEVELS - 1)
            )
            self.scales = nn.ModuleList(conv(side, out_channels, 1) for side in widths[:-1])
            self.to_image = nn.ModuleList(
                Upsample(2**level, "linear") if level else nn.Identity() for level in range(LEVELS - 1)
            )
            self.head = conv((LEVELS - 1) * out_channels, out_channels, 1)
        self.apply(initialise)

    def body(self, image: Tensor) -> Tensor:
        """Features of the finest level, or the class maps of all levels, joined."""
        skips: list[Tensor] = []
        for level, stage in enumerate(self.encoder):
            skips.append(stage(self.pool(skips[-1]) if level else image))
        decoded = [skips[-1]]
        for level in reversed(range(LEVELS - 1)):
            decoded.insert(0, self.join(level, decoded[0], skips[level]))
        if self.gate == "same":
            return decoded[0]
        maps = zip(self.to_image, self.scales, decoded[:-1], strict=True)
        return cat([to_image(scale(features)) for to_image, scale, features in maps], dim=1)

    def join(self, level: int, coarse: Tensor, skip: Tensor) -> Tensor:
        """One step of the decoder: the map below, up-sampled and joined with the masked skip."""
        up = self.up[level](coarse)
        if self.gate == "same":
            skip = self.gates[level](up, skip)
        elif level > 0:
            skip = self.gates[level](self.signal(coarse) if level == LEVELS - 2 else coarse, skip)
        result: Tensor = self.decoder[level](cat((up, skip), dim=1))
        return result


def _reach(gate: str) -> int:
    """Receptive field of the logits along one axis."""
    seen = Reach.of_input(2 ** (LEVELS - 1))
    skips: list[Reach] = []
    for level in range(LEVELS):
        seen = (seen.conv(2, stride=2) if level else seen).conv(3).conv(3)
        skips.append(seen)
    skips.pop()
    whole: Reach | None = None
    for level in reversed(range(LEVELS - 1)):
        skip = skips.pop()
        if gate == "same":
            seen = seen.up(2).conv(3).join(skip).conv(3).conv(3)
            continue
        if level > 0:
            skip = skip.join(seen.join(skip.conv(2, stride=2)).linear(2))
        seen = seen.linear(2).join(skip).conv(3).conv(3)
        scaled = seen.linear(2**level) if level else seen
        whole = scaled if whole is None else whole.join(scaled)
    return (seen if whole is None else whole).size
