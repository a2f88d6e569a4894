"""What a network declares of how far it sees, measured: its stride, its receptive field, whether it sees the window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import nn
from voxelwise.networks.base import SegmentationNetwork

from .cases import IN, noise
from .sight import seen

SEES_ALL = (nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


@contextmanager
def without_norms(network: SegmentationNetwork) -> Iterator[None]:
    """The network in eval mode, without the norms and poolings that see the whole window, for as long as it is asked.

    In place, since a copy of a network takes longer than most of its measurements.
    """
    taken = [
        (module, name, child)
        for module in network.modules()
        for name, child in module.named_children()
        if isinstance(child, SEES_ALL)
    ]
    training = network.training
    for module, name, _ in taken:
        setattr(module, name, nn.Identity())
    try:
        yield network.eval()
    finally:
        network.train(training)
        for module, name, child in taken:
            setattr(module, name, child)


def long_window(network: SegmentationNetwork, axis: int, length: int) -> tuple[int, ...]:
    """As thin as the stride allows, along every axis but one."""
    return tuple(length if index == axis else step for index, step in enumerate(network.stride))


def reach_of(network: SegmentationNetwork, axis: int) -> int:
    """The largest number of input voxels that one logit sees along an axis, over its positions within the stride."""
    return _reach(network, axis, network.stride)


@lru_cache(maxsize=8)  # three tests ask for it
def _reach(network: SegmentationNetwork, axis: int, stride: tuple[int, ...]) -> int:
    step = stride[axis]
    length = (64 if network.receptive_field is None else network.receptive_field[axis]) // step * step + 2 * step
    while True:
        length += 4 * step
        with without_norms(network):
            first, last = seen(network, IN, long_window(network, axis, length), axis)
        middle = slice(length // step // 2 * step, (length // step // 2 + 1) * step)
        if first[middle].min() > step and last[middle].max() < length - step - 1:
            return int((last - first)[middle].max()) + 1
        length *= 2


@torch.no_grad()
def moves_along(network: SegmentationNetwork, axis: int, shifts: Sequence[int], reach: int) -> list[bool]:
    """For each shift, whether an image moved by as many voxels gives the logits, moved, where borders do not reach."""
    step = network.stride[axis]
    margin = (reach // 2 // step + 2) * step  # it sees as far to both sides, up to a stride
    size = 2 * margin + 2 * step
    long = noise(IN, *long_window(network, axis, size + step))
    with without_norms(network):
        here, *others = network(torch.stack([long.narrow(1 + axis, shift, size) for shift in (0, *shifts)]))
    moves = []
    for shift, moved in zip(shifts, others, strict=True):
        inside = here.narrow(1 + axis, margin + shift, 2 * step - shift)
        difference = inside - moved.narrow(1 + axis, margin, 2 * step - shift)
        moves.append(bool(difference.abs().max() < 1e-4 * inside.abs().max()))
    return moves


def check_stride(network: SegmentationNetwork) -> None:
    """Moving the image by the stride moves the logits with it; moving it by a proper divisor of the stride does not."""
    if not network.moves_with_image:  # that is a claim too
        assert moves_along(network, 0, network.stride[:1], network.stride[0]) == [False]
        return
    for axis, step in enumerate(network.stride):
        # if a divisor were enough, so would be one of these: its multiples
        divisors = [step // prime for prime in (2, 3, 5, 7) if step % prime == 0]
        declared, *smaller = moves_along(network, axis, [step, *divisors], reach_of(network, axis))
        assert declared, f"axis {axis}: logits do not move with {step} voxels"
        assert not any(smaller), f"axis {axis}: a stride of {divisors[smaller.index(True)]} is enough"


def check_receptive_field(network: SegmentationNetwork) -> None:
    """No voxel farther away is seen, and one that far away is."""
    assert network.window_global == (network.receptive_field is None)
    if network.receptive_field is not None:
        for axis, declared in enumerate(network.receptive_field):
            assert declared == reach_of(network, axis), f"axis {axis}"


@torch.no_grad()
def check_window_global(network: SegmentationNetwork) -> None:
    """The first logit feels the far end of a window that is longer than any receptive field, or it does not."""
    axis = max(range(network.spatial_dims), key=lambda index: network.stride[index])
    step = network.stride[axis]
    reach = reach_of(network, axis) if network.moves_with_image else 5 * step  # of attention there is no reach
    one = noise(IN, *long_window(network, axis, (reach // step + 3) * step))
    other = one.clone()
    other.select(1 + axis, -1).add_(1000)
    training = network.training
    here, there = network.eval()(torch.stack((one, other)))
    network.train(training)
    change = (here - there).select(1 + axis, 0).abs().max()
    assert bool(change > 0) == network.window_global
