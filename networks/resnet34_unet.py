"""ResNet34-UNet: a ResNet-34 encoder and a U-Net decoder.

Qin et al. 2021 (veins in ultrasound); the encoder is of He et al., CVPR 2016. The decoder goes up by nearest-neighbour
interpolation, joins a map of the encoder (four times) and runs two convolutions with batch norm and ReLU; a fifth step
without skip leads to the image's size; the last convolution has a side of 3. This is what
segmentation-models-pytorch's `Unet("resnet34")` computes, layer by layer (a test compares them), in two or three
dimensions and with any width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, cat, nn

from .base import SegmentationNetwork
from .blocks import ACTIVATIONS, CONV, LOCAL_NORMS, NORMS, Upsample, choose, conv_stage, initialise
from .receptive_field import Reach
from .resnet import STRIDE, ResNet, blocks_of, resnet_reach


class ResNet34UNet(SegmentationNetwork):
    """U-Net with a ResNet encoder.

    Parameters (3 channels to 1 class): 24,436,369 in 2D, 72,964,657 in 3D; 24,430,097 from 1 channel in 2D.

    Args:
        width: channels of the encoder's stem and, halved with each step, of the decoder's second half.
        depth: 18, 34, 50 or 101 layers of the encoder.
        norm: "batch" as published, "instance", "group" or "none".
        activation: a key of `ACTIVATIONS`, of the decoder; the encoder has ReLU.

    Shape:
        image: (N, in_channels, *S), padded to multiples of 32.
        returns: logits (N, out_channels, *S).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 64,
        depth: int = 34,
        norm: str = "batch",
        activation: str = "relu",
    ) -> None:
        choose("norm", norm, NORMS)
        choose("activation", activation, ACTIVATIONS)
        blocks, bottleneck = blocks_of(depth)
        reach = _reach(resnet_reach(blocks, bottleneck=bottleneck))
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            stride=(STRIDE,) * spatial_dims,
            receptive_field=(reach,) * spatial_dims if norm in LOCAL_NORMS else None,
        )
        self.at_least_two = norm != "none"
        self.encoder = ResNet(spatial_dims, in_channels, blocks, bottleneck=bottleneck, width=width, norm=norm)
        sides = [4 * width, 2 * width, width, width // 2, width // 4]
        skips = [*reversed(self.encoder.widths[:-1]), 0]
        below = [self.encoder.widths[-1], *sides[:-1]]
        self.up = Upsample(2)
        self.decoder = nn.ModuleList(
            conv_stage(spatial_dims, coarse + skip, (side, side), norm=norm, activation=activation)
            for coarse, skip, side in zip(below, skips, sides, strict=True)
        )
        self.last = CONV[spatial_dims](sides[-1], out_channels, 3, padding=1)
        self.apply(initialise)

    def forward_aligned(self, image: Tensor) -> Tensor:
        """Logits of an aligned image."""
        *skips, decoded = self.encoder(image)
        for stage in self.decoder:
            larger = self.up(decoded)
            decoded = stage(cat((larger, skips.pop()), dim=1) if skips else larger)
        logits: Tensor = self.last(decoded)
        return logits


def _reach(maps: Sequence[Reach]) -> int:
    """Receptive field of the logits along one axis, of the encoder's maps."""
    *skips, seen = maps
    for skip in reversed(skips):
        seen = seen.up(2).join(skip).conv(3).conv(3)
    return seen.up(2).conv(3).conv(3).conv(3).size
