"""Another spacing by splines of order 0 to 3, the edges of the grids agreeing: nnU-Net's resampling.

Equals scikit-image's `resize(mode="edge", anti_aliasing=False)`, whose result is clipped to the range of what it was
made of; or, where a coarse axis is resampled on its own, that slice by slice, and a spline of another order along it.
A spline along one axis is a matrix, whose entries fall to a quarter from voxel to voxel: each new voxel depends on some
24 old ones of each line, and not on the whole volume, so that matrix products of blocks give all of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.interpolate import BSpline
from scipy.ndimage import spline_filter1d
from torch import Tensor

from .edges import edges_positions

BEYOND = 12  # voxels by which scipy repeats the edges before its filter
NEGLIGIBLE = 1e-7  # weights below are left out
ROWS = 24  # new voxels along an axis that are made by one matrix product
Ranges = tuple[Tensor, Tensor]  # lowest and highest, of the whole or (slices,)


@dataclass(frozen=True, eq=False)
class Operator:
    """How the new voxels of a line are made of the old ones.

    Args:
        weights: (new, old), float32.
        first: of each new voxel, the old voxels that it depends on.
        last: of them.
    """

    weights: Tensor
    first: np.ndarray
    last: np.ndarray

    def part(self, new: slice) -> tuple[slice, Operator]:
        """The old voxels that some new ones, at least one, depend on, and the operator from these to those."""
        first, last = self.first[new], self.last[new]
        old = slice(int(first.min()), int(last.max()) + 1)
        return old, Operator(self.weights[new, old], first - old.start, last - old.start)

    def blocks(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """New voxels, the old ones that they depend on, and the weights."""
        for start in range(0, len(self.weights), ROWS):
            new = slice(start, min(start + ROWS, len(self.weights)))
            old, part = self.part(new)
            yield new, old, part.weights


Step = tuple[int | None, Operator | None]  # along an axis; without one: clip


@lru_cache(maxsize=64)
def spline_operator(size: int, new_size: int, order: int) -> Operator:
    """The spline of an order (0 to 3) through `size` voxels at the centres of `new_size` ones in the same extent."""
    positions = edges_positions(size, new_size)
    weights = np.zeros((new_size, size))
    if order == 0:
        weights[np.arange(new_size), nearest_voxels(size, new_size)] = 1
    else:
        lines = np.pad(np.eye(size), ((BEYOND, BEYOND), (0, 0)), mode="edge")
        coefficients = spline_filter1d(lines, order, axis=0, mode="nearest") if order > 1 else lines
        knots = np.arange(len(lines) + order + 1) - (order + 1) / 2
        weights = BSpline.design_matrix(positions + BEYOND, knots, order) @ coefficients
        weights[np.abs(weights) < NEGLIGIBLE] = 0
        weights /= weights.sum(axis=1, keepdims=True)
    counted = weights != 0
    first, last = counted.argmax(axis=1), size - 1 - counted[:, ::-1].argmax(axis=1)
    return Operator(torch.from_numpy(weights).float(), first, last)


def nearest_voxels(size: int, new_size: int) -> np.ndarray:
    """The old voxel that each new one lies in, the upper one on an edge."""
    nearest: np.ndarray = np.floor(edges_positions(size, new_size) + 0.5).astype(np.int64).clip(0, size - 1)
    return nearest


@dataclass(frozen=True, eq=False)
class Spline:
    """The resampling of one volume, or of a box of it.

    Args:
        new_shape: that it gives.
        operators: of each axis, None where it does not change.
        separate: the axis that is resampled on its own, after the others.
        clips: whether what the other axes give is clipped to the range of what they were given.
    """

    new_shape: tuple[int, ...]
    operators: tuple[Operator | None, ...]
    separate: int | None
    clips: bool

    @property
    def unchanged(self) -> bool:
        """Whether no axis changes."""
        return all(operator is None for operator in self.operators)

    def part(self, box: Sequence[slice]) -> tuple[tuple[slice, ...], Spline]:
        """The old voxels that a box of new ones, at least one, depends on, and the way from these to those."""
        parts = [
            (new, None) if operator is None else operator.part(new)
            for new, operator in zip(box, self.operators, strict=True)
        ]
        sides = tuple(new.stop - new.start for new in box)
        way = Spline(sides, tuple(operator for _, operator in parts), self.separate, self.clips)
        return tuple(old for old, _ in parts), way

    def turned(self, order: Sequence[int]) -> Spline:
        """The same of a volume whose axes are permuted."""
        separate = None if self.separate is None else list(order).index(self.separate)
        sides = tuple(self.new_shape[axis] for axis in order)
        operators = tuple(self.operators[axis] for axis in order)
        return Spline(sides, operators, separate, self.clips)


def spline(
    shape: Sequence[int], new_shape: Sequence[int], *, separate: int | None = None, order: int = 3, along: int = 0
) -> Spline:
    """The resampling of a shape to another.

    Args:
        shape: of the volume.
        new_shape: the same extent in other voxels.
        separate: axis that is resampled on its own.
        order: of the splines, 0 to 3.
        along: of that of the separate axis.
    """
    orders = [along if axis == separate else order for axis in range(3)]
    operators = tuple(
        None if size == new else spline_operator(size, new, order)
        for size, new, order in zip(shape, new_shape, orders, strict=True)
    )
    clips = order > 1 and any(operator is not None for axis, operator in enumerate(operators) if axis != separate)
    return Spline(tuple(new_shape), operators, separate, clips)


def ranges_of(volume: Tensor, separate: int | None = None) -> Ranges:
    """Lowest and highest value of (X, Y, Z), of each slice where an axis is separate."""
    if separate is None:
        low, high = volume.permute(_in_memory(volume)).aminmax()  # which copies what is in another order
        return low.float(), high.float()
    others = [axis for axis in range(3) if axis != separate]
    return volume.amin(others).float(), volume.amax(others).float()


def apply_spline(way: Spline, volume: Tensor, ranges: Ranges | None = None) -> Tensor:
    """(X, Y, Z) of any type resampled; float32.

    Args:
        way: from this shape.
        volume: with its own range where none is given.
        ranges: of the whole volume that it is a box of; of the box's slices along a separate axis.

    Memory: the result; the volume resampled within its planes beside it, where it has more of them than before.
    """
    if way.clips and ranges is None:
        ranges = ranges_of(volume, way.separate)
    order = _in_memory(volume)
    if order != [0, 1, 2]:
        turned = apply_spline(way.turned(order), volume.permute(order), ranges)
        return turned.permute([order.index(axis) for axis in range(3)])
    steps = _steps(way, volume.shape)
    across = next((at for at, (axis, _) in enumerate(steps) if axis == 0), None)
    if across:
        volume = _in_planes(volume, steps[:across], ranges, way.separate)
        steps = steps[across:]
    return _in_planes(volume, steps, ranges, way.separate)


def _in_memory(volume: Tensor) -> list[int]:
    """The axes, the one whose planes lie one behind the other first."""
    strides = volume.stride()
    return sorted(range(3), key=lambda axis: -strides[axis])


def _steps(way: Spline, shape: Sequence[int]) -> list[Step]:
    """Axes and operators in the order of the work, first those that leave least."""

    sizes = {axis: len(operator.weights) for axis, operator in enumerate(way.operators) if operator is not None}
    axes = sorted((axis for axis in sizes if axis != way.separate), key=lambda axis: sizes[axis] / shape[axis])
    steps: list[Step] = [(axis, way.operators[axis]) for axis in axes]
    if way.clips:
        steps.append((None, None))
    if way.separate in sizes:
        steps.append((way.separate, way.operators[way.separate]))
    return steps


def _in_planes(volume: Tensor, steps: Sequence[Step], ranges: Ranges | None, separate: int | None) -> Tensor:
    """Steps one after the other on some planes at a time; only the first may be along the first axis."""
    first = steps[0][1] if steps and steps[0][0] == 0 else None
    sides = list(volume.shape)
    for axis, operator in steps:
        if axis is not None and operator is not None:
            sides[axis] = len(operator.weights)
    done = torch.empty(sides)
    last = max((at for at, (axis, _) in enumerate(steps) if axis is not None), default=-1)
    as_they_are = ((slice(start, start + ROWS), slice(start, start + ROWS), None) for start in range(0, sides[0], ROWS))
    for new, old, weights in as_they_are if first is None else first.blocks():
        planes = volume[old].float()
        for at, (axis, operator) in enumerate(steps):
            made = done[new] if at == last else None  # what comes last is written where it belongs
            if axis == 0 and weights is not None:
                planes = _across(planes, weights, made)
            elif operator is not None:
                planes = (_lines if axis == 1 else _columns)(planes, operator, made)
            elif ranges is not None:
                _clip(planes, ranges, separate, new)
        if last < 0:
            done[new] = planes
    return done


def _across(planes: Tensor, weights: Tensor, made: Tensor | None) -> Tensor:
    """Planes (N, Y, Z) along N."""
    made = torch.empty(len(weights), *planes.shape[1:]) if made is None else made
    torch.mm(weights, planes.flatten(1), out=made.flatten(1))
    return made


def _lines(planes: Tensor, operator: Operator, made: Tensor | None) -> Tensor:
    """Planes (N, Y, Z) along Y."""
    made = torch.empty(len(planes), len(operator.weights), planes.shape[2]) if made is None else made
    for new, old, weights in operator.blocks():
        torch.bmm(weights.expand(len(planes), *weights.shape), planes[:, old], out=made[:, new])
    return made


def _columns(planes: Tensor, operator: Operator, made: Tensor | None) -> Tensor:
    """Planes (N, Y, Z) along Z."""
    made = torch.empty(*planes.shape[:2], len(operator.weights)) if made is None else made
    lines, found = planes.flatten(0, 1), made.flatten(0, 1)
    for new, old, weights in operator.blocks():
        torch.mm(lines[:, old], weights.T, out=found[:, new])
    return made


def _clip(planes: Tensor, ranges: Ranges, separate: int | None, which: slice) -> None:
    """Clip in place what was made of some planes."""
    low, high = ranges
    if separate is None:
        planes.clamp_(float(low), float(high))  # far faster than with tensors
        return
    shape = [1, 1, 1]
    shape[separate] = -1
    part = which if separate == 0 else slice(None)
    torch.clamp(planes, low[part].view(shape), high[part].view(shape), out=planes)
