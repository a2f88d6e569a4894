"""Multi-scale structured network: branches of several kernel sizes, computed apart and merged at the end.

In the manner of Bao and Chung, CMBBE Imaging 6 (2018); DLMIA 2015. Neither layers nor patch were to be had; ours: three
branches of three convolutions (32, 64 and 64 maps; sides 3, 5 and 7), each with batch norm, ReLU and max-pooling of 2,
joined as maps of side 3, a fully connected layer of 256 with dropout, and one to the classes.

This is the dense form of the patch classifier that these layers are, with a logit for every voxel: pooling has stride
1, what is behind it is dilated, nothing is padded inside; images are mirrored at their borders. So each branch looks at
a patch of its own side, 38, 52 and 66 voxels around the same centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, cat, nn

from .base import SegmentationNetwork, crop, crop_centre, memory_format_of, pad_mirror
from .blocks import ACTIVATIONS, CONV, ConvNormAct, choose
from .patch_classifier import POOL, patch_side, pool_densely, undilated

NORMS = ("batch", "none")  # a norm over the window would not be that of a patch


class MSCNN(SegmentationNetwork):
    """Multi-scale structured network, in its dense form.

    Parameters (1 channel to 2 classes): 4,385,954 in 3D, 956,706 in 2D.

    Args:
        width: maps of the first convolution of each branch; the two others have twice as many.
        widths: maps of the convolutions instead, as many as there are.
        hidden: units of the fully connected layer; 8 times the width by default.
        kernels: side of the convolutions of each branch, odd.
        last: side of the maps that are joined.
        norm: "batch" or "none".
        activation: a key of `ACTIVATIONS`.
        dropout: share of the fully connected units dropped.

    Shape:
        image: (N, in_channels, *S).
        returns: logits (N, out_channels, *S).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 32,
        widths: Sequence[int] | None = None,
        hidden: int | None = None,
        kernels: Sequence[int] = (3, 5, 7),
        last: int = 3,
        norm: str = "batch",
        activation: str = "relu",
        dropout: float = 0.5,
    ) -> None:
        choose("norm", norm, NORMS)
        choose("activation", activation, ACTIVATIONS)
        widths = (width, 2 * width, 2 * width) if widths is None else tuple(widths)
        hidden = 8 * width if hidden is None else hidden
        if not kernels or any(side % 2 == 0 for side in kernels):
            raise ValueError(f"kernels are odd, so that all branches have one centre; got kernels={list(kernels)}")
        if not widths or last < 1:
            raise ValueError(f"a branch has a convolution or more and a map of side 1 or more; got {widths=}, {last=}")
        seen = max(patch_side((side,) * len(widths), last) for side in kernels)
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            stride=(1,) * spatial_dims,
            receptive_field=(seen,) * spatial_dims,
        )
        self.seen, self.last = seen, last
        self.sides, self.depth = tuple(kernels), len(widths)
        self.branches = nn.ModuleList(
            nn.ModuleList(
                ConvNormAct(
                    spatial_dims,
                    widths[depth - 1] if depth else in_channels,
                    maps,
                    kernel=(side,) * spatial_dims,
                    norm=norm,
                    activation=activation,
                    dilation=2**depth,
                    padding=0,
                )
                for depth, maps in enumerate(widths)
            )
            for side in kernels
        )
        conv = CONV[spatial_dims]
        self.full = conv(len(kernels) * widths[-1], hidden, last, dilation=2 ** len(widths))
        self.after = nn.Sequential(ACTIVATIONS[activation](hidden), nn.Dropout(dropout))
        self.head = conv(hidden, out_channels, 1)

    def body(self, image: Tensor) -> Tensor:
        """The fully connected layer, the image mirrored by half of the largest patch."""
        size = image.shape[2:]
        before = (self.seen - 1) // 2
        around = pad_mirror(image, (before,) * len(size), (self.seen - 1 - before,) * len(size))
        layout = memory_format_of(around)
        reach = (self.last - 1) * 2**self.depth
        branches = []
        for branch in self.branches:
            maps = around
            for depth, conv in enumerate(cast(nn.ModuleList, branch)):
                maps = pool_densely(conv(maps), 2**depth).contiguous(memory_format=layout)
            branches.append(crop_centre(maps, [side + reach for side in size]))
        result: Tensor = self.after(self.full(cat(branches, dim=1).contiguous(memory_format=layout)))
        return crop(result, size)

    def classify(self, patches: Tensor) -> Tensor:
        """Logits (N, out_channels) of the centres of patches: pooling of stride 2 and no dilation."""
        assert self.head is not None
        size = tuple(patches.shape[2:])
        if size != (self.seen,) * self.spatial_dims:
            raise ValueError(f"patches have {self.seen} voxels a side, got {size}")
        branches = []
        for side, branch in zip(self.sides, self.branches, strict=True):
            maps = crop_centre(patches, (patch_side((side,) * self.depth, self.last),) * self.spatial_dims)
            for layer in cast(nn.ModuleList, branch):
                conv = cast(ConvNormAct, layer)
                maps = POOL[self.spatial_dims](conv.activation(conv.norm(undilated(conv.conv, maps))), 2)
            branches.append(maps)
        logits: Tensor = self.head(self.after(undilated(self.full, cat(branches, dim=1))))
        return logits.flatten(1)
