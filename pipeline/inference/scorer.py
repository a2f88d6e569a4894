"""What windows of an image become: logits, or the features in front of the head where those are fewer.

A stitcher adds up what a scorer gives and applies the scorer's head to the sums. The head is linear and the shares of
the windows at a voxel sum to one, so head(blend(features)) is blend(head(features)), and neither memory nor time of the
blending depends on the number of classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, combinations, product
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ...networks.base import SegmentationNetwork
from .engines import Engine, TorchEngine

Head = Callable[[Tensor], Tensor]
LEAST_CHANNELS = 8  # that are put in plain order


@runtime_checkable
class Scorer(Protocol):
    """Windows in, what is blended out."""

    @property
    def channels(self) -> int:
        """Of what it gives for a window."""
        ...

    @property
    def classes(self) -> int:
        """Of the scores behind the head."""
        ...

    @property
    def head(self) -> Head | None:
        """(N, channels, *S) to (N, classes, *S), linear, for what was blended; None where it gives scores."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it gives them."""
        ...

    def __call__(self, windows: Tensor) -> Tensor:
        """Windows (N, C, *patch) on any device to (N, channels, *patch), float32."""
        ...


class NetworkScorer:
    """One network or several, mirrored or not; what they give is averaged.

    Args:
        networks: in eval mode, on the device.
        tta_axes: spatial axes that windows are also mirrored along, in all combinations.
        device: where the networks are.
        precision: resolved word, of the networks' arithmetic; the average is float32.
        engine: that runs the networks, for that device and precision; torch when left out.

    Raises:
        ValueError: no network.
    """

    def __init__(
        self,
        networks: Sequence[SegmentationNetwork],
        *,
        tta_axes: Sequence[int] = (),
        device: torch.device | str = "cpu",
        precision: str = "float32",
        engine: Engine | None = None,
    ) -> None:
        if not networks:
            raise ValueError("segmenting needs at least one network, got an empty list")
        self.networks = tuple(networks)
        self.tta_axes = tuple(tta_axes)
        self.precision = precision
        self._device = torch.device(device)
        self.engine = TorchEngine(self._device, precision) if engine is None else engine
        self._head = blended_head(networks)

    @property
    def channels(self) -> int:
        """Features of all networks, or classes."""
        return self.classes if self._head is None else sum(self._head.widths)

    @property
    def classes(self) -> int:
        """Of each network."""
        return self.networks[0].out_channels

    @property
    def head(self) -> MeanHead | None:
        """The mean of the networks' heads, where they have fewer features than classes."""
        return self._head

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self._device

    @property
    def unmirrored(self) -> NetworkScorer:
        """The same without mirroring."""
        return NetworkScorer(self.networks, device=self.device, precision=self.precision, engine=self.engine)

    def __call__(self, windows: Tensor) -> Tensor:
        """Windows (N, C, *patch) to (N, channels, *patch), float32, on the device."""
        windows = windows.to(self.device, torch.float32)
        axes = [axis for axis in self.tta_axes if windows.shape[axis + 2] > 1]
        mirrors = list(chain.from_iterable(combinations(axes, count) for count in range(len(axes) + 1)))
        features = self.head is not None
        parts: list[Tensor] = []
        for number, axis in product(range(len(self.networks)), mirrors):
            dims = [at + 2 for at in axis]
            seen = windows.flip(dims) if dims else windows
            found = self.engine(self.networks[number], seen, features=features)
            found = (found.flip(dims) if dims else found).float()
            into = number if features else 0  # features of several networks stay apart
            if into == len(parts):
                parts.append(found)
            else:
                parts[into] = parts[into] + found
        count = len(mirrors) * (1 if features else len(self.networks))
        total = in_plain_order(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))
        return total if count == 1 else total.div_(count)  # a sum is nobody else's


def in_plain_order(found: Tensor) -> Tensor:
    """(N, C, *S) channel by channel, as it is added up: with many channels last that takes ten times as long on a CPU.

    As a matrix that is turned over; torch's own copy takes four times as long.
    """
    rows = found.movedim(1, -1)
    if found.device.type != "cpu" or found.shape[1] < LEAST_CHANNELS or not rows.is_contiguous():
        return found
    result = torch.empty(found.shape)
    for row, into in zip(rows, result, strict=True):
        into.flatten(1).copy_(row.flatten(0, -2).t())
    return result


class MeanHead(nn.Module):
    """The mean of the heads of several networks, on their features one behind the other.

    Attributes:
        widths: channels of the features of each network.
    """

    def __init__(self, networks: Sequence[SegmentationNetwork], widths: Sequence[int]) -> None:
        super().__init__()
        heads = [network.head for network in networks if network.head is not None]
        # not registered: the weights are the networks' own
        object.__setattr__(self, "heads", tuple(heads))
        self.widths = tuple(widths)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, K, *S) of features (N, sum of widths, *S)."""
        heads: tuple[nn.Module, ...] = self.heads  # type: ignore[assignment]
        each = [head(part) for head, part in zip(heads, features.split(self.widths, dim=1), strict=True)]
        total: Tensor = each[0] if len(each) == 1 else torch.stack(each).mean(0)
        return total


def blended_head(networks: Sequence[SegmentationNetwork]) -> MeanHead | None:
    """The head to apply after blending, where the networks together have fewer features than classes."""
    widths = [feature_count(network) for network in networks]
    known = [width for width in widths if width is not None]
    if len(known) < len(networks) or sum(known) >= networks[0].out_channels:
        return None
    return MeanHead(networks, known)


def feature_count(network: SegmentationNetwork) -> int | None:
    """Channels in front of a network's head; None where it has no head."""
    inner = getattr(network, "network", network)  # a slice network's head holds no weights of its own
    if network.head is None or inner.head is None:
        return None
    return next((int(weight.shape[1]) for weight in inner.head.parameters() if weight.ndim > 1), None)


@contextmanager
def evaluating(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Networks in eval mode inside the block, as they were behind it."""
    modes = [network.training for network in networks]
    try:
        for network in networks:
            network.eval()
        yield
    finally:
        for network, mode in zip(networks, modes, strict=True):
            network.train(mode)
