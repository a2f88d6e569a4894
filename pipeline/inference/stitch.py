"""Windows over a whole image, blended: planes of scores are given out as soon as no further window can reach them.

Windows run along one axis, the streamed one, and the weighted sums of one slab as deep as a patch are all that is
held. Their shares sum to one before anything is added up (windows.py), so a finished plane needs no division. What is
added up are features where a network has fewer of them than classes (scorer.py). Nothing of size classes x volume
exists. Where a slab over the whole cross-section is too large, a part of the cross-section (strips.py) is streamed on
its own, with all windows that touch it: what comes out is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import CaseError
from ...networks.base import SegmentationNetwork
from ...transforms.cells import decided
from ..devices import resolve_precision
from .scorer import NetworkScorer, Scorer, evaluating
from .windows import WindowGrid

Network = SegmentationNetwork | Sequence[SegmentationNetwork]
Planes = tuple[slice, Tensor]  # planes along the streamed axis, and their scores, that axis first: (K, planes, *others)
Part = Sequence[slice]  # of the cross-section: voxels along each axis that is not streamed, in order
CHUNK_NUMBERS = 1 << 23  # scores given out at a time, 32 MiB of float32


class Image(Protocol):
    """(C, *S), whose voxels are asked for window by window: a tensor, or what makes them (transforms/blockwise.py)."""

    @property
    def shape(self) -> Sequence[int]:
        """Channels and voxels along each axis."""
        ...

    def __getitem__(self, where: tuple[slice, ...], /) -> Tensor:
        """The voxels of a box."""
        ...


@torch.inference_mode()
def segment(
    network: Network,
    image: Image,
    *,
    patch: Sequence[int],
    overlap: float = 0.5,
    tta_axes: Sequence[int] = (),
    device: torch.device | str = "cpu",
    precision: str = "float32",
    window_batch: int = 1,
    blending: str = "gaussian",
    stepped: bool = False,
    regions: bool = False,
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
        blending: "gaussian", "constant" or "centre" weights.
        stepped: where windows lie, as in `windows.axis_starts`.
        regions: whether the networks' outputs are regions that may overlap.

    Returns:
        Classes (X, Y, Z), uint8, or uint16 with more than 256 of them; at a tie the lower class. Of regions, the number
        from 1 of the last one whose logit is above 0, and 0 where there is none.

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
        largest = scorer.classes if regions else scorer.classes - 1
        labels = torch.empty(image.shape[1:], dtype=torch.uint8 if largest < 256 else torch.uint16)
        streamed = labels.movedim(axis, 0)
        planes = score_planes(
            scorer,
            image,
            patch=patch,
            overlap=overlap,
            window_batch=window_batch,
            blending=blending,
            stepped=stepped,
            axis=axis,
        )
        for where, scores in planes:
            streamed[where] = decided(scores, regions=regions).to(labels.dtype).cpu()
    return labels


@torch.inference_mode()
def score_planes(
    scorer: Scorer,
    image: Image,
    *,
    patch: Sequence[int],
    overlap: float = 0.5,
    window_batch: int = 1,
    blending: str = "gaussian",
    stepped: bool = False,
    axis: int = 0,
    part: Part | None = None,
    sums_on: torch.device | None = None,
) -> Iterator[Planes]:
    """Blended scores of an image, finished planes from the first to the last.

    Args:
        scorer: what windows become.
        image: (C, *S); may lie on the CPU whatever the scorer's device is.
        patch: of one window.
        overlap: part of a window that its neighbour covers too.
        window_batch: windows at a time.
        blending: "gaussian", "constant" or "centre" weights.
        stepped: where windows lie, as in `windows.axis_starts`.
        axis: the spatial axis that is streamed; `stream_axis` gives the one that needs least memory.
        part: of the other axes, where not the whole planes are wanted; the scores are those of the whole ones.
        sums_on: the device of the sums; the scorer's when left out.

    Yields:
        (which planes along that axis, their scores (K, planes, *other axes in order)), on the scorer's device.

    Raises:
        CaseError: the network gave NaN or inf (`non-finite`).

    Memory: the sums of one slab as deep as a patch and as wide as the part, on `sums_on`.
    """
    planes = sum_planes(
        scorer,
        image,
        patch=patch,
        overlap=overlap,
        window_batch=window_batch,
        blending=blending,
        stepped=stepped,
        axis=axis,
        part=part,
        sums_on=sums_on,
    )
    for where, sums in planes:
        yield from finished(scorer, sums, where.start)


@torch.inference_mode()
def sum_planes(
    scorer: Scorer,
    image: Image,
    *,
    patch: Sequence[int],
    overlap: float = 0.5,
    window_batch: int = 1,
    blending: str = "gaussian",
    stepped: bool = False,
    axis: int = 0,
    part: Part | None = None,
    sums_on: torch.device | None = None,
) -> Iterator[Planes]:
    """As `score_planes`, but in front of the scorer's head: (which planes, (channels, planes, *other axes)).

    What is given out is a view that is valid until the next planes are asked for.
    """
    shape = tuple(int(side) for side in image.shape[1:])
    if len(shape) != len(patch):
        raise ValueError(f"an image for windows {tuple(patch)} is (C, X, Y, Z), got shape {tuple(image.shape)}")
    before = padding_before(shape, patch)
    padded = [max(pair) for pair in zip(shape, patch, strict=True)]
    grid = WindowGrid.of(padded, patch, overlap, blending, stepped=stepped)
    others = [at for at in range(len(patch)) if at != axis]
    part = [slice(0, shape[at]) for at in others] if part is None else part
    wanted = [slice(0, side) for side in grid.shape]  # in voxels of the padded image
    for at, side in zip(others, part, strict=True):
        wanted[at] = slice(before[at] + side.start, before[at] + side.stop)
    windows = scored_windows(scorer, image, grid, window_batch, axis, wanted)
    for planes, sums in blend(windows, grid, axis, wanted, sums_on):
        inside = _inside(planes, before[axis], shape[axis])
        if inside is not None:
            yield inside[0], sums[:, inside[1]]


def finished(scorer: Scorer, sums: Tensor, start: int) -> Iterator[Planes]:
    """Scores of finished planes (channels, planes, *other axes), the first of which is plane `start`, as they go out.

    Raises:
        CaseError: they are not finite (`non-finite`).
    """
    for first, part in _chunks(sums, scorer.classes):
        yield slice(start + first, start + first + part.shape[1]), scores_of(scorer, part)


def scores_of(scorer: Scorer, sums: Tensor) -> Tensor:
    """Scores (K, *S) of blended sums (channels, *S), on the scorer's device.

    Raises:
        CaseError: they are not finite (`non-finite`).
    """
    sums = sums.to(scorer.device)
    scores = sums if scorer.head is None else scorer.head(sums.unsqueeze(0))[0]
    # a sum that is finite has finite terms, and takes no memory
    if not bool(torch.isfinite(scores.sum())) and not bool(torch.isfinite(scores).all()):
        raise CaseError(
            "the network gave NaN or inf; its weights are damaged, or the image holds values far outside "
            "of what it was trained on",
            "non-finite",
        )
    return scores


def stream_axis(shape: Sequence[int], patch: Sequence[int]) -> int:
    """The axis along which a slab as deep as a patch holds least; the first one at a tie."""
    padded = [max(side, deep) for side, deep in zip(shape, patch, strict=False)]  # `pad_to_patch` tells them apart
    slabs = [math.prod(padded) // padded[axis] * patch[axis] for axis in range(len(padded))]
    return slabs.index(min(slabs))


def blend(
    patches: Iterable[tuple[tuple[int, ...], Tensor]],
    grid: WindowGrid,
    axis: int = 0,
    wanted: Sequence[slice] | None = None,
    device: torch.device | None = None,
) -> Iterator[Planes]:
    """Add up windows with their weights; give out planes that are finished.

    Args:
        patches: (index of the window along each axis, its scores (F, *patch)), the streamed axis slowest.
        grid: where the windows lie.
        axis: the streamed one.
        wanted: voxels along each axis that are added up, all of them along the streamed one; the whole grid when left
            out.
        device: of the sums; that of the scores when left out.

    Returns:
        Planes of the weighted sums, the streamed axis first: views that are valid until the next ones are asked for.
    """
    depth, length, starts = grid.patch[axis], grid.shape[axis], grid.starts[axis]
    wanted = [slice(0, side) for side in grid.shape] if wanted is None else wanted
    band: Tensor | None = None
    row = 0
    for index, scores in patches:
        if band is None:
            sides = [depth if at == axis else side.stop - side.start for at, side in enumerate(wanted)]
            band = torch.zeros((len(scores), *sides), device=scores.device if device is None else device)
        if index[axis] != row:
            first, following = starts[row], starts[index[axis]]
            done = following - first
            yield slice(first, following), band.movedim(axis + 1, 1)[:, :done]
            _advance(band.movedim(axis + 1, 1), done)
            row = index[axis]
        used = grid.used(index)
        if any(part.start == part.stop for part in used):
            continue
        ours, theirs = _shared(grid.where(index), wanted, used)
        ours[axis], theirs[axis] = used[axis], used[axis]
        weights = grid.weights(index, theirs).to(band.device)
        inside, taken = (slice(None), *ours), (slice(None), *theirs)
        band[inside].addcmul_(scores[taken].to(band.device), weights)
        del scores, weights  # a window's scores are gone before the next ones are made
    if band is not None:
        yield slice(starts[row], length), band.movedim(axis + 1, 1)


def padding_before(shape: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
    """Voxels of zeros in front of an image along each axis where it is smaller than a patch; the others lie behind."""
    return tuple(max(0, side - whole) // 2 for whole, side in zip(shape, patch, strict=True))


def padded_window(image: Image, where: Sequence[slice], before: Sequence[int]) -> Tensor:
    """The voxels (C, *patch) of a window of the padded image, of which `before` voxels lie in front of the image."""
    starts = [part.start - first for part, first in zip(where, before, strict=True)]
    stops = [part.stop - first for part, first in zip(where, before, strict=True)]
    inner = [
        slice(max(0, start), min(side, stop)) for start, stop, side in zip(starts, stops, image.shape[1:], strict=True)
    ]
    box = (slice(None), *inner)
    window = image[box]
    missing = [(part.start - start, stop - part.stop) for part, start, stop in zip(inner, starts, stops, strict=True)]
    if any(side for pair in missing for side in pair):
        window = functional.pad(window, [side for pair in reversed(missing) for side in pair])
    return window


def scored_windows(
    scorer: Callable[[Tensor], Tensor],
    image: Image,
    grid: WindowGrid,
    window_batch: int,
    axis: int,
    wanted: Sequence[slice],
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """What the scorer gives for each window that touches what is wanted; windows of one batch share their place along
    the streamed axis."""
    before = padding_before(image.shape[1:], grid.patch)
    others = [grid.touching(at, side) for at, side in enumerate(wanted) if at != axis]
    size = max(1, window_batch)
    for row in range(len(grid.starts[axis])):
        indices = [(*rest[:axis], row, *rest[axis:]) for rest in product(*others)]
        for first in range(0, len(indices), size):
            batch = indices[first : first + size]
            scored = scorer(torch.stack([padded_window(image, grid.where(index), before) for index in batch]))
            for number, index in enumerate(batch):
                yield index, scored[number]
            del scored


def _shared(window: Sequence[slice], wanted: Sequence[slice], used: Sequence[slice]) -> tuple[list[slice], list[slice]]:
    """What a part of a window and a box have in common: where in the box, and where in the window; perhaps nothing."""
    ours, theirs = [], []
    for whole, box, part in zip(window, wanted, used, strict=True):
        low = max(whole.start + part.start, box.start)
        high = max(low, min(whole.start + part.stop, box.stop))
        ours.append(slice(low - box.start, high - box.start))
        theirs.append(slice(low - whole.start, high - whole.start))
    return ours, theirs


def _advance(band: Tensor, done: int) -> None:
    """Move the open planes to the front, zeros behind them; in runs that do not overlap, so that no second band is
    needed."""
    kept = max(0, band.shape[1] - done)
    for first in range(0, kept, done):
        run = min(done, kept - first)
        band[:, first : first + run] = band[:, first + done : first + done + run]
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
