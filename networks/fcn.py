"""FCN: VGG-16 made fully convolutional, its scores up-sampled by fixed bilinear kernels.

Long, Shelhamer and Darrell, CVPR 2015, arXiv 1411.4038; TPAMI 2017. The dense layers of VGG-16 become a 7x7 and a 1x1
convolution and a 1x1 layer scores the classes at stride 32 (`fcn32s`). `fcn16s` adds the scores of the fourth pooling,
`fcn8s` those of the third one too. Layers are named as in the authors' Caffe networks.

Padding "paper" is theirs: 100 pixels around the image and maps cropped at fixed offsets. "same" pads each convolution
by half its kernel, and crops nothing. The published networks take blue, green, red with the mean subtracted; ours take
any channels in the order that they are given; see `networks/weights.py` for what is done to published weights.

Score layers start at zero, as theirs do: the network begins without an opinion, whatever the rest of it starts with.

Differs from the paper: inputs are padded to multiples of 32.
"""

from __future__ import annotations

from torch import Tensor, nn

from .base import SegmentationNetwork
from .bilinear import FixedBilinearUp
from .blocks import choose, initialise
from .receptive_field import Reach
from .vgg import DEPTHS, STRIDE, WIDTHS, vgg_reach

PADDINGS = ("paper", "same")
AROUND = 100  # pixels of zeros around the image, with padding "paper"
# where a score map begins in the pooling's, and the image in the last one's (Caffe's crop layers)
OFFSET_POOL4, OFFSET_POOL3, OFFSET_IMAGE = 5, 9, {32: 19, 16: 27, 8: 31}
SCALE_POOL4, SCALE_POOL3 = 0.01, 0.0001  # of the network trained at once


class FCN(SegmentationNetwork):
    """What the three have in common; `FINEST` is the stride of the finest scores.

    Args:
        width: channels of the first stage; the dense layers have 64 times as many.
        padding: "paper" or "same".
        at_once: the poolings are scaled in front of their scores, so that all are trained at the same time.
        dropout: share of values zeroed behind each dense layer, in training.

    Shape:
        image: (N, in_channels, X, Y), padded to multiples of 32.
        returns: logits (N, out_channels, X, Y).
    """

    FINEST = 32

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 64,
        padding: str = "paper",
        at_once: bool = False,
        dropout: float = 0.5,
    ) -> None:
        choose("padding", padding, PADDINGS)
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            stride=(STRIDE, STRIDE),
            receptive_field=(_reach(self.FINEST, padding),) * 2,
        )
        self.cropped = padding == "paper"
        self.at_once = at_once
        channels = in_channels
        for stage, (depth, times) in enumerate(zip(DEPTHS, WIDTHS, strict=True), start=1):
            for step in range(1, depth + 1):
                around = AROUND if self.cropped and stage == step == 1 else 1
                self.add_module(f"conv{stage}_{step}", nn.Conv2d(channels, times * width, 3, padding=around))
                channels = times * width
        dense = 64 * width
        self.fc6 = nn.Conv2d(channels, dense, 7, padding=0 if self.cropped else 3)
        self.fc7 = nn.Conv2d(dense, dense, 1)
        self.dropout = nn.Dropout(dropout)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.score_fr = nn.Conv2d(dense, out_channels, 1)

        def up(scale: int) -> FixedBilinearUp:
            return FixedBilinearUp(scale, padding=0 if self.cropped else scale // 2)

        if self.FINEST < 32:
            self.upscore2 = up(2)
            self.score_pool4 = nn.Conv2d(8 * width, out_channels, 1)
        if self.FINEST < 16:
            self.upscore_pool4 = up(2)
            self.score_pool3 = nn.Conv2d(4 * width, out_channels, 1)
        self.upscore = up(self.FINEST)
        self.apply(initialise)
        for name, layer in self.named_children():
            if name.startswith("score") and isinstance(layer, nn.Conv2d):
                nn.init.zeros_(layer.weight)

    def poolings(self, image: Tensor) -> list[Tensor]:
        """What the five poolings give, fine to coarse."""
        pools: list[Tensor] = []
        for stage, depth in enumerate(DEPTHS, start=1):
            for step in range(1, depth + 1):
                image = self.relu(self.get_submodule(f"conv{stage}_{step}")(image))
            image = self.pool(image)
            pools.append(image)
        return pools

    def forward_aligned(self, image: Tensor) -> Tensor:
        """Logits of an aligned image."""
        _, _, pool3, pool4, pool5 = self.poolings(image)
        dense = self.dropout(self.relu(self.fc6(pool5)))
        score = self.score_fr(self.dropout(self.relu(self.fc7(dense))))
        if self.FINEST < 32:
            score = self.upscore2(score)
            skip = self.score_pool4(pool4 * SCALE_POOL4 if self.at_once else pool4)
            score = score + self.cut(skip, OFFSET_POOL4, score)
        if self.FINEST < 16:
            score = self.upscore_pool4(score)
            skip = self.score_pool3(pool3 * SCALE_POOL3 if self.at_once else pool3)
            score = score + self.cut(skip, OFFSET_POOL3, score)
        return self.cut(self.upscore(score), OFFSET_IMAGE[self.FINEST], image)

    def cut(self, larger: Tensor, offset: int, like: Tensor) -> Tensor:
        """The part of a map from `offset` on that has the size of another; the whole of it with padding "same"."""
        begin = offset if self.cropped else 0
        high, wide = like.shape[2:]
        return larger[:, :, begin : begin + high, begin : begin + wide]


class FCN32s(FCN):
    """FCN without skips. Parameters (3 channels to 21 classes): 134,346,581. Arguments as those of `FCN`."""

    FINEST = 32


class FCN16s(FCN):
    """FCN with one skip. Parameters (3 channels to 21 classes): 134,357,354. Arguments as those of `FCN`."""

    FINEST = 16


class FCN8s(FCN):
    """FCN with two skips. Parameters (3 channels to 21 classes): 134,362,751. Arguments as those of `FCN`."""

    FINEST = 8


def _reach(finest: int, padding: str) -> int:
    """Receptive field of the logits along one axis."""
    paper = padding == "paper"
    pools = vgg_reach(AROUND if paper else 1)

    def up(below: Reach, scale: int) -> Reach:
        return below.up(scale, 2 * scale, 0 if paper else scale // 2)

    seen = pools[-1].conv(7, padding=0 if paper else 3)
    if finest < 32:
        seen = up(seen, 2).join(pools[3].crop(OFFSET_POOL4 if paper else 0))
    if finest < 16:
        seen = up(seen, 2).join(pools[2].crop(OFFSET_POOL3 if paper else 0))
    return up(seen, finest).size
