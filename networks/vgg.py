"""VGG-16 as a trunk: the maps behind its five poolings.

Simonyan and Zisserman, ICLR 2015, arXiv 1409.1556. Layers are numbered as torchvision numbers them, so that its weights
fit. The dense layers are not here; `fcn.py` makes convolutions of them.
"""

from __future__ import annotations

from torch import Tensor, nn

from .receptive_field import Reach

DEPTHS = (2, 2, 3, 3, 3)  # convolutions of each stage
WIDTHS = (1, 2, 4, 8, 8)  # their channels, in times the width
STRIDE = 32


class VGG16(nn.Module):
    """The convolutions of VGG-16, in 2D.

    Args:
        in_channels: channels of the image.
        width: channels of the first stage; the others have 2, 4, 8 and 8 times as many.

    Attributes:
        widths: channels of the five maps.

    Shape:
        image: (N, in_channels, X, Y).
        returns: what the five poolings give, of 1/2, 1/4, 1/8, 1/16 and 1/32 of the size.
    """

    def __init__(self, in_channels: int, *, width: int = 64) -> None:
        super().__init__()
        self.features = nn.Sequential()
        self.widths = [times * width for times in WIDTHS]
        channels = in_channels
        for depth, side in zip(DEPTHS, self.widths, strict=True):
            for _ in range(depth):
                self.features.append(nn.Conv2d(channels, side, 3, padding=1))
                self.features.append(nn.ReLU(inplace=True))
                channels = side
            self.features.append(nn.MaxPool2d(2))

    def forward(self, image: Tensor) -> list[Tensor]:
        """The five maps, fine to coarse."""
        maps = []
        for layer in self.features:
            image = layer(image)
            if isinstance(layer, nn.MaxPool2d):
                maps.append(image)
        return maps


def vgg_reach(padding: int = 1) -> list[Reach]:
    """What the five maps see along one axis; `padding` is that of the first convolution."""
    seen, maps = Reach.of_input(STRIDE), []
    for stage, depth in enumerate(DEPTHS):
        for step in range(depth):
            seen = seen.conv(3, padding=padding if stage == step == 0 else 1)
        seen = seen.conv(2, stride=2)
        maps.append(seen)
    return maps
