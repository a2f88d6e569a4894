"""What every voxel of a result sees, measured: the network runs on coordinates instead of an image.

Each operation is replaced by what it does to sight: a convolution or a pooling gives the largest coordinate under its
kernel, a sum, a product and an interpolation the largest of what goes in, a norm or an activation what it was given.
One image holds the coordinates and one holds them backwards, so that one run gives the last and the first input voxel
that each result sees. An operation that is not listed here raises, so that none is passed over in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# fmt: off
POINTWISE = {
    "relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "prelu", "elu", "elu_", "silu", "gelu", "sigmoid", "tanh",
    "clamp", "clamp_", "hardtanh", "hardswish", "hardsigmoid", "softplus", "dropout", "dropout2d", "dropout3d",
    "batch_norm", "local_response_norm",
}
JOINING = {"add", "add_", "__add__", "__radd__", "__iadd__", "mul", "mul_", "__mul__", "__rmul__", "__imul__", "div",
    "div_", "__truediv__", "maximum"}
MOVING = {
    "cat", "__getitem__", "__get__", "__len__", "contiguous", "is_contiguous", "is_floating_point", "pad", "repeat",
    "expand", "expand_as", "view", "reshape", "flatten", "unflatten", "movedim", "permute", "size", "dim", "numel",
    "split", "chunk", "stack", "select", "narrow", "index_select", "unbind", "detach", "clone", "to", "squeeze",
    "unsqueeze",
}
# fmt: on
CONVOLUTIONS = {"conv2d": 2, "conv3d": 3}
TRANSPOSED = {"conv_transpose2d": 2, "conv_transpose3d": 3}
MAX_POOLINGS = ("max_pool2d", "max_pool3d")
AVERAGE_POOLINGS = ("avg_pool2d", "avg_pool3d")
ALIKE = {*JOINING, *MAX_POOLINGS, *AVERAGE_POOLINGS, "interpolate", "pad"}  # each channel by itself, all the same way
MAX_POOL: dict[int, Callable[..., Tensor]] = {2: functional.max_pool2d, 3: functional.max_pool3d}


def sides(value: Any, dims: int) -> list[int]:
    return [value] * dims if isinstance(value, int) else [int(side) for side in value]


def wide(image: Tensor, amounts: Sequence[tuple[int, int]]) -> Tensor:
    """Padded by zeros, which are coordinates of nothing; negative amounts crop."""
    return functional.pad(image, [amount for pair in reversed(amounts) for amount in pair])


def most(image: Tensor, kernel: Sequence[int], step: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """The largest under a kernel, one axis after the other."""
    dims = len(kernel)
    for axis in range(dims):
        if kernel[axis] > 1 or step[axis] > 1:
            size, steps, holes = ([1] * dims for _ in range(3))
            size[axis], steps[axis], holes[axis] = kernel[axis], step[axis], dilation[axis]
            image = MAX_POOL[dims](image, size, steps, 0, holes)
    return image


def same_channels(image: Any) -> bool:
    """Whether all channels are one and the same in memory, as a convolution leaves them here."""
    return not isinstance(image, Tensor) or image.ndim < 4 or image.shape[1] == 1 or image.stride(1) == 0


class Sight(TorchFunctionMode):
    """While it is on, every operation moves coordinates."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        name = func.__name__
        wide = [one for one in args if isinstance(one, Tensor) and one.ndim > 3 and one.shape[1] > 1]
        if name in ALIKE and wide and all(same_channels(one) for one in args):
            thin = [one[:, :1] if isinstance(one, Tensor) and one.ndim > 3 else one for one in args]
            result = self.__torch_function__(func, types, tuple(thin), kwargs)
            return result.expand(-1, wide[0].shape[1], *(-1,) * (result.ndim - 2))
        if name in CONVOLUTIONS:
            return convolved(CONVOLUTIONS[name], *args, **given)
        if name in TRANSPOSED:
            return transposed(TRANSPOSED[name], *args, **given)
        if name in MAX_POOLINGS:
            return pooled(*args, **given)
        if name in AVERAGE_POOLINGS:
            image, kernel, step, padding, ceil_mode = args[:5]  # as the modules give them
            return pooled(image, kernel, step, padding, ceil_mode=ceil_mode)
        if name in POINTWISE:
            return args[0]
        if name in JOINING:
            return joined(args[0], args[1])
        if name == "softmax" and args[1:] == (1,):  # over channels
            return args[0].amax(dim=1, keepdim=True).expand_as(args[0])
        if name == "interpolate":
            return interpolated(*args, **given)
        if name in MOVING or not any(isinstance(one, Tensor) and one.ndim > 3 for one in args):
            return func(*args, **given)
        raise NotImplementedError(f"what does {name} see? tests/networks/sight.py has to be told")


def convolved(
    dims: int,
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if same_channels(image):
        seen, groups = image[:, :1], 1
    else:
        seen = image.amax(dim=1, keepdim=True) if groups == 1 else image
    around = [(side, side) for side in sides(padding, dims)]
    result = most(wide(seen, around), weight.shape[2:], sides(stride, dims), sides(dilation, dims))
    if groups > 1:
        result = result.unflatten(1, (groups, -1)).amax(dim=2).repeat_interleave(weight.shape[0] // groups, dim=1)
    return result.expand(-1, weight.shape[0], *(-1,) * dims)


def transposed(
    dims: int,
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    channels = weight.shape[1] * groups
    alone = groups > 1 and not same_channels(image)
    seen = image if alone else image[:, :1] if same_channels(image) else image.amax(dim=1, keepdim=True)
    step, kernel = sides(stride, dims), list(weight.shape[2:])
    spread = seen.new_zeros(*seen.shape[:2], *(s * (n - 1) + 1 for s, n in zip(step, seen.shape[2:], strict=True)))
    spread[(..., *(slice(None, None, side) for side in step))] = seen
    around = [
        (k - 1 - p, k - 1 - p + more)
        for k, p, more in zip(kernel, sides(padding, dims), sides(output_padding, dims), strict=True)
    ]
    result = most(wide(spread, around), kernel, [1] * dims, [1] * dims)
    return result if alone else result.expand(-1, channels, *(-1,) * dims)


def pooled(
    image: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    step = kernel_size if stride is None or stride == [] else stride
    return MAX_POOL[image.ndim - 2](image, kernel_size, step, padding, dilation, ceil_mode)


def joined(one: Any, other: Any) -> Any:
    if isinstance(one, Tensor) and isinstance(other, Tensor) and one.ndim and other.ndim:
        return torch.maximum(one, other)
    return one if isinstance(one, Tensor) and one.ndim else other


def interpolated(
    image: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: Any = None,
    **_: Any,
) -> Tensor:
    """Voxel centres kept, to a multiple of the size."""
    dims = image.ndim - 2
    if size is not None:
        wanted = sides(size, dims)
        if any(side % had for side, had in zip(wanted, image.shape[2:], strict=True)):
            raise NotImplementedError(f"an interpolation from {tuple(image.shape[2:])} to {wanted}")
        factors = [side // had for side, had in zip(wanted, image.shape[2:], strict=True)]
    else:
        several = isinstance(scale_factor, tuple | list)
        factors = [int(factor) for factor in (scale_factor if several else [scale_factor] * dims)]
    if mode.startswith("nearest") or all(factor == 1 for factor in factors):
        for axis, factor in enumerate(factors):
            image = image.repeat_interleave(factor, dim=2 + axis)
        return image
    if mode not in ("bilinear", "trilinear") or align_corners or any(factor % 2 for factor in factors if factor > 1):
        raise NotImplementedError(f"an interpolation of mode {mode} by {factors}, {align_corners=}")
    kernel = [2 * factor if factor > 1 else 1 for factor in factors]
    half = [factor // 2 for factor in factors]
    weight = torch.empty(image.shape[1], 1, *kernel, device="meta")
    return transposed(dims, image, weight, stride=factors, padding=half, groups=image.shape[1])


@torch.no_grad()
def seen(network: nn.Module, in_channels: int, size: Sequence[int], axis: int) -> tuple[Tensor, Tensor]:
    """For each position of the result along an axis, the first and the last position of the input that it sees."""
    length = size[axis]
    line = torch.arange(1, length + 1, dtype=torch.float32)
    both = torch.stack((line, line.flip(0))).view(
        2, *(length if index == axis + 1 else 1 for index in range(len(size) + 1))
    )
    image = both.expand(2, in_channels, *size).contiguous()
    with Sight():
        result = network(image)
    over = [index for index in range(1, result.ndim) if index != axis + 2]
    last, first = result.amax(dim=over)
    return length - first, last - 1
