"""ADID-UNET: dense blocks, a cascade of dilated convolutions and attention gates in a U-Net.

Joseph Raj et al., PeerJ Computer Science 7:e349 (2021), for COVID-19 CT. Transitions (norm, ReLU, 1x1 convolution to
half the channels, pooling) take the place of pooling; dense bottlenecks add channels in the two deepest levels; at the
bottom seven convolutions of dilation 1, 2, 4, 8, 16, 1, 1 follow one another. Level by level, of 128 x 128 pixels:

    e0 to e3   32 @ 128, 64 @ 64, 128 @ 32, 256 @ 16     two convolutions, max-pooling (average pooling into e4)
    e4         640 @ 8                                   128 of the transition and 512 of a dense bottleneck
    bottom     832, 1088, 1344 @ 4                       320 and a dense bottleneck; the cascade; a dense bottleneck
    d4         2496 @ 8                                  up, gate, joined to 1984, a dense bottleneck
    d3 to d0   256 @ 16, 128 @ 32, 64 @ 64, 32 @ 128     up, gate, joined, two convolutions

On small images the larger dilations reach nothing but padding: with the bottom at 4 x 4 those of 4, 8 and 16 act as
1x1 convolutions. Give it 512 pixels if they are to mean anything.

Differs from the released code: logits instead of a hard sigmoid; the gate's norm stands in front of its sigmoid, so
that the mask is between 0 and 1 (`faithful=True` puts it behind, as released).
"""

from __future__ import annotations

from torch import Tensor, cat, nn

from .base import SegmentationNetwork
from .blocks import Upsample, conv_stage, initialise
from .receptive_field import Reach

DILATIONS = (1, 2, 4, 8, 16, 1, 1)
STRIDE = 32


class ADIDUNet(SegmentationNetwork):
    """ADID-UNET.

    Parameters (1 channel to 1 class): 52,132,416.

    Args:
        width: channels of the first level.
        faithful: the gates' norm behind their sigmoid, as released.
        dropout: share of values zeroed behind each level of both ways, in training.

    Shape:
        image: (N, in_channels, X, Y), padded to multiples of 32.
        returns: logits (N, out_channels, X, Y).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 32,
        faithful: bool = False,
        dropout: float = 0.2,
    ) -> None:
        super().__init__(
            spatial_dims, in_channels, out_channels, stride=(STRIDE, STRIDE), receptive_field=(_reach(),) * 2
        )
        self.at_least_two = True
        widths = [width * 2**level for level in range(4)]
        deepest = widths[-1]

        def stage(channels: int, result: int) -> nn.Sequential:
            convs = conv_stage(2, channels, (result, result), norm="batch", activation="relu", bias=True)
            return nn.Sequential(*convs, nn.Dropout(dropout))

        self.encoder = nn.ModuleList(
            stage(widths[level - 1] // 2 if level else in_channels, widths[level]) for level in range(4)
        )
        self.transitions = nn.ModuleList(Transition(side, nn.MaxPool2d(2)) for side in widths[:-1])
        # e4
        self.into_fourth = Transition(deepest, nn.AvgPool2d(2))
        self.fourth = DenseBottleneck(deepest // 2, 2 * deepest, dropout)
        joined = self.fourth.out_channels
        # the bottom
        self.into_bottom = Transition(joined, nn.AvgPool2d(2))
        self.before = DenseBottleneck(joined // 2, 2 * deepest, dropout)
        self.cascade = DilatedCascade(self.before.out_channels, deepest)
        self.behind = DenseBottleneck(self.before.out_channels + deepest, deepest, dropout)
        # the way up
        self.up = Upsample(2)
        coarse = self.behind.out_channels
        self.gates = nn.ModuleList([Gate(coarse, joined, deepest, faithful)])
        self.up_fourth = DenseBottleneck(coarse + joined, 2 * deepest, dropout)
        coarse = self.up_fourth.out_channels
        self.decoder = nn.ModuleList()
        for side in reversed(widths):
            self.gates.append(Gate(coarse, side, side // 2, faithful))
            self.decoder.append(stage(coarse + side, side))
            coarse = side
        self.head = nn.Conv2d(width, out_channels, 1)
        self.apply(initialise)

    def body(self, image: Tensor) -> Tensor:
        """Features of the finest level."""
        skips = [self.encoder[0](image)]
        for transition, stage in zip(self.transitions, self.encoder[1:], strict=True):
            skips.append(stage(transition(skips[-1])))
        skips.append(self.fourth(self.into_fourth(skips[-1])))
        bottom = self.before(self.into_bottom(skips[-1]))
        decoded = self.behind(cat((bottom, self.cascade(bottom)), dim=1))
        for gate, stage in zip(self.gates, (self.up_fourth, *self.decoder), strict=True):
            larger = self.up(decoded)
            decoded = stage(cat((larger, gate(larger, skips.pop())), dim=1))
        result: Tensor = decoded
        return result


class Transition(nn.Module):
    """Norm, ReLU, a 1x1 convolution to half the channels, and a pooling."""

    def __init__(self, channels: int, pool: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels // 2, 1), pool)

    def forward(self, image: Tensor) -> Tensor:
        """(N, channels, X, Y) to (N, channels / 2, X / 2, Y / 2)."""
        result: Tensor = self.layers(image)
        return result


class DenseBottleneck(nn.Module):
    """One layer of a dense block: what it makes is joined to what it was given.

    Args:
        channels: of the input.
        growth: channels that are added; the 1x1 convolution in front has four times as many.
        dropout: share of values zeroed.
    """

    def __init__(self, channels: int, growth: int, dropout: float) -> None:
        super().__init__()
        self.out_channels = channels + growth
        self.layers = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, 4 * growth, 1),
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(),
            nn.Conv2d(4 * growth, growth, 3, padding=1),
            nn.Dropout(dropout),
        )

    def forward(self, image: Tensor) -> Tensor:
        """(N, channels, X, Y) to (N, channels + growth, X, Y)."""
        return cat((image, self.layers(image)), dim=1)


class DilatedCascade(nn.Sequential):
    """Convolutions of side 3 with ReLU and growing dilation, one behind the other; 67 pixels are seen."""

    def __init__(self, channels: int, width: int) -> None:
        layers: list[nn.Module] = []
        for dilation in DILATIONS:
            layers += [nn.Conv2d(channels, width, 3, padding=dilation, dilation=dilation), nn.ReLU()]
            channels = width
        super().__init__(*layers)


class Gate(nn.Module):
    """The attention gate of the released code: each of its convolutions is followed by ReLU and then by norm.

    Args:
        signal: channels of the up-sampled map.
        skip: channels of the skip.
        inner: channels in which the two are added.
        faithful: the last norm behind the sigmoid.
    """

    def __init__(self, signal: int, skip: int, inner: int, faithful: bool) -> None:
        super().__init__()

        def layer(channels: int, result: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(channels, result, 1), nn.ReLU(), nn.BatchNorm2d(result))

        self.signal = layer(signal, inner)
        self.skip = layer(skip, inner)
        last = (nn.Sigmoid(), nn.BatchNorm2d(1)) if faithful else (nn.BatchNorm2d(1), nn.Sigmoid())
        self.psi = nn.Sequential(nn.ReLU(), layer(inner, inner // 2), nn.Conv2d(inner // 2, 1, 1), *last)

    def alpha(self, signal: Tensor, skip: Tensor) -> Tensor:
        """The mask (N, 1, X, Y); between 0 and 1 unless it is built to be faithful."""
        mask: Tensor = self.psi(self.signal(signal) + self.skip(skip))
        return mask

    def forward(self, signal: Tensor, skip: Tensor) -> Tensor:
        """The masked skip (N, skip, X, Y)."""
        return skip * self.alpha(signal, skip)


def _reach() -> int:
    """Receptive field of the logits along one axis."""
    seen = Reach.of_input(STRIDE).conv(3).conv(3)
    skips = [seen]
    for _ in range(3):
        skips.append(skips[-1].conv(2, stride=2).conv(3).conv(3))
    skips.append(skips[-1].conv(2, stride=2).conv(3))
    seen = skips[-1].conv(2, stride=2).conv(3)
    for dilation in DILATIONS:
        seen = seen.conv(3, dilation=dilation)
    seen = seen.conv(3)
    for level, skip in enumerate(reversed(skips)):
        seen = seen.up(2).join(skip).conv(3)
        seen = seen if level == 0 else seen.conv(3)
    return seen.size
