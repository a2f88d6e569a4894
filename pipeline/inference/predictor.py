"""A loaded model: volumes in, label maps on their own grids out; files are not its business."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose

from ...errors import UsageError
from ...networks.base import SegmentationNetwork
from ...transforms.chains import LABELS, build_chain, preprocessing_steps, run_chain
from ...transforms.located import affine_of, plain
from ...transforms.restore import restore_labels
from ...transforms.volume import Volume
from ..devices import memory_format, resolve_device, resolve_precision
from ..model_folder import ModelFolder, load_network, read_model_folder, select_folds
from .checks import check_dimensions, check_modality
from .export import to_values
from .scorer import NetworkScorer
from .stitch import score_planes, stream_axis

WINDOW_VOXELS = {"cpu": 1 << 16, "cuda": 1 << 21}  # windows of fewer voxels are put together up to this
LARGEST_BATCH = 16


@dataclass(frozen=True, eq=False)
class Predictor:
    """A model ready to segment.

    Args:
        model: its folder.
        folds: whose logits are averaged.
        networks: one for each fold, on the device, in eval mode.
        chain: preprocessing, the same as in training.
        overlap: of neighbouring windows.
        tta_axes: axes that windows are also mirrored along.
        device: where the networks are.
        precision: resolved word.
        window_batch: windows at a time.
    """

    model: ModelFolder
    folds: tuple[str, ...]
    networks: tuple[SegmentationNetwork, ...]
    chain: Compose
    overlap: float
    tta_axes: tuple[int, ...]
    device: torch.device
    precision: str
    window_batch: int

    @property
    def patch(self) -> tuple[int, ...]:
        """Size of a window."""
        return tuple(self.model.plan["patch"])

    @property
    def values(self) -> tuple[int, ...]:
        """Label value of each class."""
        return tuple(label.value for label in self.model.labels)

    @property
    def classes(self) -> dict[int, str]:
        """Name of each label value."""
        return {label.value: label.name for label in self.model.labels}

    def labels(self, volume: Volume) -> np.ndarray:
        """Label values (*volume.geometry.shape) of a volume, on its own grid.

        Memory: the preprocessed image, the scores of one slab, the label map.

        Raises:
            CaseError: another modality, dimension, channels or values than the model takes; voxels or scores that
                are not finite.
        """
        check_modality(volume, self.model.plan)
        check_dimensions(volume, self.model.network.spatial_dims, self.patch)
        image = run_chain(self.chain, {"image": volume})["image"]
        shape, affine = tuple(image.shape[1:]), affine_of(image)
        axis = stream_axis(shape, self.patch)
        planes = score_planes(
            self.scorer,
            plain(image).float(),
            patch=self.patch,
            overlap=self.overlap,
            window_batch=self.window_batch,
            axis=axis,
        )
        order = [axis, *(other for other in range(3) if other != axis)]
        streamed = [shape[at] for at in order]
        grid = volume.geometry
        classes = restore_labels(planes, streamed, affine[:, [*order, 3]], (*grid.shape, 1)[:3], grid.affine)
        return to_values(classes, self.values).reshape(grid.shape)

    @property
    def scorer(self) -> NetworkScorer:
        """What windows become."""
        return NetworkScorer(self.networks, tta_axes=self.tta_axes, device=self.device, precision=self.precision)


def load_predictor(
    model: ModelFolder | Path | str,
    *,
    fold: str | int | None = None,
    device: str = "auto",
    precision: str = "auto",
    overlap: float | None = None,
    tta: bool | None = None,
    network: str | None = None,
    window_batch: int | None = None,
) -> Predictor:
    """Load a model folder for prediction.

    Args:
        model: model folder, read or not.
        fold: one fold; all of the folder's folds are averaged when left out.
        device: auto, cpu, cuda:0.
        precision: auto, float32, bf16, fp16.
        overlap: part of a window that its neighbour covers too; the plan's own when left out.
        tta: mirror windows along the plan's mirror_axes too; the plan's own when left out.
        network: `path/to/file.py:Class` again, where the model's network is a user's own.
        window_batch: windows at a time.

    Raises:
        UsageError: no such folder, fold, device; an overlap outside [0, 1).
        UnsafeInputError: weights that must not be opened.
    """
    model = model if isinstance(model, ModelFolder) else read_model_folder(model)
    plan, chosen = model.plan, resolve_device(device)
    overlap = float(plan.get("overlap", 0.5) if overlap is None else overlap)
    if not 0 <= overlap < 1:
        raise UsageError(f"--overlap {overlap:g}: windows share a part of themselves, from 0 to below 1")
    if len(plan.get("patch", ())) != 3:
        raise UsageError(f"{model.folder}: its plan has patch {plan.get('patch')!r}, expected three numbers")
    mirror = bool(plan.get("tta", True)) if tta is None else tta
    folds = select_folds(model, fold)
    networks = [load_network(model, name, network=network).to(chosen).eval() for name in folds]
    layout = memory_format(model.network.spatial_dims)
    # what a chain does to label maps has nothing to do here
    steps = [step for step in model.preprocessing or preprocessing_steps(**plan) if step["name"] not in LABELS]
    room = WINDOW_VOXELS[chosen.type] // math.prod(plan["patch"])
    return Predictor(
        model=model,
        folds=folds,
        networks=tuple(one.to(memory_format=layout) for one in networks),
        chain=build_chain(steps, keys=("image",)),
        overlap=overlap,
        tta_axes=tuple(plan.get("mirror_axes", ())) if mirror else (),
        device=chosen,
        precision=resolve_precision(precision, chosen),
        window_batch=window_batch or max(1, min(LARGEST_BATCH, room)),
    )


Model = Predictor | ModelFolder | Path | str


def loaded(model: Model, **options: Any) -> Predictor:
    """A predictor as it is, or the one of a model folder; options are those of `load_predictor`."""
    return model if isinstance(model, Predictor) else load_predictor(model, **options)
