"""U-Net: an encoder and a decoder joined by one skip per level; our everyday network in two and three dimensions.

Ronneberger, Fischer and Brox, MICCAI 2015 (2D); Çiçek et al., MICCAI 2016 (3D).
Differs from the papers: padded convolutions, strided convolutions downwards, instance norm and LeakyReLU; by option
residual blocks in the encoder, an encoder of another library, and outputs at several scales. With the options that
nnunet.py makes of nnU-Net's plans it computes what nnU-Net's PlainConvUNet and ResidualEncoderUNet compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, cat, nn

from ..errors import UsageError
from .base import Logits, SegmentationNetwork
from .blocks import (
    ACTIVATIONS,
    CONV,
    CONV_TRANSPOSE,
    LOCAL_NORMS,
    NORMS,
    ConvNormAct,
    ResidualBlock,
    choose,
    conv_stage,
    initialise,
)
from .encoders import MAPS, build_encoder, check_encoder, encoder_reach
from .levels import Sides, depths_of, sides_of
from .receptive_field import Reach
from .resnet_d import ResidualBlockD

BLOCKS: dict[str, type[ConvNormAct] | type[ResidualBlock] | type[ResidualBlockD]] = {
    "plain": ConvNormAct,
    "residual": ResidualBlock,
    "residual_d": ResidualBlockD,
}
ENCODER_DEPTH = {"plain": 2, "residual": 1, "residual_d": 1}  # blocks a level: two convolutions each way


class UNet(SegmentationNetwork):
    """U-Net with strided convolutions downwards and transposed ones (kernel = stride) upwards.

    Parameters (1 to 2 channels, default options): 5,684,578 in 2D, 16,543,650 in 3D; in 2D 26,989,730 with
    encoder="resnet34".

    Args:
        widths: channels per level, shallow to deep.
        blocks: "plain", "residual" or "residual_d" (its shortcut averages over the stride and has a norm): what the
            encoder is made of; the decoder is plain.
        norm: "instance", "batch", "group" or "none".
        activation: "leaky_relu", "relu", "prelu", "elu", "silu" or "gelu".
        kernels: per level, one odd size or one per axis; default 3.
        strides: per level, one step or one per axis, that leads into the level; default 1, then 2. The first must be 1.
        encoder_depth: blocks per level; default 2 convolutions (plain) or 1 block of two (residual).
        decoder_depth: convolutions per level of the decoder.
        deep_supervision: number of output scales in training mode; with 1 a tensor is returned instead of a list.
        encoder: in 2D, one of segmentation-models-pytorch's instead of ours, such as resnet34, inceptionv4 or
            efficientnet-b0 (`ENCODERS`). The image itself and its five maps go into our decoder, whose five levels
            have the `widths`; `blocks`, `kernels`, `strides`, `encoder_depth` and `stem` are left out, and it keeps
            its norm.
        stem: channels of one convolution more, in front of the first block; none by default.
        up_bias: whether the transposed convolutions have a bias; by default only where there is no norm.

    Shape:
        image: (N, in_channels, *S).
        returns: logits (N, out_channels, *S); in training mode with `deep_supervision` > 1 a list, finest first.
    """

    head: nn.Module

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        widths: Sequence[int] = (32, 64, 128, 256, 320),
        blocks: str = "plain",
        norm: str = "instance",
        activation: str = "leaky_relu",
        kernels: Sequence[Sides] | None = None,
        strides: Sequence[Sides] | None = None,
        encoder_depth: Sides | None = None,
        decoder_depth: Sides = 2,
        deep_supervision: int = 1,
        encoder: str | None = None,
        stem: int | None = None,
        up_bias: bool | None = None,
    ) -> None:
        levels = len(widths)
        if encoder is not None:
            check_encoder(encoder, spatial_dims)
            levels = _levels_beside(encoder, widths, blocks, kernels, strides, encoder_depth, stem)
        if levels < 2:
            raise ValueError(f"a U-Net has at least two levels, got widths={list(widths)}")
        if stem is not None and stem < 1:
            raise ValueError(f"a stem has channels, got {stem=}")
        choose("blocks", blocks, BLOCKS)
        choose("norm", norm, NORMS)
        choose("activation", activation, ACTIVATIONS)
        if not 1 <= deep_supervision < levels:
            raise ValueError(f"{levels} levels have 1 to {levels - 1} output scales, got {deep_supervision=}")
        kernel, stride = sides_of(kernels, strides, levels, spatial_dims)
        down = ENCODER_DEPTH[blocks] if encoder_depth is None else encoder_depth
        depth_down = depths_of("encoder_depth", down, levels)
        depth_up = depths_of("decoder_depth", decoder_depth, levels - 1)
        convs_down = [depth * (1 if blocks == "plain" else 2) for depth in depth_down]
        convs_down[0] += stem is not None
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            stride=[prod(steps) for steps in zip(*stride, strict=True)],
            receptive_field=_reach(kernel, stride, convs_down, depth_up, encoder, pools=blocks == "residual_d")
            if norm in LOCAL_NORMS
            else None,
        )
        self.at_least_two = norm != "none" or encoder is not None
        self.deep_supervision = deep_supervision
        self.encoder_name = encoder
        self.encoder: nn.Module
        if encoder is None:
            self.encoder = _own_encoder(
                spatial_dims,
                in_channels,
                widths=widths,
                depths=depth_down,
                kernels=kernel,
                strides=stride,
                blocks=blocks,
                norm=norm,
                activation=activation,
                stem=stem,
            )
            skips, below = widths[:-1], widths[-1]
        else:
            self.encoder, (*skips, below) = build_encoder(encoder, in_channels)
        widths = widths[: levels - 1]  # of the decoder
        self.up = nn.ModuleList(
            CONV_TRANSPOSE[spatial_dims](
                coarse, width, step, stride=step, bias=norm == "none" if up_bias is None else up_bias
            )
            for coarse, width, step in zip([*widths[1:], below], widths, stride[1:], strict=True)
        )
        self.decoder = nn.ModuleList(
            conv_stage(
                spatial_dims,
                widths[level] + skips[level],
                (widths[level],) * depth_up[level],
                kernel=kernel[level],
                norm=norm,
                activation=activation,
            )
            for level in range(levels - 1)
        )
        self.head = CONV[spatial_dims](widths[0], out_channels, 1)
        self.coarse_heads = nn.ModuleList(
            CONV[spatial_dims](widths[level], out_channels, 1) for level in range(1, deep_supervision)
        )
        ours = (self.up, self.decoder, self.head, self.coarse_heads)
        for part in ours if encoder else (self.encoder, *ours):  # a library's encoder starts as the library has it
            part.apply(initialise)

    def body(self, image: Tensor) -> Tensor:
        """Features of the finest level."""
        return self.decode(self.encode(image))[0]

    def forward_aligned(self, image: Tensor) -> Logits:
        """Logits, in training mode one for each output scale."""
        levels = self.decode(self.encode(image))
        finest: Tensor = self.head(levels[0])
        if not self.training or self.deep_supervision == 1:
            return finest
        return [finest, *(head(level) for head, level in zip(self.coarse_heads, levels[1:], strict=False))]

    def encode(self, image: Tensor) -> list[Tensor]:
        """One feature map a level, shallow to deep."""
        if self.encoder_name is not None:
            return list(self.encoder(image))
        levels = [image]
        for stage in self.encoder.children():
            levels.append(stage(levels[-1]))
        return levels[1:]

    def decode(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """One feature map a level of the decoder, shallow to deep."""
        decoded = [levels[-1]]
        for level in reversed(range(len(self.up))):
            joined = cat((self.up[level](decoded[0]), levels[level]), dim=1)
            decoded.insert(0, self.decoder[level](joined))
        return decoded[:-1]


def _own_encoder(
    spatial_dims: int,
    in_channels: int,
    *,
    widths: Sequence[int],
    depths: Sequence[int],
    kernels: Sequence[Sequence[int]],
    strides: Sequence[Sequence[int]],
    blocks: str,
    norm: str,
    activation: str,
    stem: int | None,
) -> nn.ModuleList:
    """One stage a level; its first block takes the step into the level. A stem is the first layer of the first."""
    levels = nn.ModuleList()
    before = in_channels
    for level, width in enumerate(widths):
        stage = nn.Sequential()
        if stem is not None and not level:
            stage.append(ConvNormAct(spatial_dims, before, stem, kernel=kernels[0], norm=norm, activation=activation))
            before = stem
        for step in range(depths[level]):
            stage.append(
                BLOCKS[blocks](
                    spatial_dims,
                    before,
                    width,
                    kernel=kernels[level],
                    stride=None if step else strides[level],
                    norm=norm,
                    activation=activation,
                )
            )
            before = width
        levels.append(stage)
    return levels


def _levels_beside(encoder: str, widths: Sequence[int], blocks: str, *own: object) -> int:
    """Levels of a U-Net with a library's encoder; what describes ours is refused."""
    if blocks != "plain" or any(option is not None for option in own):
        raise UsageError(
            f"encoder={encoder} has blocks, kernels, strides and a depth of its own; leave the options blocks, "
            "kernels, strides, encoder_depth and stem out"
        )
    if len(widths) != MAPS:
        raise UsageError(f"encoder={encoder}: widths gives the {MAPS} levels of the decoder, got {list(widths)}")
    return MAPS + 1


def _reach(
    kernels: Sequence[Sequence[int]],
    strides: Sequence[Sequence[int]],
    down: Sequence[int],
    up: Sequence[int],
    encoder: str | None,
    *,
    pools: bool,
) -> list[int] | None:
    """Receptive field along each axis; `down` and `up` are convolutions per level, `pools` whether shortcuts do."""
    reach = []
    for sides, steps in zip(zip(*kernels, strict=True), zip(*strides, strict=True), strict=True):
        maps = _encoded(sides, steps, down, pools) if encoder is None else encoder_reach(encoder)
        if maps is None:
            return None
        reach.append(_decoded(maps, sides, steps, up))
    return reach


def _encoded(kernels: Sequence[int], strides: Sequence[int], convs: Sequence[int], pools: bool) -> list[Reach]:
    """What each level of our encoder sees along one axis; `convs` are convolutions per level."""
    seen = Reach.of_input(prod(strides))
    levels: list[Reach] = []
    for kernel, stride, count in zip(kernels, strides, convs, strict=True):
        before, seen = seen, seen.conv(kernel, stride).convs(kernel, count - 1)
        if pools:
            seen = seen.join(before.conv(stride, stride, padding=0).convs(kernel, count - 2))
        levels.append(seen)
    return levels


def _decoded(levels: Sequence[Reach], kernels: Sequence[int], strides: Sequence[int], convs: Sequence[int]) -> int:
    """Receptive field along one axis of what the decoder makes of the levels."""
    *skips, seen = levels
    for level in reversed(range(len(skips))):
        seen = seen.up(strides[level + 1]).join(skips[level]).convs(kernels[level], convs[level])
    return seen.size
