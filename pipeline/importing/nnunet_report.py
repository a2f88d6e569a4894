"""What became of what an nnU-Net folder says: short lines for people, kept beside the model."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..dataset.plan import Plan
from .conversion import Report
from .nnunet_folder import NnUNetFolder
from .nnunet_labels import BACKGROUND
from .nnunet_plan import ORIENTATIONS, PICTURES, Understood

PLAIN_TRAINER = "nnUNetTrainer"
# words in the names of trainers that nnU-Net brings and that change the training alone, or a norm that weights tell
WORD = re.compile(
    r"_?(?:\d{1,5}ep(?:ochs?)?|Benchmark|noDataLoading|NoMirroring|onlyMirror01|DA5|DA|NoDA|[sS]egord0|SegOrd0|"
    r"ord0|noDummy2DDA|CE|Dice|Top[kK]10|Loss|LS01|noSmooth|CosAnneal|warmup|BN|NoDeepSupervision|Vanilla|Adam|Adan|"
    r"\den\d|probabilisticOversampling|0\d\d)"
)
MOST_NAMES = 6


def report_of(folder: NnUNetFolder, found: Understood, plan: Plan, trainer: str) -> Report:
    """The lines of a report."""
    return Report(
        taken=tuple(_taken(folder, found, plan)),
        ignored=tuple(_ignored(folder, found, trainer)),
        differs=(*_misnamed(folder, found), *_differs(found, plan, trainer)),
    )


def is_known(trainer: str) -> bool:
    """Whether a trainer is one of nnU-Net's own: its name is made of words, each read once and for all."""
    at = len(PLAIN_TRAINER)
    while word := WORD.match(trainer, at):
        at = word.end()
    return trainer.startswith(PLAIN_TRAINER) and at == len(trainer)


def _taken(folder: NnUNetFolder, found: Understood, plan: Plan) -> list[str]:
    options, labels = plan.network.options, found.labels
    folds = ", ".join(folder.checkpoints)
    resampled = "no resampling, the images' own spacing"
    if plan.resampling.kind == "spline":
        spacing = " x ".join("own" if side is None else f"{side:g}" for side in plan.spacing_mm or ())
        apart = {"auto": "a coarse axis apart", "always": "the coarse axis always apart", "never": "no axis apart"}
        resampled = f"{spacing} mm, splines of order {plan.resampling.order}, {apart[plan.resampling.separate]}"
    names = [label.name for label in plan.labels if label.name != BACKGROUND]
    lines = [
        f"configuration {found.name}, fold{'s' if len(folder.checkpoints) > 1 else ''} {folds}",
        f"network {'residual encoder' if options['blocks'] != 'plain' else 'plain'} U-Net in {plan.dims}D, "
        f"{len(options['widths'])} levels, {options['norm']} norm",
        f"{len(plan.channels)} channel(s) {_listed(plan.channels)}, modality {plan.modality}",
        f"{len(names)} label(s) {_listed(names)}",
        f"crop to nonzero; normalisation {', '.join(one.kind for one in plan.normalisation)}; {resampled}",
        f"patch {' x '.join(map(str, plan.patch))} (X, Y, Z), overlap 0.5, Gaussian weights",
        f"mirror axes {plan.mirror_axes}" if plan.mirror_axes else "no mirroring",
    ]
    if labels.regions:
        told = [f"{one['name']} writes {one['writes']}" for one in labels.regions]
        lines.insert(4, f"{len(told)} region(s), later ones over earlier ones: {_listed(told)}")
    return lines


def _ignored(folder: NnUNetFolder, found: Understood, trainer: str) -> list[str]:
    lines = [f"trainer {trainer}: the state of its optimiser, its loss curves and its schedule"]
    if found.labels.ignore is not None:
        lines.append(f"label {found.labels.ignore} (ignore): of training alone, it is never predicted")
    if folder.left_out:
        lines.append(f"fold(s) {', '.join(folder.left_out)}: not asked for")
    others = [name for name in found.plans.configurations if name != found.name]
    if others:
        lines.append(f"configurations {_listed(others)} of the same plans: the weights are of {found.name}")
    return lines


def _misnamed(folder: NnUNetFolder, found: Understood) -> list[str]:
    """That a folder's name (TRAINER__PLANS__CONFIGURATION) and its checkpoints disagree."""
    _, *parts = folder.root.name.split("__")
    if len(parts) != 2 or parts[1] == found.name:
        return []
    return [f"the folder is called {folder.root.name}, but its checkpoints are of configuration {found.name}"]


def _differs(found: Understood, plan: Plan, trainer: str) -> list[str]:
    reader = found.plans.image_reader_writer
    lines = ["scores are summed in float32, nnU-Net sums in float16: single voxels between near ties may differ"]
    if found.labels.regions:
        lines.append("regions are thresholded at a logit of 0, which is nnU-Net's probability of 0.5")
    if plan.orientation != ORIENTATIONS[reader]:
        lines.append(f"images are turned to {plan.orientation} first, as asked for; {reader} would not")
    elif plan.orientation is None and reader != PICTURES:
        lines.append(
            f"{reader} takes voxels in the order of the file, whatever its orientation, and so is done here: give "
            "images that lie as those of the training did, or have all turned with --orientation RAS"
        )
    if "CT" in {name.upper() for name in plan.channels} and plan.modality != "CT":
        lines.append("a channel is called CT, but not all is Hounsfield units: the values of images are not checked")
    if not is_known(trainer):
        lines.append(f"trainer {trainer} is not one of nnU-Net's own: what it does beyond weights is not known here")
    return lines


def _listed(names: Sequence[str]) -> str:
    more = f", and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more
