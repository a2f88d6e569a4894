"""A loaded model: volumes in, label maps on their own grids out; files are not its business."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose

from ...networks.base import SegmentationNetwork
from ...transforms.volume import Volume
from ..devices import resolve_precision
from ..model_folder import ModelFolder
from .budget import UNLIMITED, Limits
from .cascade import segment_region
from .checks import check_dimensions, check_modality
from .classes import kept_classes, output_names, written_names, written_values
from .engines import Engine, TorchEngine
from .footprint import CONTEXT_BYTES, window_bytes
from .halo import Halo
from .label_files import PROBABILITIES, to_values
from .members import MembersScorer, marks_of
from .modes import PLAIN, Modes
from .scorer import NetworkScorer
from .segmentation import OnPlan, Prepared, Segmented, prepare, segment
from .sinks import Asked, ProbabilityTarget
from .skipping import Range
from .uncertainty import sum_up
from .views import View, sliced


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
        modes: what is asked for beside its label map.
        only: numbers of the classes or regions that are written, the others as background; all of them where it is
            empty.
        others: models, and their folds, whose networks stand among `networks` too, behind its own.
        coarse: that finds the region to which volumes are confined.
        background: prepared values of each channel that are background; windows of nothing else are not computed.
        view_axes: that slices are stacked along, where there are several slicings or another one than the plan's.
        target: of a case's probabilities, where they are asked for.
        kept: bytes of RAM that a case holds beside its plan.
        engine: that runs the networks; torch where it is left out.
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
    modes: Modes = PLAIN
    only: tuple[int, ...] = ()
    others: tuple[tuple[ModelFolder, tuple[str, ...]], ...] = ()
    coarse: Predictor | None = None
    background: tuple[Range, ...] = ()
    view_axes: tuple[int, ...] = ()
    target: ProbabilityTarget | None = None
    kept: int = 0
    engine: Engine | None = None

    @property
    def patch(self) -> tuple[int, ...]:
        """Size of a window."""
        return tuple(self.model.plan["patch"])

    @property
    def blending(self) -> str:
        """Weights of a window."""
        return str(self.model.plan.get("blending", "gaussian"))

    @property
    def stepped(self) -> bool:
        """Whether windows lie at whole steps, as in `windows.axis_starts`."""
        return self.model.plan.get("windows") == "stepped"

    @property
    def values(self) -> tuple[int, ...]:
        """Label value of each class as it is written: 0 for one that is not asked for."""
        return written_values(self.model, self.only)

    @property
    def has_regions(self) -> bool:
        """Whether the networks' outputs are regions that may overlap."""
        return bool(self.model.regions)

    @property
    def classes(self) -> dict[int, str]:
        """Name of each label value that is written."""
        return written_names(self.model, self.only)

    @property
    def mode_settings(self) -> dict[str, Any]:
        """What the modes add to the settings that decide the results; empty for plain ones."""
        modes = self.modes
        coarse = None if self.coarse is None else marks_of(self.coarse.model, self.coarse.folds)
        known = {
            "classes": [output_names(self.model)[number] for number in self.only],
            "with_models": [marks_of(model, folds) for model, folds in self.others],
            "coarse": coarse,
            "margin_mm": modes.margin_mm if coarse else None,
            "skip_background": bool(self.background),
            "views": list(self.view_axes),
            "probabilities": modes.probabilities,
            "uncertainty": modes.uncertainty,
        }
        return {name: value for name, value in known.items() if value}

    @property
    def asked_files(self) -> tuple[str, ...]:
        """Names of what is written beside a label map."""
        maps = ("uncertainty", "disagreement")[: min(self.members, 2)] if self.modes.uncertainty else ()
        return (*((PROBABILITIES,) if self.modes.probabilities else ()), *maps)

    @property
    def slices(self) -> int:
        """That a slice network sees at a time, of each channel."""
        return int(self.model.plan.get("slices", 1))

    @property
    def asked(self) -> Asked:
        """What a pass over a volume gives beside labels."""
        back = self.model.plan.get("resampling") or {}
        probable = back.get("scores") == "probabilities"
        return Asked(self.members, self.modes.uncertainty, self.target, self.has_regions, probable)

    @property
    def members(self) -> int:
        """Networks whose scores are kept apart: all, where their disagreement is asked for."""
        return len(self.networks) if self.modes.uncertainty else 1

    @property
    def views(self) -> tuple[View, ...]:
        """How the prepared image is cut into windows: the plan's slicing, or those that are averaged."""
        own = View(self.networks, self.patch, self.tta_axes, getattr(self.networks[0], "axis", None))
        return tuple(own if axis == own.axis else sliced(own, axis) for axis in self.view_axes) or (own,)

    def labels(self, volume: Volume) -> np.ndarray:
        """Label values (*volume.geometry.shape) of a volume, on its own grid; `segment` says more of them."""
        return self.segment(volume).labels

    def prepare(self, volume: Volume) -> Volume | Prepared:
        """What `segment` takes, checked, and prepared where no limit of RAM stands against it; may run in a thread.

        Raises:
            CaseError: another modality, dimension or channels than the model takes; voxels that are not finite.
        """
        check_modality(volume, self.model.plan)
        check_dimensions(volume, self.model.network.spatial_dims, self.patch)
        return prepare(self, volume) if self.limits.ram is None and self.coarse is None else volume

    def segment(
        self, image: Volume | Prepared, on_plan: OnPlan | None = None, probabilities: Path | None = None
    ) -> Segmented:
        """Label values (*volume.geometry.shape) of a volume, on its own grid, and how they came about.

        Memory: the prepared image or none of it, the sums of one slab, the label map; within `limits` in all.

        Args:
            image: the volume, or what `prepare` made of it.
            on_plan: is told how the case is done, before its network starts.
            probabilities: the file that they are written to, where they are wanted.

        Raises:
            CaseError: another modality, dimension, channels or values than the model takes; voxels or scores that
                are not finite; nothing fits into the limits.
        """
        volume = image.volume if isinstance(image, Prepared) else image
        target = None
        if probabilities is not None:
            kept = kept_classes(self.model, self.only)
            target = ProbabilityTarget(probabilities, kept, volume.geometry)
        if self.coarse is not None:
            found = segment_region(replace(self, coarse=None, target=target), self.coarse, volume, on_plan)
        else:
            ready = image if isinstance(image, Prepared) else self.prepare(image)
            found = segment(replace(self, target=target) if target else self, ready, on_plan)
        if self.engine is not None:
            found = replace(found, notes=(*found.notes, *self.engine.notes()))
        labels = to_values(found.labels, self.values)
        if not self.modes.uncertainty:
            return replace(found, labels=labels)
        numbers, notes = sum_up(labels, found.maps, 2 if self.has_regions else len(self.model.labels))
        return replace(found, labels=labels, numbers=numbers, notes=(*found.notes, *notes))

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
        precision = resolve_precision(known, device)
        engine = TorchEngine(device, precision)
        moved = replace(self, networks=networks, device=device, precision=precision, engine=engine)
        return moved.with_limits(self.limits)

    def with_limits(self, limits: Limits) -> Predictor:
        """The predictor with what it may take; what its windows take is measured."""
        coarse = self.coarse
        if coarse is not None and coarse.limits != limits:
            coarse = coarse.with_limits(limits)
        found, batch = replace(self, limits=limits, coarse=coarse, measured=()), self.window_batch
        if limits.ram is None and self.device.type != "cuda":
            return found
        while batch >= 1:
            try:
                measured = tuple(self._measured(count) for count in (1, batch))
                return replace(found, window_batch=batch, measured=measured)
            except torch.OutOfMemoryError:  # the GPU is full already: each case will find its own way
                batch //= 2
        return found

    def _measured(self, batch: int) -> tuple[int, int]:
        """What so many windows take, in the view that takes most; an engine is made ready for each of them."""
        channels = self.model.network.in_channels
        each = [window_bytes(self.scorer_of(view), (channels, *view.patch), batch) for view in self.views]
        ram, gpu = (max(amounts) for amounts in zip(*each, strict=True))
        return ram, gpu

    @property
    def engine_facts(self) -> dict[str, str]:
        """Name, version and precision of what runs the networks."""
        return (self.engine or TorchEngine(self.device, self.precision)).facts

    @property
    def scorer(self) -> NetworkScorer:
        """What windows become, in the first view."""
        return self.scorer_of(self.views[0])

    def scorer_of(self, view: View) -> NetworkScorer:
        """What windows of a view become."""
        kind = NetworkScorer if self.members == 1 else MembersScorer
        return kind(
            view.networks, tta_axes=view.tta_axes, device=self.device, precision=self.precision, engine=self.engine
        )
