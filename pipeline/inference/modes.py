"""What a prediction is asked for beside the label map of one model, as plain values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import UsageError
from ..model_folder import ModelFolder
from .classes import Wanted

MARGIN_MM = 20.0  # around what a coarse model found


@dataclass(frozen=True)
class Modes:
    """The modes of `predict`; each is off by default.

    Args:
        classes: names or label values that are written, the other classes as background; all when left out.
        probabilities: keep those of the classes too, in a chunked file.
        uncertainty: map how undecided the scores are, and sum it up as one number a case.
        with_models: folders of models whose scores are averaged with those of the model.
        coarse: folder of a model that finds the region to which the model is confined.
        margin_mm: around that region.
        skip_background: leave out windows that hold nothing but what the plan takes for background.
        views: slicings of a slice model whose scores are averaged: "axial,coronal" or "all".
    """

    classes: Wanted | None = None
    probabilities: bool = False
    uncertainty: bool = False
    with_models: Sequence[Path | str] = ()
    coarse: Path | str | None = None
    margin_mm: float = MARGIN_MM
    skip_background: bool = False
    views: str | Sequence[str] | None = None


PLAIN = Modes()


def several(folders: Sequence[Path | str] | Path | str) -> tuple[Path, ...]:
    """One folder, or several, where every process finds them."""
    each = [folders] if isinstance(folders, Path | str) else folders
    return tuple(Path(folder).absolute() for folder in each)


def check_modes(modes: Modes, model: ModelFolder, tiling: str) -> None:
    """Refuse modes that do not go together.

    Raises:
        UsageError: which ones, and what to leave out.
    """
    if not math.isfinite(modes.margin_mm) or modes.margin_mm < 0:
        raise UsageError(f"--margin {modes.margin_mm:g}: millimetres around the region, from 0")
    if modes.margin_mm != MARGIN_MM and modes.coarse is None:
        raise UsageError(f"--margin {modes.margin_mm:g} is of --coarse MODEL, which is not given; leave it out")
    if tiling == "exact":
        for option, given in (("--views", modes.views is not None), ("--skip-background", modes.skip_background)):
            if given:
                raise UsageError(f"{option} is of --tiling blend; leave one of the two out")
    slices = model.plan.get("slices", 1)
    if not isinstance(slices, int) or slices < 1 or slices % 2 == 0 or (slices > 1 and model.network.spatial_dims == 3):
        raise UsageError(
            f"{model.folder}: its plan says slices: {slices!r}, expected an odd number, and more than 1 with a 2D "
            "network alone"
        )
