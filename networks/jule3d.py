"""The embedding network of Moriya's unsupervised segmentation: a patch becomes a direction in 160 dimensions.

Moriya et al., SPIE 10578 (2018), arXiv 1804.03830, on JULE (Yang, Parikh and Batra, CVPR 2016, arXiv 1604.03628).
Three convolutions of side 5, pooling behind the first, two fully connected layers, unit length. It is trained by
`TripletLoss` (feature_losses.py) on clusters that are merged as it learns.

Where the pooling stands is our reading: behind the first convolution, where it leaves 50 * 3^3 = 1350 values, the
width of the first fully connected layer. The paper has no decoder; a linear one is here by option.
"""

from __future__ import annotations

from math import prod
from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from .blocks import BATCH_NORM, CONV, MAX_POOL
from .features import FeatureNetwork

DEPTH = 3


class JULE3D(FeatureNetwork):
    """Convolutional embedding of patches.

    Parameters (1 channel, 3D): 2,671,710; 847,860 (hidden=0), 24,001,710 (pool_after=3).

    Args:
        patch: side of the patch.
        width: maps of each convolution.
        kernel: side of the convolutions.
        hidden: units of the first fully connected layer; 0 for none.
        code: length of the code.
        pool_after: the convolution behind which there is pooling, 1 to 3.
        decoder: whether a linear layer makes a patch of the code.

    Shape:
        image: (N, in_channels, *patch).
        returns: code (N, code) of length 1, reconstruction of the patch's shape or `None`.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        *,
        patch: int = 27,
        width: int = 50,
        kernel: int = 5,
        hidden: int = 1350,
        code: int = 160,
        pool_after: int = 1,
        decoder: bool = False,
    ) -> None:
        if not 1 <= pool_after <= DEPTH:
            raise ValueError(f"pooling stands behind convolution 1 to {DEPTH}, got {pool_after=}")
        super().__init__(
            spatial_dims, in_channels, code_channels=code, patch=(patch,) * spatial_dims, reconstructs=decoder
        )
        side = patch
        layers: list[nn.Module] = []
        for depth in range(1, DEPTH + 1):
            layers += [
                CONV[spatial_dims](in_channels if depth == 1 else width, width, kernel),
                BATCH_NORM[spatial_dims](width),
                nn.ReLU(inplace=True),
            ]
            side -= kernel - 1
            if depth == pool_after:
                layers.append(MAX_POOL[spatial_dims](2))
                side //= 2
        if side < 1:
            raise ValueError(f"a patch of side {patch} is too small for {DEPTH} convolutions of side {kernel}")
        flat = width * side**spatial_dims
        self.convs = nn.Sequential(*layers, nn.Flatten())
        self.full = nn.Sequential(nn.Linear(flat, hidden), nn.ReLU(inplace=True)) if hidden else nn.Identity()
        self.embed = nn.Linear(hidden or flat, code)
        self.decoder = nn.Linear(code, in_channels * prod(cast(tuple[int, ...], self.patch))) if decoder else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(cast(Tensor, module.bias))

    def code_of(self, image: Tensor) -> Tensor:
        """Unit vectors."""
        return functional.normalize(self.embed(self.full(self.convs(image))))

    def image_of(self, code: Tensor) -> Tensor:
        """The patch that a linear layer makes of the code."""
        flat: Tensor = cast(nn.Linear, self.decoder)(code)
        return flat.view(len(code), self.in_channels, *cast(tuple[int, ...], self.patch))
