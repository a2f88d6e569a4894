"""VoxResNet: a residual network for volumes with a classifier at each of four resolutions.

Chen, Dou, Yu, Qin and Heng, arXiv 1608.05895; NeuroImage 170 (2018). Pre-activation residual modules, nothing behind
their sums; three convolutions of stride 2 on the way down; the maps of the four resolutions are deconvolved to the
image's size and classified, and the logits are summed.

Two public builds differ, and both are here. `thin_kernel` leaves the last axis (through plane, of thick slices) out of
the second convolution and of the first one of each module. `head`: "deconv_slim" deconvolves to the classes (sides 3,
2, 4, 8) in front of 1x1x1 classifiers, "deconv_full" keeps its channels (sides 3, 4, 6, 10), clips them to 0..20 and
classifies with a side of 3.

Differs from the paper: any number of channels, two dimensions by option (without an axis to be thin along). The slim
build has 4 channels and 4 classes; where there are other classes, the channels follow them.
"""

from __future__ import annotations

from functools import reduce

from torch import Tensor, cat, nn

from .base import Logits, SegmentationNetwork
from .blocks import BATCH_NORM, CONV, CONV_TRANSPOSE, PointwiseHeads, choose, initialise
from .receptive_field import Reach

KERNELS = {"deconv_slim": (3, 2, 4, 8), "deconv_full": (3, 4, 6, 10)}
PADDINGS = {"deconv_slim": (1, 0, 0, 0), "deconv_full": (1, 1, 1, 1)}
STRIDES = (1, 2, 4, 8)


class VoxResNet(SegmentationNetwork):
    """VoxResNet with the heads of either public build.

    Parameters (3 channels to 4 classes, 3D): 1,329,024; 1,789,824 (thin_kernel=False); with head="deconv_full"
    6,470,928 and 6,931,728.

    Args:
        width: channels at the image's resolution; the others have twice as many.
        thin_kernel: no extent along the last axis in half of the convolutions; without effect in 2D.
        head: "deconv_slim" or "deconv_full".

    Shape:
        image: (N, in_channels, *S), padded to multiples of 8.
        returns: logits (N, out_channels, *S); in training mode a list of five of this size: the sum, then those of the
            four resolutions, fine to coarse.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 32,
        thin_kernel: bool = True,
        head: str = "deconv_slim",
    ) -> None:
        choose("head of VoxResNet:", head, KERNELS)
        thin = (3,) * (spatial_dims - 1) + (1 if thin_kernel and spatial_dims == 3 else 3,)
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            stride=(STRIDES[-1],) * spatial_dims,
            receptive_field=[_reach(side, head) for side in thin],
        )
        self.at_least_two = True
        conv, norm = CONV[spatial_dims], BATCH_NORM[spatial_dims]
        deep = 2 * width

        def activated(channels: int) -> nn.Sequential:
            return nn.Sequential(norm(channels), nn.ReLU(inplace=True))

        self.conv1a = conv(in_channels, width, 3, padding=1)
        self.act1a = activated(width)
        self.conv1b = conv(width, width, thin, padding=tuple(side // 2 for side in thin))
        self.down = nn.ModuleList(
            nn.Sequential(activated(channels), conv(channels, deep, 3, stride=2, padding=1))
            for channels in (width, deep, deep)
        )
        self.residual = nn.ModuleList(
            nn.Sequential(VoxRes(spatial_dims, deep, thin), VoxRes(spatial_dims, deep, thin)) for _ in range(3)
        )
        full = head == "deconv_full"
        channels = (width, deep, deep, deep)
        self.up = nn.ModuleList(
            nn.Sequential(
                CONV_TRANSPOSE[spatial_dims](side, side if full else out_channels, kernel, stride=stride, padding=pad),
                nn.Hardtanh(0, 20) if full else nn.Identity(),
            )
            for side, kernel, stride, pad in zip(channels, KERNELS[head], STRIDES, PADDINGS[head], strict=True)
        )
        names = [str(stride) for stride in STRIDES]
        if full:
            self.classifiers = nn.ModuleDict(
                {name: conv(side, out_channels, 3, padding=1) for name, side in zip(names, channels, strict=True)}
            )
        else:
            self.head = PointwiseHeads(spatial_dims, dict.fromkeys(names, out_channels), out_channels, average=False)
        self.apply(initialise)

    def trunk(self, image: Tensor) -> list[Tensor]:
        """The maps of the four resolutions, fine to coarse."""
        maps = [self.conv1b(self.act1a(self.conv1a(image)))]
        for down, residual in zip(self.down, self.residual, strict=True):
            maps.append(residual(down(maps[-1])))
        return maps

    def enlarged(self, image: Tensor) -> list[Tensor]:
        """The maps of the four resolutions at the image's size."""
        return [up(features) for up, features in zip(self.up, self.trunk(image), strict=True)]

    def body(self, image: Tensor) -> Tensor:
        """The maps of the four resolutions at the image's size, joined."""
        return cat(self.enlarged(image), dim=1)

    def each(self, image: Tensor) -> list[Tensor]:
        """Logits of the four resolutions, fine to coarse."""
        if isinstance(self.head, PointwiseHeads):
            return self.head.each(self.body(image))
        return [conv(features) for conv, features in zip(self.classifiers.values(), self.enlarged(image), strict=True)]

    def forward_aligned(self, image: Tensor) -> Logits:
        """The sum of the four classifiers, in training mode followed by each of them."""
        each = self.each(image)
        total = each[0] + each[1] + each[2] + each[3]
        return [total, *each] if self.training else total


class VoxRes(nn.Module):
    """x + conv(ReLU(norm(conv(ReLU(norm(x)))))), the first convolution with the kernel `thin`."""

    def __init__(self, spatial_dims: int, width: int, thin: tuple[int, ...]) -> None:
        super().__init__()
        conv, norm = CONV[spatial_dims], BATCH_NORM[spatial_dims]
        self.branch = nn.Sequential(
            norm(width),
            nn.ReLU(inplace=True),
            conv(width, width, thin, padding=tuple(side // 2 for side in thin)),
            norm(width),
            nn.ReLU(inplace=True),
            conv(width, width, 3, padding=1),
        )

    def forward(self, image: Tensor) -> Tensor:
        """(N, width, *S), size kept."""
        result: Tensor = image + self.branch(image)
        return result


def _reach(thin: int, head: str) -> int:
    """Receptive field of the logits along one axis, on which half of the convolutions have the side `thin`."""
    maps = [Reach.of_input(STRIDES[-1]).conv(3).conv(thin)]
    for _ in range(3):
        maps.append(maps[-1].conv(3, stride=2).conv(thin).conv(3).conv(thin).conv(3))
    enlarged = [
        seen.up(stride, kernel, padding).conv(3 if head == "deconv_full" else 1)
        for seen, kernel, stride, padding in zip(maps, KERNELS[head], STRIDES, PADDINGS[head], strict=True)
    ]
    return reduce(Reach.join, enlarged).size
