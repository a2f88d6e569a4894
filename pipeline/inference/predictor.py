"""A loaded model: volumes in, label maps on their own grids out; files are not its business."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose

from ...errors import UsageError, unknown
from ...networks.base import SegmentationNetwork
from ...transforms.chains import LABELS, build_chain, preprocessing_steps
from ...transforms.volume import Volume
from ..devices import memory_format, resolve_device, resolve_precision
from ..model_folder import ModelFolder, load_network, read_model_folder, select_folds
from .budget import UNLIMITED, Limits
from .checks import check_dimensions, check_modality
from .exact import TILINGS
from .export import to_values
from .footprint import CONTEXT_BYTES, window_bytes
from .halo import Halo, measure_halo
from .scorer import NetworkScorer
from .segmentation import Segmented, segment

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
        halo: of the networks, where volumes are tiled exactly; None where windows are blended.
        limits: of memory.
        measured: bytes of RAM and on the GPU that one window takes, and `window_batch` of them; empty where nothing is
            planned.
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
    halo: Halo | None = None
    limits: Limits = UNLIMITED
    measured: tuple[tuple[int, int], ...] = ()

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
        """Label values (*volume.geometry.shape) of a volume, on its own grid; `segment` says more of them."""
        return self.segment(volume).labels

    def segment(self, volume: Volume) -> Segmented:
        """Label values (*volume.geometry.shape) of a volume, on its own grid, and how they came about.

        Memory: the prepared image or none of it, the sums of one slab, the label map; within `limits` in all.

        Raises:
            CaseError: another modality, dimension, channels or values than the model takes; voxels or scores that
                are not finite; nothing fits into the limits.
        """
        check_modality(volume, self.model.plan)
        check_dimensions(volume, self.model.network.spatial_dims, self.patch)
        found = segment(self, volume)
        return replace(found, labels=to_values(found.labels, self.values))

    def window_bytes(self, batch: int) -> tuple[int, int]:
        """What so many windows take, in RAM and on the GPU, as it was measured."""
        one, most = self.measured
        share = (batch - 1) / max(1, self.window_batch - 1)
        ram, gpu = (round(low + (high - low) * share) for low, high in zip(one, most, strict=True))
        return ram, gpu

    @property
    def label_bytes(self) -> int:
        """Of a voxel of the label map, beside the numbers of its class where they have another type."""
        numbers = 1 if len(self.values) <= 256 else 2
        values = 1 if max(self.values) < 256 else 2 if max(self.values) < 65536 else 4
        return numbers if values == numbers else numbers + values

    @property
    def held_gpu(self) -> int:
        """Bytes on the GPU that are held whatever is predicted: weights and libraries."""
        if self.device.type != "cuda":
            return 0
        return int(torch.cuda.memory_allocated(self.device)) + CONTEXT_BYTES

    def moved_to(self, device: torch.device) -> Predictor:
        """The predictor on another device, with its networks, which are moved and not copied."""
        networks = tuple(network.to(device) for network in self.networks)
        known = self.precision if (self.precision, device.type) != ("fp16", "cpu") else "auto"
        moved = replace(self, networks=networks, device=device, precision=resolve_precision(known, device))
        return moved.with_limits(self.limits)

    def with_limits(self, limits: Limits) -> Predictor:
        """The predictor with what it may take; what its windows take is measured."""
        if limits.ram is None and self.device.type != "cuda":
            return replace(self, limits=limits, measured=())
        size, batch = (self.model.network.in_channels, *self.patch), self.window_batch
        found = replace(self, limits=limits, measured=())
        while batch >= 1:
            try:
                measured = tuple(window_bytes(self.scorer, size, count) for count in (1, batch))
                return replace(found, window_batch=batch, measured=measured)
            except torch.OutOfMemoryError:  # the GPU is full already: each case will find its own way
                batch //= 2
        return found

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
    tiling: str = "blend",
    limits: Limits = UNLIMITED,
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
        tiling: "blend" adds up overlapping windows; "exact" gives what one pass over the whole volume would, with
            networks whose logits depend on a bounded neighbourhood.
        limits: of memory; none when left out.

    Raises:
        UsageError: no such folder, fold, device; an overlap outside [0, 1); a network that cannot be tiled exactly.
        UnsafeInputError: weights that must not be opened.
    """
    model = model if isinstance(model, ModelFolder) else read_model_folder(model)
    plan, chosen = model.plan, resolve_device(device)
    if tiling not in TILINGS:
        raise unknown("--tiling", tiling, TILINGS)
    if tiling == "exact" and overlap is not None:
        raise UsageError(f"--overlap {overlap:g} is of --tiling blend, exact tiles share what they must; leave it out")
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
    predictor = Predictor(
        model=model,
        folds=folds,
        networks=tuple(one.to(memory_format=layout) for one in networks),
        chain=build_chain(steps, keys=("image",)),
        overlap=overlap,
        tta_axes=tuple(plan.get("mirror_axes", ())) if mirror else (),
        device=chosen,
        precision=resolve_precision(precision, chosen),
        window_batch=window_batch or max(1, min(LARGEST_BATCH, room)),
        halo=measure_halo(networks) if tiling == "exact" else None,
    )
    return predictor.with_limits(limits)


Model = Predictor | ModelFolder | Path | str


def loaded(model: Model, **options: Any) -> Predictor:
    """A predictor as it is, or the one of a model folder; options are those of `load_predictor`."""
    return model if isinstance(model, Predictor) else load_predictor(model, **options)
