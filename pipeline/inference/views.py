"""A slice model on a volume along several axes at once: its scores in each slicing are averaged.

The slicings are streamed along one axis side by side, each with its own open slab, and averaged plane by plane.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...errors import UsageError, unknown
from ...networks.base import SegmentationNetwork, SliceNetwork
from ...transforms.edges import stated
from ..model_folder import ModelFolder
from .stitch import Planes

log = logging.getLogger(__name__)

UNEVEN = 1.5  # voxels whose sides differ by more look different in each view
AXES = {"sagittal": "RL", "coronal": "AP", "axial": "SI"}  # the world axis that slices are stacked along


@dataclass(frozen=True, eq=False)
class View:
    """One slicing.

    Args:
        networks: that take it.
        patch: of a window.
        tta_axes: that windows are also mirrored along.
        axis: that slices are stacked along; None for networks of volumes.
    """

    networks: tuple[SegmentationNetwork, ...]
    patch: tuple[int, ...]
    tta_axes: tuple[int, ...]
    axis: int | None = None


def view_axes(model: ModelFolder, wanted: str | Sequence[str]) -> tuple[int, ...]:
    """The axes of the prepared image that slices are stacked along.

    Raises:
        UsageError: another word, a model of volumes or of pictures.
    """
    words = [word.strip() for word in (wanted.split(",") if isinstance(wanted, str) else wanted) if word.strip()]
    words = list(AXES) if words == ["all"] else list(dict.fromkeys(words))
    if not words:
        raise UsageError("--views names no view; give axial, coronal, sagittal or all")
    for word in words:
        if word not in AXES:
            raise unknown("view", word, [*AXES, "all"])
    orientation = model.plan.get("orientation")
    if model.network.spatial_dims == 3:
        raise UsageError(f"--views is of 2D models, {model.folder} is 3D; leave the option out")
    if orientation is None:
        raise UsageError(f"--views: the plan of {model.folder} states no orientation, as it is of pictures")
    spacing = stated(model.plan.get("spacing_mm"))
    if len(words) > 1 and max(spacing) > UNEVEN * min(spacing):
        sides = " x ".join(f"{side:g}" for side in spacing)
        log.warning("--views: voxels of %s mm give pixels that the network was not trained on in some views", sides)
    letters = {letter: axis for axis, letter in enumerate(orientation)}
    return tuple(next(letters[letter] for letter in AXES[word] if letter in letters) for word in words)


def sliced(view: View, axis: int) -> View:
    """A view of a slice model, along another axis: the plane's first and second side stay so."""
    assert view.axis is not None
    before = [at for at in range(3) if at != view.axis]
    after = [at for at in range(3) if at != axis]
    patch = [1, 1, 1]
    for old, new in zip(before, after, strict=True):
        patch[new] = view.patch[old]
    networks = tuple(
        SliceNetwork(one.network, axis=axis).eval() for one in view.networks if isinstance(one, SliceNetwork)
    )
    # one slice is its own mirror image
    mirrored = tuple(after[before.index(at)] for at in view.tta_axes if at in before)
    return View(networks, tuple(patch), mirrored, axis)


def stream_axis_of(shape: Sequence[int], patches: Sequence[Sequence[int]]) -> int:
    """The axis along which the open slabs of all views hold least; the first one at a tie."""
    held = []
    for axis in range(len(shape)):
        padded = [[max(pair) for pair in zip(shape, patch, strict=False)] for patch in patches]
        slabs = (math.prod(sides) // sides[axis] * patch[axis] for sides, patch in zip(padded, patches, strict=True))
        held.append(sum(slabs))
    return held.index(min(held))


def averaged(streams: Sequence[Iterator[Planes]]) -> Iterator[Planes]:
    """The mean of what several streams give for the same planes, as soon as all have given it."""
    if len(streams) == 1:
        yield from streams[0]
        return
    held = [next(stream, None) for stream in streams]
    while all(one is not None for one in held):
        runs = [one for one in held if one is not None]
        start, stop = runs[0][0].start, min(where.stop for where, _ in runs)
        total = runs[0][1][:, : stop - start].clone()
        for _, sums in runs[1:]:
            total += sums[:, : stop - start]
        yield slice(start, stop), total.div_(len(runs))
        for number, (where, sums) in enumerate(runs):
            left = slice(stop, where.stop), sums[:, stop - start :]
            held[number] = left if where.stop > stop else next(streams[number], None)
