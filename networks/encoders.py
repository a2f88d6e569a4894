"""Encoders of segmentation-models-pytorch for `unet`, in two dimensions: ResNet, Inception and EfficientNet.

He et al., CVPR 2016; Szegedy et al., AAAI 2017 (Inception-v4, Inception-ResNet-v2); Tan and Le, ICML 2019. With an
Inception encoder `unet` is in the manner of Song's improved U-Net (named by Ye and Hua 2022), whose layers could not be
read. Fresh weights unless others are asked for; the library is imported when an encoder is built.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from ..errors import UsageError, unknown
from .receptive_field import Reach
from .resnet import DEPTHS, STRIDE, resnet_reach

RESNETS = {**{f"resnet{depth}": kind for depth, kind in DEPTHS.items()}, "resnet152": ((3, 8, 36, 3), True)}
# pixels that each of the five maps sees to either side of where it stands
INCEPTIONS = {"inceptionv4": (5, 23, 75, 491, 1035), "inceptionresnetv2": (5, 11, 191, 1167, 1519)}
EFFICIENTNETS = tuple(f"efficientnet-b{size}" for size in range(8))  # these look at the whole window
ENCODERS = (*RESNETS, *INCEPTIONS, *EFFICIENTNETS)
UNUSED = ("_conv_head", "_bn1")  # layers of EfficientNet's classifier that the library leaves in
MAPS = 5  # each half as large as the one before


def check_encoder(name: str, spatial_dims: int) -> None:
    """Refuse an encoder that does not exist, or in three dimensions.

    Raises:
        UsageError: with the nearest name.
    """
    if name not in ENCODERS:
        raise unknown("encoder", name, ENCODERS)
    if spatial_dims != 2:
        raise UsageError(f"encoder {name!r} is 2D, not {spatial_dims}D; use --dims 2, or leave the option out")


def encoder_reach(name: str) -> list[Reach] | None:
    """What the image and the five maps see along one axis; None where they see the whole window."""
    image = Reach.of_input(STRIDE)
    if name in RESNETS:
        blocks, bottleneck = RESNETS[name]
        return [image, *resnet_reach(blocks, bottleneck=bottleneck)]
    if name not in INCEPTIONS:
        return None
    places = [np.arange(0, STRIDE, 2**level) for level in range(1, MAPS + 1)]
    return [image, *(Reach(STRIDE, at - side, at + side) for at, side in zip(places, INCEPTIONS[name], strict=True))]


def build_encoder(name: str, in_channels: int, weights: str | None = None) -> tuple[nn.Module, Sequence[int]]:
    """An encoder, and the channels of what it returns: the image itself, then five maps of 1/2 to 1/32 of its size.

    Args:
        name: a key of `ENCODERS`.
        in_channels: of the image.
        weights: the library's name of weights that it fetches, or none.

    Raises:
        UsageError: the library is not installed.
        OSError: the weights cannot be fetched.
    """
    try:
        from segmentation_models_pytorch.encoders import get_encoder
    except ImportError as error:
        raise UsageError(
            f"encoder {name!r} comes from segmentation-models-pytorch, which is not installed ({error}); "
            "pip install 'voxelwise[encoders]'"
        ) from error
    encoder = get_encoder(name, in_channels=in_channels, depth=MAPS, weights=weights)
    for unused in UNUSED:
        if hasattr(encoder, unused):
            setattr(encoder, unused, nn.Identity())
    return encoder, [int(width) for width in encoder.out_channels]
