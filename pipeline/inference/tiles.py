"""Which tiles a volume is divided into, so that every logit is that of one forward pass over the whole volume.

A tile starts at a multiple of the network's stride and ends at one, or with the volume: the grids of its coarse levels
are those of the whole volume, and padding is met where the volume ends and nowhere else. The part of a tile whose
logits see nothing past its cuts is its core, and cores divide the volume. A mirrored volume has grids of its own, so
each mirror has its own tiles around the same cores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import chain, combinations, pairwise

import numpy as np

from ...errors import CaseError, UsageError
from ...networks.base import SegmentationNetwork
from .halo import INSTEAD, Halo, round_up
from .windows import axis_starts

GROWTH = 1.1  # from one number of tiles to the next that is tried, where they are many
NUMBER_BYTES = 4  # scores are float32
Core = tuple[int, int]  # where it begins and ends along one axis


@dataclass(frozen=True)
class Tiling:
    """Cores that divide a volume, and the tiles around them.

    Args:
        shape: of the volume.
        halo: of the networks.
        cuts: per axis where cores begin and end: 0, ..., the length.
        axis: that cores are run along, slab by slab.
        tta_axes: that the volume is also mirrored along, in all combinations.
    """

    shape: tuple[int, ...]
    halo: Halo
    cuts: tuple[tuple[int, ...], ...]
    axis: int = 0
    tta_axes: tuple[int, ...] = ()

    @classmethod
    def of(
        cls, shape: Sequence[int], halo: Halo, counts: Sequence[int], *, axis: int = 0, tta_axes: Sequence[int] = ()
    ) -> Tiling:
        """So many tiles along each axis, or fewer where the halos leave no room for more."""
        cuts = (axis_cuts(side, halo, at, count) for at, (side, count) in enumerate(zip(shape, counts, strict=True)))
        return cls(tuple(shape), halo, tuple(cuts), axis, tuple(at for at in tta_axes if shape[at] > 1))

    @property
    def counts(self) -> tuple[int, ...]:
        """Tiles along each axis."""
        return tuple(len(cuts) - 1 for cuts in self.cuts)

    @property
    def mirrors(self) -> list[tuple[int, ...]]:
        """The axes that each mirrored volume is mirrored along; the first one is not."""
        axes = self.tta_axes
        return list(chain.from_iterable(combinations(axes, count) for count in range(len(axes) + 1)))

    @property
    def largest(self) -> tuple[int, ...]:
        """The largest tile."""
        return tuple(max(sides) for sides in self._sides())

    @property
    def computed(self) -> float:
        """Voxels computed for each voxel of the volume, on average over the mirrors."""
        ways = (2 if axis in self.tta_axes else 1 for axis in range(len(self.shape)))
        sums = zip(self._sides(), ways, self.shape, strict=True)
        return math.prod(sum(sides) / way / length for sides, way, length in sums)

    @property
    def slab(self) -> int:
        """Voxels whose scores are put together from several tiles at a time; 0 where one tile is a slab."""
        if math.prod(self.counts) == self.counts[self.axis]:
            return 0
        return deepest(self.cuts[self.axis]) * math.prod(self.shape) // self.shape[self.axis]

    def cores(self, axis: int) -> list[Core]:
        """Along one axis."""
        return list(pairwise(self.cuts[axis]))

    def tile(self, core: Sequence[Core], mirror: Sequence[int] = ()) -> tuple[slice, ...]:
        """The tile around a core, in voxels of the unmirrored volume; `mirror` names the axes that are mirrored."""
        ends = (axis_tile(one, self.shape[axis], self.halo, axis, axis in mirror) for axis, one in enumerate(core))
        return tuple(slice(start, stop) for start, stop in ends)

    def __str__(self) -> str:
        """For people."""
        sides = "x".join(map(str, self.largest))
        if math.prod(self.counts) == 1:
            return f"exact tiling: the whole volume of {sides} voxels in one window"
        counts = "x".join(map(str, self.counts))
        return (
            f"exact tiling: {counts} tiles of up to {sides} voxels, {self.computed:.2f} voxels computed for each of "
            "the volume"
        )

    def _sides(self) -> list[list[int]]:
        """Per axis the lengths of all tiles, those of the mirrored volume too."""
        return [
            _lengths(cuts, length, self.halo, axis, axis in self.tta_axes)
            for axis, (cuts, length) in enumerate(zip(self.cuts, self.shape, strict=True))
        ]


def axis_cuts(length: int, halo: Halo, axis: int, count: int) -> tuple[int, ...]:
    """Where the cores of `count` tiles of about one size, or of fewer, begin and end along an axis."""
    step, shared = halo.stride[axis], halo.shared[axis]
    aligned = round_up(length, step)
    side = round_up(math.ceil((aligned + (count - 1) * shared) / count), step)
    if count == 1 or side <= shared:
        return (0, length)
    ends = range(side, aligned, side - shared)  # of all tiles but the last, which ends with the volume
    return (0, *(end - halo.after[axis] for end in ends), length)


def axis_tile(core: Core, length: int, halo: Halo, axis: int, mirrored: bool = False) -> tuple[int, int]:
    """Where the tile around a core begins and ends along an axis of the unmirrored volume."""
    start, stop = (length - core[1], length - core[0]) if mirrored else core
    step = halo.stride[axis]
    start = max(0, start - halo.before[axis]) // step * step
    stop = min(length, round_up(stop + halo.after[axis], step))
    return (length - stop, length - start) if mirrored else (start, stop)


def deepest(cuts: Sequence[int]) -> int:
    """The length of the longest core."""
    return max(stop - start for start, stop in pairwise(cuts))


def plan_tiles(
    networks: Sequence[SegmentationNetwork],
    halo: Halo,
    shape: Sequence[int],
    *,
    channels: int,
    limit_bytes: int,
    slab_bytes: int | None = None,
    tta_axes: Sequence[int] = (),
) -> Tiling:
    """The tiling with the fewest voxels computed for each voxel of a volume, of those that keep a limit.

    Args:
        networks: that are run one after the other.
        halo: that serves them all.
        shape: of the volume.
        channels: of what a tile becomes.
        limit_bytes: of the activations of a tile and the scores of a slab, together.
        slab_bytes: of the scores of a slab alone, where they lie on another device than the networks.
        tta_axes: that the volume is also mirrored along.

    Raises:
        UsageError: no tile with its halo is small enough.
        CaseError: the volume is smaller than a network takes (`too-small`).
    """
    check_size(networks, shape)
    mirrored = [at for at in tta_axes if shape[at] > 1]
    search = _Search.of(shape, halo, mirrored, channels)
    beside = search.held if slab_bytes is None else np.zeros_like(search.held)
    room = np.full_like(search.held, limit_bytes if slab_bytes is None else slab_bytes)
    summed = channels * NUMBER_BYTES if len(networks) > 1 or mirrored else 0
    each = 0.0  # bytes that one voxel takes, of the tiles that were tried
    while True:
        needed = each * search.voxels + beside
        index = search.first((needed <= limit_bytes) & (search.held <= room))
        least = search.place(int(needed.argmin())) if index is None else index
        tiling = Tiling(tuple(shape), halo, search.cuts(least), int(search.axes[least]), tuple(mirrored))
        voxels = math.prod(tiling.largest)
        taken = max(network.activation_bytes(tiling.largest) for network in networks) + summed * voxels
        if index is None:
            raise UsageError(
                f"--tiling exact: a volume of {_by(shape)} voxels takes tiles of {_by(tiling.largest)} or more, since "
                f"the network sees {_by(halo.before)} voxels to each side; they need {taken / 1e9:.2f} GB and the "
                f"scores of a slab {search.held[least] / 1e9:.2f} GB, more than there is ({limit_bytes / 1e9:.2f} GB); "
                f"{INSTEAD}, or give more memory"
            )
        if taken + beside[least] <= limit_bytes:
            return tiling
        aligned = math.prod(round_up(side, step) for side, step in zip(tiling.largest, halo.stride, strict=True))
        each = max(each, taken / aligned)  # a smaller tile takes no less for a voxel of the network's own grid


def check_size(networks: Sequence[SegmentationNetwork], shape: Sequence[int]) -> None:
    """Refuse a volume that a network does not take as it is.

    Raises:
        CaseError: `too-small`.
    """
    for network in networks:
        if any(side < least for side, least in zip(shape, network.minimum_size, strict=True)):
            raise CaseError(
                f"--tiling exact: a volume of {_by(shape)} voxels is smaller than the network takes "
                f"({_by(network.minimum_size)}); {INSTEAD}, which pads it",
                "too-small",
            )


def blended_ratio(shape: Sequence[int], patch: Sequence[int], overlap: float) -> float:
    """Voxels that blended windows compute for each voxel of a volume."""
    counts = (len(axis_starts(length, side, overlap)) for length, side in zip(shape, patch, strict=True))
    return math.prod(count * side / length for count, side, length in zip(counts, patch, shape, strict=True))


@dataclass(frozen=True, eq=False)
class _Search:
    """All numbers of tiles along each axis; arrays have one axis for each of the volume's.

    Args:
        options: per axis the cuts of each number of tiles.
        voxels: of the largest tile, aligned to the network's stride.
        held: bytes of the scores of one slab.
        axes: that the cores are run along, where a slab holds least.
        order: places in the flat arrays, the least computed first, at a tie the fewest tiles.
    """

    options: list[list[tuple[int, ...]]]
    voxels: np.ndarray
    held: np.ndarray
    axes: np.ndarray
    order: np.ndarray

    @classmethod
    def of(cls, shape: Sequence[int], halo: Halo, mirrored: Sequence[int], channels: int) -> _Search:
        """From one tile along each axis to as many as there are strides."""
        options = [
            list(dict.fromkeys(axis_cuts(side, halo, axis, count) for count in _counts(side // halo.stride[axis])))
            for axis, side in enumerate(shape)
        ]
        sides = [
            [_lengths(cuts, shape[axis], halo, axis, axis in mirrored) for cuts in those]
            for axis, those in enumerate(options)
        ]
        tiles = _outer([[len(cuts) - 1 for cuts in those] for those in options])
        computed = _outer([[sum(lengths) for lengths in those] for those in sides])
        slabs = []
        for axis, those in enumerate(options):
            row = [-1 if at == axis else 1 for at in range(len(shape))]
            along = np.asarray([len(cuts) - 1 for cuts in those]).reshape(row)
            depths = np.asarray([deepest(cuts) for cuts in those]).reshape(row)
            slabs.append(np.where(tiles == along, 0, depths * (math.prod(shape) // shape[axis])))
        held = np.min(slabs, axis=0) * channels * NUMBER_BYTES
        return cls(
            options=options,
            voxels=_outer(
                [
                    [round_up(max(lengths), step) for lengths in those]
                    for those, step in zip(sides, halo.stride, strict=True)
                ]
            ),
            held=held,
            axes=np.argmin(slabs, axis=0),
            order=np.lexsort((held.ravel(), tiles.ravel(), computed.ravel())),
        )

    def first(self, allowed: np.ndarray) -> tuple[int, ...] | None:
        """Where the first one is that is allowed."""
        those = self.order[allowed.ravel()[self.order]]
        return self.place(int(those[0])) if len(those) else None

    def place(self, number: int) -> tuple[int, ...]:
        """In the arrays, of a place in the flat ones."""
        return tuple(int(at) for at in np.unravel_index(number, self.voxels.shape))

    def cuts(self, index: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Per axis."""
        return tuple(those[at] for those, at in zip(self.options, index, strict=True))


def _counts(most: int) -> list[int]:
    """Numbers of tiles: every small one, and larger ones by a tenth."""
    counts = [1]
    while counts[-1] < most:
        counts.append(min(most, max(counts[-1] + 1, int(counts[-1] * GROWTH))))
    return counts


def _lengths(cuts: Sequence[int], length: int, halo: Halo, axis: int, mirrored: bool) -> list[int]:
    """Of the tiles along an axis, those of the mirrored volume behind the others."""
    ways = (False, True) if mirrored else (False,)
    ends = (axis_tile(core, length, halo, axis, way) for way in ways for core in pairwise(cuts))
    return [stop - start for start, stop in ends]


def _outer(factors: Sequence[Sequence[int]]) -> np.ndarray:
    """Products of one number of each row."""
    product: np.ndarray = reduce(np.multiply.outer, [np.asarray(row, np.int64) for row in factors])
    return product


def _by(sides: Sequence[int]) -> str:
    return "x".join(map(str, sides))
