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
from .cascade import check_channels, segment_region
from .checks import check_dimensions, check_modality
from .classes import chosen_classes, kept_classes, written_values
from .engines import Engine, TorchEngine, choose_engine
from .exact import TILINGS
from .footprint import CONTEXT_BYTES, resident, window_bytes
from .halo import Halo, measure_halo
from .label_files import PROBABILITIES, to_values
from .members import MembersScorer, check_together, marks_of
from .modes import PLAIN, Modes, check_modes
from .scorer import NetworkScorer
from .segmentation import OnPlan, Prepared, Segmented, prepare, segment
from .sinks import Asked, ProbabilityTarget
from .skipping import Range, background_of
from .uncertainty import sum_up
from .views import View, sliced, view_axes

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
        modes: what is asked for beside its label map.
        only: numbers of the classes that are written, the others as background; all of them where it is empty.
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
    def values(self) -> tuple[int, ...]:
        """Label value of each class as it is written: 0 for one that is not asked for."""
        return written_values(self.model.labels, self.only)

    @property
    def classes(self) -> dict[int, str]:
        """Name of each label value that is written."""
        asked = [label for number, label in enumerate(self.model.labels) if not self.only or number in self.only]
        return {label.value: label.name for label in asked}

    @property
    def mode_settings(self) -> dict[str, Any]:
        """What the modes add to the settings that decide the results; empty for plain ones."""
        modes = self.modes
        coarse = None if self.coarse is None else marks_of(self.coarse.model, self.coarse.folds)
        known = {
            "classes": [self.model.labels[number].name for number in self.only],
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
        return Asked(self.members, self.modes.uncertainty, self.target)

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
            kept = kept_classes(self.model.labels, self.only)
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
        numbers, notes = sum_up(labels, found.maps, len(self.model.labels))
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
        if limits.ram is None and self.device.type != "cuda":
            return replace(self, limits=limits, measured=())
        size, batch = (self.model.network.in_channels, *self.views[0].patch), self.window_batch
        found = replace(self, limits=limits, measured=())
        while batch >= 1:
            try:
                measured = tuple(window_bytes(self.scorer, size, count) for count in (1, batch))
                return replace(found, window_batch=batch, measured=measured)
            except torch.OutOfMemoryError:  # the GPU is full already: each case will find its own way
                batch //= 2
        return found

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
    modes: Modes = PLAIN,
    engine: str = "auto",
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
        modes: what is asked for beside the label map of this model.
        engine: auto, torch, compile, openvino, tensorrt.

    Raises:
        UsageError: no such folder, fold, device, class; an engine that cannot be had; an overlap outside [0, 1); a
            network that cannot be tiled exactly; modes that do not go together.
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
    check_modes(modes, model, tiling)
    mirror = bool(plan.get("tta", True)) if tta is None else tta
    folds = select_folds(model, fold)
    networks = [load_network(model, name, network=network).to(chosen).eval() for name in folds]
    others = [(other, select_folds(other, fold)) for other in map(read_model_folder, modes.with_models)]
    for other, names in others:
        check_together(model, other)
        own = network if other.network.code_sha256 else None
        networks += [load_network(other, name, network=own).to(chosen).eval() for name in names]
    axes = [set(one.plan.get("mirror_axes", ())) for one in (model, *(other for other, _ in others))]
    coarse: Predictor | None = None
    if modes.coarse is not None:
        finder = read_model_folder(modes.coarse)
        check_channels(model, finder)
        own = network if finder.network.code_sha256 else None
        coarse = load_predictor(finder, device=device, precision=precision, network=own, limits=limits, engine=engine)
    layout = memory_format(model.network.spatial_dims)
    # what a chain does to label maps has nothing to do here
    steps = [step for step in model.preprocessing or preprocessing_steps(**plan) if step["name"] not in LABELS]
    room = WINDOW_VOXELS[chosen.type] // math.prod(plan["patch"])
    word = resolve_precision(precision, chosen)
    exact = tiling == "exact"
    predictor = Predictor(
        model=model,
        folds=folds,
        networks=tuple(one.to(memory_format=layout) for one in networks),
        chain=build_chain(steps, keys=("image",)),
        overlap=overlap,
        tta_axes=tuple(sorted(set.intersection(*axes), key=list(plan.get("mirror_axes", ())).index)) if mirror else (),
        device=chosen,
        precision=word,
        window_batch=window_batch or max(1, min(LARGEST_BATCH, room)),
        halo=measure_halo(networks) if exact else None,
        modes=modes,
        only=() if modes.classes is None else chosen_classes(model.labels, modes.classes),
        others=tuple(others),
        coarse=coarse,
        background=background_of(model) if modes.skip_background else (),
        view_axes=() if modes.views is None else view_axes(model, modes.views),
        engine=choose_engine(
            engine,
            networks,
            device=chosen,
            precision=word,
            patch=plan["patch"],
            room=None if limits.ram is None else limits.ram - resident(),
            exact=exact,
        ),
    )
    return predictor.with_limits(limits)


Model = Predictor | ModelFolder | Path | str


def loaded(model: Model, *, modes: Modes = PLAIN, **options: Any) -> Predictor:
    """A predictor as it is, or the one of a model folder; options are those of `load_predictor`.

    Raises:
        UsageError: modes beside a predictor, which has its own.
    """
    if not isinstance(model, Predictor):
        return load_predictor(model, modes=modes, **options)
    if modes != PLAIN:
        raise UsageError("a loaded Predictor has its own modes; give them to load_predictor(..., modes=Modes(...))")
    return model
