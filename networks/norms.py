"""Instance norm that keeps the channels-last layout on a CPU.

Ulyanov, Vedaldi and Lempitsky, arXiv 1607.08022. The same numbers as torch's, whose CPU code turns a channels-last
batch into a contiguous one, and the convolution behind it has to turn it back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _ChannelsLastNorm(torch.autograd.Function):
    """The norm of (N, C, *S) in a few passes over memory that is laid out as (N, *S, C)."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        wide = _wide(image)
        result = wide - _mean(wide)
        scale = (_mean(result * result) + epsilon).rsqrt()
        result.mul_(scale * _spread(weight, image)).add_(_spread(bias, image))
        ctx.save_for_backward(image, weight, scale)
        return result.to(image.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        image, weight, scale = ctx.saved_tensors
        wide, above = _wide(image), _wide(gradient)
        mean, mean_above = _mean(wide), _mean(above)
        along = (_mean(above * wide) - mean * mean_above) * scale  # mean of the gradient times the normalised voxels
        # (gradient - its mean - normalised voxels * along) * outer, multiplied out: two passes instead of five
        outer = scale * _spread(weight, image)
        inner = -outer * scale * along
        below = torch.addcmul(-outer * mean_above - inner * mean, wide, inner).addcmul_(above, outer)
        count = image[0, 0].numel()
        return below.to(image.dtype), along.flatten(1).sum(0) * count, mean_above.flatten(1).sum(0) * count, None


def _wide(image: Tensor) -> Tensor:
    """At least float32."""
    return image if image.dtype == torch.float64 else image.float()


def _spread(per_channel: Tensor, image: Tensor) -> Tensor:
    """(C,) as (C, 1, ...), to meet (N, C, *S)."""
    return per_channel.view(-1, *(1,) * (image.ndim - 2))


def _mean(image: Tensor) -> Tensor:
    """Mean over the spatial axes, kept; summed plane by plane, which several cores share and which rounds less."""
    planes = image.movedim(1, -1).flatten(2, -2)  # (N, X, voxels of a plane, C): a view, and an order that sums fast
    mean = planes.sum(2).sum(1) / image[0, 0].numel()
    return mean.view(*mean.shape, *(1,) * (image.ndim - 2))


def _is_channels_last(image: Tensor) -> bool:
    layout = torch.channels_last if image.ndim == 4 else torch.channels_last_3d
    return image.device.type == "cpu" and image.is_contiguous(memory_format=layout) and not image.is_contiguous()


class InstanceNorm2d(nn.InstanceNorm2d):
    """torch's, with learned scale and shift, and quicker on a channels-last batch on a CPU."""

    def __init__(self, width: int) -> None:
        super().__init__(width, affine=True)

    def forward(self, image: Tensor) -> Tensor:
        """(N, width, X, Y), each channel of each sample normalised over its voxels."""
        if _is_channels_last(image):
            return _ChannelsLastNorm.apply(image, self.weight, self.bias, self.eps)
        return super().forward(image)


class InstanceNorm3d(nn.InstanceNorm3d):
    """torch's, with learned scale and shift, and quicker on a channels-last batch on a CPU."""

    def __init__(self, width: int) -> None:
        super().__init__(width, affine=True)

    def forward(self, image: Tensor) -> Tensor:
        """(N, width, X, Y, Z), each channel of each sample normalised over its voxels."""
        if _is_channels_last(image):
            return _ChannelsLastNorm.apply(image, self.weight, self.bias, self.eps)
        return super().forward(image)
