"""Where the cross-section of a streamed volume is cut, so that the sums of one part of it fit into memory.

Each part is blended on its own with all windows that touch it, so that its scores are those of the whole volume. A
window that lies across a cut is computed once for each part that it touches: cuts are laid where the fewest do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from .stitch import padding_before
from .windows import axis_starts

Spans = tuple[slice, ...]  # parts of one axis


@dataclass(frozen=True)
class Strips:
    """A cross-section cut along its two axes.

    Args:
        spans: for each axis of the cross-section its parts, in voxels of the image.
        windows: that are computed, of all parts.
        more: windows that are computed for each one that the whole cross-section needs, less one.
    """

    spans: tuple[Spans, ...]
    windows: int
    more: float

    @property
    def parts(self) -> list[tuple[slice, ...]]:
        """The parts of the cross-section."""
        return list(product(*self.spans))

    @property
    def counts(self) -> tuple[int, ...]:
        """Parts along each axis."""
        return tuple(len(axis) for axis in self.spans)

    @property
    def largest(self) -> tuple[int, ...]:
        """Voxels of the largest part along each axis."""
        return tuple(max(part.stop - part.start for part in axis) for axis in self.spans)


@dataclass(frozen=True)
class CrossSection:
    """What a cross-section may be cut into.

    Args:
        shape: of the image.
        patch: of one window.
        overlap: of neighbouring windows.
        axis: the streamed one.
        shared: voxels that a part shares with the next one, for what is interpolated between them.
        stepped: as in `windows.axis_starts`.
    """

    shape: tuple[int, ...]
    patch: tuple[int, ...]
    overlap: float
    axis: int
    shared: int
    stepped: bool = False

    def strips(self, counts: Sequence[int]) -> Strips:
        """So many parts along each axis of the cross-section, or fewer where it is too short."""
        others = [at for at in range(len(self.shape)) if at != self.axis]
        spans = tuple(self._spans(at, count) for at, count in zip(others, counts, strict=True))
        touched = [[self._touching(at, part) for part in axis] for at, axis in zip(others, spans, strict=True)]
        rows = len(self._starts(self.axis))
        windows = rows * math.prod(sum(axis) for axis in touched)
        return Strips(spans, windows, windows / (rows * math.prod(len(self._starts(at)) for at in others)) - 1)

    def choices(self, most: int) -> list[Strips]:
        """All that are worth a look, of at most so many parts: the fewest first, and of these the fewest windows."""
        others = [at for at in range(len(self.shape)) if at != self.axis]
        sides = [max(1, 2 * self.shape[at] // self.patch[at]) for at in others]
        counts = product(*(range(1, side + 1) for side in sides))
        found = [self.strips(one) for one in counts if math.prod(one) <= most]
        return sorted(found, key=lambda strips: (math.prod(strips.counts), strips.windows))

    def _starts(self, axis: int) -> list[int]:
        before = padding_before(self.shape, self.patch)[axis]
        length = max(self.shape[axis], self.patch[axis])
        return [start - before for start in axis_starts(length, self.patch[axis], self.overlap, stepped=self.stepped)]

    def _touching(self, axis: int, part: slice) -> int:
        side = self.patch[axis]
        return sum(start < part.stop and start + side > part.start for start in self._starts(axis))

    def _spans(self, axis: int, count: int) -> Spans:
        length = self.shape[axis]
        count = max(1, min(count, length - self.shared))
        starts, side = self._starts(axis), self.patch[axis]

        def across(cut: int) -> int:
            return sum(start < cut + self.shared and start + side > cut for start in starts)

        room = (length - self.shared) / count
        cuts = [0]
        for number in range(1, count):
            even = round(number * room)
            near = range(max(cuts[-1] + 1, even - int(room / 8)), min(length - self.shared, even + int(room / 8) + 1))
            cuts.append(min(near, key=lambda cut: (across(cut), abs(cut - even))))
        ends = [cut + self.shared for cut in cuts[1:]] + [length]
        return tuple(slice(cut, end) for cut, end in zip(cuts, ends, strict=True))
