"""SegResNet as MONAI holds it, behind our contract: a wide residual encoder and a thin decoder that adds its skips.

Myronenko, BrainLes 2018, arXiv 1810.11654. The layers are MONAI's (monai_layers.py says what becomes of them).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .base import SegmentationNetwork
from .blocks import LOCAL_NORMS, Upsample, choose
from .monai_layers import ACTIVATIONS, NORMS, check_groups, keep_layout
from .receptive_field import Reach


class SegResNet(SegmentationNetwork):
    """SegResNet: a residual encoder, wide, and a thin decoder that adds its skips (Myronenko, arXiv 1810.11654).

    `monai.networks.nets.SegResNet`, without the auto-encoder branch. The width is the paper's 32, MONAI's default is 8.

    Parameters (1 channel to 2 classes): 18,796,002 in 3D, 6,298,530 in 2D.

    Args:
        width: channels at the image's resolution; each level has twice as many. Group norm wants a multiple of 8.
        blocks: residual blocks per level of the encoder; each level of the decoder has one.
        norm: "group" (of 8 groups), "instance" or "batch".
        activation: "relu", "leaky_relu", "elu" or "prelu".
        dropout: share of channels dropped behind the first convolution (0.2 in the paper).

    Shape:
        image: (N, in_channels, *S), padded to multiples of 8 with four levels.
        returns: logits (N, out_channels, *S).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 32,
        blocks: Sequence[int] = (1, 2, 2, 4),
        norm: str = "group",
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        from monai.networks.nets import segresnet

        choose("norm", norm, NORMS)
        choose("activation", activation, ACTIVATIONS)
        if len(blocks) < 2 or min(blocks) < 1:
            raise ValueError(f"SegResNet has two levels or more of at least one block each, got blocks={list(blocks)}")
        if norm == "group":
            check_groups("width", [width])
        depth = len(blocks) - 1
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            stride=(2**depth,) * spatial_dims,
            receptive_field=(self._reach(blocks),) * spatial_dims if norm in LOCAL_NORMS else None,
        )
        self.at_least_two = True
        net = segresnet.SegResNet(
            spatial_dims,
            width,
            in_channels,
            out_channels,
            dropout_prob=dropout or None,
            act=ACTIVATIONS[activation],
            norm=NORMS[norm],
            blocks_down=tuple(blocks),
            blocks_up=(1,) * depth,
        )
        keep_layout(net)
        self.net = net
        for up in net.up_samples:
            up[1] = Upsample(2, "linear")
        *before, head = net.conv_final
        net.conv_final = nn.Sequential(*before)
        if activation != "prelu":  # no weights of its own: MONAI keeps one for all
            net.act_mod = nn.Identity()
        self.head = head

    def body(self, image: Tensor) -> Tensor:
        """What goes into the last 1x1x1 convolution."""
        result: Tensor = self.net(image)
        return result

    @staticmethod
    def _reach(blocks: Sequence[int]) -> int:
        """Receptive field along one axis."""
        seen = Reach.of_input(2 ** (len(blocks) - 1)).conv(3)
        levels: list[Reach] = []
        for level, count in enumerate(blocks):
            seen = (seen.conv(3, stride=2) if level else seen).convs(3, 2 * count)
            levels.append(seen)
        levels.pop()
        while levels:
            seen = seen.linear(2).join(levels.pop()).convs(3, 2)
        return seen.size
