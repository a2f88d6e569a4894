"""How far a network sees past a cut, measured: what neighbouring tiles share, so that cutting changes no logit.

A thin image holds NaN in one stretch as long as the network's stride, and the logits that are NaN are those that see
it: every layer hands NaN on, whatever its weights are, so that a convolution of one channel with weights of zero does
for one of any width. One forward per axis gives both sides of a cut exactly, also where logits of different positions
see differently far, or one side farther than the other. The size that the network declares bounds it from below,
should a layer swallow NaN.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...errors import UsageError
from ...networks.base import SegmentationNetwork
from .scorer import evaluating

# what sees the whole window: a part of the class's name, and a word for it
GLOBAL_LAYERS = (
    ("InstanceNorm", "instance norm"),
    ("GroupNorm", "group norm"),
    ("AdaptiveAvgPool", "pooling over the whole window"),
    ("Attention", "attention"),
    ("SABlock", "attention"),
)
INSTEAD = "use --tiling blend"
CONVOLUTIONS = {
    **dict.fromkeys(("conv2d", "conv3d"), ("input", "weight", "bias", "stride", "padding", "dilation", "groups")),
    **dict.fromkeys(
        ("conv_transpose2d", "conv_transpose3d"),
        ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    ),
}


@dataclass(frozen=True)
class Halo:
    """What a tile is larger than the part of its logits that are those of the whole volume, in voxels along each axis.

    Args:
        stride: a tile starts at a multiple of it, and ends at one or with the volume.
        before: logits at the near end of a tile that see past it.
        after: logits at its far end that do.
    """

    stride: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def shared(self) -> tuple[int, ...]:
        """What neighbouring tiles share at least: multiples of the stride."""
        sides = zip(self.before, self.after, self.stride, strict=True)
        return tuple(round_up(before + after, step) for before, after, step in sides)


def round_up(side: int, step: int) -> int:
    """The next multiple of `step`."""
    return -(-side // step) * step


def measure_halo(networks: Sequence[SegmentationNetwork]) -> Halo:
    """The halo that serves all these networks.

    Raises:
        UsageError: a network whose logits depend on the whole window.
    """
    halos = []
    known = set()
    with evaluating(networks):
        for network in networks:
            check_bounded(network)
            kind = (type(network), network.stride, network.receptive_field, _shapes(network))
            if kind not in known:  # the folds of a model differ in their weights alone
                known.add(kind)
                halos.append(_halo_of(network))
    return Halo(
        stride=tuple(math.lcm(*sides) for sides in zip(*(halo.stride for halo in halos), strict=True)),
        before=tuple(max(sides) for sides in zip(*(halo.before for halo in halos), strict=True)),
        after=tuple(max(sides) for sides in zip(*(halo.after for halo in halos), strict=True)),
    )


def check_bounded(network: SegmentationNetwork) -> None:
    """Refuse a network whose logits depend on more than a neighbourhood, or on where the window lies."""
    moves = getattr(network, "moves_with_image", True)
    if network.window_global or network.receptive_field is None or not moves:
        raise UsageError(
            f"--tiling exact: {_name(network)} looks at the whole window ({global_layer(network)}), so tiles cannot "
            f"give what the whole volume would; {INSTEAD}"
        )


def global_layer(network: nn.Module) -> str:
    """The kind and the place of the first layer that looks at the whole window."""
    kinds = GLOBAL_LAYERS if getattr(network, "moves_with_image", True) else reversed(GLOBAL_LAYERS)
    for part, word in kinds:
        for place, module in network.named_modules():
            if any(part in base.__name__ for base in type(module).__mro__) and "Gate" not in type(module).__name__:
                return f"{word}, layer {place}"
    return "as it declares by window_global"


def _halo_of(network: SegmentationNetwork) -> Halo:
    assert network.receptive_field is not None
    axes = [_measured(network, axis) for axis in range(network.spatial_dims)]
    sides = []
    for (before, after), size, step in zip(axes, network.receptive_field, network.stride, strict=True):
        swallowed = before + after < size - 1 - 2 * (step - 1)
        sides.append((size - 1, size - 1) if swallowed else (before, after))
    return Halo(network.stride, tuple(before for before, _ in sides), tuple(after for _, after in sides))


@torch.inference_mode()
def _measured(network: SegmentationNetwork, axis: int) -> tuple[int, int]:
    """Logits behind and in front of an aligned cut along an axis that see past it.

    The stretch of NaN is one stride long: of the logits in front of a cut, the first one that sees past it sees not
    farther than that, or the one a stride before it would see past the cut too.
    """
    assert network.receptive_field is not None
    size, step = network.receptive_field[axis], network.stride[axis]
    parameter = next(network.parameters(), torch.empty(0))
    clear = round_up(size, step) + step  # to both sides, so that every logit that sees the stretch is there
    while clear <= 4 * (size + 2 * step):
        shape = [round_up(side, at) for side, at in zip(network.minimum_size, network.stride, strict=True)]
        shape[axis] = max(shape[axis], 2 * clear + step)
        image = torch.zeros(1, network.in_channels, *shape, device=parameter.device, dtype=parameter.dtype)
        image.narrow(2 + axis, clear, step).fill_(math.nan)
        with _plain_kernels(parameter.device), _OneChannel():
            logits = network(image)
        assert isinstance(logits, Tensor)
        seeing = logits.isnan().movedim(2 + axis, 0).flatten(1).any(dim=1).nonzero().flatten().tolist()
        if not seeing:
            return size - 1, size - 1  # NaN was swallowed
        first, last = seeing[0], seeing[-1]
        if first >= step and last < shape[axis] - step:
            return max(0, last + 1 - clear - step), max(0, clear - first)
        clear *= 2
    raise UsageError(
        f"--tiling exact: {_name(network)} declares that a logit sees {size} voxels along axis {axis}, and it sees "
        f"farther; {INSTEAD}, or correct its receptive_field"
    )


class _OneChannel(TorchFunctionMode):
    """While it is on, a convolution gives NaN where one stands under its kernel and zeros elsewhere, at no width."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        names = CONVOLUTIONS.get(getattr(func, "__name__", ""))
        given = {**dict(zip(names or (), args, strict=False)), **(kwargs or {})}
        if names is None or given.get("groups", 1) > 1:
            return func(*args, **(kwargs or {}))
        image, weight = given["input"], given["weight"]
        width = weight.shape[1 if "output_padding" in names else 0]
        given.update(input=image.sum(1, keepdim=True), weight=torch.zeros_like(weight[:1, :1]), bias=None)
        return func(**given).repeat(1, width, *(1,) * (image.ndim - 2))


@contextlib.contextmanager
def _plain_kernels(device: torch.device) -> Iterator[None]:
    """No cuDNN on a GPU: its Winograd and FFT kernels spread NaN farther than a convolution sees."""
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=False):
        yield


def _name(network: nn.Module) -> str:
    return type(getattr(network, "network", network)).__name__


def _shapes(network: nn.Module) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, tuple(value.shape)) for name, value in network.state_dict().items())
