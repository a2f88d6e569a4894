"""FCRN: a residual trunk with scores at three strides, and its two baselines on VGG-16 and GoogLeNet.

Yu, Chen, Dou, Qin and Heng, IEEE TMI 36 (2017) 994-1004, for melanoma. Scores of strides 32, 16 and 8, each a 1x1
convolution, are fused as in FCN-8s by transposed convolutions of single channels, which start bilinear and are learned.
In the trunk the step of a block stands in its first 1x1 convolution.

Not printed, and ours: the twelve blocks of FCRN-38 are 3, 3, 3, 3 (`blocks`); the baselines have the same three heads,
on the third, fourth and fifth pooling (VGG-16) or on the maps 3b, 4e and 5b (GoogLeNet, with batch norm as torchvision
keeps it). Differs: the stem's pooling is padded as torchvision's.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .base import SegmentationNetwork
from .bilinear import LearnedBilinearUp
from .blocks import initialise
from .googlenet import GoogLeNet, googlenet_reach
from .receptive_field import Reach
from .resnet import ResNet, resnet_reach
from .vgg import VGG16, vgg_reach

STRIDE = 32


class FusedScores(SegmentationNetwork):
    """Scores on the last three maps of a trunk, fused from coarse to fine.

    Args:
        trunk: gives maps, of which the last three are at strides 8, 16 and 32.
        widths: channels of these three.
        maps: what these three see along one axis.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        trunk: nn.Module,
        widths: Sequence[int],
        maps: Sequence[Reach],
    ) -> None:
        fine, middle, coarse = maps
        fused = coarse.linear(2).join(middle).linear(2).join(fine).linear(8)
        super().__init__(
            spatial_dims, in_channels, out_channels, stride=(STRIDE, STRIDE), receptive_field=(fused.size,) * 2
        )
        self.at_least_two = True
        self.trunk = trunk
        self.scores = nn.ModuleList(nn.Conv2d(width, out_channels, 1) for width in widths)
        self.ups = nn.ModuleList(LearnedBilinearUp(out_channels, scale) for scale in (8, 2, 2))
        for part in (self.trunk, self.scores):  # the rest starts bilinear
            part.apply(initialise)

    def forward_aligned(self, image: Tensor) -> Tensor:
        """Logits of an aligned image."""
        fine, middle, coarse = self.trunk(image)[-3:]
        fused = self.ups[2](self.scores[2](coarse)) + self.scores[1](middle)
        fused = self.ups[1](fused) + self.scores[0](fine)
        logits: Tensor = self.ups[0](fused)
        return logits


class FCRN(FusedScores):
    """Fully convolutional residual network; `BLOCKS` are those of the four stages.

    Args:
        width: channels of the stem; 64 in the paper.
        blocks: bottlenecks of each of the four stages, three convolutions each.

    Shape:
        image: (N, in_channels, X, Y), padded to multiples of 32.
        returns: logits (N, out_channels, X, Y).
    """

    BLOCKS: tuple[int, ...] = (3, 4, 6, 3)

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 64,
        blocks: Sequence[int] | None = None,
    ) -> None:
        depths = self.BLOCKS if blocks is None else tuple(blocks)
        if len(depths) != 4 or min(depths) < 1:
            raise ValueError(f"the trunk has four stages of one block or more, got {blocks=}")
        trunk = ResNet(2, in_channels, depths, bottleneck=True, width=width, step_first=True)
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            trunk=trunk,
            widths=trunk.widths[-3:],
            maps=resnet_reach(depths, bottleneck=True, step_first=True)[-3:],
        )


class FCRN38(FCRN):
    """FCRN of 38 layers. Parameters (3 channels to 2 classes): 19,884,166. Arguments as those of `FCRN`."""

    BLOCKS = (3, 3, 3, 3)


class FCRN50(FCRN):
    """FCRN of 50 layers. Parameters (3 channels to 2 classes): 23,515,782. Arguments as those of `FCRN`."""

    BLOCKS = (3, 4, 6, 3)


class FCRN101(FCRN):
    """FCRN of 101 layers. Parameters (3 channels to 2 classes): 42,507,910. Arguments as those of `FCRN`."""

    BLOCKS = (3, 4, 23, 3)


class FCNVGG16(FusedScores):
    """The baseline on the convolutions of VGG-16. Parameters (3 channels to 2 classes): 14,717,830.

    Args:
        width: channels of the first stage.

    Shape:
        image: (N, in_channels, X, Y), padded to multiples of 32.
        returns: logits (N, out_channels, X, Y).
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, *, width: int = 64) -> None:
        trunk = VGG16(in_channels, width=width)
        super().__init__(
            spatial_dims, in_channels, out_channels, trunk=trunk, widths=trunk.widths[2:], maps=vgg_reach()[2:]
        )
        self.at_least_two = False


class FCNGoogLeNet(FusedScores):
    """The baseline on GoogLeNet. Parameters (3 channels to 2 classes): 5,605,158.

    Args:
        width: channels of the first convolution; all others follow in proportion.

    Shape:
        image: (N, in_channels, X, Y), padded to multiples of 32.
        returns: logits (N, out_channels, X, Y).
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, *, width: int = 64) -> None:
        trunk = GoogLeNet(in_channels, width=width)
        super().__init__(
            spatial_dims, in_channels, out_channels, trunk=trunk, widths=trunk.widths, maps=googlenet_reach()
        )
