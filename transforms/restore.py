"""Scores on a network's grid back to the grid of the source, as labels.

Two grids are matched by their affines alone. Where the network's grid is a crop of the source's with axes permuted or
flipped, labels are copied voxel by voxel. Otherwise scores are interpolated linearly and the largest one wins. A cell
whose eight corners agree has that class everywhere inside, whatever the other scores are, so scores are interpolated
in the other cells alone (a few per cent of them). Planes of scores are taken as they are finished: neither grid ever
holds all scores, and the labels are equal to those of doing it at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

EXACT_VOXELS = 0.01  # corners closer than this lie on voxel centres
SNAP_VOXELS = 1e-3  # a term that moves a coordinate by less than this over the whole grid is rounding
BLOCK_VOXELS = 1 << 22
POINTS = 1 << 16
Axis = tuple[int, int]  # an axis of the source, and its direction


@dataclass(frozen=True, eq=False)
class Match:
    """From voxels of the source to coordinates on the network's grid.

    Args:
        matrix: (3, 4), terms that are rounding set to 0.
        axes: for each network axis the source axis and its direction, where the grids match voxel by voxel; else None.
    """

    matrix: np.ndarray
    axes: tuple[Axis, ...] | None


def match_grids(
    shape: Sequence[int], affine: np.ndarray, source_shape: Sequence[int], source_affine: np.ndarray
) -> Match:
    """How voxels of a source grid lie on a network's grid.

    Exactness is judged in voxels at the corners of the source grid, not in mm.

    Raises:
        ValueError: an affine that cannot be inverted.
    """
    try:
        matrix = (np.linalg.inv(np.asarray(affine, np.float64)) @ np.asarray(source_affine, np.float64))[:3]
    except np.linalg.LinAlgError:
        raise ValueError(
            f"the affine of the network's grid cannot be inverted: {np.asarray(affine).tolist()}"
        ) from None
    last = np.asarray(source_shape, np.float64) - 1
    turned = np.rint(matrix)
    permutes = np.array_equal(np.abs(turned[:, :3]).sum(0), [1, 1, 1]) and np.array_equal(
        np.abs(turned[:, :3]).sum(1), [1, 1, 1]
    )
    if permutes:
        away = np.abs(matrix - turned) @ np.array([*np.maximum(last, 1), 1])
        if away.max() <= EXACT_VOXELS:
            axes = tuple((int(np.abs(row).argmax()), int(row[np.abs(row).argmax()])) for row in turned[:, :3])
            return Match(turned, axes)
    matrix = matrix.copy()
    matrix[:, :3][np.abs(matrix[:, :3]) * np.maximum(last, 1) < SNAP_VOXELS] = 0
    return Match(matrix, None)


@torch.inference_mode()
def restore_labels(
    planes: Iterable[tuple[slice, Tensor]],
    shape: Sequence[int],
    affine: np.ndarray,
    source_shape: Sequence[int],
    source_affine: np.ndarray,
) -> np.ndarray:
    """Labels on the source grid, of planes of scores on a network's grid.

    Args:
        planes: (which planes of the first axis, their scores (K, planes, Y, Z)), from the first to the last.
        shape: of the network's grid.
        affine: of the network's grid.
        source_shape: (X, Y, Z); a picture has Z = 1.
        source_affine: of the source grid.

    Returns:
        Classes (X, Y, Z), uint8, or uint16 with more than 256 classes; 0 where the source lies outside of the
        network's grid.

    Memory: the labels, and the planes of one chunk.
    """
    match = match_grids(shape, affine, source_shape, source_affine)
    labels: np.ndarray | None = None
    carried: Tensor | None = None
    for where, scores in planes:
        if labels is None:
            labels = np.zeros(tuple(source_shape), np.uint8 if len(scores) <= 256 else np.uint16)
        if match.axes is not None:
            _copy(labels, _top(scores), where.start, match)
            continue
        first = where.start
        if carried is not None:
            scores, first = torch.cat([carried, scores], dim=1), first - 1
        _interpolate(labels, scores, first, shape, match)
        carried = scores[:, -1:].clone()
    if labels is None:
        raise ValueError("there are no planes of scores to restore")
    return labels


def _top(scores: Tensor) -> Tensor:
    return scores.max(dim=0).indices


def _copy(labels: np.ndarray, top: Tensor, first: int, match: Match) -> None:
    """Put classes (planes, Y, Z) of a grid that matches voxel by voxel where they belong."""
    assert match.axes is not None
    block = top.cpu().numpy().astype(labels.dtype)
    target: list[slice] = [slice(None)] * 3
    for axis, (source_axis, sign) in enumerate(match.axes):
        # network index = sign * source index + offset
        offset = int(match.matrix[axis, 3]) - (first if axis == 0 else 0)
        ends = sorted((sign * (0 - offset), sign * (block.shape[axis] - 1 - offset)))
        low, high = max(ends[0], 0), min(ends[1], labels.shape[source_axis] - 1)
        if low > high:
            return
        target[source_axis] = slice(low, high + 1)
        taken = sorted((sign * low + offset, sign * high + offset))
        block = np.take(block, range(taken[0], taken[1] + 1)[::sign], axis=axis)
    order = np.argsort([source_axis for source_axis, _ in match.axes])
    labels[tuple(target)] = block.transpose(order)


def _interpolate(labels: np.ndarray, scores: Tensor, first: int, shape: Sequence[int], match: Match) -> None:
    """Label the source voxels whose cell of the network's grid starts in these planes.

    Cell i of an axis reaches from centre i to centre i + 1; an axis of one voxel has one cell.
    """
    cells = [max(size - 1, 1) for size in shape]
    stop = first + (scores.shape[1] if shape[0] == 1 else scores.shape[1] - 1)
    if stop <= first:
        return
    agreed = _agreed(_top(scores), len(scores))
    along = int(np.abs(match.matrix[0, :3]).argmax())
    low, high = _reach(match, labels.shape, along, first, stop, cells[0])
    depth = max(1, BLOCK_VOXELS // (labels.size // labels.shape[along]))
    for start in range(low, high, depth):
        where = [slice(0, size) for size in labels.shape]
        where[along] = slice(start, min(start + depth, high))
        block = _block(agreed, scores, where, first, stop, shape, match, cells)
        inside, values = block
        view = labels[tuple(where)]
        np.copyto(view, values.astype(labels.dtype), where=inside)


def _block(
    agreed: Tensor,
    scores: Tensor,
    where: Sequence[slice],
    first: int,
    stop: int,
    shape: Sequence[int],
    match: Match,
    cells: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:
    """Classes of a block of source voxels, and which of them belong to cells of these planes."""
    device = scores.device
    size = tuple(part.stop - part.start for part in where)
    at, cell, inside = [], [], torch.ones((1, 1, 1), dtype=torch.bool, device=device)
    for axis in range(3):
        position = _positions(match.matrix[axis], where, device)
        below, above = _margins(match.matrix[axis])
        inside = inside & (position >= -below) & (position <= shape[axis] - 1 + above)
        position = position.clamp(0, shape[axis] - 1)
        number = position.floor().long().clamp_(max=cells[axis] - 1)
        at.append(position)
        cell.append(number)
    inside = inside & (cell[0] >= first) & (cell[0] < stop)
    cell[0] = (cell[0] - first).clamp_(0, stop - first - 1)
    found = agreed[cell[0], cell[1], cell[2]].expand(size)
    inside = inside.expand(size)
    mixed = ((found < 0) & inside).nonzero(as_tuple=True)
    if len(mixed[0]):
        found = found.clone()
        points = [part.expand(size)[mixed] for part in at]
        points[0] = points[0] - first
        corners = [part.expand(size)[mixed] for part in cell]
        found[mixed] = _top_between(scores, points, corners).to(found.dtype)
    return inside.cpu().numpy(), found.cpu().numpy()


def _top_between(scores: Tensor, points: Sequence[Tensor], corners: Sequence[Tensor]) -> Tensor:
    """Class of the largest score, interpolated linearly at points of the network's grid.

    A point is a weighted sum of eight rows of a table (voxels, K), which is what `embedding_bag` computes in one pass.
    """
    planes, rows, columns = scores.shape[1:]
    table = scores.flatten(1).T.contiguous()
    top = torch.empty(len(points[0]), dtype=torch.long, device=scores.device)
    for first in range(0, len(top), POINTS):
        part = slice(first, first + POINTS)
        index = torch.zeros(1, 1, dtype=torch.long, device=scores.device)
        weights = torch.ones(1, 1, device=scores.device)
        for point, corner, size, stride in zip(
            points, corners, (planes, rows, columns), (rows * columns, columns, 1), strict=True
        ):
            low = corner[part]
            above = (point[part] - low).float()
            ends = torch.stack([low, (low + 1).clamp(max=size - 1)], dim=1) * stride
            shares = torch.stack([1 - above, above], dim=1)
            index = (index.unsqueeze(2) + ends.unsqueeze(1)).flatten(1)
            weights = (weights.unsqueeze(2) * shares.unsqueeze(1)).flatten(1)
        total = functional.embedding_bag(index, table, per_sample_weights=weights, mode="sum")
        top[part] = total.max(dim=1).indices
    return top


def _agreed(top: Tensor, classes: int) -> Tensor:
    """Per cell the class that all its corners have, -1 where they differ."""
    agreed = top.to(torch.int16 if classes < 32768 else torch.int32)
    for axis, size in enumerate(top.shape):
        if size > 1:
            low, high = agreed.narrow(axis, 0, size - 1), agreed.narrow(axis, 1, size - 1)
            agreed = torch.where(low == high, low, -1)
    return agreed


def _positions(row: np.ndarray, where: Sequence[slice], device: torch.device) -> Tensor:
    """One network coordinate of source voxels; an axis that it does not depend on has length 1."""
    position = torch.full((1, 1, 1), float(row[3]), dtype=torch.float64, device=device)
    for axis, part in enumerate(where):
        if row[axis] != 0:
            steps = torch.arange(part.start, part.stop, dtype=torch.float64, device=device) * float(row[axis])
            size = [1, 1, 1]
            size[axis] = -1
            position = position + steps.reshape(size)
    return position


def _margins(row: np.ndarray) -> tuple[float, float]:
    """How far before the first and behind the last centre of the network's grid its last value still holds, in its
    voxels.

    Resampling makes round(n * old / new) voxels whose first centre is that of the source, so the last centres of the
    source may lie up to 1.5 - step voxels behind the last one, and the next voxel of the source, if it was cropped, a
    step before the first. A grid that was straightened is up to one voxel short.
    """
    step = float(np.abs(row[:3]).sum())
    if np.count_nonzero(row[:3]) > 1:
        return 0.5, 1.0
    return 0.5 * min(step, 1.0), max(1.5 - step, 0.25) + EXACT_VOXELS


def _reach(match: Match, source_shape: Sequence[int], along: int, first: int, stop: int, cells: int) -> tuple[int, int]:
    """Source indices along one axis that may belong to the cells from `first` to before `stop`."""
    row = match.matrix[0]
    rest = [row[axis] * (size - 1) for axis, size in enumerate(source_shape) if axis != along]
    low = row[3] + sum(min(term, 0.0) for term in rest)
    high = row[3] + sum(max(term, 0.0) for term in rest)
    # the first and the last cell also take what lies before and behind the grid
    begin, end = (first if first > 0 else -2.0), (stop if stop < cells else cells + 2.0)
    if row[along] == 0:
        return 0, source_shape[along]
    bounds = (
        sorted(((begin - high) / row[along], (end - low) / row[along]))
        if row[along] > 0
        else sorted(((begin - low) / row[along], (end - high) / row[along]))
    )
    return max(0, int(np.floor(bounds[0])) - 1), min(source_shape[along], int(np.ceil(bounds[1])) + 2)
