"""V-Net: a volumetric encoder and decoder of 5x5x5 convolutions in which every stage learns a residual.

Milletari, Navab and Ahmadi, 3DV 2016. Strided convolutions replace pooling; there is no norm and no dropout, the
activation is PReLU. The paper's figure and the released network differ in their depths; both are here:

    variant   convolutions per stage, L1 to L5 | R4 to R1
    paper     1 2 3 3 3 | 3 3 2 1
    release   1 1 2 3 3 | 3 2 1 1

In the decoder the up-sampled map joined with its skip is what the stage's result is added to. The head is a 5x5x5
convolution to the classes, PReLU, and the last 1x1x1 convolution.

Differs from the paper: any number of channels (an image of one that does not divide the width is projected to it by a
1x1x1 convolution), two dimensions by option, and Dice is not the only loss that it may be trained with.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, cat, nn

from .base import SegmentationNetwork
from .blocks import CONV, CONV_TRANSPOSE, choose, initialise
from .receptive_field import Reach

# convolutions per stage: L1 to L5, then R4 to R1
DEPTHS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "paper": ((1, 2, 3, 3, 3), (3, 3, 2, 1)),
    "release": ((1, 1, 2, 3, 3), (3, 2, 1, 1)),
}
STRIDE = 16


class VNet(SegmentationNetwork):
    """V-Net with the depths of the paper or of the released code.

    Parameters (1 channel to 2 classes, 3D): 65,183,258 (paper), 65,175,314 (with head_kernel=1), 61,982,682 (release).

    Args:
        variant: "paper" or "release".
        width: channels of the first stage; the others have 2, 4, 8 and 16 times as many.
        kernel: side of the stages' convolutions.
        head_kernel: side of the convolution in front of the last 1x1x1 one: 5 as released, or 1 for a single 1x1x1
            convolution from the last stage to the classes.

    Shape:
        image: (N, in_channels, *S), padded to multiples of 16.
        returns: logits (N, out_channels, *S).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        variant: str = "paper",
        width: int = 16,
        kernel: int = 5,
        head_kernel: int = 5,
    ) -> None:
        choose("variant of V-Net:", variant, DEPTHS)
        if kernel % 2 == 0 or head_kernel % 2 == 0:
            raise ValueError(f"kernels are odd, so that sizes are kept; got {kernel=}, {head_kernel=}")
        down, up = DEPTHS[variant]
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            stride=(STRIDE,) * spatial_dims,
            receptive_field=(_reach(down, up, kernel, head_kernel),) * spatial_dims,
        )
        widths = [width * 2**level for level in range(len(down))]
        conv, transposed = CONV[spatial_dims], CONV_TRANSPOSE[spatial_dims]
        self.tiles = width // in_channels if width % in_channels == 0 else 0
        self.project = nn.Identity() if self.tiles else conv(in_channels, width, 1)
        self.left = nn.ModuleList(
            Stage(spatial_dims, in_channels if level == 0 else widths[level], widths[level], depth, kernel)
            for level, depth in enumerate(down)
        )
        self.down = nn.ModuleList(
            nn.Sequential(conv(widths[level], widths[level + 1], 2, stride=2), nn.PReLU(widths[level + 1]))
            for level in range(len(down) - 1)
        )
        # R4 to R1; a stage works on twice the width of its skip: the up-sampled map and the skip
        sides = list(reversed(widths[:-1]))
        below = [widths[-1], *(2 * side for side in sides[:-1])]
        self.up = nn.ModuleList(
            nn.Sequential(transposed(coarse, side, 2, stride=2), nn.PReLU(side))
            for coarse, side in zip(below, sides, strict=True)
        )
        self.right = nn.ModuleList(
            Stage(spatial_dims, 2 * side, 2 * side, depth, kernel) for side, depth in zip(sides, up, strict=True)
        )
        self.before_head = (
            nn.Identity()
            if head_kernel == 1
            else nn.Sequential(
                conv(2 * width, out_channels, head_kernel, padding=head_kernel // 2), nn.PReLU(out_channels)
            )
        )
        self.head = conv(2 * width if head_kernel == 1 else out_channels, out_channels, 1)
        self.apply(initialise)

    def body(self, image: Tensor) -> Tensor:
        """What goes into the last 1x1x1 convolution."""
        start = image.repeat(1, self.tiles, *(1,) * self.spatial_dims) if self.tiles else self.project(image)
        skips = [self.left[0](image, start)]
        for down, stage in zip(self.down, self.left[1:], strict=True):
            coarser = down(skips[-1])
            skips.append(stage(coarser, coarser))
        decoded = skips.pop()
        for up, stage in zip(self.up, self.right, strict=True):
            joined = cat((up(decoded), skips.pop()), dim=1)
            decoded = stage(joined, joined)
        result: Tensor = self.before_head(decoded)
        return result


class Stage(nn.Module):
    """Convolutions with PReLU between them; what the stage starts from is added before the last PReLU."""

    def __init__(self, spatial_dims: int, in_channels: int, width: int, depth: int, kernel: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            CONV[spatial_dims](width if step else in_channels, width, kernel, padding=kernel // 2)
            for step in range(depth)
        )
        self.activations = nn.ModuleList(nn.PReLU(width) for _ in range(depth))

    def forward(self, image: Tensor, start: Tensor) -> Tensor:
        """`image` goes through the convolutions, `start` (of the stage's width) is added to their result."""
        *first, last = zip(self.convs, self.activations, strict=True)
        for conv, activation in first:
            image = activation(conv(image))
        conv, activation = last
        result: Tensor = activation(conv(image) + start)
        return result


def _reach(down: Sequence[int], up: Sequence[int], kernel: int, head_kernel: int) -> int:
    """Receptive field of the logits along one axis."""
    seen = Reach.of_input(STRIDE)
    skips: list[Reach] = []
    for level, depth in enumerate(down):
        seen = (seen.conv(2, stride=2) if level else seen).convs(kernel, depth)
        skips.append(seen)
    skips.pop()
    for depth in up:
        seen = seen.up(2).join(skips.pop()).convs(kernel, depth)
    return seen.conv(head_kernel).size
