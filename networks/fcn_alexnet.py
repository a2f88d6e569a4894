"""FCN-AlexNet: AlexNet made fully convolutional, its scores up-sampled 32 times by a fixed bilinear kernel.

Long, Shelhamer and Darrell, CVPR 2015, arXiv 1411.4038 (the network that NVIDIA DIGITS ships for segmentation).
Poolings of side 3 and stride 2, local response norm behind the first two, grouped convolutions. Layers are named as in
the authors' Caffe network, and the score layer starts at zero as there. Padding "paper" is theirs: 100 pixels around
the image and a crop at 18; "same" pads each convolution and pooling by half its kernel.

Differs from the paper: inputs are padded to multiples of 32.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from .base import SegmentationNetwork
from .bilinear import FixedBilinearUp
from .blocks import choose, initialise
from .fcn import AROUND
from .receptive_field import Reach

OFFSET = {"paper": 18, "same": 15}  # where the image begins in the up-sampled scores, by padding


class FCNAlexNet(SegmentationNetwork):
    """FCN-AlexNet at stride 32.

    Parameters: 56,954,261 (3 channels to 21 classes), 56,876,418 (to 2).

    Args:
        width: a third of the channels of the first convolution, and a 128th of those of the dense layers.
        padding: "paper" or "same".
        dropout: share of values zeroed behind each dense layer, in training.

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
        padding: str = "paper",
        dropout: float = 0.5,
    ) -> None:
        choose("padding", padding, OFFSET)
        if width < 2 or width % 2:
            raise ValueError(f"convolutions of FCN-AlexNet are in two groups, so its width is even; got {width=}")
        super().__init__(
            spatial_dims, in_channels, out_channels, stride=(32, 32), receptive_field=(_reach(padding),) * 2
        )
        paper = padding == "paper"
        self.padding = padding
        self.conv1 = nn.Conv2d(in_channels, 3 * width, 11, stride=4, padding=AROUND if paper else 5)
        self.conv2 = nn.Conv2d(3 * width, 8 * width, 5, padding=2, groups=2)
        self.conv3 = nn.Conv2d(8 * width, 12 * width, 3, padding=1)
        self.conv4 = nn.Conv2d(12 * width, 12 * width, 3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(12 * width, 8 * width, 3, padding=1, groups=2)
        self.fc6 = nn.Conv2d(8 * width, 128 * width, 6)
        self.fc7 = nn.Conv2d(128 * width, 128 * width, 1)
        self.score_fr = nn.Conv2d(128 * width, out_channels, 1)
        self.upscore = FixedBilinearUp(32, side=63)
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True) if paper else nn.MaxPool2d(3, stride=2, padding=1)
        self.norm = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)
        self.apply(initialise)
        nn.init.zeros_(self.score_fr.weight)

    def forward_aligned(self, image: Tensor) -> Tensor:
        """Logits of an aligned image."""
        features = self.norm(self.pool(self.relu(self.conv1(image))))
        features = self.norm(self.pool(self.relu(self.conv2(features))))
        features = self.relu(self.conv4(self.relu(self.conv3(features))))
        features = self.pool(self.relu(self.conv5(features)))
        if self.padding == "same":
            features = functional.pad(features, (2, 3, 2, 3))
        dense = self.dropout(self.relu(self.fc6(features)))
        scores = self.upscore(self.score_fr(self.dropout(self.relu(self.fc7(dense)))))
        begin = OFFSET[self.padding]
        high, wide = image.shape[2:]
        logits: Tensor = scores[:, :, begin : begin + high, begin : begin + wide]
        return logits


def _reach(padding: str) -> int:
    """Receptive field of the logits along one axis."""
    paper = padding == "paper"
    pool = 0 if paper else 1
    seen = Reach.of_input(32).conv(11, stride=4, padding=AROUND if paper else 5).conv(3, stride=2, padding=pool)
    seen = seen.conv(5).conv(3, stride=2, padding=pool).conv(3).conv(3).conv(3).conv(3, stride=2, padding=pool)
    return seen.conv(6, padding=0 if paper else 2).up(32, 63).crop(OFFSET[padding]).size
