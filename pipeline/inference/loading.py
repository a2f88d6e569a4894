"""A model folder becomes a predictor: its networks, those of the models beside it, and the engine that runs them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ...errors import UsageError, unknown
from ...transforms.chains import LABELS, build_chain, preprocessing_steps
from ..devices import memory_format, resolve_device, resolve_precision
from ..model_folder import ModelFolder, load_network, read_model_folder, select_folds
from .budget import UNLIMITED, Limits
from .cascade import check_channels
from .classes import chosen_classes
from .engines import choose_engine
from .exact import TILINGS
from .footprint import resident
from .halo import measure_halo
from .members import check_together
from .modes import PLAIN, Modes, check_modes
from .predictor import Predictor
from .skipping import background_of
from .views import view_axes

WINDOW_VOXELS = {"cpu": 1 << 16, "cuda": 1 << 21}  # windows of fewer voxels are put together up to this
LARGEST_BATCH = 16
Model = Predictor | ModelFolder | Path | str


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
    views = () if modes.views is None else view_axes(model, modes.views)
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
        only=() if modes.classes is None else chosen_classes(model, modes.classes),
        others=tuple(others),
        coarse=coarse,
        background=background_of(model) if modes.skip_background else (),
        view_axes=views,
        engine=choose_engine(
            engine,
            networks * max(1, len(views)),  # an engine holds a network once for each of its views
            device=chosen,
            precision=word,
            patch=plan["patch"],
            room=None if limits.ram is None else limits.ram - resident(),
            exact=exact,
        ),
    )
    return predictor.with_limits(limits)


def loaded(model: Model, *, modes: Modes = PLAIN, **options: Any) -> Predictor:
    """A predictor with the limits that are named, or the one of a model folder; options are those of `load_predictor`,
    of which a predictor has its own.

    Raises:
        UsageError: modes beside a predictor, which has its own.
    """
    if not isinstance(model, Predictor):
        return load_predictor(model, modes=modes, **options)
    if modes != PLAIN:
        raise UsageError("a loaded Predictor has its own modes; give them to load_predictor(..., modes=Modes(...))")
    limits = options.get("limits", UNLIMITED)
    return model if limits in (UNLIMITED, model.limits) else model.with_limits(limits)
