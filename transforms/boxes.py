"""Prepared images whose voxels are made when they are asked for.

A voxel of them depends on the stored ones around it and at most on two numbers of the whole image, which are summed up
slab by slab.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .resample import interpolate
from .window import OWN, OWN_RANGE, normalise, of_range, standardise

SLAB_VOXELS = 1 << 22
Box = tuple[slice, ...]
Moments = tuple[Tensor, Tensor, Tensor]  # what is subtracted and divided by, and what zeros become, float64


class BlockwiseImage(ABC):
    """A prepared image (C, X, Y, Z) whose voxels are made when they are asked for.

    Attributes:
        affine: of the prepared image.
    """

    affine: np.ndarray

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Channels and voxels along each axis."""

    @property
    @abstractmethod
    def resampled(self) -> bool:
        """Whether voxels are interpolated."""

    @abstractmethod
    def __getitem__(self, where: Box) -> Tensor:
        """The voxels (C, *box) of a box, float32, of all channels."""

    def working_bytes(self, sides: Sequence[int] | None = None) -> int:
        """What is made on the way to a box of these sides, or to all voxels at once, beside the box, at most."""
        return 0

    @abstractmethod
    def whole(self) -> Tensor:
        """All voxels at once.

        Memory: the result, and a slab.
        """


@dataclass(frozen=True, eq=False)
class StoredImage(BlockwiseImage):
    """Stored voxels, interpolated linearly, then normalised.

    Args:
        stored: (C, X, Y, Z), views of the volume's array, axes turned and cropped.
        affine: of the prepared image.
        axes: where the prepared voxels of each axis lie among the stored ones; None where they are the same.
        normalisations: values of the plan for each channel; empty before that step.
        inside: (X, Y, Z) of the stored voxels, of those that zscore_mask counts.
        moments: of the channels that are normalised by their own; found when they are first needed.
    """

    stored: np.ndarray
    affine: np.ndarray
    axes: tuple[Tensor | None, ...] = (None, None, None)
    normalisations: tuple[Mapping[str, Any], ...] = ()
    inside: np.ndarray | None = None
    moments: dict[int, Moments] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels and voxels along each axis."""
        sides = zip(self.stored.shape[1:], self.axes, strict=True)
        return (len(self.stored), *(size if axis is None else len(axis) for size, axis in sides))

    @property
    def resampled(self) -> bool:
        """Whether voxels are interpolated."""
        return any(axis is not None for axis in self.axes)

    def __getitem__(self, where: Box) -> Tensor:
        """The voxels (C, *box) of a box, float32, of all channels."""
        return self.box(where)

    def box(self, where: Box, order: Literal["C", "K"] = "C") -> Tensor:
        """The same; `order` K: in memory as the stored ones are, where nothing is interpolated."""
        result = self._interpolated(self.stored, where[1:], order)
        for channel, values in enumerate(result):
            self._normalise(channel, values, where)
        return result

    def channel(self, number: int, where: Sequence[slice]) -> Tensor:
        """The voxels (*box) of one channel, in memory as the stored ones are, where nothing is interpolated."""
        values = self._interpolated(self.stored[number : number + 1], where, "K")[0]
        self._normalise(number, values, (slice(None), *where))
        return values

    def whole(self) -> Tensor:
        """All voxels at once, interpolated once.

        Memory: the result, and a slab.
        """
        result = torch.empty(self.shape)
        for box in self.slabs():
            result[box] = self._interpolated(self.stored, box[1:])
        for channel, values in enumerate(result):
            if self._by_moments(channel):
                self._find_moments(channel, partial(self._slabs_of, values))
            for box in self.slabs():
                self._normalise(channel, values[box[1:]], box)
        return result

    def slabs(self) -> Iterator[Box]:
        """Boxes that make up the image, along the axis whose stored planes lie one behind the other."""
        yield from slabs(self.shape, slowest_axis(self.stored), SLAB_VOXELS)

    def _slabs_of(self, values: Tensor) -> Iterator[tuple[Box, Tensor]]:
        return ((box, values[box[1:]]) for box in self.slabs())

    def _interpolated(self, stored: np.ndarray, where: Sequence[slice], order: Literal["C", "K"] = "C") -> Tensor:
        """A box of stored channels (C, *box) before they are normalised."""
        box = [slice(*part.indices(size)[:2]) for part, size in zip(where, self.shape[1:], strict=True)]
        taken: list[slice] = [slice(None), *box]
        places: list[Tensor | None] = [None] * 3
        for at, (axis, part, size) in enumerate(zip(self.axes, box, stored.shape[1:], strict=True)):
            if axis is not None and part.stop > part.start:
                low, high = int(axis[part.start]), min(int(axis[part.stop - 1]) + 2, size)
                taken[at + 1], places[at] = slice(low, high), axis[part] - low
        view = stored[tuple(taken)]
        if all(place is None for place in places):
            with np.errstate(over="ignore"):
                return torch.from_numpy(view.astype(np.float32, order=order))
        return interpolate(torch.from_numpy(np.ascontiguousarray(view)), places)

    def _by_moments(self, channel: int) -> bool:
        return bool(self.normalisations) and self.normalisations[channel]["kind"] in OWN

    def _mask(self, channel: int, where: Box) -> Tensor | None:
        masked = self.normalisations[channel]["kind"] == "zscore_mask" and self.inside is not None
        return torch.from_numpy(self.inside[where[1:]]) if masked and self.inside is not None else None

    def _normalise(self, channel: int, values: Tensor, where: Box) -> None:
        """Normalise voxels of a channel, those of a box, in place."""
        if not self.normalisations:
            return
        given = self.normalisations[channel]
        if not self._by_moments(channel):
            values.copy_(normalise(values, **given))
            return
        if channel not in self.moments:
            one = self.stored[channel : channel + 1]
            self._find_moments(
                channel, lambda: ((box, self._interpolated(one, box[1:], "K")[0]) for box in self.slabs())
            )
        subtracted, divisor, fill = self.moments[channel]
        standardise(
            values,
            subtracted,
            divisor,
            nonzero=given["kind"] in ("zscore_nonzero", "rescale_nonzero"),
            fill=fill,
            inside=self._mask(channel, where),
            low=given.get("low"),
            high=given.get("high"),
        )

    def _find_moments(self, channel: int, slabs: Callable[[], Iterable[tuple[Box, Tensor]]]) -> None:
        """Mean and deviation of a channel, of the voxels that the plan counts, 0 where there are none; or its range."""
        kind = self.normalisations[channel]["kind"]
        if kind in OWN_RANGE:
            self.moments[channel] = self._range(channel, slabs)
            return

        def mean_of(term: Callable[[Tensor], Tensor]) -> Tensor:
            total, count = torch.zeros((), dtype=torch.float64), 0
            for box, slab in slabs():
                inside = slab != 0 if kind == "zscore_nonzero" else self._mask(channel, box)
                values = slab if inside is None else slab[inside]
                total += term(values).sum(dtype=torch.float64)
                count += values.numel()
            return total / max(count, 1)

        mean = mean_of(lambda values: values)
        std = mean_of(lambda values: (values - mean.float()).square_()).sqrt()
        self.moments[channel] = mean, std, torch.zeros_like(mean)

    def _range(self, channel: int, slabs: Callable[[], Iterable[tuple[Box, Tensor]]]) -> Moments:
        """The same of a range: all zero where no voxel counts."""
        given, ends, total, count = self.normalisations[channel], [], torch.zeros((), dtype=torch.float64), 0
        for _, slab in slabs():
            values = slab[slab != 0] if given["kind"] == "rescale_nonzero" else slab
            if values.numel():
                ends.append(torch.stack(values.aminmax()))
                total += values.sum(dtype=torch.float64)
                count += values.numel()
        if not ends:
            return total, total, total
        least, most = torch.stack(ends).double().unbind(1)
        return of_range(least.min(), most.max(), total / count, given.get("mean", 0.0), given.get("std", 1.0))


def slowest_axis(array: np.ndarray) -> int:
    """The axis of (C, X, Y, Z), 0 to 2, whose planes lie one behind the other."""
    return int(np.argmax(np.abs(array.strides[1:])))


def slabs(shape: Sequence[int], axis: int, voxels: int) -> Iterator[Box]:
    """Boxes along an axis that make up (C, X, Y, Z), of some voxels each."""
    depth = max(1, voxels * shape[axis + 1] // math.prod(shape))
    for first in range(0, shape[axis + 1], depth):
        box = [slice(None)] * 4
        box[axis + 1] = slice(first, first + depth)
        yield tuple(box)
