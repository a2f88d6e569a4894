"""ResAttUNet: a ResNet encoder and a U-Net decoder, every skip behind an attention gate; and Res-UNet, without gates.

Ye and Hua 2022 (lesions of COVID-19 in CT). The gate is driven by the up-sampled decoder map, of the skip's size
(equations 2 to 5). `res_unet` is its ablation arm "only residual convolution"; the name is also that of Lian et al.
(IEEE/ACM TCBB 2021), whose layers could not be read.

What the paper does not print is ours: the gate adds in half the channels with batch norm; the decoder goes up by
nearest-neighbour interpolation and a convolution of side 3 with norm and ReLU, and runs two of these behind each skip;
the last step is linear interpolation, in front of the 1x1x1 convolution. Any number of channels; 2D and 3D.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, cat, nn

from .attention import AttentionGate
from .base import SegmentationNetwork
from .blocks import ACTIVATIONS, CONV, LOCAL_NORMS, NORMS, UpConv, Upsample, choose, conv_stage, initialise
from .receptive_field import Reach
from .resnet import STRIDE, ResNet, blocks_of, depth_of, resnet_reach


class ResAttUNet(SegmentationNetwork):
    """U-Net with a ResNet encoder and gated skips.

    Parameters (3 channels to 1 class, 2D): 25,399,437; 25,307,521 without gates.

    Args:
        width: channels of the encoder's stem; its stages have 1, 2, 4 and 8 times as many.
        depth: 18, 34, 50 or 101 layers of the encoder.
        gates: whether the skips are masked.
        norm: "batch", "instance", "group" or "none".
        activation: a key of `ACTIVATIONS`, of the decoder; the encoder and the gates have ReLU.

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
        gates: bool = True,
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
        *skips, below = self.encoder.widths
        skips.reverse()
        self.up = nn.ModuleList(
            UpConv(spatial_dims, coarse, skip, norm=norm, activation=activation, bias=True)
            for coarse, skip in zip([below, *skips[:-1]], skips, strict=True)
        )
        self.gates = nn.ModuleList(
            AttentionGate(spatial_dims, skip, skip, skip // 2, norm=norm) for skip in skips if gates
        )
        self.decoder = nn.ModuleList(
            conv_stage(spatial_dims, 2 * skip, (skip, skip), norm=norm, activation=activation, bias=True)
            for skip in skips
        )
        self.to_image = Upsample(2, "linear")
        self.head = CONV[spatial_dims](skips[-1], out_channels, 1)
        self.apply(initialise)

    def body(self, image: Tensor) -> Tensor:
        """Features of the image's size."""
        *skips, decoded = self.encoder(image)
        for index, (up, stage) in enumerate(zip(self.up, self.decoder, strict=True)):
            larger, skip = up(decoded), skips.pop()
            masked = self.gates[index](larger, skip) if len(self.gates) else skip
            decoded = stage(cat((larger, masked), dim=1))
        result: Tensor = self.to_image(decoded)
        return result


class ResUNet(ResAttUNet):
    """U-Net with a ResNet encoder, its skips as they are.

    Parameters (3 channels to 1 class, 2D): 25,307,521.

    Args:
        width: channels of the encoder's stem; its stages have 1, 2, 4 and 8 times as many.
        encoder: "resnet18", "resnet34", "resnet50" or "resnet101".
        norm: "batch", "instance", "group" or "none".
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
        encoder: str = "resnet34",
        norm: str = "batch",
        activation: str = "relu",
    ) -> None:
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            width=width,
            depth=depth_of(encoder),
            gates=False,
            norm=norm,
            activation=activation,
        )


def _reach(maps: Sequence[Reach]) -> int:
    """Receptive field of the logits along one axis, of the encoder's maps."""
    *skips, seen = maps
    for skip in reversed(skips):
        seen = seen.up(2).conv(3).join(skip).conv(3).conv(3)
    return seen.linear(2).size
