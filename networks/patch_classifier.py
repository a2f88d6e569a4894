"""Sliding-window patch classifier: a small network labels the centre of a patch, and visits every voxel.

In the manner of Ciresan, Giusti, Gambardella and Schmidhuber, NIPS 2012 (networks N4 and N3). Two forms of the same
weights: `sliding` cuts one patch a voxel, as the paper did; the registry's network is the dense form, in which pooling
has stride 1 and everything behind it is dilated, so that work that neighbouring patches share is done once. Their
results are the same.

Differs from the paper: ReLU, one network instead of an ensemble, any number of channels and classes, three dimensions
by option. Images are mirrored at their borders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, cat, nn
from torch.nn import functional

from .base import SegmentationNetwork, crop, memory_format_of, pad_mirror
from .blocks import ACTIVATIONS, CONV, choose

# sides of the convolutions, of the map behind the last pooling, and of the patch
VARIANTS: dict[str, tuple[tuple[int, ...], int, int]] = {"n4": ((4, 5, 4, 4), 3, 95), "n3": ((4, 5, 4), 5, 65)}
CONVOLVE: dict[int, Callable[..., Tensor]] = {2: functional.conv2d, 3: functional.conv3d}
POOL: dict[int, Callable[..., Tensor]] = {2: functional.max_pool2d, 3: functional.max_pool3d}


class PatchClassifier(SegmentationNetwork):
    """N4 or N3: convolutions and max-pooling of 2 in turns, two fully connected layers.

    Parameters (1 channel to 2 classes, 2D): 219,290 (N4, patches of 95), 335,978 (N3, patches of 65, of which pooling
    leaves two voxels a side unseen at the far end).

    Args:
        variant: "n4" or "n3".
        width: maps of each convolution.
        hidden: units of the first fully connected layer.
        kernels: sides of the convolutions, instead of the variant's.
        last: side of the map behind the last pooling, instead of the variant's.
        activation: a key of `ACTIVATIONS`.

    Shape:
        image: (N, in_channels, *S).
        returns: logits (N, out_channels, *S).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        variant: str = "n4",
        width: int = 48,
        hidden: int = 200,
        kernels: Sequence[int] | None = None,
        last: int | None = None,
        activation: str = "relu",
    ) -> None:
        choose("variant of the patch classifier:", variant, VARIANTS)
        choose("activation", activation, ACTIVATIONS)
        sides, top, patch = VARIANTS[variant]
        if kernels is not None or last is not None:
            sides, top, patch = sides if kernels is None else tuple(kernels), top if last is None else last, 0
        if not sides or min(*sides, top) < 1:
            raise ValueError(f"a patch classifier has convolutions of side 1 or more, got {kernels=}, {last=}")
        seen = patch_side(sides, top)
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            stride=(1,) * spatial_dims,
            receptive_field=(seen,) * spatial_dims,
        )
        self.seen, self.top = seen, top
        self.patch = max(patch, seen)
        conv = CONV[spatial_dims]
        self.convs = nn.ModuleList(
            conv(width if depth else in_channels, width, side, dilation=2**depth) for depth, side in enumerate(sides)
        )
        self.full = conv(width, hidden, top, dilation=2 ** len(sides))
        self.head = conv(hidden, out_channels, 1)
        self.activations = nn.ModuleList(
            ACTIVATIONS[activation](channels) for channels in (*(width for _ in sides), hidden)
        )

    def body(self, image: Tensor) -> Tensor:
        """The dense form up to the first fully connected layer, the image mirrored by half a patch."""
        size = image.shape[2:]
        before = self.patch // 2
        maps = pad_mirror(image, (before,) * len(size), (self.seen - 1 - before,) * len(size))
        return crop(self.dense(maps), size)

    def dense(self, image: Tensor) -> Tensor:
        """One result for each place of a patch in the image; it is `seen - 1` voxels smaller."""
        layout = memory_format_of(image)
        for depth, (conv, activation) in enumerate(zip(self.convs, self.activations, strict=False)):
            maps = activation(conv(image))
            image = pool_densely(maps, 2**depth).contiguous(memory_format=layout)
        result: Tensor = self.activations[-1](self.full(image))
        return result

    def classify(self, patches: Tensor) -> Tensor:
        """The paper's form: logits (N, out_channels) of the centres of patches (N, in_channels, *patch)."""
        assert self.head is not None
        size = tuple(patches.shape[2:])
        if size != (self.patch,) * self.spatial_dims:
            raise ValueError(f"patches have {self.patch} voxels a side, got {size}")
        maps = patches
        for conv, activation in zip(self.convs, self.activations, strict=False):
            maps = activation(undilated(conv, maps))
            maps = POOL[self.spatial_dims](maps, 2)
        maps = crop(maps, (self.top,) * self.spatial_dims)
        logits: Tensor = self.head(self.activations[-1](undilated(self.full, maps)))
        return logits.flatten(1)

    def sliding(self, image: Tensor, *, batch: int = 256) -> Tensor:
        """Logits (N, out_channels, *S) of an image, one patch a voxel; the dense form gives the same, faster."""
        self.check(image)
        half = self.patch // 2
        after = self.patch - 1 - half
        whole = pad_mirror(image, (half,) * self.spatial_dims, (after,) * self.spatial_dims)
        places = torch.cartesian_prod(*(torch.arange(side) for side in image.shape[2:]))
        logits = []
        for one in whole:
            for some in places.split(batch):
                patches = [_cut(one, place, self.patch) for place in some.tolist()]
                logits.append(self.classify(torch.stack(patches)))
        joined = cat(logits).view(len(image), *image.shape[2:], self.out_channels)
        return joined.movedim(-1, 1)


def patch_side(kernels: Sequence[int], last: int) -> int:
    """The side of a patch that convolutions and poolings of 2 in turns make a map of side `last` of."""
    side = last
    for kernel in reversed(kernels):
        side = 2 * side + kernel - 1
    return side


def _cut(image: Tensor, place: Sequence[int], side: int) -> Tensor:
    for axis, start in enumerate(place, start=1):
        image = image.narrow(axis, start, side)
    return image


def pool_densely(image: Tensor, dilation: int) -> Tensor:
    """Max-pooling of 2 with stride 1, axis by axis: without the indices that torch's keeps, which are 8 bytes each."""
    for axis in range(2, image.ndim):
        side = image.shape[axis] - dilation
        image = torch.maximum(image.narrow(axis, 0, side), image.narrow(axis, dilation, side))
    return image


def undilated(conv: nn.Module, image: Tensor) -> Tensor:
    """A dilated convolution's weights, applied without dilation."""
    weight, bias = cast(Tensor, conv.weight), cast(Tensor, conv.bias)
    return CONVOLVE[image.ndim - 2](image, weight, bias)
