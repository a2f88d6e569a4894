"""What every network keeps: logits of the input's size, and a true statement of how far its voxels see.

A network of ours subclasses `SegmentationNetwork`, names its stride and its receptive field, and writes `body` (the
features in front of the last 1x1x1 convolution) or, where its paper has no such layer, `forward_aligned`. The base
class pads and crops.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .memory import live_bytes, saved_bytes

Logits = Tensor | list[Tensor]


class SegmentationNetwork(nn.Module):
    """Base of all segmentation networks.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, background included.
        stride: voxels along each axis that a tile must be aligned to; inputs are padded to a multiple of it.
        receptive_field: voxels along each axis that one logit can see, the largest over voxel positions; `None` where
            it sees the whole window (instance or group norm, attention).

    Attributes:
        head: the last 1x1x1 convolution: `forward(x) == head(features(x))` in eval mode; `None` where there is none.
        minimum_size: the smallest input along each axis.
        window_global: whether a logit depends on the whole window.
        at_least_two: whether an input is padded to more than one voxel in the deepest level, where a norm would erase
            a single one; set it in front of a batch or instance norm.
        moves_with_image: whether, norms aside, the logits move with an image that moves by the stride; not where
            positions are learned or attention windows are laid from the corner.
        trains_on_single: whether a batch of one can be trained on; where it cannot, `forward` says why.

    Shape:
        image: (N, in_channels, *S).
        returns: logits (N, out_channels, *S); in training mode perhaps a list of them, finest first (deep supervision).
    """

    head: nn.Module | None
    at_least_two = False
    moves_with_image = True
    trains_on_single = True

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        stride: Sequence[int],
        receptive_field: Sequence[int] | None,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"a network has 2 or 3 spatial dims, got spatial_dims={spatial_dims}")
        if in_channels < 1 or out_channels < 1:
            raise ValueError(f"a network needs channels, got in_channels={in_channels}, out_channels={out_channels}")
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = tuple(int(step) for step in stride)
        self.receptive_field = None if receptive_field is None else tuple(int(reach) for reach in receptive_field)
        self.window_global = receptive_field is None
        self.minimum_size = (1,) * spatial_dims
        self.head = None

    @property
    def layout(self) -> torch.memory_format:
        """Memory format that convolutions are fast in on a CPU, for `network.to(memory_format=network.layout)`."""
        return torch.channels_last if self.spatial_dims == 2 else torch.channels_last_3d

    def body(self, image: Tensor) -> Tensor:
        """Features in front of `head`, of an image whose sides are multiples of `stride`."""
        raise NotImplementedError(f"{type(self).__name__} has no body")

    def forward_aligned(self, image: Tensor) -> Logits:
        """Logits of an image whose sides are multiples of `stride`."""
        if self.head is None:
            raise NotImplementedError(f"{type(self).__name__} has neither a head nor its own forward_aligned")
        logits: Tensor = self.head(self.body(image))
        return logits

    def features(self, image: Tensor) -> Tensor:
        """What goes into `head`: (N, F, *S), of the input's size."""
        if self.head is None:
            raise ValueError(f"{type(self).__name__} has no head, so it has no features in front of it")
        return crop(self.body(self.align(image)), image.shape[2:])

    def forward(self, image: Tensor) -> Logits:
        """Logits of the input's size; in training mode perhaps a list, finest first."""
        aligned = self.align(image)
        result = self.forward_aligned(aligned)
        if isinstance(result, Tensor):
            return crop(result, image.shape[2:])
        return [crop(logits, _covering(image.shape[2:], aligned.shape[2:], logits.shape[2:])) for logits in result]

    def align(self, image: Tensor) -> Tensor:
        """The image padded at its far ends to `aligned_size` by repeating its edge voxels."""
        self.check(image)
        return pad_far(image, self.aligned_size(image.shape[2:]))

    def check(self, image: Tensor) -> None:
        """Refuse an image of other channels or dimensions, or one that is too small."""
        size = tuple(image.shape[2:])
        if image.ndim != self.spatial_dims + 2 or image.shape[1] != self.in_channels:
            axes = ", X, Y, Z" if self.spatial_dims == 3 else ", X, Y"
            raise ValueError(
                f"{type(self).__name__} takes images (N, {self.in_channels}{axes}), got shape {tuple(image.shape)}"
            )
        if any(side < smallest for side, smallest in zip(size, self.minimum_size, strict=True)):
            raise ValueError(
                f"{type(self).__name__} needs at least {self.minimum_size} voxels, got {size}; use a larger window"
            )
        if self.training and len(image) == 1 and not self.trains_on_single:
            raise ValueError(
                f"{type(self).__name__} cannot be trained on a batch of one: one of its batch norms sees a single "
                "voxel of each case; use a batch of two or more"
            )

    def aligned_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The size that an input of `size` is padded to: multiples of the stride."""
        aligned = tuple(math.ceil(side / step) * step for side, step in zip(size, self.stride, strict=True))
        if self.at_least_two and aligned == self.stride:
            return (*aligned[:-1], 2 * aligned[-1])
        return aligned

    def activation_bytes(
        self, shape: Sequence[int], *, training: bool = False, batch: int = 1, dtype: torch.dtype = torch.float32
    ) -> int:
        """Memory that activations take for windows of a spatial shape, weights and kernel workspaces not counted.

        Traced on the meta device, so that nothing is computed or allocated.

        Args:
            shape: spatial shape of one window.
            training: count what the backward pass keeps instead of the peak of a prediction.
            batch: windows at a time.
            dtype: what activations are kept in.
        """
        count = saved_bytes if training else live_bytes
        cases = 2 if training and batch == 1 and not self.trains_on_single else batch
        return count(self, (cases, self.in_channels, *(int(side) for side in shape)), dtype) * batch // cases


def pad_far(image: Tensor, size: Sequence[int]) -> Tensor:
    """Repeat the edge voxels at the far end of each axis up to `size`; memory format kept."""
    if tuple(size) == tuple(image.shape[2:]):
        return image
    missing = [wanted - side for wanted, side in zip(size, image.shape[2:], strict=True)]
    widths = [width for amount in reversed(missing) for width in (0, amount)]
    padded = functional.pad(image, widths, mode="replicate")
    return padded.contiguous(memory_format=memory_format_of(image))


def pad_mirror(image: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """Mirror the image at its edge voxels, as often as the widths ask for; memory format kept."""
    layout = memory_format_of(image)
    for axis, (low, high) in enumerate(zip(before, after, strict=True), start=2):
        side = int(image.shape[axis])
        around = torch.arange(-low, side + high, device=image.device)
        turn = max(2 * (side - 1), 1)
        within = around % turn
        image = image.index_select(axis, torch.minimum(within, turn - within) if side > 1 else torch.zeros_like(around))
    return image.contiguous(memory_format=layout)


def crop_centre(image: Tensor, size: Sequence[int]) -> Tensor:
    """The middle `size` voxels along each axis, a view."""
    starts = [(had - side) // 2 for had, side in zip(image.shape[2:], size, strict=True)]
    middle = (slice(start, start + int(side)) for start, side in zip(starts, size, strict=True))
    inside = (slice(None), slice(None), *middle)
    return image[inside]


def crop(image: Tensor, size: Sequence[int]) -> Tensor:
    """The first `size` voxels along each axis, a view."""
    inside = (slice(None), slice(None), *(slice(int(side)) for side in size))
    return image[inside]


def memory_format_of(image: Tensor) -> torch.memory_format:
    """Channels-last where the tensor has it, else contiguous."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(image.ndim)
    if last is not None and image.shape[1] > 1 and image.is_contiguous(memory_format=last):
        return last
    return torch.contiguous_format


def _covering(size: Sequence[int], aligned: Sequence[int], coarse: Sequence[int]) -> tuple[int, ...]:
    """The part of a coarser map of the padded image that covers the image itself."""
    return tuple(math.ceil(side * found / whole) for side, whole, found in zip(size, aligned, coarse, strict=True))


class SliceNetwork(SegmentationNetwork):
    """A 2D network on volumes, slice by slice: the slices go into the batch.

    Args:
        network: a 2D network.
        axis: the spatial axis that the slices are stacked along.

    Shape:
        image: (N, in_channels, X, Y, Z), of any size along `axis`.
        returns: logits (N, out_channels, X, Y, Z), or a list of them, where sizes along `axis` are kept.
    """

    def __init__(self, network: SegmentationNetwork, axis: int = 2) -> None:
        if network.spatial_dims != 2:
            raise ValueError(f"a slice network wraps a 2D network, got one with spatial_dims={network.spatial_dims}")
        if axis not in (0, 1, 2):
            raise ValueError(f"the slice axis is 0, 1 or 2, got {axis}")
        reach = network.receptive_field
        super().__init__(
            3,
            network.in_channels,
            network.out_channels,
            stride=_with_one(network.stride, axis),
            receptive_field=None if reach is None else _with_one(reach, axis),
        )
        self.axis = axis
        self.minimum_size = _with_one(network.minimum_size, axis)
        self.window_global = network.window_global
        self.moves_with_image = network.moves_with_image
        self.network = network
        if network.head is not None:
            # not registered: its weights are the 2D network's, and a state dict must hold them once
            object.__setattr__(self, "head", _SliceHead(self))

    @property
    def layout(self) -> torch.memory_format:
        """The 2D network's: its weights have four axes."""
        return self.network.layout

    def features(self, image: Tensor) -> Tensor:
        """The 2D network's features, stacked again: (N, F, X, Y, Z)."""
        self.check(image)
        return self.stack(self.network.features(self.slices(image)), len(image))

    def forward(self, image: Tensor) -> Logits:
        """Logits of the input's size; in training mode perhaps a list, finest first."""
        self.check(image)
        result = self.network(self.slices(image))
        if isinstance(result, Tensor):
            return self.stack(result, len(image))
        return [self.stack(logits, len(image)) for logits in result]

    def apply_head(self, features: Tensor) -> Tensor:
        """The 2D network's head on stacked features."""
        if self.network.head is None:
            raise ValueError(f"{type(self.network).__name__} has no head")
        return self.stack(self.network.head(self.slices(features)), len(features))

    def slices(self, image: Tensor) -> Tensor:
        """(N, C, X, Y, Z) to (N * slices, C, *in-plane)."""
        slices = image.movedim(2 + self.axis, 1).flatten(0, 1)
        last = memory_format_of(image) is torch.channels_last_3d
        return slices.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    def stack(self, image: Tensor, batch: int) -> Tensor:
        """(N * slices, C, *in-plane) back to (N, C, X, Y, Z)."""
        return image.unflatten(0, (batch, -1)).movedim(1, 2 + self.axis)


class _SliceHead(nn.Module):
    """The 2D head on stacked features; it holds no weights of its own."""

    owner: SliceNetwork

    def __init__(self, owner: SliceNetwork) -> None:
        super().__init__()
        object.__setattr__(self, "owner", owner)

    def forward(self, features: Tensor) -> Tensor:
        """Class logits (N, K, X, Y, Z) of features (N, F, X, Y, Z)."""
        return self.owner.apply_head(features)


def _with_one(sides: Sequence[int], axis: int) -> tuple[int, ...]:
    return (*sides[:axis], 1, *sides[axis:])
