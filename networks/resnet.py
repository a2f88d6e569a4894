"""ResNet as a trunk: the maps of its stem and its four stages, in two or three dimensions.

He, Zhang, Ren and Sun, CVPR 2016. Layers are named as torchvision names them, so that its weights fit in 2D. The step
of a bottleneck stands in its 3x3 convolution (torchvision) or in its first 1x1 (the authors' Caffe networks).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .blocks import CONV, MAX_POOL, NORMS, POINTWISE, choose, subsample
from .receptive_field import Reach

# blocks of each stage, and whether they are bottlenecks
DEPTHS: dict[int, tuple[tuple[int, ...], bool]] = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}
STRIDE = 32


def blocks_of(depth: int) -> tuple[tuple[int, ...], bool]:
    """Blocks of each stage of the ResNet of so many layers, and whether they are bottlenecks."""
    if depth not in DEPTHS:
        raise ValueError(f"a ResNet has one of {sorted(DEPTHS)} layers here, got {depth=}")
    return DEPTHS[depth]


def depth_of(encoder: str) -> int:
    """Layers of the encoder of this name: 34 of "resnet34".

    Raises:
        UsageError: with the nearest name.
    """
    depths = {f"resnet{depth}": depth for depth in DEPTHS}
    choose("encoder", encoder, depths)
    return depths[encoder]


class ResNet(nn.Module):
    """The trunk of a ResNet.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        blocks: number of blocks in each of the four stages.
        bottleneck: three convolutions a block, the last with four times the channels, instead of two.
        width: channels of the stem; the stages have 1, 2, 4 and 8 times as many (times 4 with bottlenecks).
        step_first: the step of a bottleneck in its first convolution instead of its second.
        dilated: the last stage keeps its size, and its convolutions are dilated by 2.
        norm: a key of `NORMS`.

    Attributes:
        widths: channels of the five maps.
        kind: blocks of the stages and whether they are bottlenecks.

    Shape:
        image: (N, in_channels, *S).
        returns: five maps, of 1/2, 1/4, 1/8, 1/16 and 1/32 (1/16 if dilated) of the size.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        blocks: Sequence[int],
        *,
        bottleneck: bool,
        width: int = 64,
        step_first: bool = False,
        dilated: bool = False,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        self.kind = (tuple(blocks), bottleneck)
        self.conv1 = CONV[spatial_dims](in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = NORMS[norm](spatial_dims, width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = MAX_POOL[spatial_dims](3, stride=2, padding=1)
        channels = width
        self.widths: list[int] = [width]
        for stage, count in enumerate(blocks):
            side = width * 2**stage
            last = dilated and stage == len(blocks) - 1
            layer = nn.Sequential()
            for block in range(count):
                step = 2 if block == 0 and stage > 0 and not last else 1
                dilation = 2 if last else 1
                if bottleneck:
                    layer.append(Bottleneck(spatial_dims, channels, side, step, dilation, step_first, norm))
                else:
                    layer.append(BasicBlock(spatial_dims, channels, side, step, dilation, norm))
                channels = side * (4 if bottleneck else 1)
            self.add_module(f"layer{stage + 1}", layer)
            self.widths.append(channels)

    def forward(self, image: Tensor) -> list[Tensor]:
        """The five maps, fine to coarse."""
        maps = [self.relu(self.bn1(self.conv1(image)))]
        maps.append(self.get_submodule("layer1")(self.maxpool(maps[0])))
        for stage in (2, 3, 4):
            maps.append(self.get_submodule(f"layer{stage}")(maps[-1]))
        return maps


def shortcut(spatial_dims: int, channels: int, result: int, step: int, norm: str) -> nn.Sequential | None:
    """A 1x1x1 convolution with norm where width or size change; it takes the input subsampled."""
    if step == 1 and channels == result:
        return None
    return nn.Sequential(POINTWISE[spatial_dims](channels, result, bias=False), NORMS[norm](spatial_dims, result))


class BasicBlock(nn.Module):
    """Two convolutions of side 3 and a shortcut."""

    def __init__(self, spatial_dims: int, channels: int, width: int, step: int, dilation: int, norm: str) -> None:
        super().__init__()
        conv = CONV[spatial_dims]
        self.step = (step,) * spatial_dims
        self.conv1 = conv(channels, width, 3, stride=step, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = NORMS[norm](spatial_dims, width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = NORMS[norm](spatial_dims, width)
        self.downsample = shortcut(spatial_dims, channels, width, step, norm)

    def forward(self, image: Tensor) -> Tensor:
        """(N, channels, *S) to (N, width, *S / step)."""
        kept = image if self.downsample is None else self.downsample(subsample(image, self.step))
        result: Tensor = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(image))))) + kept)
        return result


class Bottleneck(nn.Module):
    """A 1x1x1 convolution, one of side 3, a 1x1x1 one to four times the width, and a shortcut."""

    def __init__(
        self, spatial_dims: int, channels: int, width: int, step: int, dilation: int, step_first: bool, norm: str
    ) -> None:
        super().__init__()
        conv = CONV[spatial_dims]
        self.step = (step,) * spatial_dims
        self.step_first = step_first
        self.conv1 = POINTWISE[spatial_dims](channels, width, bias=False)
        self.bn1 = NORMS[norm](spatial_dims, width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv(
            width, width, 3, stride=1 if step_first else step, padding=dilation, dilation=dilation, bias=False
        )
        self.bn2 = NORMS[norm](spatial_dims, width)
        self.conv3 = POINTWISE[spatial_dims](width, 4 * width, bias=False)
        self.bn3 = NORMS[norm](spatial_dims, 4 * width)
        self.downsample = shortcut(spatial_dims, channels, 4 * width, step, norm)

    def forward(self, image: Tensor) -> Tensor:
        """(N, channels, *S) to (N, 4 * width, *S / step)."""
        coarse = subsample(image, self.step)
        kept = image if self.downsample is None else self.downsample(coarse)
        features = self.relu(self.bn1(self.conv1(coarse if self.step_first else image)))
        features = self.relu(self.bn2(self.conv2(features)))
        result: Tensor = self.relu(self.bn3(self.conv3(features)) + kept)
        return result


def resnet_reach(
    blocks: Sequence[int], *, bottleneck: bool, step_first: bool = False, dilated: bool = False
) -> list[Reach]:
    """What the five maps see along one axis."""
    maps = [Reach.of_input(STRIDE // 2 if dilated else STRIDE).conv(7, stride=2)]
    seen = maps[0].conv(3, stride=2)
    for stage, count in enumerate(blocks):
        last = dilated and stage == len(blocks) - 1
        dilation = 2 if last else 1
        for block in range(count):
            step = 2 if block == 0 and stage > 0 and not last else 1
            if bottleneck:
                first = seen.conv(1, stride=step) if step_first else seen
                branch = first.conv(3, stride=1 if step_first else step, dilation=dilation)
            else:
                branch = seen.conv(3, stride=step, dilation=dilation).conv(3, dilation=dilation)
            seen = branch.join(seen.conv(1, stride=step))
        maps.append(seen)
    return maps
