"""Exact tiling: planes of scores that are those of one forward pass over the whole volume, as if it had fitted.

For networks whose logits depend on a bounded neighbourhood (halo.py says how far they see, tiles.py how the volume is
divided). Nothing is blended: every voxel's scores come from one tile. Planes are given out as those of stitch.py are.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from itertools import product

import psutil
import torch
from torch import Tensor

from .halo import INSTEAD, Halo
from .scorer import NetworkScorer, Scorer
from .stitch import Image, Planes, finished
from .tiles import Core, Tiling, blended_ratio, plan_tiles

log = logging.getLogger(__name__)

TILINGS = ("blend", "exact")
LIMIT_BYTES = {"cpu": 2 << 30, "cuda": 16 << 30}
PART_OF_DEVICE = 1 / 4  # at most, of its memory


def default_limit(device: torch.device) -> int:
    """Bytes for tiles where nobody names an amount; it depends on the machine and not on what else runs on it."""
    if device.type == "cuda":
        whole = int(torch.cuda.get_device_properties(device).total_memory)
    else:
        whole = int(psutil.virtual_memory().total)
    return min(LIMIT_BYTES[device.type], int(whole * PART_OF_DEVICE))


def choose_tiles(
    scorer: NetworkScorer,
    halo: Halo,
    shape: Sequence[int],
    *,
    patch: Sequence[int],
    overlap: float,
    limit_bytes: int | None = None,
) -> Tiling:
    """Plan the tiles of a volume and say what they cost, beside what blending would.

    Args:
        scorer: whose networks are run; mirrored as it would mirror windows.
        halo: of its networks.
        shape: of the volume.
        patch: of a window, where windows are blended.
        overlap: of neighbouring windows, where they are blended.
        limit_bytes: for a tile's activations and a slab's scores; `default_limit` when left out.

    Raises:
        UsageError: no tile with its halo is small enough.
        CaseError: the volume is smaller than a network takes (`too-small`).
    """
    limit = default_limit(scorer.device) if limit_bytes is None else limit_bytes
    tiling = plan_tiles(
        scorer.networks, halo, shape, channels=scorer.channels, limit_bytes=limit, tta_axes=scorer.tta_axes
    )
    blended = blended_ratio(shape, patch, overlap)
    if tiling.computed > blended:
        log.warning("%s; blended windows compute %.2f: if that is too slow, %s", tiling, blended, INSTEAD)
    else:
        log.info("%s; blended windows compute %.2f", tiling, blended)
    return tiling


@torch.inference_mode()
def exact_planes(
    scorer: Scorer, image: Image, tiling: Tiling, *, slab_on: torch.device | None = None
) -> Iterator[Planes]:
    """Scores of an image, finished planes from the first to the last.

    Args:
        scorer: what tiles become, of any size; it does not mirror them, which is done here.
        image: (C, *S); may lie on the CPU whatever the scorer's device is.
        tiling: of an image of this shape.
        slab_on: the device of a slab's scores; the scorer's when left out.

    Yields:
        (which planes along the tiling's axis, their scores (K, planes, *other axes in order)), on the scorer's device;
        valid until the next ones are asked for.

    Raises:
        CaseError: the network gave NaN or inf (`non-finite`).

    Memory: what the scorer takes for one tile, and the scores of one slab.
    """
    if tuple(image.shape[1:]) != tiling.shape:
        raise ValueError(f"the tiling is that of a volume {tiling.shape}, got an image of {tuple(image.shape[1:])}")
    axis, lengths = tiling.axis, tiling.shape
    room = torch.empty(scorer.channels * tiling.slab, device=slab_on or scorer.device)
    for along in tiling.cores(axis):
        box = [along if at == axis else (0, length) for at, length in enumerate(lengths)]
        if tiling.slab:
            sides = [stop - start for start, stop in box]
            slab = room[: scorer.channels * math.prod(sides)].view(scorer.channels, *sides)
            for core in product(*([along] if at == axis else tiling.cores(at) for at in range(len(lengths)))):
                slab[_inside(core, [start for start, _ in box])] = _scores(scorer, image, tiling, core)
        else:
            slab = _scores(scorer, image, tiling, box)
        yield from finished(scorer, slab.movedim(axis + 1, 1), along[0])


def _scores(scorer: Scorer, image: Image, tiling: Tiling, core: Sequence[Core]) -> Tensor:
    """What the scorer gives for a core (channels, *core), the mean over mirrored volumes."""
    total: Tensor | None = None
    for mirror in tiling.mirrors:
        tile, dims = tiling.tile(core, mirror), [at + 1 for at in mirror]
        where = (slice(None), *tile)
        window = image[where]
        found = scorer((window.flip(dims) if dims else window).unsqueeze(0))[0]
        found = (found.flip(dims) if dims else found)[_inside(core, [part.start for part in tile])]
        total = found if total is None else total + found
    assert total is not None
    return total if len(tiling.mirrors) == 1 else total / len(tiling.mirrors)


def _inside(core: Sequence[Core], origin: Sequence[int]) -> tuple[slice, ...]:
    """Where a core lies in what begins at `origin`, all channels of it."""
    places = (slice(start - first, stop - first) for (start, stop), first in zip(core, origin, strict=True))
    return (slice(None), *places)
