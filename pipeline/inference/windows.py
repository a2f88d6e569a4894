"""Where the windows of a volume lie, and how much each of them says about each voxel.

Windows stand on a grid: the starts along one axis do not depend on the others, and the weights are products of one
curve per axis. So the shares of all windows at a voxel can be brought to a sum of one axis by axis, before anything
is added up: no volume of weights is kept, and no division comes at the end. Starts and Gaussian width are nnU-Net's
(Isensee et al., 2021). With centre weights a voxel belongs to one window alone, the one whose centre is nearest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import unknown

BLENDING = ("gaussian", "gaussian_voxel", "constant", "centre")
SIGMA_OF_PATCH = 1 / 8


def axis_starts(length: int, patch: int, overlap: float, *, stepped: bool = False) -> list[int]:
    """Starts along one axis, the first at 0, the last so that the window ends with the axis: evenly spaced, or
    `stepped`, all but the last at whole steps, as MONAI lays them."""
    if patch >= length:
        return [0]
    if stepped:
        whole = max(1, int(patch * (1 - overlap)))
        return [*range(0, length - patch, whole), length - patch]
    step = max(1.0, patch * (1 - overlap))
    count = math.ceil((length - patch) / step) + 1
    return [round(index * (length - patch) / (count - 1)) for index in range(count)]


def importance(length: int, blending: str = "gaussian") -> Tensor:
    """Weights (length) of a window along one axis, float64, all above zero and the largest one 1.

    The centre of `gaussian` is the window's; `gaussian_voxel` has nnU-Net's, the voxel length // 2.
    """
    if blending == "constant":
        return torch.ones(length, dtype=torch.float64)
    if blending not in ("gaussian", "gaussian_voxel"):
        raise unknown("blending", blending, BLENDING)
    centre = length // 2 if blending == "gaussian_voxel" else (length - 1) / 2
    offset = torch.arange(length, dtype=torch.float64) - centre
    weights = torch.exp(-0.5 * (offset / (SIGMA_OF_PATCH * length)) ** 2)
    return weights / weights.max()


@dataclass(frozen=True, eq=False)
class WindowGrid:
    """The windows over one grid.

    Args:
        shape: of the grid.
        patch: of one window.
        starts: first voxels along each axis, rising.
        shares: per axis, one row per start: its share at each of its voxels; at every voxel of the axis they sum to 1.
    """

    shape: tuple[int, ...]
    patch: tuple[int, ...]
    starts: tuple[tuple[int, ...], ...]
    shares: tuple[Tensor, ...]

    @classmethod
    def of(
        cls,
        shape: Sequence[int],
        patch: Sequence[int],
        overlap: float = 0.5,
        blending: str = "gaussian",
        *,
        stepped: bool = False,
    ) -> WindowGrid:
        """Lay windows over a grid.

        Raises:
            ValueError: an overlap outside [0, 1), a patch larger than the grid or of other rank.
        """
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap is the shared part of a window, from 0 to below 1; got {overlap:g}")
        if len(shape) != len(patch) or any(not 1 <= side <= whole for side, whole in zip(patch, shape, strict=True)):
            raise ValueError(f"windows {tuple(patch)} do not fit into a grid {tuple(shape)}; pad the image first")
        starts = [axis_starts(whole, side, overlap, stepped=stepped) for whole, side in zip(shape, patch, strict=True)]
        return cls.at(shape, patch, starts, blending)

    @classmethod
    def at(
        cls, shape: Sequence[int], patch: Sequence[int], starts: Sequence[Sequence[int]], blending: str = "gaussian"
    ) -> WindowGrid:
        """Windows that start where it is said, along each axis, and cover it."""
        shares = [
            _nearest(axis, whole, side) if blending == "centre" else _shares(axis, whole, importance(side, blending))
            for axis, whole, side in zip(starts, shape, patch, strict=True)
        ]
        return WindowGrid(tuple(shape), tuple(patch), tuple(tuple(axis) for axis in starts), tuple(shares))

    def where(self, index: Sequence[int]) -> tuple[slice, ...]:
        """Voxels of the window whose starts have this index along each axis."""
        starts = (axis[at] for axis, at in zip(self.starts, index, strict=True))
        return tuple(slice(start, start + side) for start, side in zip(starts, self.patch, strict=True))

    def used(self, index: Sequence[int]) -> tuple[slice, ...]:
        """The part of that window that has a share; perhaps none."""
        found = []
        for share, at in zip(self.shares, index, strict=True):
            some = share[at].nonzero()[:, 0].tolist()
            found.append(slice(some[0], some[-1] + 1) if some else slice(0, 0))
        return tuple(found)

    def touching(self, axis: int, part: slice) -> range:
        """Which windows along an axis hold voxels of a part of it."""
        starts, side = self.starts[axis], self.patch[axis]
        found = [at for at, start in enumerate(starts) if start < part.stop and start + side > part.start]
        return range(found[0], found[-1] + 1)

    def weights(self, index: Sequence[int], part: Sequence[slice] | None = None) -> Tensor:
        """Shares (*patch), float32, of the window whose starts have this index along each axis, or of a part of it."""
        cut = [slice(None)] * len(self.patch) if part is None else part
        rows = [share[at][side] for share, at, side in zip(self.shares, index, cut, strict=True)]
        result = rows[-1]
        for row in reversed(rows[:-1]):
            result = row.reshape(-1, *([1] * result.ndim)) * result
        return result


def _nearest(starts: Sequence[int], length: int, patch: int) -> Tensor:
    """One for the window whose centre is nearest to a voxel, the first one at a tie; of windows on a grid the nearest
    one along each axis is the nearest one."""
    centres = torch.tensor([start + (patch - 1) / 2 for start in starts], dtype=torch.float64)
    away = (torch.arange(length, dtype=torch.float64) - centres[:, None]).abs()
    owner = away.min(dim=0).indices
    return torch.stack([(owner[start : start + patch] == at).float() for at, start in enumerate(starts)])


def _shares(starts: Sequence[int], length: int, weights: Tensor) -> Tensor:
    total = torch.zeros(length, dtype=torch.float64)
    for start in starts:
        total[start : start + len(weights)] += weights
    return torch.stack([weights / total[start : start + len(weights)] for start in starts]).float()
