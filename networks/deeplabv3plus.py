"""DeepLab v3+: a dilated ResNet, a pyramid of dilated convolutions, and a refinement by low-level features.

Chen et al., ECCV 2018, arXiv 1802.02611. What segmentation-models-pytorch's `DeepLabV3Plus` computes, layer by layer (a
test compares them): the last stage of the encoder is dilated, so that the output stride is 16; five branches (1x1,
three separable dilated convolutions, the mean of the image) are joined and projected; features of stride 4, reduced to
48 channels, are joined with the result; one separable convolution refines both; 1x1 convolution, and interpolation.

Differs from that class: dilations of 6, 12, 18 by default, as the paper has them at this output stride (it has 12, 24,
36); interpolation keeps voxel centres (align_corners=False), so that logits move with the image; any width. From the
paper: a ResNet instead of Xception, and one refining convolution instead of two.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, cat, nn

from .base import SegmentationNetwork, memory_format_of
from .blocks import Upsample, initialise
from .resnet import ResNet, blocks_of, depth_of

STRIDE = 16
LOW_LEVEL = 48


class DeepLabV3Plus(SegmentationNetwork):
    """DeepLab v3+ with a ResNet encoder; it sees the whole window.

    Parameters (3 channels to 1 class): 26,677,585 (resnet50), 22,437,457 (resnet34), 45,669,713 (resnet101).

    Args:
        width: channels of the encoder's stem; the decoder has four times as many.
        encoder: "resnet18", "resnet34", "resnet50" or "resnet101".
        rates: dilations of the pyramid, three in the paper.
        dropout: share of values zeroed behind the pyramid, in training.

    Shape:
        image: (N, in_channels, X, Y), padded to multiples of 16; two cases or more in training.
        returns: logits (N, out_channels, X, Y).
    """

    trains_on_single = False  # the norm behind the mean of the image

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 64,
        encoder: str = "resnet50",
        rates: Sequence[int] = (6, 12, 18),
        dropout: float = 0.5,
    ) -> None:
        blocks, bottleneck = blocks_of(depth_of(encoder))
        if not rates or min(rates) < 1:
            raise ValueError(f"the pyramid has one dilation or more, each from 1 on; got rates={list(rates)}")
        super().__init__(spatial_dims, in_channels, out_channels, stride=(STRIDE, STRIDE), receptive_field=None)
        self.encoder = ResNet(2, in_channels, blocks, bottleneck=bottleneck, width=width, dilated=True)
        deepest, side = self.encoder.widths[-1], 4 * width
        self.branches = nn.ModuleList([_activated(nn.Conv2d(deepest, side, 1, bias=False))])
        self.branches.extend(_activated(*separable(deepest, side, rate)) for rate in rates)
        self.mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), *_activated(nn.Conv2d(deepest, side, 1, bias=False)))
        self.project = _activated(nn.Conv2d((len(rates) + 2) * side, side, 1, bias=False))
        self.dropout = nn.Dropout(dropout)
        self.smooth = _activated(*separable(side, side, 1))
        self.low_level = _activated(nn.Conv2d(self.encoder.widths[1], LOW_LEVEL, 1, bias=False))
        self.refine = _activated(*separable(LOW_LEVEL + side, side, 1))
        self.up = Upsample(4, "linear")
        self.score = nn.Conv2d(side, out_channels, 1)
        self.apply(initialise)

    def forward_aligned(self, image: Tensor) -> Tensor:
        """Logits of an aligned image."""
        _, low, _, _, deep = self.encoder(image)
        mean = self.mean(deep).expand(-1, -1, *deep.shape[2:]).contiguous(memory_format=memory_format_of(deep))
        pyramid = cat([*(branch(deep) for branch in self.branches), mean], dim=1)
        coarse = self.up(self.smooth(self.dropout(self.project(pyramid))))
        logits: Tensor = self.up(self.score(self.refine(cat((coarse, self.low_level(low)), dim=1))))
        return logits


def separable(channels: int, result: int, dilation: int) -> tuple[nn.Conv2d, nn.Conv2d]:
    """A convolution of side 3 of each channel by itself, and a 1x1 one."""
    alone = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False)
    return alone, nn.Conv2d(channels, result, 1, bias=False)


def _activated(*convs: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(*convs, nn.BatchNorm2d(convs[-1].out_channels), nn.ReLU())
