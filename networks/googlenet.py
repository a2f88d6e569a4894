"""GoogLeNet as a trunk: the maps of its third, fourth and fifth stage.

Szegedy et al., CVPR 2015, in the form that torchvision keeps: batch norm behind each convolution, a side of 3 where the
paper has 5. Layers are named as torchvision names them, so that its weights fit.
"""

from __future__ import annotations

from torch import Tensor, cat, nn

from .receptive_field import Reach

EPSILON = 0.001
# channels of: 1x1 | in front of 3x3, 3x3 | in front of the second 3x3, it | behind the pooling; for a width of 64
INCEPTIONS: dict[str, tuple[int, ...]] = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
STAGES = (("3a", "3b"), ("4a", "4b", "4c", "4d", "4e"), ("5a", "5b"))
WIDTH = 64


class GoogLeNet(nn.Module):
    """The trunk of GoogLeNet, in 2D.

    Args:
        in_channels: channels of the image.
        width: channels of the first convolution; all others follow in proportion.

    Attributes:
        widths: channels of the three maps.

    Shape:
        image: (N, in_channels, X, Y).
        returns: three maps, of 1/8, 1/16 and 1/32 of the size.
    """

    def __init__(self, in_channels: int, *, width: int = WIDTH) -> None:
        super().__init__()

        def scaled(channels: int) -> int:
            return max(channels * width // WIDTH, 1)

        self.conv1 = BasicConv(in_channels, width, 7, stride=2)
        self.maxpool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.conv2 = BasicConv(width, width, 1)
        self.conv3 = BasicConv(width, 3 * width, 3)
        self.maxpool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.maxpool3 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.maxpool4 = nn.MaxPool2d(2, stride=2, ceil_mode=True)
        channels = 3 * width
        self.widths: list[int] = []
        for names in STAGES:
            for name in names:
                block = Inception(channels, [scaled(side) for side in INCEPTIONS[name]])
                self.add_module(f"inception{name}", block)
                channels = block.out_channels
            self.widths.append(channels)

    def forward(self, image: Tensor) -> list[Tensor]:
        """The three maps, fine to coarse."""
        features = self.maxpool2(self.conv3(self.conv2(self.maxpool1(self.conv1(image)))))
        maps = []
        for names, pool in zip(STAGES, (None, self.maxpool3, self.maxpool4), strict=True):
            features = features if pool is None else pool(features)
            for name in names:
                features = self.get_submodule(f"inception{name}")(features)
            maps.append(features)
        return maps


class BasicConv(nn.Module):
    """A padded convolution, batch norm and ReLU."""

    def __init__(self, in_channels: int, width: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=EPSILON)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, image: Tensor) -> Tensor:
        """(N, in_channels, X, Y) to (N, width, X / stride, Y / stride)."""
        result: Tensor = self.relu(self.bn(self.conv(image)))
        return result


class Inception(nn.Module):
    """Four branches next to each other, their channels joined."""

    def __init__(self, in_channels: int, sides: list[int]) -> None:
        super().__init__()
        one, before, three, before_second, second, pooled = sides
        self.out_channels = one + three + second + pooled
        self.branch1 = BasicConv(in_channels, one, 1)
        self.branch2 = nn.Sequential(BasicConv(in_channels, before, 1), BasicConv(before, three, 3))
        self.branch3 = nn.Sequential(BasicConv(in_channels, before_second, 1), BasicConv(before_second, second, 3))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), BasicConv(in_channels, pooled, 1))

    def forward(self, image: Tensor) -> Tensor:
        """(N, in_channels, X, Y) to (N, out_channels, X, Y)."""
        return cat((self.branch1(image), self.branch2(image), self.branch3(image), self.branch4(image)), dim=1)


def googlenet_reach() -> list[Reach]:
    """What the three maps see along one axis."""
    seen = Reach.of_input(32).conv(7, stride=2).conv(3, stride=2, padding=0).conv(3).conv(3, stride=2, padding=0)
    maps = []
    for index, names in enumerate(STAGES):
        if index:
            seen = seen.conv(3, stride=2, padding=0) if index == 1 else seen.conv(2, stride=2)
        for _ in names:
            seen = seen.conv(3)
        maps.append(seen)
    return maps
