"""UNETR as MONAI holds it, behind our contract: a vision transformer of patches, and a convolutional decoder.

Hatamizadeh et al., WACV 2022, arXiv 2103.10504. The layers are MONAI's (monai_layers.py says what becomes of them).
Differs from MONAI: the position embeddings are interpolated to other sizes than the one that they were made for, where
MONAI raises. A logit depends on where it stands in the window, since positions are learned; so the logits do not move
with the image (`moves_with_image`), and tiles must overlap generously.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional

from .base import SegmentationNetwork, memory_format_of
from .blocks import LINEAR
from .monai_layers import keep_layout

PATCH = 16  # side of the patches


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
        from monai.networks.nets import unetr

        sides = (size,) * spatial_dims if isinstance(size, int) else tuple(size)
        if len(sides) != spatial_dims or any(side < PATCH or side % PATCH for side in sides):
            raise ValueError(f"the size of UNETR is a multiple of {PATCH} along each axis, got {size=}")
        if heads < 1 or hidden % heads:
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
