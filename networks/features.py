"""The contract of feature networks: an image or a patch becomes a code, and the code an image again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from .base import crop, pad_far


class Coded(NamedTuple):
    """What a feature network gives.

    Args:
        code: (N, code_channels) of a patch, or (N, code_channels, *S) of an image.
        reconstruction: of the image's shape; `None` where the network has no decoder.
    """

    code: Tensor
    reconstruction: Tensor | None


class FeatureNetwork(nn.Module):
    """Base of all feature networks, which learn without labels; a subclass writes `code_of` and `image_of`.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        code_channels: channels of the code.
        patch: the one size that is taken; `None` for any size from `minimum_size` on.
        stride: voxels along each axis that images are padded to multiples of.
        reconstructs: whether there is a decoder.

    Shape:
        image: (N, in_channels, *S).
        returns: `Coded`.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        *,
        code_channels: int,
        patch: Sequence[int] | None = None,
        stride: Sequence[int] | None = None,
        reconstructs: bool = True,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"a network has 2 or 3 spatial dims, got spatial_dims={spatial_dims}")
        if in_channels < 1 or code_channels < 1:
            raise ValueError(f"a network needs channels, got in_channels={in_channels}, code_channels={code_channels}")
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.code_channels = code_channels
        self.patch = None if patch is None else tuple(int(side) for side in patch)
        self.stride = tuple(int(step) for step in stride or (1,) * spatial_dims)
        self.minimum_size = self.patch or (1,) * spatial_dims
        self.reconstructs = reconstructs

    def encode(self, image: Tensor) -> Tensor:
        """The code of an image, which is padded at its far ends to a multiple of `stride`."""
        self.check(image)
        size = [math.ceil(side / step) * step for side, step in zip(image.shape[2:], self.stride, strict=True)]
        return self.code_of(pad_far(image, size))

    def decode(self, code: Tensor) -> Tensor:
        """The image of a code, of the size that the encoder padded to."""
        if not self.reconstructs:
            raise ValueError(f"{type(self).__name__} has no decoder; it was built without one")
        axes = 2 if self.patch else self.spatial_dims + 2
        if code.ndim != axes or code.shape[1] != self.code_channels:
            wanted = f"(N, {self.code_channels}{'' if self.patch else ', *S'})"
            raise ValueError(f"{type(self).__name__} decodes codes {wanted}, got shape {tuple(code.shape)}")
        return self.image_of(code)

    def forward(self, image: Tensor) -> Coded:
        """Code and reconstruction."""
        code = self.encode(image)
        return Coded(code, crop(self.decode(code), image.shape[2:]) if self.reconstructs else None)

    def code_of(self, image: Tensor) -> Tensor:
        """The code of an image whose sides are multiples of `stride`."""
        raise NotImplementedError(f"{type(self).__name__} has no code_of")

    def image_of(self, code: Tensor) -> Tensor:
        """The image of a code."""
        raise NotImplementedError(f"{type(self).__name__} has no image_of")

    def check(self, image: Tensor) -> None:
        """Refuse an image of other channels, dimensions or size."""
        size = tuple(image.shape[2:])
        axes = ", X, Y, Z" if self.spatial_dims == 3 else ", X, Y"
        if image.ndim != self.spatial_dims + 2 or image.shape[1] != self.in_channels:
            raise ValueError(
                f"{type(self).__name__} takes images (N, {self.in_channels}{axes}), got shape {tuple(image.shape)}"
            )
        if self.patch is not None and size != self.patch:
            raise ValueError(f"{type(self).__name__} takes patches of {self.patch} voxels, got {size}")
        if any(side < smallest for side, smallest in zip(size, self.minimum_size, strict=True)):
            raise ValueError(
                f"{type(self).__name__} needs at least {self.minimum_size} voxels, got {size}; use a larger window"
            )
