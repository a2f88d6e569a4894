"""The U-Net of the papers: max-pooling down, transposed convolutions up, skips cropped and joined.

What `unet2015`, `unet3d2016` and `dilated_unet` have in common; each names its widths and where it differs.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, cat, nn

from .base import SegmentationNetwork, crop, crop_centre, pad_mirror
from .blocks import (
    ACTIVATIONS,
    CONV,
    CONV_TRANSPOSE,
    LOCAL_NORMS,
    MAX_POOL,
    NORMS,
    ConvNormAct,
    choose,
    initialise,
)
from .receptive_field import Reach

PADDINGS = ("valid", "same")


class PooledUNet(SegmentationNetwork):
    """U-Net with max-pooling, its convolutions valid (the input is mirrored around, the skips are cropped) or padded.

    Args:
        down: channels of the convolutions of each level, shallow to deep, the bottom included.
        up: channels of the transposed convolutions, shallow to deep, one less than levels.
        joined: channels of the convolutions behind each skip, shallow to deep.
        padding: "valid" or "same".
        norm: "batch", "instance", "group" or "none".
        activation: a key of `ACTIVATIONS`.
        dilations: of the first, second, ... convolution of every level.
        dropout: share of values zeroed behind the last two levels of the way down, in training.
        last: whether a 1x1x1 convolution with activation stands in front of the head.

    Shape:
        image: (N, in_channels, *S), padded to multiples of 2 ** (levels - 1), and mirrored around for valid ones.
        returns: logits (N, out_channels, *S).
    """

    head: nn.Module

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        down: Sequence[Sequence[int]],
        up: Sequence[int],
        joined: Sequence[Sequence[int]],
        padding: str,
        norm: str,
        activation: str,
        dilations: Sequence[int],
        dropout: float = 0.0,
        last: bool = False,
    ) -> None:
        choose("padding", padding, PADDINGS)
        choose("norm", norm, NORMS)
        choose("activation", activation, ACTIVATIONS)
        levels, valid = len(down), padding == "valid"
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            stride=(2 ** (levels - 1),) * spatial_dims,
            receptive_field=(_reach(levels, dilations, valid),) * spatial_dims if norm in LOCAL_NORMS else None,
        )
        self.at_least_two = norm != "none"
        self.levels = levels
        self.shrinks = sum(dilations) if valid else 0  # voxels that a level's convolutions take off at each side
        # input voxels between the edge of a tile and that of its result
        self.margin = self.shrinks * (2 * (2 ** (levels - 1) - 1) + 2 ** (levels - 1))

        def stage(channels: int, widths: Sequence[int]) -> nn.Sequential:
            return nn.Sequential(
                *(
                    ConvNormAct(
                        spatial_dims,
                        before,
                        width,
                        kernel=(3,) * spatial_dims,
                        norm=norm,
                        activation=activation,
                        dilation=dilation,
                        padding=0 if valid else None,
                        bias=True,
                    )
                    for before, width, dilation in zip((channels, *widths[:-1]), widths, dilations, strict=True)
                )
            )

        ends = [widths[-1] for widths in down]
        self.encoder = nn.ModuleList(
            stage(channels, widths) for channels, widths in zip((in_channels, *ends[:-1]), down, strict=True)
        )
        self.pool = MAX_POOL[spatial_dims](2)
        self.dropout = nn.Dropout(dropout)
        below = [*(widths[-1] for widths in joined[1:]), ends[-1]]
        self.up = nn.ModuleList(
            CONV_TRANSPOSE[spatial_dims](coarse, width, 2, stride=2) for coarse, width in zip(below, up, strict=True)
        )
        self.decoder = nn.ModuleList(
            stage(coarse + skip, widths) for coarse, skip, widths in zip(up, ends[:-1], joined, strict=True)
        )
        finest = joined[0][-1]
        self.last = (
            ConvNormAct(spatial_dims, finest, finest, kernel=(1,) * spatial_dims, norm="none", activation=activation)
            if last
            else nn.Identity()
        )
        self.head = CONV[spatial_dims](finest, out_channels, 1)
        self.apply(initialise)

    def core(self, tile: Tensor) -> Tensor:
        """The paper's network: logits of a tile, smaller than it by `margin` voxels at each side."""
        logits: Tensor = self.head(self.core_features(tile))
        return logits

    def core_features(self, tile: Tensor) -> Tensor:
        """What goes into the head, of a tile."""
        skips: list[Tensor] = []
        features = tile
        for level, stage in enumerate(self.encoder):
            features = stage(self.pool(features) if level else features)
            if level >= self.levels - 2:
                features = self.dropout(features)
            skips.append(features)
        skips.pop()
        for up, stage in zip(reversed(self.up), reversed(self.decoder), strict=True):
            coarse = up(features)
            features = stage(cat((coarse, crop_centre(skips.pop(), coarse.shape[2:])), dim=1))
        result: Tensor = self.last(features)
        return result

    def body(self, image: Tensor) -> Tensor:
        """Features of an aligned image; it is mirrored around where the convolutions are valid."""
        if not self.margin:
            return self.core_features(image)
        sizes = [self.tile_size(int(side)) for side in image.shape[2:]]
        after = [size - int(side) - self.margin for size, side in zip(sizes, image.shape[2:], strict=True)]
        tile = pad_mirror(image, [self.margin] * self.spatial_dims, after)
        return crop(self.core_features(tile), image.shape[2:])

    def tile_size(self, side: int) -> int:
        """The side of the smallest tile whose logits cover `side` voxels and whose poolings leave no rest."""
        size = side + 2 * self.margin
        while not self.fits(size):
            size += 1
        return size

    def fits(self, size: int) -> bool:
        """Whether the poolings of a tile of this side leave no rest."""
        for _ in range(self.levels - 1):
            size -= 2 * self.shrinks
            if size % 2:
                return False
            size //= 2
        return size > 2 * self.shrinks


def _reach(levels: int, dilations: Sequence[int], valid: bool) -> int:
    """Receptive field of the logits along one axis."""
    padding = 0 if valid else None
    shrinks = sum(dilations) if valid else 0

    def convs(seen: Reach) -> Reach:
        for dilation in dilations:
            seen = seen.conv(3, dilation=dilation, padding=padding)
        return seen

    seen = convs(Reach.of_input(2 ** (levels - 1)))
    skips: list[Reach] = []
    for _ in range(levels - 1):
        skips.append(seen)
        seen = convs(seen.conv(2, stride=2))
    cropped = 2 * shrinks  # of the deepest skip, in its voxels: what the level below takes off
    for skip in reversed(skips):
        seen = convs(seen.up(2).join(skip.crop(cropped)))
        cropped = 2 * (cropped + 2 * shrinks)
    return seen.size
