"""Stacked sparse auto-encoder of patches, several modalities jointly.

In the manner of Guo et al., MICCAI 2014 (infant hippocampus, T1 and T2 patches); the name is that of the sister paper,
Guo, Gao and Shen, IEEE TMI 2016. Layer sizes and patch were not to be had: 11^3 voxels and 800, 400 and 100 units are
ours. Sigmoid units; a linear last layer of the decoder, so that intensities may have any unit.

Trained layer by layer (`greedy`) on the squared error plus `kl_sparsity` of the units (feature_losses.py), then as a
whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

from torch import Tensor, nn

from .features import FeatureNetwork


class SSAE(FeatureNetwork):
    """Dense encoder and its mirror, with weights of its own.

    Parameters (2 channels, 3D): 4,984,362.

    Args:
        patch: side of the patch.
        widths: units of the encoder's layers; the last are the code.

    Shape:
        image: (N, in_channels, *patch).
        returns: code (N, widths[-1]) in 0..1, reconstruction of the patch's shape.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, *, patch: int = 11, widths: Sequence[int] = (800, 400, 100)
    ) -> None:
        if not widths:
            raise ValueError("an auto-encoder has at least one layer, got no widths")
        super().__init__(spatial_dims, in_channels, code_channels=widths[-1], patch=(patch,) * spatial_dims)
        sizes = [in_channels * patch**spatial_dims, *widths]
        self.encoder = nn.ModuleList(nn.Linear(wide, thin) for wide, thin in pairwise(sizes))
        self.decoder = nn.ModuleList(nn.Linear(thin, wide) for wide, thin in reversed(list(pairwise(sizes))))
        for layer in (*self.encoder, *self.decoder):
            nn.init.xavier_uniform_(cast(Tensor, layer.weight))
            nn.init.zeros_(cast(Tensor, layer.bias))

    def activations(self, image: Tensor) -> list[Tensor]:
        """The units of each layer of the encoder; the last are the code."""
        units = [image.flatten(1)]
        for layer in self.encoder:
            units.append(layer(units[-1]).sigmoid())
        return units[1:]

    def code_of(self, image: Tensor) -> Tensor:
        """The units of the deepest layer."""
        return self.activations(image)[-1]

    def image_of(self, code: Tensor) -> Tensor:
        """The patch of a code."""
        for layer in self.decoder[:-1]:
            code = layer(code).sigmoid()
        flat: Tensor = self.decoder[-1](code)
        return flat.view(len(code), self.in_channels, *cast(tuple[int, ...], self.patch))

    def greedy(self, image: Tensor, depth: int) -> tuple[Tensor, Tensor, Tensor]:
        """What layer `depth` (from 0) learns from on its own, the layers in front of it left as they are.

        Returns:
            the layer's input, its units, and the input that its decoder makes of them.
        """
        if not 0 <= depth < len(self.encoder):
            raise ValueError(f"{type(self).__name__} has layers 0 to {len(self.encoder) - 1}, got {depth=}")
        self.check(image)
        before = self.activations(image)[depth - 1].detach() if depth else image.flatten(1)
        units = self.encoder[depth](before).sigmoid()
        result = self.decoder[len(self.decoder) - 1 - depth](units)
        return before, units, result.sigmoid() if depth else result
