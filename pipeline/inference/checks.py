"""Whether a volume is what a model takes: its modality and unit, its dimensions, its voxels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...errors import CaseError, UsageError
from ...transforms.volume import Entry, Volume

SPELLINGS = {"MRI": "MR", "PET": "PT", "PICTURE": "picture", "RGB": "picture"}
COMPARABLE = {"CT", "MR", "PT", "US", "picture"}
MEDIAN_HU = (-1100, 500)
FILLS = ("min",)


def check_modality(volume: Volume, plan: Mapping[str, Any]) -> None:
    """Refuse a volume of another modality than the model's, or a CT whose values are no Hounsfield units.

    Raises:
        CaseError: `modality` or `not-hu`.
    """
    wanted, found = (_spelled(word) for word in (str(plan.get("modality", "")), volume.modality))
    if wanted in COMPARABLE and found in COMPARABLE and wanted != found:
        raise CaseError(
            f"the image is {found}, the model was trained on {wanted}; predict it with a model for {found}", "modality"
        )
    if wanted != "CT":
        return
    told = next((note.detail for note in volume.notes if note.code == "not-hu"), "")
    median = float(np.median(_thinned(volume.array[0])))
    low, high = MEDIAN_HU
    if told or not (low <= median <= high or math.isnan(median)):
        reason = told or f"their median is {median:g}, expected {low} to {high}"
        raise CaseError(
            f"the values are no Hounsfield units, which the model takes: {reason}; convert them first", "not-hu"
        )


def check_channel_names(found: Sequence[str], plan: Mapping[str, Any]) -> None:
    """Refuse an input that names its channels, and names them in another order than the model's, or other modalities.

    Args:
        found: names that the input states; where it states none, or names that say nothing, there is nothing to hold.
        plan: of the model.

    Raises:
        CaseError: `channels` or `modality`.
    """
    wanted = [str(name) for name in plan.get("channels", ())]
    pairs = [(_spelled(one), _spelled(other)) for one, other in zip(found, wanted, strict=False)]
    if len(found) != len(wanted) or all(one == other for one, other in pairs):
        return
    told = f"the input names its channels {', '.join(found)}, the model takes {', '.join(wanted)}"
    if sorted(one for one, _ in pairs) == sorted(other for _, other in pairs):
        raise CaseError(f"{told}, in this order; give them so", "channels")
    if any(one != other and {one, other} <= COMPARABLE for one, other in pairs):
        raise CaseError(f"{told}; predict it with a model for these", "modality")


def noted_constant(volume: Volume) -> Volume:
    """The volume, with a note where a channel has one value everywhere: nothing can be told apart there."""
    notes = [
        Entry("constant", f"every voxel of channel {number} is {float(channel.flat[0]):g}: its labels say nothing")
        for number, channel in enumerate(volume.array)
        if channel.size > 1 and _is_constant(_thinned(channel)) and _is_constant(channel)
    ]
    return replace(volume, notes=(*volume.notes, *notes)) if notes else volume


def _is_constant(array: np.ndarray) -> bool:
    return bool(array.min() == array.max())


def _spelled(modality: str) -> str:
    word = modality.strip().upper()
    return SPELLINGS.get(word, word)


def _thinned(array: np.ndarray) -> np.ndarray:
    """About a million evenly spread voxels; enough for a median, however large the volume."""
    step = max(1, math.ceil((array.size / 1e6) ** (1 / array.ndim)))
    every: Sequence[slice] = [slice(None, None, step)] * array.ndim
    return array[tuple(every)]


def check_dimensions(volume: Volume, spatial_dims: int, patch: Sequence[int]) -> None:
    """Refuse one slice, or the frames of a film, where the model looks at neighbouring slices.

    Args:
        spatial_dims: of the network.
        patch: of the plan; a model whose patch is one voxel thick takes single slices.

    Raises:
        CaseError: `one-slice` or `film`.
    """
    if spatial_dims < 3:
        return
    if volume.geometry.film:
        raise CaseError(
            f"a film of {volume.geometry.shape[2]} frames, and the model takes volumes: time is no third dimension; "
            "predict it with a 2D model",
            "film",
        )
    if min((*volume.geometry.shape, 1)[:3]) == 1 and min(patch) > 1:
        raise CaseError(
            f"1 slice (grid {volume.geometry.shape}), and the model takes volumes; predict it with a 2D model, or give "
            "the whole series",
            "one-slice",
        )


def check_fill(fill_nan: str | None) -> None:
    """Refuse words that --fill-nan does not have."""
    if fill_nan is not None and fill_nan not in FILLS:
        raise UsageError(f"--fill-nan {fill_nan!r}: expected {', '.join(FILLS)}")


def filled(volume: Volume) -> Volume:
    """NaN and infinite voxels set to the least finite value of their channel, as a repair.

    Raises:
        CaseError: a channel without any finite voxel.
    """
    if volume.array.dtype.kind != "f":
        return volume
    wrong = ~np.isfinite(volume.array)
    count = int(np.count_nonzero(wrong))
    if not count:
        return volume
    array = volume.array.copy(order="K")
    for channel, holes in zip(array, wrong, strict=True):
        if holes.all():
            raise CaseError("no voxel of a channel is finite; leave the case out", "not-finite")
        channel[holes] = channel[~holes].min()
    repair = Entry("not-finite-filled", f"{count} voxels that were NaN or inf got the least value of their channel")
    return replace(volume, array=array, repairs=(*volume.repairs, repair))
