"""What MONAI's networks need to keep our contract: our names in its words, and layers that keep the memory format.

VNetMonai, DynUNet, SegResNet, MedNeXt, HighResNet, UNETR and SwinUNETR have MONAI's own layers and its names for the
weights; the last 1x1x1 convolution is taken off and becomes `head`. All differ from MONAI in this: inputs of any size
are padded and cropped; heads of coarser scales are returned at their own size; norms and interpolations keep the
channels-last layout; a strided 1x1x1 convolution is one of every n-th voxel. Each file says what else differs. MONAI is
imported where a network is built: it takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional

from .base import memory_format_of
from .blocks import POINTWISE, subsample
from .norms import InstanceNorm2d, InstanceNorm3d

EPSILON = 1e-5  # of our norms, and torch's default
# our names in MONAI's words
ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "leaky_relu": ("leakyrelu", {"inplace": True, "negative_slope": 0.01}),
    "relu": ("relu", {"inplace": True}),
    "elu": ("elu", {"inplace": True}),
    "prelu": ("prelu", {}),
}
NORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "batch": ("batch", {"affine": True}),
    "instance": ("instance", {"affine": True}),
    "group": ("group", {"num_groups": 8}),
}


def take_off(module: nn.Module, name: str) -> nn.Module:
    """A layer of a module, which passes on what it got from now on."""
    layer = getattr(module, name)
    setattr(module, name, nn.Identity())
    return cast(nn.Module, layer)


def keep_layout(module: nn.Module) -> None:
    """Put layers that keep the channels-last layout in the place of those that do not, in a fresh network."""
    for part in list(module.modules()):
        for name, child in list(part.named_children()):
            ours = in_place_of(child)
            if ours is not child:
                setattr(part, name, ours)


def in_place_of(layer: nn.Module) -> nn.Module:
    """The layer itself, or one that gives the same and keeps the memory format."""
    if type(layer) in (nn.Conv2d, nn.Conv3d):
        conv: Any = layer
        if set(conv.kernel_size) != {1} or conv.groups != 1:
            return layer
        if set(conv.stride) != {1}:
            return PointwiseDown(conv)
        if isinstance(layer, nn.Conv2d):
            return layer
        pointwise: Any = POINTWISE[3](conv.in_channels, conv.out_channels, bias=conv.bias is not None)
        pointwise.weight, pointwise.bias = conv.weight, conv.bias
        return cast(nn.Module, pointwise)
    if isinstance(layer, (nn.InstanceNorm2d, nn.InstanceNorm3d)) and (
        layer.track_running_stats or layer.eps != EPSILON
    ):
        return layer
    if isinstance(layer, nn.InstanceNorm2d):
        return (InstanceNorm2d if layer.affine else PlainNorm2d)(layer.num_features)
    if isinstance(layer, nn.InstanceNorm3d):
        return (InstanceNorm3d if layer.affine else PlainNorm3d)(layer.num_features)
    return layer


class PlainNorm2d(nn.InstanceNorm2d):
    """Without scale and shift, memory format kept."""

    def forward(self, image: Tensor) -> Tensor:
        """(N, width, X, Y), each channel of each sample normalised over its voxels."""
        return super().forward(image).contiguous(memory_format=memory_format_of(image))


class PlainNorm3d(nn.InstanceNorm3d):
    """Without scale and shift, memory format kept."""

    def forward(self, image: Tensor) -> Tensor:
        """(N, width, X, Y, Z), each channel of each sample normalised over its voxels."""
        return super().forward(image).contiguous(memory_format=memory_format_of(image))


class PointwiseDown(nn.Module):
    """A strided 1x1x1 convolution, as one of every n-th voxel; it takes the weights of `conv`.

    `ResidualBlock` in blocks.py says why.
    """

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.weight = conv.weight
        self.bias = conv.bias
        self.stride: tuple[int, ...] = tuple(cast(Sequence[int], conv.stride))

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, *S) to (N, K, *S / stride)."""
        fewer = subsample(image, self.stride)
        apply = functional.conv2d if image.ndim == 4 else functional.conv3d
        result: Tensor = apply(fewer, cast(Tensor, self.weight), cast(Tensor | None, self.bias))
        return result.contiguous(memory_format=memory_format_of(image))


def check_groups(what: str, widths: Sequence[int]) -> None:
    """Refuse widths that the groups of a group norm do not divide."""
    if any(width % 8 for width in widths):
        raise ValueError(f"group norm has 8 groups, so channels are multiples of 8; got {what}={list(widths)}")
