"""Swin UNETR as MONAI holds it, behind our contract: attention within shifted windows, and a convolutional decoder.

Hatamizadeh et al., BrainLes 2021, arXiv 2201.01266. The layers are MONAI's (monai_layers.py says what becomes of them).
The attention windows are laid from the corner of the image, so the logits do not move with it (`moves_with_image`), and
tiles must overlap generously.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .base import SegmentationNetwork, memory_format_of
from .monai_layers import keep_layout


class SwinUNETR(SegmentationNetwork):
    """Swin UNETR: attention within shifted windows on five scales, and a convolutional decoder.

    `monai.networks.nets.SwinUNETR`. The width is the paper's 48; MONAI's default is 24.

    Parameters (1 channel to 2 classes): 62,186,708 in 3D, 25,137,980 in 2D.

    Args:
        width: channels at half the image's resolution, a multiple of 12.
        depths: transformer blocks per stage, four; every second one has its windows shifted.
        heads: attention heads per stage; they divide the stage's channels: width, then twice as many in each.
        window: side of the attention windows in voxels of the stage.
        dropout: in the transformer.

    Shape:
        image: (N, in_channels, *S), padded to multiples of 32.
        returns: logits (N, out_channels, *S).
    """

    moves_with_image = False

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 48,
        depths: Sequence[int] = (2, 2, 2, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 7,
        dropout: float = 0.0,
    ) -> None:
        from monai.networks.nets import swin_unetr

        if width % 12:
            raise ValueError(f"the width of Swin UNETR is a multiple of 12, got {width=}")
        if len(depths) != 4 or len(heads) != 4 or min(depths) < 1:
            raise ValueError(f"Swin UNETR has four stages, got depths={list(depths)}, heads={list(heads)}")
        if min(heads) < 1 or any(width * 2**stage % count for stage, count in enumerate(heads)):
            raise ValueError(f"heads divide the channels of their stage, got {width=}, heads={list(heads)}")
        if window < 2:
            raise ValueError(f"an attention window has a side of 2 or more, got {window=}")
        super().__init__(spatial_dims, in_channels, out_channels, stride=(32,) * spatial_dims, receptive_field=None)
        self.at_least_two = True
        with NumbersOnCPU():
            net = swin_unetr.SwinUNETR(
                in_channels,
                out_channels,
                depths=tuple(depths),
                num_heads=tuple(heads),
                window_size=window,
                feature_size=width,
                drop_rate=dropout,
                attn_drop_rate=dropout,
                spatial_dims=spatial_dims,
            )
        keep_layout(net)
        self.head = net.out.conv.conv
        del net.out
        self.net = net

    def body(self, image: Tensor) -> Tensor:
        """What goes into the last 1x1x1 convolution."""
        net, layout = self.net, memory_format_of(image)
        scales = [scale.contiguous(memory_format=layout) for scale in net.swinViT(image)]
        deep = net.decoder5(net.encoder10(scales[4]), scales[3])
        deep = net.decoder4(deep, net.encoder4(scales[2]))
        deep = net.decoder3(deep, net.encoder3(scales[1]))
        deep = net.decoder2(deep, net.encoder2(scales[0]))
        result: Tensor = net.decoder1(deep, net.encoder1(image))
        return result


class NumbersOnCPU(TorchFunctionMode):
    """While it is on, `torch.linspace` is on the CPU: MONAI reads numbers off it, which the meta device has not."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        return func(*args, **({**given, "device": "cpu"} if func is torch.linspace else given))
