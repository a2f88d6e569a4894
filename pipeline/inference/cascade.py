"""`--coarse`: a coarse model finds the region, the model itself works on its box alone.

What lies outside of the box is background. The fine model takes the box for its image: where its plan normalises by the
image's own mean and deviation, they are those of the box.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ...errors import UsageError
from ...transforms.volume import Entry, Geometry, Volume
from ..model_folder import ModelFolder
from .segmentation import OnPlan, Segmented, segment
from .sinks import map_bytes
from .uncertainty import UncertaintyMaps

if TYPE_CHECKING:
    from .predictor import Predictor

Box = tuple[slice, ...]


def segment_region(
    fine: Predictor,
    coarse: Predictor,
    volume: Volume,
    on_plan: OnPlan | None = None,
) -> Segmented:
    """Classes of a volume (class numbers of the fine model) on its own grid, background outside of the region.

    Args:
        fine: the model.
        coarse: that finds the region.
        volume: the image.
        on_plan: is told how the fine model's part is done, before its network starts.

    Raises:
        CaseError: what either of the models refuses.
    """
    shape = volume.geometry.shape
    rough = coarse.segment(volume)
    box, notes = region_of(rough.labels, volume.geometry, fine.modes.margin_mm), rough.notes
    del rough
    asked, target = fine.asked, fine.target
    kind = np.dtype(np.uint8 if len(fine.values) <= 256 else np.uint16)
    if box is None:
        if target is not None:
            target.begun().close()
        maps = UncertaintyMaps(shape, 1, fine.members).maps if asked.uncertainty else {}
        return Segmented(np.zeros(shape, kind), (*notes, told(None, shape)), None, maps)
    inside = cropped(volume, box)
    if target is not None:
        target = replace(target, origin=tuple(side.start for side in box))
    kept = math.prod(shape) * (kind.itemsize + map_bytes(asked))
    found = segment(replace(fine, kept=kept, target=target), fine.prepare(inside), on_plan)
    maps = {name: put_back(part, box, shape) for name, part in found.maps.items()}
    labels = put_back(found.labels, box, shape)
    return replace(found, labels=labels, maps=maps, notes=(*notes, told(box, shape), *found.notes))


def check_channels(fine: ModelFolder, coarse: ModelFolder) -> None:
    """Refuse a coarse model that takes other images.

    Raises:
        UsageError: what differs.
    """
    for name, ours, theirs in (
        ("channels", fine.plan["channels"], coarse.plan["channels"]),
        ("modality", fine.plan.get("modality"), coarse.plan.get("modality")),
    ):
        if ours != theirs:
            raise UsageError(
                f"--coarse {coarse.folder} cannot find the region for {fine.folder}: its {name} is {theirs}, expected "
                f"{ours}; both look at the same image"
            )


def region_of(labels: np.ndarray, geometry: Geometry, margin_mm: float) -> Box | None:
    """The box of everything that is no background, with a margin; None where there is nothing."""
    lines = [np.zeros(size, bool) for size in labels.shape]
    for number, plane in enumerate(labels):
        found = plane != 0
        lines[0][number] = found.any()
        for axis in range(1, labels.ndim):
            others = tuple(at for at in range(labels.ndim - 1) if at != axis - 1)
            lines[axis] |= found.any(axis=others)
    if not lines[0].any():
        return None
    box = []
    for line, spacing in zip(lines, geometry.spacing_mm, strict=True):
        first, last = np.flatnonzero(line)[[0, -1]].tolist()
        more = math.ceil(margin_mm / spacing - 1e-6)
        box.append(slice(max(0, first - more), min(len(line), last + 1 + more)))
    return tuple(box)


def cropped(volume: Volume, box: Box) -> Volume:
    """The part of a volume in a box, as a view."""
    geometry = volume.geometry
    affine = geometry.affine.copy()
    starts = np.array([side.start for side in box] + [0] * (3 - len(box)), float)
    affine[:3, 3] += affine[:3, :3] @ starts
    shape = tuple(side.stop - side.start for side in box)
    inside = replace(geometry, shape=shape, affine=affine, nifti_fields={})
    where = (slice(None), *box)
    return replace(volume, array=volume.array[where], geometry=inside)


def put_back(part: np.ndarray, box: Box, shape: Sequence[int]) -> np.ndarray:
    """A box of labels or of a map on the grid that it was taken from, 0 outside."""
    whole = np.zeros(tuple(shape), part.dtype)
    whole[box] = part
    return whole


def told(box: Box | None, shape: Sequence[int]) -> Entry:
    """The note of a case that was confined."""
    if box is None:
        return Entry("nothing-found", "the coarse model found nothing, so all of the label map is background")
    share = math.prod(side.stop - side.start for side in box) / math.prod(shape)
    sides = " x ".join(f"{side.start}-{side.stop - 1}" for side in box)
    return Entry(
        "confined", f"the model worked on the voxels {sides}, {share:.0%} of the image; the rest is background"
    )
