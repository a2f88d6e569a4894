"""Sliding windows over a volume, blended into planes of scores that are finished one slab after the other.

Windows run along the first axis. Only the weighted sums of the open slab, one window deep, are held; planes that no
later window touches are given out and forgotten, so nothing ever has the size classes x volume. The last 1x1x1
convolution of a network is linear and the weights sum to one: head(blend(features)) = blend(head(features)). Where
there are fewer features than classes, the features are blended and the head is applied once per voxel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, combinations, product

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import CaseError
from ...networks.base import SegmentationNetwork
from ..devices import autocast, memory_format, resolve_precision
from .windows import WindowGrid

Network = SegmentationNetwork | Sequence[SegmentationNetwork]
Planes = tuple[slice, Tensor]  # planes along the first axis, and their scores (K, planes, Y, Z)
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
    classes = _networks(network)[0].out_channels
    labels = torch.empty(image.shape[1:], dtype=torch.uint8 if classes <= 256 else torch.uint16)
    for planes, scores in score_planes(
        network,
        image,
        patch=patch,
        overlap=overlap,
        tta_axes=tta_axes,
        device=device,
        precision=precision,
        window_batch=window_batch,
        blending=blending,
    ):
        labels[planes] = top_class(scores).to(labels.dtype).cpu()
    return labels


@torch.inference_mode()
def score_planes(
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
) -> Iterator[Planes]:
    """Blended logits of an image, finished planes from the first to the last; arguments as those of `segment`.

    Memory: the sums of one slab as deep as a patch, on the device.
    """
    networks, device = _networks(network), torch.device(device)
    precision = resolve_precision(precision, device)
    padded, before = pad_to_patch(image, patch)
    grid = WindowGrid.of(padded.shape[1:], patch, overlap, blending)
    head = blended_head(networks)
    with evaluating(networks):
        patches = _window_scores(networks, padded, grid, tta_axes, device, precision, window_batch, head is not None)
        for planes, sums in blend(patches, grid):
            inside = _inside(planes, before, image.shape[1:])
            if inside is None:
                continue
            where, cut = inside
            rest = (slice(first, first + side) for first, side in zip(before[1:], image.shape[2:], strict=True))
            cropped = (slice(None), cut, *rest)
            for first, part in _chunks(sums[cropped], networks[0].out_channels):
                scores = part if head is None else head(part.unsqueeze(0))[0]
                if not bool(torch.isfinite(scores).all()):
                    raise CaseError(
                        "the network gave NaN or inf; its weights are damaged, or the image holds values far outside "
                        "of what it was trained on",
                        "non-finite",
                    )
                yield slice(where.start + first, where.start + first + part.shape[1]), scores


def blend(patches: Iterable[tuple[tuple[int, ...], Tensor]], grid: WindowGrid) -> Iterator[Planes]:
    """Add up windows with their weights; give out planes that are finished.

    Args:
        patches: (index of the window along each axis, its scores (F, *patch)), the first axis slowest.
        grid: where the windows lie.

    Returns:
        Planes of the weighted sums, views that are valid until the next ones are asked for.
    """
    depth, length = grid.patch[0], grid.shape[0]
    band: Tensor | None = None
    row = 0
    for index, scores in patches:
        if band is None:
            band = torch.zeros((len(scores), depth, *grid.shape[1:]), device=scores.device)
        if index[0] != row:
            first, following = grid.starts[0][row], grid.starts[0][index[0]]
            done = following - first
            yield slice(first, following), band[:, :done]
            _advance(band, done)
            row = index[0]
        where = (slice(None), slice(None), *grid.where(index)[1:])
        band[where].addcmul_(scores, grid.weights(index).to(scores.device))
    if band is not None:
        yield slice(grid.starts[0][row], length), band


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


def blended_head(networks: Sequence[SegmentationNetwork]) -> nn.Module | None:
    """The head to apply after blending, where that is cheaper: one network, with fewer features than classes."""
    head = networks[0].head
    if len(networks) > 1 or head is None:
        return None
    features = next((weight.shape[1] for weight in _head_weights(networks[0]) if weight.ndim > 1), None)
    return head if features is not None and features < networks[0].out_channels else None


@contextmanager
def evaluating(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Networks in eval mode inside the block, as they were behind it."""
    modes = [network.training for network in networks]
    try:
        for network in networks:
            network.eval()
        yield
    finally:
        for network, mode in zip(networks, modes, strict=True):
            network.train(mode)


def _window_scores(
    networks: Sequence[SegmentationNetwork],
    image: Tensor,
    grid: WindowGrid,
    tta_axes: Sequence[int],
    device: torch.device,
    precision: str,
    window_batch: int,
    features: bool,
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Scores of each window, averaged over networks and mirrorings; windows of one batch share their first axis."""
    axes = [axis for axis in tta_axes if grid.patch[axis] > 1]
    mirrors = list(chain.from_iterable(combinations(axes, count) for count in range(len(axes) + 1)))
    layout = memory_format(image.ndim - 1)
    others = list(product(*(range(len(axis)) for axis in grid.starts[1:])))
    for row in range(len(grid.starts[0])):
        for first in range(0, len(others), max(1, window_batch)):
            indices = [(row, *rest) for rest in others[first : first + max(1, window_batch)]]
            windows = torch.stack([_window(image, grid, index) for index in indices]).to(device, torch.float32)
            total: Tensor | None = None
            for network, axis in product(networks, mirrors):
                dims = [at + 2 for at in axis]
                seen = (windows.flip(dims) if dims else windows).contiguous(memory_format=layout)
                with autocast(device, precision):
                    scores = network.features(seen) if features else network(seen)
                scores = (scores.flip(dims) if dims else scores).float()
                total = scores if total is None else total + scores
            assert total is not None
            yield from zip(indices, total / (len(networks) * len(mirrors)), strict=True)


def _window(image: Tensor, grid: WindowGrid, index: Sequence[int]) -> Tensor:
    where = (slice(None), *grid.where(index))
    return image[where]


def _advance(band: Tensor, done: int) -> None:
    """Move the open planes to the front, zeros behind them; plane by plane, so that no second band is needed."""
    kept = max(0, band.shape[1] - done)
    for plane in range(kept):
        band[:, plane] = band[:, plane + done]
    band[:, kept:] = 0


def _inside(planes: slice, before: Sequence[int], shape: Sequence[int]) -> tuple[slice, slice] | None:
    """The part of padded planes that lies in the image: where in the image, and which of the planes."""
    first, last = max(planes.start, before[0]), min(planes.stop, before[0] + shape[0])
    if first >= last:
        return None
    return slice(first - before[0], last - before[0]), slice(first - planes.start, last - planes.start)


def _chunks(sums: Tensor, classes: int) -> Iterator[tuple[int, Tensor]]:
    """Runs of planes whose scores are of a bounded size, with the first plane of each."""
    depth = max(1, CHUNK_NUMBERS // max(1, classes * sums[0, 0].numel()))
    for first in range(0, sums.shape[1], depth):
        yield first, sums[:, first : first + depth]


def _head_weights(network: SegmentationNetwork) -> list[Tensor]:
    inner = getattr(network, "network", network)  # a slice network's head holds no weights of its own
    return [] if inner.head is None else list(inner.head.parameters())


def _networks(network: Network) -> Sequence[SegmentationNetwork]:
    networks = [network] if isinstance(network, nn.Module) else list(network)
    if not networks:
        raise ValueError("segmenting needs at least one network, got an empty list")
    return networks
