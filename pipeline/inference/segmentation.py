"""One volume under its plan: prepared, blended part by part, brought back to its own grid.

Where an accelerator runs out of memory in spite of the plan, the case goes on with less (fallback.py): fewer windows at
a time, then its sums in RAM, at last without the accelerator.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...errors import CaseError, UsageError
from ...transforms.blockwise import BlockwiseImage, blockwise
from ...transforms.chains import run_chain
from ...transforms.located import affine_of, plain
from ...transforms.restore import Restoration, match_grids
from ...transforms.volume import Entry, Volume
from ..devices import keep_heap
from .budget import Needs, Plan, make_plan, make_tile_plan
from .exact import choose_tiles, default_limit, exact_planes
from .fallback import CarefulScorer, first_that_fits
from .footprint import give_back, resident
from .halo import Halo
from .scorer import Scorer
from .stitch import Image, scores_of, stream_axis, sum_planes
from .strips import CrossSection

if TYPE_CHECKING:
    from .predictor import Predictor

log = logging.getLogger(__name__)

CHAIN_BYTES = 48  # a voxel, of the image as read or as prepared: what a chain makes that needs the whole image at once


@dataclass(frozen=True, eq=False)
class Segmented:
    """A label map, and how it came about.

    Args:
        labels: of every voxel of the volume (*geometry.shape).
        notes: what a reader of the result should know.
        plan: how it was done.
    """

    labels: np.ndarray
    notes: tuple[Entry, ...]
    plan: Plan


@dataclass(frozen=True, eq=False)
class Prepared:
    """A prepared image and the way back.

    Args:
        image: (C, X, Y, Z), float32.
        affine: of its grid.
        volume: that it was made from.
        axis: the streamed one.
    """

    image: Image
    affine: np.ndarray
    volume: Volume
    axis: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the grid."""
        return tuple(int(side) for side in self.image.shape[1:])

    @property
    def order(self) -> list[int]:
        """The axes, the streamed one first."""
        return [self.axis, *(at for at in range(3) if at != self.axis)]

    @property
    def grids(self) -> tuple[list[int], np.ndarray, tuple[int, ...], np.ndarray]:
        """Shape and affine of the grid with the streamed axis first, and those of the source."""
        grid = self.volume.geometry
        shape, affine = [self.shape[at] for at in self.order], self.affine[:, [*self.order, 3]]
        return shape, affine, (*grid.shape, 1)[:3], grid.affine

    def restoration(self, scorer: Scorer, chunk_numbers: int, *, headed: bool) -> Restoration:
        """The way back, for sums in front of the scorer's head or for scores behind it."""
        scores = partial(scores_of, scorer) if headed else None
        return Restoration(*self.grids, scores_of=scores, device=scorer.device, chunk_numbers=chunk_numbers)


def segment(predictor: Predictor, volume: Volume) -> Segmented:
    """Classes of a volume on its own grid.

    Raises:
        CaseError: an image that the chain refuses; scores that are not finite; nothing fits into the limits (`memory`).
    """
    limited = predictor.limits.ram is not None
    if not limited:
        return _segmented(predictor, volume)
    give_back()
    try:
        return _segmented(predictor, volume)
    finally:
        keep_heap(False)
        give_back()


def _segmented(predictor: Predictor, volume: Volume) -> Segmented:
    prepared = _prepared(predictor, volume)
    plan = _plan(predictor, prepared)
    if predictor.measured:
        log.info("memory: %s", plan)
        keep_heap(plan.keep_heap)
    if plan.whole_image and isinstance(prepared.image, BlockwiseImage):
        prepared = replace(prepared, image=prepared.image.whole())
    return _with_less(predictor, prepared, plan)


def _prepared(predictor: Predictor, volume: Volume) -> Prepared:
    """The image as the network takes it: box by box where its chain allows that."""
    image: Image | None = blockwise(predictor.chain, volume)
    if isinstance(image, BlockwiseImage):
        affine = image.affine
    else:
        _check_chain(predictor, volume)
        made = run_chain(predictor.chain, {"image": volume})["image"]
        image, affine = plain(made).float(), affine_of(made)
    return Prepared(image, affine, volume, stream_axis([int(side) for side in image.shape[1:]], predictor.patch))


def _check_chain(predictor: Predictor, volume: Volume) -> None:
    """Refuse a volume whose chain would make too much on the way."""
    limit = predictor.limits.ram
    if limit is None:
        return
    spacing = predictor.model.plan.get("spacing_mm") or volume.geometry.spacing_mm
    finer = math.prod(volume.geometry.spacing_mm) / math.prod(spacing)
    needed = resident() + round(CHAIN_BYTES * volume.array.size * max(1.0, finer))
    if needed > limit:
        raise CaseError(
            f"preparing it needs up to {needed / 1e9:.2f} GB, as its bias field or its shear concerns the whole image; "
            f"--memory is {limit / 1e9:.2f} GB",
            "memory",
        )


def _plan(predictor: Predictor, prepared: Prepared) -> Plan:
    """How the case is done; what is usual where nothing was measured.

    Raises:
        CaseError: nothing fits into the limits (`memory`).
    """
    image = prepared.image
    in_boxes = isinstance(image, BlockwiseImage)
    # an interpolated voxel would be made once for each window that it lies in; a GPU must not wait for its windows
    keep = isinstance(image, BlockwiseImage) and (image.resampled or predictor.device.type != "cpu")
    section = CrossSection(
        shape=prepared.shape,
        patch=predictor.patch,
        overlap=predictor.overlap,
        axis=prepared.axis,
        shared=0 if match_grids(*prepared.grids).axes is not None else 1,
    )
    if not predictor.measured:
        return Plan(section.strips((1, 1)), predictor.window_batch, whole_image=keep or not in_boxes)
    limits = predictor.limits
    if limits.gpu is None and predictor.device.type == "cuda":
        free = int(torch.cuda.mem_get_info(predictor.device)[0]) + predictor.held_gpu
        limits = replace(limits, gpu=free)
    scorer = predictor.scorer
    needs = Needs(
        held=resident(),
        image=math.prod(image.shape) * 4 if keep else 0,
        in_boxes=in_boxes,
        labels=math.prod(prepared.volume.geometry.shape) * predictor.label_bytes,
        window=predictor.window_bytes,
        channels=scorer.channels,
        classes=scorer.classes,
        section=section,
        held_gpu=predictor.held_gpu,
        gpu=predictor.device.type != "cpu",
    )
    if predictor.halo is not None:
        return make_tile_plan(needs, limits)
    return make_plan(needs, limits, predictor.window_batch)


def _with_less(predictor: Predictor, prepared: Prepared, plan: Plan) -> Segmented:
    """The case under its plan, or with less where the accelerator runs out of memory."""
    notes: list[Entry] = []
    roads: list[tuple[str, Callable[[], np.ndarray]]] = [("", lambda: _classes(predictor, prepared, plan, notes))]
    if predictor.device.type != "cpu":
        less = replace(plan, sums_on_gpu=False)
        if plan.sums_on_gpu:
            roads.append(("the sums were kept in RAM", lambda: _classes(predictor, prepared, less, notes)))
        roads.append(("it was done on the CPU", lambda: _on_cpu(predictor, prepared, less, notes)))
    return Segmented(first_that_fits(roads, notes), tuple(notes), plan)


def _on_cpu(predictor: Predictor, prepared: Prepared, plan: Plan, notes: list[Entry]) -> np.ndarray:
    """The case without the accelerator, to which the networks go back."""
    try:
        moved = predictor.moved_to(torch.device("cpu"))
        if moved.measured:
            plan = _plan(moved, prepared)
            log.info("memory: %s", plan)
        return _classes(moved, prepared, plan, notes)
    finally:
        for network in predictor.networks:
            network.to(predictor.device)


def _classes(predictor: Predictor, prepared: Prepared, plan: Plan, notes: list[Entry]) -> np.ndarray:
    """Classes on the grid of the source."""
    if predictor.halo is not None:
        return _exact_classes(predictor, predictor.halo, prepared, plan)
    careful = CarefulScorer(predictor.scorer, notes)
    restoration = prepared.restoration(careful, plan.chunk_numbers, headed=True)
    for part in plan.strips.parts:
        planes = sum_planes(
            careful,
            prepared.image,
            patch=predictor.patch,
            overlap=predictor.overlap,
            window_batch=plan.window_batch,
            axis=prepared.axis,
            part=part,
            sums_on=_sums_on(predictor, plan),
        )
        for where, sums in planes:
            restoration.add(where, sums, part)
    return restoration.labels.reshape(prepared.volume.geometry.shape)


def _exact_classes(predictor: Predictor, halo: Halo, prepared: Prepared, plan: Plan) -> np.ndarray:
    """The same by exact tiles, which are planned on their own."""
    scorer, most = predictor.scorer, default_limit(predictor.device)
    try:
        tiling = choose_tiles(
            scorer,
            halo,
            prepared.shape,
            patch=predictor.patch,
            overlap=predictor.overlap,
            limit_bytes=most if plan.tile_bytes is None else min(most, plan.tile_bytes),
        )
    except UsageError as error:
        if plan.tile_bytes is None:
            raise
        raise CaseError(f"{error}; within --memory and --gpu-memory there is no more for a tile", "memory") from error
    prepared = replace(prepared, axis=tiling.axis)
    restoration = prepared.restoration(scorer, plan.chunk_numbers, headed=False)
    planes = exact_planes(scorer.unmirrored, prepared.image, tiling, slab_on=_sums_on(predictor, plan))
    for where, scores in planes:
        restoration.add(where, scores)
    return restoration.labels.reshape(prepared.volume.geometry.shape)


def _sums_on(predictor: Predictor, plan: Plan) -> torch.device:
    return predictor.device if plan.sums_on_gpu else torch.device("cpu")
