"""One volume under its plan: prepared, blended part by part, brought back to its own grid.

Where an accelerator runs out of memory in spite of the plan, the case goes on with less (fallback.py): fewer windows at
a time, then its sums in RAM, at last without the accelerator.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...errors import CaseError, UsageError
from ...transforms.blockwise import blockwise
from ...transforms.boxes import BlockwiseImage
from ...transforms.chains import run_chain
from ...transforms.context import neighbours
from ...transforms.edges import grid_spacing, nearest_axis_back
from ...transforms.located import affine_of, plain
from ...transforms.match import Convention, match_grids
from ...transforms.volume import Entry, Volume
from ..devices import keep_heap
from .budget import Needs, Plan, make_plan, make_tile_plan, rounded_up
from .exact import choose_tiles, default_limit, exact_planes
from .fallback import SAME, CarefulScorer, first_that_fits
from .footprint import give_back, resident
from .halo import Halo
from .scorer import Scorer
from .sinks import Made, Sinks, bytes_beside, map_bytes, planes_held, voxels_across
from .skipping import SkippingScorer
from .stitch import Image, sum_planes
from .strips import CrossSection
from .views import View, averaged, stream_axis_of

if TYPE_CHECKING:
    from .predictor import Predictor

log = logging.getLogger(__name__)

CHAIN_BYTES = 48  # a voxel, of the image as read or as prepared: what a chain makes that needs the whole image at once
MASK_BYTES = 7  # a voxel, of a mask whose holes are filled: its outside in parts, numbered


@dataclass(frozen=True, eq=False)
class Segmented:
    """A label map, and how it came about.

    Args:
        labels: of every voxel of the volume (*geometry.shape).
        notes: what a reader of the result should know.
        plan: how it was done; None where no network was needed.
        maps: what was asked for beside it, by name: uint8 of the same shape, in steps of 1/255.
        numbers: of the case, for its record.
    """

    labels: np.ndarray
    notes: tuple[Entry, ...]
    plan: Plan | None
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)
    numbers: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A prepared image and the way back.

    Args:
        image: (C, X, Y, Z), float32.
        affine: of its grid.
        volume: that it was made from.
        axis: the streamed one.
        convention: what of the two grids agrees, as in `match.Match`.
        nearest: the axis along which nothing is interpolated on the way back; None where all are.
    """

    image: Image
    affine: np.ndarray
    volume: Volume
    axis: int
    convention: Convention = "centres"
    nearest: int | None = None

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

    @property
    def nearest_streamed(self) -> int | None:
        """The axis `nearest` where the streamed one comes first."""
        return None if self.nearest is None else self.order.index(self.nearest)


OnPlan = Callable[[Plan], None]


def prepare(predictor: Predictor, volume: Volume) -> Prepared:
    """The image as the network takes it, ahead of `segment`; only where no limit of RAM is planned for.

    Raises:
        CaseError: an image that the chain refuses.
    """
    prepared = _prepared(predictor, volume)
    if isinstance(prepared.image, BlockwiseImage) and _is_kept(predictor, prepared.image):
        return replace(prepared, image=prepared.image.whole())
    return prepared


def segment(predictor: Predictor, image: Volume | Prepared, on_plan: OnPlan | None = None) -> Segmented:
    """Classes of a volume on its own grid.

    Args:
        predictor: the model.
        image: the volume, prepared or not.
        on_plan: is told how the case is done, before its network starts.

    Raises:
        CaseError: an image that the chain refuses; scores that are not finite; nothing fits into the limits (`memory`).
    """
    limited = predictor.limits.ram is not None
    if not limited:
        return _segmented(predictor, image, on_plan)
    give_back()
    try:
        return _segmented(predictor, image, on_plan)
    finally:
        keep_heap(False)
        give_back()


def _segmented(predictor: Predictor, image: Volume | Prepared, on_plan: OnPlan | None) -> Segmented:
    prepared = image if isinstance(image, Prepared) else _prepared(predictor, image)
    plan = _plan(predictor, prepared)
    if predictor.measured:
        log.info("memory: %s", plan)
        keep_heap(plan.keep_heap)
    if on_plan is not None:
        on_plan(plan)
    if plan.whole_image and isinstance(prepared.image, BlockwiseImage):
        prepared = replace(prepared, image=prepared.image.whole())
    return _with_less(predictor, prepared, plan)


def _prepared(predictor: Predictor, volume: Volume) -> Prepared:
    """The image as the network takes it: box by box where its chain allows that."""
    _check_mask(predictor, volume)
    image: Image | None = blockwise(predictor.chain, volume)
    if isinstance(image, BlockwiseImage):
        affine = image.affine
    else:
        _check_chain(predictor, volume)
        made = run_chain(predictor.chain, {"image": volume})["image"]
        image, affine = plain(made).float(), affine_of(made)
    patches = [view.patch for view in predictor.views]
    shape = [int(side) for side in image.shape[1:]]
    return Prepared(image, affine, volume, stream_axis_of(shape, patches), *_way_back(predictor, shape, affine, volume))


def _way_back(
    predictor: Predictor, shape: Sequence[int], affine: np.ndarray, volume: Volume
) -> tuple[Convention, int | None]:
    """How scores go back to the image, as the plan has it: what of the grids agrees, and the axis of nearest planes."""
    plan, grid = predictor.model.plan, volume.geometry
    resampling = plan.get("resampling") or {}
    if resampling.get("kind") != "spline":
        return "centres", None
    lines = match_grids(shape, affine, (*grid.shape, 1)[:3], grid.affine).lines
    if lines is None:
        return "edges", None
    steps = grid_spacing(grid.affine)
    own = [steps[axis] for axis in lines]
    return "edges", nearest_axis_back(resampling, plan.get("spacing_mm"), own)


def _check_chain(predictor: Predictor, volume: Volume) -> None:
    """Refuse a volume whose chain would make too much on the way."""
    limit = predictor.limits.ram
    if limit is None:
        return
    spacing = [step for step in predictor.model.plan.get("spacing_mm") or () if step is not None]
    finer = math.prod(sorted(volume.geometry.spacing_mm, reverse=True)[: len(spacing)]) / math.prod(spacing)
    needed = round(CHAIN_BYTES * volume.array.size * max(1.0, finer))
    _check_preparing(needed, limit, "its bias field or its shear concerns")


def _check_mask(predictor: Predictor, volume: Volume) -> None:
    """The same of the mask that some normalisation fills the holes of."""
    limit, kinds = predictor.limits.ram, [one["kind"] for one in predictor.model.plan.get("normalisation", [])]
    if limit is not None and "zscore_mask" in kinds:
        _check_preparing(MASK_BYTES * math.prod(volume.geometry.shape), limit, "the mask of its normalisation concerns")


def _check_preparing(needed: int, limit: int, why: str) -> None:
    total = resident() + needed
    if total > limit:
        raise CaseError(
            f"preparing it needs up to {total / 1e9:.2f} GB, as {why} the whole image; --memory is "
            f"{limit / 1e9:.2f} GB; give --memory {rounded_up(total)} or more",
            "memory",
        )


def _preparing(image: BlockwiseImage, predictor: Predictor, *, keep: bool) -> tuple[int, int]:
    """Bytes on the way to the whole prepared image, where it is kept, and to a window of it."""
    window = max(image.working_bytes(view.patch) for view in predictor.views)
    return (image.working_bytes() if keep else window), window


def _is_kept(predictor: Predictor, image: BlockwiseImage) -> bool:
    """Whether an image is better prepared once, where there is room.

    An interpolated voxel would be made once for each window that it lies in; a GPU must not wait for its windows.
    """
    return image.resampled or predictor.device.type != "cpu"


def _plan(predictor: Predictor, prepared: Prepared) -> Plan:
    """How the case is done; what is usual where nothing was measured.

    Raises:
        CaseError: nothing fits into the limits (`memory`).
    """
    image = prepared.image
    in_boxes = isinstance(image, BlockwiseImage)
    keep = isinstance(image, BlockwiseImage) and _is_kept(predictor, image)
    section = CrossSection(
        shape=prepared.shape,
        patch=predictor.views[0].patch,
        overlap=predictor.overlap,
        axis=prepared.axis,
        shared=0 if match_grids(*prepared.grids).axes is not None else 1,
        stepped=predictor.stepped,
    )
    if not predictor.measured:
        return Plan(section.strips((1, 1)), predictor.window_batch, whole_image=keep or not in_boxes)
    limits = predictor.limits
    if limits.gpu is None and predictor.device.type == "cuda":
        free = int(torch.cuda.mem_get_info(predictor.device)[0]) + predictor.held_gpu
        limits = replace(limits, gpu=free)
    scorer, asked = predictor.scorer, predictor.asked
    needs = Needs(
        held=resident(),
        image=math.prod(image.shape) * 4 if keep else 0,
        in_boxes=in_boxes,
        labels=math.prod(prepared.volume.geometry.shape) * (predictor.label_bytes + map_bytes(asked)) + predictor.kept,
        window=predictor.window_bytes,
        channels=scorer.channels + (1 if predictor.background else 0),
        classes=scorer.classes,
        section=section,
        planes=planes_held([view.patch for view in predictor.views], prepared.axis),
        probable=asked.probable,
        preparing=_preparing(image, predictor, keep=keep) if isinstance(image, BlockwiseImage) else (0, 0),
        beside=bytes_beside(scorer, asked, voxels_across(prepared.shape, prepared.axis)),
        held_gpu=predictor.held_gpu,
        gpu=predictor.device.type != "cpu",
    )
    if predictor.halo is not None:
        return make_tile_plan(needs, limits)
    return make_plan(needs, limits, predictor.window_batch)


def _with_less(predictor: Predictor, prepared: Prepared, plan: Plan) -> Segmented:
    """The case under its plan, or with less where the accelerator runs out of memory."""
    notes: list[Entry] = []
    roads: list[tuple[str, Callable[[], Made]]] = [("", lambda: _made(predictor, prepared, plan, notes))]
    if predictor.device.type != "cpu":
        less = replace(plan, sums_on_gpu=False)
        if plan.sums_on_gpu:
            roads.append((f"the sums were kept in RAM; {SAME}", lambda: _made(predictor, prepared, less, notes)))
        what = "it was done on the CPU; labels may differ where two classes score almost the same"
        roads.append((what, lambda: _on_cpu(predictor, prepared, less, notes)))
    made = first_that_fits(roads, notes)
    return Segmented(made.labels, tuple(notes), plan, made.maps)


def _on_cpu(predictor: Predictor, prepared: Prepared, plan: Plan, notes: list[Entry]) -> Made:
    """The case without the accelerator, to which the networks go back."""
    try:
        moved = predictor.moved_to(torch.device("cpu"))
        if moved.measured:
            plan = _plan(moved, prepared)
            log.info("memory: %s", plan)
        return _made(moved, prepared, plan, notes)
    finally:
        for network in predictor.networks:
            network.to(predictor.device)


def _made(predictor: Predictor, prepared: Prepared, plan: Plan, notes: list[Entry]) -> Made:
    """Classes, and what else is asked for, on the grid of the source."""
    if predictor.halo is not None:
        return _exactly_made(predictor, predictor.halo, prepared, plan)
    skipping: list[SkippingScorer] = []
    streamed: list[tuple[Scorer, View]] = []
    for number, view in enumerate(predictor.views):
        scorer: Scorer = CarefulScorer(predictor.scorer_of(view) if number else predictor.scorer, notes)
        if predictor.background:
            scorer = SkippingScorer(scorer, predictor.background, predictor.members, regions=predictor.has_regions)
            skipping.append(scorer)
        streamed.append((scorer, view))
    sinks = _sinks(predictor, prepared, streamed[0][0], plan, headed=True)
    for part in plan.strips.parts:
        streams = [
            sum_planes(
                scorer,
                _seen(predictor, prepared.image, view),
                patch=view.patch,
                overlap=predictor.overlap,
                window_batch=plan.window_batch,
                blending=predictor.blending,
                stepped=predictor.stepped,
                axis=prepared.axis,
                part=part,
                sums_on=_sums_on(predictor, plan),
            )
            for scorer, view in streamed
        ]
        for where, sums in averaged(streams):
            sinks.add(where, sums, part)
            del sums  # a view of the sums, which are gone before those of the next part are made
            if not plan.keep_heap:
                give_back()  # the holes that a row of windows leaves in the heap would grow from row to row
    if skipping:
        seen, skipped = sum(one.seen for one in skipping), sum(one.skipped for one in skipping)
        detail = f"{skipped} of {seen} windows held only background and were not computed"
        notes.append(Entry("skipped-background", detail))
        log.info("%s", detail)
    return sinks.made(prepared.volume.geometry.shape)


def _exactly_made(predictor: Predictor, halo: Halo, prepared: Prepared, plan: Plan) -> Made:
    """The same by exact tiles, which are planned on their own."""
    scorer, room = predictor.scorer, plan.tile_bytes
    try:
        tiling = choose_tiles(
            scorer,
            halo,
            prepared.shape,
            patch=predictor.patch,
            overlap=predictor.overlap,
            limit_bytes=None if room is None else min(room, default_limit(predictor.device)),
        )
    except UsageError as error:
        if room is None:
            raise
        raise CaseError(f"{error}; within --memory and --gpu-memory there is no more for a tile", "memory") from error
    prepared = replace(prepared, axis=tiling.axis)
    sinks = _sinks(predictor, prepared, scorer, plan, headed=False)
    image = _seen(predictor, prepared.image, predictor.views[0])
    planes = exact_planes(scorer.unmirrored, image, tiling, slab_on=_sums_on(predictor, plan))
    for where, scores in planes:
        sinks.add(where, scores)
    return sinks.made(prepared.volume.geometry.shape)


def _sinks(predictor: Predictor, prepared: Prepared, scorer: Scorer, plan: Plan, *, headed: bool) -> Sinks:
    return Sinks(
        prepared.grids,
        scorer,
        predictor.asked,
        chunk_numbers=plan.chunk_numbers,
        headed=headed,
        convention=prepared.convention,
        nearest=prepared.nearest_streamed,
    )


def _seen(predictor: Predictor, image: Image, view: View) -> Image:
    """The image as the networks of a view see it: each slice with its neighbours, where they take them."""
    return image if view.axis is None else neighbours(image, view.axis, predictor.slices)


def _sums_on(predictor: Predictor, plan: Plan) -> torch.device:
    return predictor.device if plan.sums_on_gpu else torch.device("cpu")
