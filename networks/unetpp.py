"""U-Net++: U-Nets of every depth inside each other, on one encoder.

Zhou et al., DLMIA 2018, arXiv 1807.10165; TMI 2019, arXiv 1912.05074. Node X(i, j) of level i takes the up-sampled
X(i + 1, j - 1) and all nodes X(i, 0) to X(i, j - 1) before it; X(0, j) is the result of the U-Net of depth j.

Differs from the paper: the heads give logits, and it is their logits that are averaged; two or three dimensions; norm
and activation by option.
"""

from __future__ import annotations

from torch import Tensor, cat, nn

from .base import Logits, SegmentationNetwork
from .blocks import (
    ACTIVATIONS,
    CONV_TRANSPOSE,
    LOCAL_NORMS,
    MAX_POOL,
    NORMS,
    PointwiseHeads,
    choose,
    conv_stage,
    initialise,
)
from .receptive_field import Reach

DEPTH = 4


class UNetPP(SegmentationNetwork):
    """Nested U-Net.

    Parameters (1 channel to 1 class, 2D): 9,041,601; 9,041,700 with heads=4.

    Args:
        width: channels of the first level; each level has twice as many as the one above.
        heads: 1, a head on the deepest X(0, depth); or as many as `depth`, one on every X(0, j): a list in training
            mode, deepest first, and the average of their logits in eval mode.
        depth: 1 to 4; less is the pruned network, whose weights are a part of those of the whole one (under the same
            names).
        norm: "none" as published, "batch", "instance" or "group".
        activation: a key of `ACTIVATIONS`.
        dropout: share of values zeroed behind each convolution, in training.

    Shape:
        image: (N, in_channels, *S), padded to multiples of 2 ** depth.
        returns: logits (N, out_channels, *S); in training mode with several heads a list of them, all of this size.
    """

    head: PointwiseHeads

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 32,
        heads: int = 1,
        depth: int = DEPTH,
        norm: str = "none",
        activation: str = "relu",
        dropout: float = 0.5,
    ) -> None:
        choose("norm", norm, NORMS)
        choose("activation", activation, ACTIVATIONS)
        if not 1 <= depth <= DEPTH:
            raise ValueError(f"a U-Net++ has a depth of 1 to {DEPTH}, got {depth=}")
        if heads not in (1, depth):
            raise ValueError(f"a U-Net++ of depth {depth} has 1 or {depth} heads, got {heads=}")
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            stride=(2**depth,) * spatial_dims,
            receptive_field=(_reach(depth),) * spatial_dims if norm in LOCAL_NORMS else None,
        )
        self.at_least_two = norm != "none"
        self.depth = depth
        widths = [width * 2**level for level in range(depth + 1)]

        def node(channels: int, result: int) -> nn.Sequential:
            convs = conv_stage(spatial_dims, channels, (result, result), norm=norm, activation=activation, bias=True)
            return nn.Sequential(*(layer for conv in convs for layer in (conv, nn.Dropout(dropout))))

        self.pool = MAX_POOL[spatial_dims](2)
        self.nodes = nn.ModuleDict()
        self.up = nn.ModuleDict()
        for level, column in self.order():
            name = f"{level}_{column}"
            if column:
                self.up[name] = CONV_TRANSPOSE[spatial_dims](widths[level + 1], widths[level], 2, stride=2)
                self.nodes[name] = node((column + 1) * widths[level], widths[level])
            else:
                self.nodes[name] = node(widths[level - 1] if level else in_channels, widths[level])
        self.headed = range(1, depth + 1) if heads > 1 else [depth]
        parts = {str(column): widths[0] for column in self.headed}
        self.head = PointwiseHeads(spatial_dims, parts, out_channels, average=True)
        self.apply(initialise)

    def order(self) -> list[tuple[int, int]]:
        """(level, column) of all nodes, each behind those that it takes."""
        return [(total - column, column) for total in range(self.depth + 1) for column in range(total + 1)]

    def body(self, image: Tensor) -> Tensor:
        """The headed nodes X(0, j), joined."""
        found: dict[tuple[int, int], Tensor] = {}
        for level, column in self.order():
            name = f"{level}_{column}"
            if column:
                before = [found[level, earlier] for earlier in range(column)]
                given = cat((self.up[name](found[level + 1, column - 1]), *before), dim=1)
            else:
                given = self.pool(found[level - 1, 0]) if level else image
            found[level, column] = self.nodes[name](given)
        finest = [found[0, column] for column in self.headed]
        return cat(finest, dim=1) if len(finest) > 1 else finest[0]

    def forward_aligned(self, image: Tensor) -> Logits:
        """The average of the heads; in training mode each of several, the deepest first."""
        features = self.body(image)
        if self.training and len(self.headed) > 1:
            return self.head.each(features)[::-1]
        return self.head(features)


def _reach(depth: int) -> int:
    """Receptive field of the deepest head along one axis, which sees what the others see."""
    found: dict[tuple[int, int], Reach] = {}
    for total in range(depth + 1):
        for column in range(total + 1):
            level = total - column
            if column:
                seen = found[level + 1, column - 1].up(2)
                for earlier in range(column):
                    seen = seen.join(found[level, earlier])
            else:
                seen = found[level - 1, 0].conv(2, stride=2) if level else Reach.of_input(2**depth)
            found[level, column] = seen.conv(3).conv(3)
    return found[0, depth].size
