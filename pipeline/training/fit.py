"""One fold trained from its first step, or from a checkpoint, to its last; then scored on its validation cases."""

from __future__ import annotations

import copy
import logging
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from ...errors import InterruptedRunError
from ...networks.base import SegmentationNetwork, SliceNetwork
from ...networks.registry import build_network
from ...transforms.augment import augmentation_steps
from ...transforms.chains import preprocessing_steps
from ...transforms.context import neighbours
from ..dataset.folds import Fold
from ..dataset.plan import Plan
from ..dataset.store import Store
from ..inference.stitch import segment
from ..model_folder import write_model_folder
from ..seeds import draw_seed
from .budget import Budget, steps_of_run, time_one_case, time_one_step
from .checkpoints import AtomicCheckpoints, KeepCheckpoints, newest_whole, read_record
from .data import Patches, training_loader, validation_loader
from .module import SegmentationModule
from .progress import ShowProgress
from .start import read_start, start_network

log = logging.getLogger(__name__)

# what Lightning says of things that are meant as they are
EXPECTED_WARNINGS = (
    ".*does not have many workers.*",
    ".*logging interval.*",
    ".*resuming from a checkpoint that ended.*",
    ".*GPU available but not used.*",
    ".*`training_step` returned `None`.*",
    ".*have no `val_dataloader`.*",
)
LIGHTNING_PRECISION = {"float32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


@dataclass(frozen=True)
class RunSettings:
    """How a run goes, beside its plan.

    Args:
        budget: epochs, minutes or steps.
        device: resolved torch device.
        precision: resolved word.
        workers: processes that draw patches; 0 for none.
        deterministic: slower and bit-equal on a GPU.
        select: `last` (averaged, where the plan says so) weights, or those of the `best` epoch on the validation cases.
        bar: draw a progress bar.
        cache_bytes: memory for decoded cases.
    """

    budget: Budget
    device: torch.device
    precision: str
    workers: int = 0
    deterministic: bool = False
    select: str = "last"
    bar: bool = False
    cache_bytes: int = 2 * 10**9


class CaseScore:
    """Dice of whole cases on the grid of the network, by the same windows that prediction uses."""

    def __init__(self, store: Store, plan: Plan, device: torch.device, precision: str) -> None:
        self.store, self.plan, self.device, self.precision = store, plan, device, precision

    def __call__(self, name: str, network: SegmentationNetwork) -> Tensor:
        """Dice of each foreground class or region that the plan has, NaN where reference and prediction are empty."""
        image = torch.from_numpy(self.store.image(name)[...])
        truth = torch.from_numpy(self.store.labels(name)[...]).long()
        was_training = network.training
        predicted = segment(
            network.eval(),
            image if self.plan.slice_axis is None else neighbours(image, self.plan.slice_axis, self.plan.slices),
            patch=self.plan.patch,
            overlap=self.plan.overlap,
            device=self.device,
            precision=self.precision,
            blending=self.plan.blending,
            stepped=self.plan.windows == "stepped",
            regions=bool(self.plan.regions),
        ).long()
        network.train(was_training)
        return self._dice_of_regions(predicted, truth) if self.plan.regions else self._dice_of_classes(predicted, truth)

    def _dice_of_classes(self, predicted: Tensor, truth: Tensor) -> Tensor:
        classes = len(self.plan.labels)
        agreed = torch.bincount(truth[predicted == truth], minlength=classes)[1:].double()
        sizes = torch.bincount(truth.flatten(), minlength=classes) + torch.bincount(
            predicted.flatten(), minlength=classes
        )
        return 2 * agreed / sizes[1:]

    def _dice_of_regions(self, predicted: Tensor, truth: Tensor) -> Tensor:
        """Of the label map, as `predict` writes it and `evaluate` scores it.

        Args:
            predicted: number of the last region of each voxel, 0 for none.
            truth: class of each voxel.
        """
        numbers = {label.value: number for number, label in enumerate(self.plan.labels)}
        written = torch.tensor([0, *(numbers[region.writes] for region in self.plan.regions)])[predicted]
        found = []
        for _, classes in self.plan.scored:
            ours, theirs = (torch.isin(one, torch.tensor(classes)) for one in (written, truth))
            found.append(2 * (ours & theirs).sum().double() / (ours.sum() + theirs.sum()))
        return torch.stack(found)

    def table(self, names: Sequence[str], network: SegmentationNetwork) -> dict[str, Any]:
        """Dice per case and class, and the means over the cases that have the class."""
        classes = [name for name, _ in self.plan.scored]
        rows = {name: self(name, network) for name in names}
        table: dict[str, Any] = {
            "cases": {name: dict(zip(classes, _plain(row), strict=True)) for name, row in rows.items()}
        }
        if rows:
            means = torch.stack(list(rows.values())).nanmean(dim=0)
            table["mean_per_class"] = dict(zip(classes, _plain(means), strict=True))
            table["mean"] = _plain(means.nanmean()[None])[0]
        return table


class KeepModel(lightning.Callback):
    """Write the model folder at the end of every epoch, so that a run can be tried while it goes on."""

    def __init__(self, run: Path, fold: str, plan: Plan) -> None:
        self.run, self.fold, self.plan = run, fold, plan
        self.steps = preprocessing_steps(**plan.model_dump())

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """The averaged weights where there are some."""
        self.write(pl_module.model, {"steps": trainer.global_step, "finished": False})

    def write(self, network: SegmentationNetwork, provenance: dict[str, Any]) -> None:
        """`weights.safetensors` of this fold, and `model.yaml`."""
        write_model_folder(
            self.run,
            network,
            self.plan.network.options,
            self.plan.model_dump(mode="json"),
            fold=self.fold,
            preprocessing=self.steps,
            provenance={**provenance, **read_start(self.run / f"fold_{self.fold}")},
        )


def fit(
    folder: Path,
    name: str,
    fold: Fold,
    store: Store,
    plan: Plan,
    settings: RunSettings,
    *,
    used_seconds: float,
    folds: int = 1,
) -> tuple[int, dict[str, Any]]:
    """Train one fold in `folder` and write its weights.

    Args:
        folder: RUN/fold_K; a checkpoint in it is gone on from.
        name: of the fold.
        fold: its cases.
        store: preprocessed cases.
        plan: what to do.
        settings: how.
        used_seconds: of `--minutes`, spent before the first fold.
        folds: that share the rest of `--minutes`.

    Returns:
        The steps of the run, and the validation scores of the model that was kept.

    Raises:
        InterruptedRunError: stopped by a signal.
        NothingDoneError: the loss stayed not finite.
    """
    torch.manual_seed(draw_seed(plan.seed, 0))
    network = network_of(plan)
    if newest_whole(folder / "checkpoints") is None:
        start_network(network, plan, folder, fold=name)
    score = CaseScore(store, plan, settings.device, settings.precision)
    patches = Patches(
        store,
        fold.train,
        steps=augmentation_steps(
            plan.patch, spacing_mm=plan.spacing_mm, mirror_axes=plan.mirror_axes, strength=plan.augmentation
        ),
        batch=plan.batch,
        seed=plan.seed,
        oversample_foreground=plan.oversample_foreground,
        cache_bytes=settings.cache_bytes,
        slices=(plan.slice_axis or 0, plan.slices),
    )
    module = SegmentationModule(network, plan, steps=0, score=score)

    def measure() -> tuple[float, float]:
        step = time_one_step(module, patches, settings.device, settings.precision)
        return step, time_one_case(module, fold.validation, settings.device)

    module.steps = steps_of_run(
        settings.budget,
        plan,
        folder / "budget.json",
        measure,
        used_seconds,
        final_cases=len(fold.validation),
        folds=folds,
    )
    keep = KeepModel(folder.parent, name, plan)
    _run_trainer(folder, module, patches, fold, plan, settings, keep)
    module.network.load_state_dict(_selected(module, folder, settings.select))
    model = module.network.to(settings.device).eval()
    keep.write(model, {"steps": module.steps, "selected": settings.select, "finished": True})
    return module.steps, {"selected": settings.select, **score.table(fold.validation, model)}


def network_of(plan: Plan) -> SegmentationNetwork:
    """The plan's network with fresh weights; a slice model is wrapped so that it takes volumes."""
    network = build_network(
        plan.network.name, plan.dims, plan.network_channels, plan.outputs, **dict(plan.network.options)
    )
    if plan.slice_axis is not None:
        network = SliceNetwork(network, axis=plan.slice_axis)
    return network.to(memory_format=network.layout)


def _run_trainer(
    folder: Path,
    module: SegmentationModule,
    patches: Patches,
    fold: Fold,
    plan: Plan,
    settings: RunSettings,
    keep: KeepModel,
) -> None:
    start = newest_whole(folder / "checkpoints")
    checked = spread(fold.validation, plan.validation_cases)
    gpu = settings.device.type == "cuda"
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        trainer = lightning.Trainer(
            accelerator="gpu" if gpu else "cpu",
            devices=[settings.device.index or 0] if gpu else 1,
            precision=LIGHTNING_PRECISION[settings.precision],  # type: ignore[arg-type]
            max_steps=module.steps,
            max_epochs=-1,
            num_sanity_val_steps=0,
            limit_val_batches=1.0 if checked else 0,
            gradient_clip_val=1.0,  # the module clips by itself; this makes Lightning call it
            deterministic=settings.deterministic,
            log_every_n_steps=10,
            logger=TensorBoardLogger(folder, name="curves", version="", default_hp_metric=False),
            callbacks=[ShowProgress(module.steps, bar=settings.bar), keep, KeepCheckpoints(folder / "checkpoints")],
            plugins=[AtomicCheckpoints()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        steps_per_epoch = min(plan.steps_per_epoch, module.steps)
        with _signals_kept() as stopped:
            trainer.fit(
                module,
                training_loader(
                    patches,
                    steps_per_epoch=steps_per_epoch,
                    step=lambda: trainer.global_step,
                    workers=settings.workers,
                    pin_memory=gpu,
                ),
                validation_loader(checked) if checked else None,
                ckpt_path=start[0] if start else None,
                weights_only=True,
            )
    if stopped or trainer.interrupted or trainer.global_step < module.steps:
        kept = newest_whole(folder / "checkpoints")
        onwards = "begins anew, no checkpoint was due yet" if kept is None else f"goes on from step {kept[1]}"
        raise InterruptedRunError(
            f"{folder}: stopped at step {trainer.global_step} of {module.steps}; the same command {onwards}"
        )


@contextmanager
def _signals_kept() -> Iterator[list[BaseException]]:
    """Undo what Lightning makes of Ctrl-C and SIGTERM: an exit of the process (kept in the list), signals ignored."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    stopped: list[BaseException] = []
    try:
        yield stopped
    except (SystemExit, KeyboardInterrupt) as stop:  # Lightning's SIGTERMException is a SystemExit
        stopped.append(stop)
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None:  # None: set by code that is not Python's
                    signal.signal(number, handler)


def spread(names: Sequence[str], count: int) -> list[str]:
    """`count` of the names, evenly spread over the sorted list; all where there are no more."""
    ordered = sorted(names)
    if len(ordered) <= count:
        return ordered
    return [ordered[(2 * place + 1) * len(ordered) // (2 * count)] for place in range(count)]


def _selected(module: SegmentationModule, folder: Path, select: str) -> dict[str, Tensor]:
    best = read_record(folder / "checkpoints").get("best")
    if select == "last" or best is None:
        return copy.deepcopy(module.model.state_dict())
    state = AtomicCheckpoints().load_checkpoint(folder / "checkpoints" / best["file"])["state_dict"]
    prefix = "averaged.module." if module.averaged is not None else "network."
    log.info("keeping the weights of step %d, the best on the validation cases", best["step"])
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _plain(values: Tensor) -> list[float | None]:
    return [None if value != value else round(float(value), 6) for value in values]
