"""Windows over a whole image, blended: planes of scores are given out as soon as no further window can reach them.

Windows run along one axis, the streamed one, and the weighted sums of one slab as deep as a patch are all that is
held. Their shares sum to one before anything is added up (windows.py), so a finished plane needs no division. What is
added up are features where a network has fewer of them than classes (scorer.py). Nothing of size classes x volume
exists.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import CaseError
from ...networks.base import SegmentationNetwork
from ..devices import resolve_precision
from .scorer import NetworkScorer, Scorer, evaluating
from .windows import WindowGrid

Network = SegmentationNetwork | Sequence[SegmentationNetwork]
Planes = tuple[slice, Tensor]  # planes along the streamed axis, and their scores, that axis first: (K, planes, *others)
CHUNK_NUMBERS = 1 << 23  # scores given out at a time, 32 MiB of float32


@torch.inference_mode()
def segment(
    network: Network,
    image: Tensor,
    *,
    patch: Sequence[int],
    overlap: float = 0.5,
    tta_axes: Sequence[int] = (),
    device: torch.device | str = "cpu",
    precision: str = "float32",
    window_batch: int = 1,
    blending: str = "gaussian",
) -> Tensor:
    """Label map of a preprocessed image, on the image's own grid and on the CPU.

    Args:
        network: one network, or several whose logits are averaged (the folds of a model).
        image: (C, X, Y, Z); may lie on the CPU whatever the device is.
        patch: of one window; an image smaller than that is padded with zeros (the mean, after normalisation).
        overlap: part of a window that its neighbour covers too.
        tta_axes: spatial axes that windows are also mirrored along, in all combinations; the logits are averaged.
        device: where the network is.
        precision: of the network's arithmetic; the sums are float32.
        window_batch: windows at a time.
        blending: "gaussian" or "constant" weights.

    Returns:
        Classes (X, Y, Z), uint8, or uint16 with more than 256 classes; at a tie the lower class.

    Raises:
        CaseError: the network gave NaN or inf (`non-finite`).
    """
    networks = [network] if isinstance(network, nn.Module) else list(network)
    device = torch.device(device)
    with evaluating(networks):
        scorer = NetworkScorer(
            networks, tta_axes=tta_axes, device=device, precision=resolve_precision(precision, device)
        )
        axis = stream_axis(image.shape[1:], patch)
        labels = torch.empty(image.shape[1:], dtype=torch.uint8 if scorer.classes <= 256 else torch.uint16)
        streamed = labels.movedim(axis, 0)
        planes = score_planes(
            scorer, image, patch=patch, overlap=overlap, window_batch=window_batch, blending=blending, axis=axis
        )
        for where, scores in planes:
            streamed[where] = top_class(scores).to(labels.dtype).cpu()
    return labels


@torch.inference_mode()
def score_planes(
    scorer: Scorer,
    image: Tensor,
    *,
    patch: Sequence[int],
    overlap: float = 0.5,
    window_batch: int = 1,
    blending: str = "gaussian",
    axis: int = 0,
) -> Iterator[Planes]:
    """Blended scores of an image, finished planes from the first to the last.

    Args:
        scorer: what windows become.
        image: (C, *S); may lie on the CPU whatever the scorer's device is.
        patch: of one window.
        overlap: part of a window that its neighbour covers too.
        window_batch: windows at a time.
        blending: "gaussian" or "constant" weights.
        axis: the spatial axis that is streamed; `stream_axis` gives the one that needs least memory.

    Yields:
        (which planes along that axis, their scores (K, planes, *other axes in order)), on the scorer's device.

    Raises:
        CaseError: the network gave NaN or inf (`non-finite`).

    Memory: the sums of one slab as deep as a patch, on the scorer's device.
    """
    padded, before = pad_to_patch(image, patch)
    grid = WindowGrid.of(padded.shape[1:], patch, overlap, blending)
    others = [at for at in range(len(patch)) if at != axis]
    rest = [slice(before[at], before[at] + image.shape[at + 1]) for at in others]
    for planes, sums in blend(_scored_windows(scorer, padded, grid, window_batch, axis), grid, axis):
        inside = _inside(planes, before[axis], image.shape[axis + 1])
        if inside is None:
            continue
        where, cut = inside
        cropped = (slice(None), cut, *rest)
        for first, part in _chunks(sums[cropped], scorer.classes):
            scores = part if scorer.head is None else scorer.head(part.unsqueeze(0))[0]
            if not bool(torch.isfinite(scores).all()):
                raise CaseError(
                    "the network gave NaN or inf; its weights are damaged, or the image holds values far outside "
                    "of what it was trained on",
                    "non-finite",
                )
            yield slice(where.start + first, where.start + first + part.shape[1]), scores


def stream_axis(shape: Sequence[int], patch: Sequence[int]) -> int:
    """The axis along which a slab as deep as a patch holds least; the first one at a tie."""
    padded = [max(side, deep) for side, deep in zip(shape, patch, strict=False)]  # `pad_to_patch` tells them apart
    slabs = [math.prod(padded) // padded[axis] * patch[axis] for axis in range(len(padded))]
    return slabs.index(min(slabs))


def blend(patches: Iterable[tuple[tuple[int, ...], Tensor]], grid: WindowGrid, axis: int = 0) -> Iterator[Planes]:
    """Add up windows with their weights; give out planes that are finished.

    Args:
        patches: (index of the window along each axis, its scores (F, *patch)), the streamed axis slowest.
        grid: where the windows lie.
        axis: the streamed one.

    Returns:
        Planes of the weighted sums, the streamed axis first: views that are valid until the next ones are asked for.
    """
    depth, length, starts = grid.patch[axis], grid.shape[axis], grid.starts[axis]
    band: Tensor | None = None
    row = 0
    for index, scores in patches:
        if band is None:
            sides = [depth if at == axis else side for at, side in enumerate(grid.shape)]
            band = torch.zeros((len(scores), *sides), device=scores.device)
        if index[axis] != row:
            first, following = starts[row], starts[index[axis]]
            done = following - first
            yield slice(first, following), band.movedim(axis + 1, 1)[:, :done]
            _advance(band.movedim(axis + 1, 1), done)
            row = index[axis]
        where = list(grid.where(index))
        where[axis] = slice(None)
        inside = (slice(None), *where)
        band[inside].addcmul_(scores, grid.weights(index).to(scores.device))
    if band is not None:
        yield slice(starts[row], length), band.movedim(axis + 1, 1)


def top_class(scores: Tensor) -> Tensor:
    """The class (*S) of the largest score (K, *S), the lower one at a tie (max is far faster than argmax on a CPU)."""
    return scores.max(dim=0).indices


def pad_to_patch(image: Tensor, patch: Sequence[int]) -> tuple[Tensor, tuple[int, ...]]:
    """Zeros around an image (C, *S) where it is smaller than a patch; also the voxels put before it along each axis."""
    if image.ndim != len(patch) + 1:
        raise ValueError(f"an image for windows {tuple(patch)} is (C, X, Y, Z), got shape {tuple(image.shape)}")
    missing = [max(0, side - whole) for side, whole in zip(patch, image.shape[1:], strict=True)]
    before = tuple(amount // 2 for amount in missing)
    if not any(missing):
        return image, before
    widths = [(first, amount - first) for first, amount in zip(before, missing, strict=True)]
    return functional.pad(image, [width for pair in reversed(widths) for width in pair]), before


def _scored_windows(
    scorer: Scorer, image: Tensor, grid: WindowGrid, window_batch: int, axis: int
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """What the scorer gives for each window; windows of one batch share their place along the streamed axis."""
    others = [range(len(starts)) for at, starts in enumerate(grid.starts) if at != axis]
    for row in range(len(grid.starts[axis])):
        indices = [(*rest[:axis], row, *rest[axis:]) for rest in product(*others)]
        for first in range(0, len(indices), max(1, window_batch)):
            batch = indices[first : first + max(1, window_batch)]
            windows = torch.stack([_window(image, grid, index) for index in batch])
            yield from zip(batch, scorer(windows), strict=True)


def _window(image: Tensor, grid: WindowGrid, index: Sequence[int]) -> Tensor:
    where = (slice(None), *grid.where(index))
    return image[where]


def _advance(band: Tensor, done: int) -> None:
    """Move the open planes to the front, zeros behind them; plane by plane, so that no second band is needed."""
    kept = max(0, band.shape[1] - done)
    for plane in range(kept):
        band[:, plane] = band[:, plane + done]
    band[:, kept:] = 0


def _inside(planes: slice, before: int, length: int) -> tuple[slice, slice] | None:
    """The part of padded planes that lies in the image: where in the image, and which of the planes."""
    first, last = max(planes.start, before), min(planes.stop, before + length)
    if first >= last:
        return None
    return slice(first - before, last - before), slice(first - planes.start, last - planes.start)


def _chunks(sums: Tensor, classes: int) -> Iterator[tuple[int, Tensor]]:
    """Runs of planes whose scores are of a bounded size, with the first plane of each."""
    depth = max(1, CHUNK_NUMBERS // max(1, classes * sums[0, 0].numel()))
    for first in range(0, sums.shape[1], depth):
        yield first, sums[:, first : first + depth]
