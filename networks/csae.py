"""Convolutional sparse auto-encoder on several scales.

In the manner of Kallenberg et al., IEEE TMI 35 (2016) (breast density and risk). Its layers were not to be had; ours:
the image at full, half and quarter resolution as channels; convolutions of side 7 (50 maps), 5 (100) and 5 (100) with
ReLU, max-pooling of 2 between them. The decoder has the encoder's filters, transposed, and biases of its own; where the
encoder pools, it repeats voxels.

Trained layer by layer (`greedy`) on the squared error plus `activity_sparsity` (feature_losses.py), then as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, cat, nn
from torch.nn import functional

from .blocks import AVERAGE_POOL, CONV, LINEAR, MAX_POOL
from .features import FeatureNetwork

TRANSPOSED: dict[int, Callable[..., Tensor]] = {2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


class CSAE(FeatureNetwork):
    """Convolutions and max-pooling, decoded by the same filters.

    Parameters (1 channel): 382,753 in 2D, 1,926,853 in 3D.

    Args:
        widths: maps of the convolutions; the last are the code.
        kernels: side of each convolution, odd.
        scales: factors by which the image is made coarser, 1 first; each becomes a set of channels.

    Shape:
        image: (N, in_channels, *S), padded to multiples of 4.
        returns: code (N, widths[-1], *(S / 4)), not negative; reconstruction of the image's shape.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        *,
        widths: Sequence[int] = (50, 100, 100),
        kernels: Sequence[int] = (7, 5, 5),
        scales: Sequence[int] = (1, 2, 4),
    ) -> None:
        step = 2 ** (len(widths) - 1) if widths else 0
        if not widths or len(widths) != len(kernels) or any(side % 2 == 0 for side in kernels):
            raise ValueError(f"each layer has a width and an odd kernel, got {list(widths)} and {list(kernels)}")
        if not scales or scales[0] != 1 or any(step % scale for scale in scales):
            raise ValueError(f"scales are 1 and divisors of {step}, got {list(scales)}")
        super().__init__(spatial_dims, in_channels, code_channels=widths[-1], stride=(step,) * spatial_dims)
        self.scales = tuple(scales)
        sizes = [len(scales) * in_channels, *widths]
        self.encoder = nn.ModuleList(
            CONV[spatial_dims](wide, maps, side, padding=side // 2)
            for wide, maps, side in zip(sizes, widths, kernels, strict=False)
        )
        self.biases = nn.ParameterList(torch.zeros(wide) for wide in sizes[:-1])  # of the decoder, shallow to deep
        self.pool = MAX_POOL[spatial_dims](2)
        self.coarser = nn.ModuleList(AVERAGE_POOL[spatial_dims](scale) for scale in scales[1:])

    def stack(self, image: Tensor) -> Tensor:
        """The image at all scales, blown up to its size again: (N, scales * in_channels, *S)."""
        mode, size = LINEAR[self.spatial_dims], image.shape[2:]
        coarse = [functional.interpolate(pool(image), size, mode=mode, align_corners=False) for pool in self.coarser]
        return cat([image, *coarse], dim=1)

    def activations(self, image: Tensor) -> list[Tensor]:
        """The maps of each layer of the encoder, in front of pooling; the last are the code."""
        maps: list[Tensor] = []
        for conv in self.encoder:
            maps.append(conv(self.pool(maps[-1]) if maps else self.stack(image)).relu())
        return maps

    def code_of(self, image: Tensor) -> Tensor:
        """The maps of the deepest layer."""
        return self.activations(image)[-1]

    def image_of(self, code: Tensor) -> Tensor:
        """The image of a code: the full resolution's part of the reconstructed stack."""
        for depth in reversed(range(len(self.encoder))):
            code = self.undone(depth, code)
            if depth:
                code = functional.interpolate(code.relu(), scale_factor=2.0)
        return code[:, : self.in_channels]

    def undone(self, depth: int, maps: Tensor) -> Tensor:
        """What the transposed filters of layer `depth` make of its maps."""
        weight = cast(Tensor, self.encoder[depth].weight)
        return TRANSPOSED[self.spatial_dims](maps, weight, self.biases[depth], padding=weight.shape[-1] // 2)

    def greedy(self, image: Tensor, depth: int) -> tuple[Tensor, Tensor, Tensor]:
        """What layer `depth` (from 0) learns from on its own, the layers in front of it left as they are.

        Returns:
            the layer's input, its maps, and the input that its transposed filters make of them.
        """
        if not 0 <= depth < len(self.encoder):
            raise ValueError(f"{type(self).__name__} has layers 0 to {len(self.encoder) - 1}, got {depth=}")
        self.check(image)
        before = self.pool(self.activations(image)[depth - 1]).detach() if depth else self.stack(image)
        maps = self.encoder[depth](before).relu()
        result = self.undone(depth, maps)
        return before, maps, result.relu() if depth else result
