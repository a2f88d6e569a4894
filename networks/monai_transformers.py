"""UNETR and Swin UNETR as MONAI holds them, behind our contract.

Hatamizadeh et al., WACV 2022, arXiv 2103.10504; Hatamizadeh et al., BrainLes 2021, arXiv 2201.01266. The layers are
MONAI's own, with its names for the weights; the last 1x1x1 convolution is taken off and becomes `head`.

Differs from MONAI: inputs of any size are padded and cropped; the position embeddings of UNETR are interpolated to
other sizes than the one that they were made for, where MONAI raises. A logit depends on where it stands in the window:
UNETR learns positions, Swin UNETR lays its attention windows from the corner. So their logits do not move with the
image (`moves_with_image`), and tiles must overlap generously. MONAI wants the package einops for both.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import UsageError
from .base import SegmentationNetwork, memory_format_of
from .blocks import LINEAR
from .monai_networks import keep_layout

PATCH = 16  # side of UNETR's patches


class UNETR(SegmentationNetwork):
    """UNETR: a vision transformer encodes patches of 16, a convolutional decoder joins four of its depths.

    `monai.networks.nets.UNETR`, without the norms of cross-attention that MONAI makes and never uses. Memory grows
    with the square of the window's voxels where torch has no fused attention.

    Parameters (1 channel to 2 classes): 92,783,842 in 3D, 87,146,434 in 2D.

    Args:
        size: side of the image that the position embeddings are made for; others are interpolated.
        width: channels at the image's resolution.
        hidden: length of a token.
        mlp: units of the transformer's dense layers.
        heads: attention heads; they divide `hidden`.
        dropout: in the transformer.

    Shape:
        image: (N, in_channels, *S), padded to multiples of 16.
        returns: logits (N, out_channels, *S).
    """

    moves_with_image = False

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        size: Sequence[int] | int = 96,
        width: int = 16,
        hidden: int = 768,
        mlp: int = 3072,
        heads: int = 12,
        dropout: float = 0.0,
    ) -> None:
        _check_einops()
        from monai.networks.nets import unetr

        sides = (size,) * spatial_dims if isinstance(size, int) else tuple(size)
        if len(sides) != spatial_dims or any(side < PATCH or side % PATCH for side in sides):
            raise ValueError(f"the size of UNETR is a multiple of {PATCH} along each axis, got {size=}")
        if hidden % heads:
            raise ValueError(f"attention heads divide the length of a token, got {heads=}, {hidden=}")
        super().__init__(spatial_dims, in_channels, out_channels, stride=(PATCH,) * spatial_dims, receptive_field=None)
        self.at_least_two = True
        self.grid = tuple(side // PATCH for side in sides)
        net = unetr.UNETR(
            in_channels,
            out_channels,
            sides,
            feature_size=width,
            hidden_size=hidden,
            mlp_dim=mlp,
            num_heads=heads,
            dropout_rate=dropout,
            spatial_dims=spatial_dims,
        )
        keep_layout(net)
        for block in net.vit.blocks:
            cast(Any, block).norm_cross_attn = nn.Identity()  # MONAI makes it and does not use it
            cast(Any, block).attn.use_flash_attention = dropout == 0  # linear memory; its dropout ignores eval mode
        self.head = net.out.conv.conv
        del net.out
        self.net = net

    def body(self, image: Tensor) -> Tensor:
        """What goes into the last 1x1x1 convolution."""
        net, vit = self.net, self.net.vit
        patches = vit.patch_embedding.patch_embeddings(image)
        grid = tuple(patches.shape[2:])
        tokens = vit.patch_embedding.dropout(patches.flatten(2).transpose(1, 2) + self.positions(grid))
        depths = []
        for block in vit.blocks:
            tokens = block(tokens)
            depths.append(tokens)
        layout = memory_format_of(patches)

        def as_map(some: Tensor) -> Tensor:
            return some.transpose(1, 2).unflatten(2, grid).contiguous(memory_format=layout)

        deep = net.decoder5(as_map(vit.norm(tokens)), net.encoder4(as_map(depths[9])))
        deep = net.decoder4(deep, net.encoder3(as_map(depths[6])))
        deep = net.decoder3(deep, net.encoder2(as_map(depths[3])))
        result: Tensor = net.decoder2(deep, net.encoder1(image))
        return result

    def positions(self, grid: tuple[int, ...]) -> Tensor:
        """Position embeddings (1, tokens, hidden) of a grid of patches."""
        embeddings = cast(Tensor, self.net.vit.patch_embedding.position_embeddings)
        if grid == self.grid:
            return embeddings
        there = embeddings.transpose(1, 2).unflatten(2, self.grid)
        here = functional.interpolate(there, grid, mode=LINEAR[self.spatial_dims], align_corners=False)
        return here.flatten(2).transpose(1, 2)


class SwinUNETR(SegmentationNetwork):
    """Swin UNETR: attention within shifted windows on five scales, and a convolutional decoder.

    `monai.networks.nets.SwinUNETR`. The width is the paper's 48; MONAI's default is 24.

    Parameters (1 channel to 2 classes): 62,186,708 in 3D, 25,137,980 in 2D.

    Args:
        width: channels at half the image's resolution, a multiple of 12.
        depths: transformer blocks per stage, four; every second one has its windows shifted.
        heads: attention heads per stage; they divide the stage's channels: width, then twice as many in each.
        window: side of the attention windows in voxels of the stage.
        dropout: in the transformer.

    Shape:
        image: (N, in_channels, *S), padded to multiples of 32.
        returns: logits (N, out_channels, *S).
    """

    moves_with_image = False

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 48,
        depths: Sequence[int] = (2, 2, 2, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 7,
        dropout: float = 0.0,
    ) -> None:
        _check_einops()
        from monai.networks.nets import swin_unetr

        if width % 12:
            raise ValueError(f"the width of Swin UNETR is a multiple of 12, got {width=}")
        if len(depths) != 4 or len(heads) != 4 or min(depths) < 1:
            raise ValueError(f"Swin UNETR has four stages, got depths={list(depths)}, heads={list(heads)}")
        if any(width * 2**stage % count for stage, count in enumerate(heads)):
            raise ValueError(f"heads divide the channels of their stage, got {width=}, heads={list(heads)}")
        if window < 2:
            raise ValueError(f"an attention window has a side of 2 or more, got {window=}")
        super().__init__(spatial_dims, in_channels, out_channels, stride=(32,) * spatial_dims, receptive_field=None)
        self.at_least_two = True
        wanted = torch.get_default_device()
        with torch.device("cpu"):  # MONAI reads numbers off a tensor, which the meta device has not
            net = swin_unetr.SwinUNETR(
                in_channels,
                out_channels,
                depths=tuple(depths),
                num_heads=tuple(heads),
                window_size=window,
                feature_size=width,
                drop_rate=dropout,
                attn_drop_rate=dropout,
                spatial_dims=spatial_dims,
            ).to(wanted)
        keep_layout(net)
        self.head = net.out.conv.conv
        del net.out
        self.net = net

    def body(self, image: Tensor) -> Tensor:
        """What goes into the last 1x1x1 convolution."""
        net, layout = self.net, memory_format_of(image)
        scales = [scale.contiguous(memory_format=layout) for scale in net.swinViT(image)]
        deep = net.decoder5(net.encoder10(scales[4]), scales[3])
        deep = net.decoder4(deep, net.encoder4(scales[2]))
        deep = net.decoder3(deep, net.encoder3(scales[1]))
        deep = net.decoder2(deep, net.encoder2(scales[0]))
        result: Tensor = net.decoder1(deep, net.encoder1(image))
        return result


def _check_einops() -> None:
    if importlib.util.find_spec("einops") is None:
        raise UsageError("MONAI builds its transformers with the package einops; install it: pip install einops")
