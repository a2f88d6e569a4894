"""Scores on a network's grid back to the grid of the source, as labels.

Two grids are matched by their affines alone. Where the network's grid is a crop of the source's with axes permuted or
flipped, labels are copied voxel by voxel. Otherwise scores are interpolated linearly and the largest one wins. A cell
whose eight corners agree has that class everywhere inside, whatever the other scores are, so scores are interpolated
in the other cells alone (a few per cent of them). Where most cells are such, as with an untrained network, all scores
are interpolated, by a product an axis, which is faster then. Scores are taken box by box as they are finished: neither
grid ever holds all of them, and the labels are equal to those of doing it at once, but for ties in float32. Where
scores are a linear head of fewer features, the features are taken, and the head is applied to one box at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from .cells import POINTS, Cells, RegionCells, decided, over_corners
from .lines import box_of, interpolated, lines_between
from .match import Box, Convention, Match, cuts
from .placing import blocks
from .streamed import Streamed

CHUNK_NUMBERS = 1 << 23  # scores at a time, 32 MiB of float32
BLOCK_SHARE = 1 / 16  # of it: voxels of the source at a time
CELL_NUMBERS = 30  # what else is noted of a cell whose corners differ, as scores
ROUGH_SHARE = 0.3  # of the cells, whose corners differ, from which on all scores are interpolated
ROUGH_PART = 4  # of the scores looked at at a time, one part is interpolated at a time then
CELL_BYTES, BLOCK_BYTES, POINT_BYTES = 350, 80, 400  # of a cell, a voxel of the source, a point, at most


@torch.inference_mode()
def restore_labels(
    planes: Iterable[tuple[slice, Tensor]],
    shape: Sequence[int],
    affine: np.ndarray,
    source_shape: Sequence[int],
    source_affine: np.ndarray,
    *,
    convention: Convention = "centres",
    nearest: int | None = None,
    regions: bool = False,
) -> np.ndarray:
    """Labels on the source grid, of planes of scores on a network's grid.

    Args:
        planes: (which planes of the first axis, their scores (K, planes, Y, Z)), from the first to the last.
        shape: of the network's grid.
        affine: of the network's grid.
        source_shape: (X, Y, Z); a picture has Z = 1.
        source_affine: of the source grid.
        convention: what of the two grids agrees, as in `match.Match`.
        nearest: the network axis along which nothing is interpolated.
        regions: whether scores are those of regions that may overlap.

    Returns:
        Classes (X, Y, Z), uint8, or uint16 with more than 256 of them; 0 where the source lies outside of the
        network's grid. Of regions, the number from 1 of the last one whose score is above 0, and 0 where there is none.

    Memory: the labels, the planes of one chunk, and one plane more.
    """
    restoration = Restoration(
        shape, affine, source_shape, source_affine, convention=convention, nearest=nearest, regions=regions
    )
    for where, scores in planes:
        restoration.add(where, scores)
    return restoration.labels


class Restoration(Streamed):
    """A label map on the source grid that is filled as scores are finished.

    Args:
        shape: of the network's grid.
        affine: of the network's grid.
        source_shape: (X, Y, Z); a picture has Z = 1.
        source_affine: of the source grid.
        scores_of: what is added (F, *S) to scores (K, *S), linear; what is added are scores where it is left out.
        device: where the scores are looked at; where they lie when left out.
        chunk_numbers: scores looked at at a time.
        convention: what of the two grids agrees, as in `match.Match`.
        nearest: the network axis along which nothing is interpolated.
        regions: whether scores are those of regions that may overlap, as in `restore_labels`.

    Memory: the labels, and `working_bytes` on the device.
    """

    def __init__(
        self,
        shape: Sequence[int],
        affine: np.ndarray,
        source_shape: Sequence[int],
        source_affine: np.ndarray,
        *,
        scores_of: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | None = None,
        chunk_numbers: int = CHUNK_NUMBERS,
        convention: Convention = "centres",
        nearest: int | None = None,
        regions: bool = False,
    ) -> None:
        super().__init__(
            shape,
            affine,
            source_shape,
            source_affine,
            scores_of=scores_of,
            device=device,
            convention=convention,
            nearest=nearest,
        )
        self.chunk_numbers, self.regions = chunk_numbers, regions
        self._labels: np.ndarray | None = None

    @property
    def labels(self) -> np.ndarray:
        """Classes (X, Y, Z), uint8, or uint16 with more than 256 of them; 0 where nothing was added."""
        if self._labels is None:
            raise ValueError("there are no planes of scores to restore")
        return self._labels

    @property
    def voxels(self) -> int:
        """Of a box, at most."""
        return _chunk_voxels(self.classes, self.chunk_numbers, self.neighbours > 0)

    def begin(self) -> None:
        """An empty label map."""
        largest = self.classes if self.regions else self.classes - 1
        self._labels = np.zeros(self.source_shape, np.uint8 if largest < 256 else np.uint16)

    def take(self, box: Box, values: Tensor) -> None:
        """Label what a box says of the source."""
        scores = self.scores_of(values)
        del values
        if self.match.axes is not None:
            found = decided(scores, regions=self.regions)
            _copy(self.labels, found, [side.start for side in box], self.match)
        elif (cells := self.cells(box)) is not None:
            self._interpolate(cells, scores)

    def _interpolate(self, cells: Box, scores: Tensor) -> None:
        """Label the source voxels that lie in cells."""
        if self.match.lines is not None and _is_rough(scores, regions=self.regions):
            self._interpolate_all(cells, scores)
            return
        looked_at = RegionCells(scores) if self.regions else Cells(scores)
        room = max(1, int(self.chunk_numbers * BLOCK_SHARE))
        for block in blocks(self.match, self.shape, self.source_shape, cells, looked_at.codes, room):
            found = block.found
            open_ = found < 0 if block.inside is None else (found < 0) & block.inside
            mixed = open_.nonzero(as_tuple=True)
            if len(mixed[0]):
                found = found.clone() if block.inside is not None else found
                shares = [share[mixed] for share in block.shares]
                found[mixed] = looked_at.classes(-1 - found[mixed].long(), shares).int()
            view = self.labels[block.where].transpose(block.order)
            kept = True if block.inside is None else block.inside.cpu().numpy()
            np.copyto(view, found.cpu().numpy(), where=kept, casting="unsafe")

    def _interpolate_all(self, cells: Box, scores: Tensor) -> None:
        """The same from the scores at all of them."""
        lines = lines_between(self.match, self.shape, self.source_shape, cells, scores.device)
        if lines is None or self.match.lines is None:
            return
        for cut in cuts([len(line) for line in lines], max(1, self.chunk_numbers // ROUGH_PART // self.classes), 0):
            parts = [line.part(part) for line, part in zip(lines, cut, strict=True)]
            found = decided(interpolated(scores, parts), regions=self.regions).cpu().numpy()
            view = self.labels[box_of(self.match, parts)].transpose(self.match.lines)
            np.copyto(view, found, casting="unsafe")


def working_bytes(
    classes: int,
    features: int,
    chunk_numbers: int = CHUNK_NUMBERS,
    *,
    interpolated: bool = True,
    probable: bool = False,
) -> int:
    """What a restoration takes beside the labels while it looks at one chunk, at most: where no corners agree.

    Where all scores are interpolated instead, each axis makes no more numbers than the larger of the chunk and of the
    part, and those of two axes are there at a time, which is less.

    Args:
        classes: of the scores.
        features: that they are made of.
        chunk_numbers: scores looked at at a time.
        interpolated: whether voxels of the two grids lie between each other.
        probable: whether scores become probabilities first: those before, in order, and those after.
    """
    voxels = _chunk_voxels(classes, chunk_numbers, interpolated)
    if not interpolated:  # the head's result may be put in order once more
        return voxels * ((12 if probable else 8) * classes + 12 * features + 40)
    block = max(1, int(chunk_numbers * BLOCK_SHARE))
    return voxels * (16 * classes + 12 * features + CELL_BYTES) + block * BLOCK_BYTES + min(block, POINTS) * POINT_BYTES


def _is_rough(scores: Tensor, *, regions: bool) -> bool:
    """Whether corners differ in many cells of a box (K, *box): in two layers of cells, as one may be a boundary."""
    planes = scores.shape[1]
    for first in {max(0, planes // 4 - 1), max(0, 3 * planes // 4 - 1)}:
        found = decided(scores[:, first : first + 2], regions=regions)
        low, high = over_corners(found, torch.minimum), over_corners(found, torch.maximum)
        if float((low != high).float().mean()) < ROUGH_SHARE:
            return False
    return True


def _chunk_voxels(classes: int, chunk_numbers: int, interpolated: bool) -> int:
    """Voxels of the network's grid that are looked at at a time."""
    return max(1, chunk_numbers // (2 * (classes + CELL_NUMBERS) if interpolated else classes))


def _copy(labels: np.ndarray, top: Tensor, origin: Sequence[int], match: Match) -> None:
    """Put the classes of a box of a grid that matches voxel by voxel where they belong."""
    assert match.axes is not None
    block = top.cpu().numpy().astype(labels.dtype)
    target: list[slice] = [slice(None)] * 3
    for axis, (source_axis, sign) in enumerate(match.axes):
        offset = int(match.matrix[axis, 3]) - origin[axis]  # index in the box = sign * source index + offset
        ends = sorted((sign * (0 - offset), sign * (block.shape[axis] - 1 - offset)))
        low, high = max(ends[0], 0), min(ends[1], labels.shape[source_axis] - 1)
        if low > high:
            return
        target[source_axis] = slice(low, high + 1)
        taken = sorted((sign * low + offset, sign * high + offset))
        block = np.take(block, range(taken[0], taken[1] + 1)[::sign], axis=axis)
    order = np.argsort([source_axis for source_axis, _ in match.axes])
    labels[tuple(target)] = block.transpose(order)
