"""What is given for each level of a network: kernels, strides and depths, one number standing for all of them."""

from __future__ import annotations

from collections.abc import Sequence

Sides = Sequence[int] | int


def sides_of(
    kernels: Sequence[Sides] | None, strides: Sequence[Sides] | None, levels: int, spatial_dims: int
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Kernel and stride of each level along each axis."""
    kernel = _full("kernels", [3] * levels if kernels is None else kernels, levels, spatial_dims)
    stride = _full("strides", [1] + [2] * (levels - 1) if strides is None else strides, levels, spatial_dims)
    if any(side % 2 == 0 for sides in kernel for side in sides):
        raise ValueError(f"kernels are odd, so that sizes are kept; got {kernels}")
    if any(side != 1 for side in stride[0]):
        raise ValueError(f"the first level has the image's size, its stride is 1; got strides={strides}")
    return kernel, stride


def _full(what: str, sides: Sequence[Sides], levels: int, spatial_dims: int) -> list[tuple[int, ...]]:
    """One tuple of `spatial_dims` numbers for each level; a single number stands for all axes."""
    full = [(side,) * spatial_dims if isinstance(side, int) else tuple(side) for side in sides]
    if len(full) != levels or any(len(level) != spatial_dims or min(level) < 1 for level in full):
        raise ValueError(
            f"{what} gives each of {levels} levels a number from 1 on, or {spatial_dims} of them; got {list(sides)}"
        )
    return full


def depths_of(what: str, depths: Sides, levels: int) -> list[int]:
    """One number for each level, from 1 on; a single number stands for all."""
    full = [depths] * levels if isinstance(depths, int) else list(depths)
    if len(full) != levels or min(full) < 1:
        raise ValueError(f"{what} is one number from 1 on, or one for each of {levels} levels; got {depths}")
    return full
