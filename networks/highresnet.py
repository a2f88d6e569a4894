"""HighRes3DNet as MONAI holds it, behind our contract: dilated residual blocks, never down-sampled.

Li et al., IPMI 2017. The layers are MONAI's (monai_layers.py says what becomes of them).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, cat, nn

from .base import SegmentationNetwork, memory_format_of
from .blocks import CONV, LOCAL_NORMS, choose
from .monai_layers import ACTIVATIONS, NORMS, keep_layout


class HighResNet(SegmentationNetwork):
    """HighRes3DNet: residual blocks of dilated convolutions at the image's own resolution, never down-sampled.

    Li et al., IPMI 2017; `monai.networks.nets.HighResNet`. Differs from MONAI: the last convolution gives the logits
    and has a bias, where MONAI puts a norm and a ReLU behind it, so that no logit could be negative.

    Parameters (1 channel to 2 classes): 808,946 in 3D, 274,130 in 2D.

    Args:
        width: channels of the first of three groups of blocks; the others have twice and four times as many, the
            layer in front of the head five times.
        repeats: blocks per group.
        norm: "batch" or "instance".
        activation: "relu", "leaky_relu", "elu" or "prelu".
        dropout: share of features dropped in front of the head.

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
        width: int = 16,
        repeats: int = 3,
        norm: str = "batch",
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        from monai.networks.nets import highresnet

        choose("norm", norm, ("batch", "instance"))
        choose("activation", activation, ACTIVATIONS)
        if repeats < 1:
            raise ValueError(f"a group has at least one block, got {repeats=}")
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            stride=(1,) * spatial_dims,
            # two convolutions a block, of dilation 1, 2 and 4
            receptive_field=(3 + repeats * 2 * 2 * (1 + 2 + 4),) * spatial_dims if norm in LOCAL_NORMS else None,
        )
        self.at_least_two = True
        net = highresnet.HighResNet(
            spatial_dims,
            in_channels,
            out_channels,
            norm_type=NORMS[norm],
            acti_type=ACTIVATIONS[activation],
            dropout_prob=dropout,
            layer_params=[
                {"name": "conv_0", "n_features": width, "kernel_size": 3},
                *(
                    {"name": f"res_{2**level}", "n_features": width * 2**level, "kernels": (3, 3), "repeat": repeats}
                    for level in range(3)
                ),
                {"name": "conv_1", "n_features": 5 * width, "kernel_size": 1},
                {"name": "conv_2", "kernel_size": 1},
            ],
        )
        keep_layout(net)
        self.blocks = nn.ModuleList(list(net.blocks)[:-1])
        self.head = CONV[spatial_dims](5 * width, out_channels, 1)

    def body(self, image: Tensor) -> Tensor:
        """What goes into the last 1x1x1 convolution."""
        for block in self.blocks:
            if hasattr(block, "chn_pad"):
                result: Tensor = cast(nn.Module, block.layers)(image)
                image = result + with_empty_channels(image, result.shape[1])
            else:
                image = block(image)
        return image


def with_empty_channels(image: Tensor, channels: int) -> Tensor:
    """As many channels as asked for: zeros in front and behind, half of them each; memory format kept."""
    missing = channels - image.shape[1]
    if missing == 0:
        return image
    layout = memory_format_of(image)

    def zeros(count: int) -> Tensor:
        size = (len(image), count, *image.shape[2:])
        return torch.zeros(size, dtype=image.dtype, device=image.device).contiguous(memory_format=layout)

    return cat((zeros(missing // 2), image, zeros(missing - missing // 2)), dim=1)
