"""Supervised training: a labelled data set in, a model folder out.

RUN/plan.yaml              what was done, and why; give it back with --plan
RUN/folds.json             which cases train and validate in each fold
RUN/model.yaml             the model folder that predict takes, from the first checkpoint on
RUN/preprocessed/          the store of preprocessed cases, shared by the folds
RUN/fold_K/                weights.safetensors, validation.json, curves (TensorBoard), checkpoints, manifest; start.json
                           where the network started from weights: which were taken, dropped and new
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...errors import UsageError, unknown
from ...networks.registry import is_file, network_file
from ...transforms.writers import write_json
from ..dataset.folds import Fold
from ..dataset.plan import Plan
from ..dataset.store import Store
from ..devices import keep_heap, resolve_device, resolve_precision
from ..manifest import Outcome, OutputFolder, file_digest
from .budget import Budget
from .checkpoints import newest_whole
from .fit import RunSettings, fit
from .prepare import Prepared, prepare, reserved
from .start import START_FILE

log = logging.getLogger(__name__)

SELECTIONS = ("last", "best")


def train(
    dataset: str | Path,
    *,
    out: str | Path,
    network: str | None = None,
    dims: int | None = None,
    width: int | None = None,
    options: Mapping[str, Any] | None = None,
    fold: str | int = "0",
    cross_validate: bool = False,
    splits: str | Path | None = None,
    plan: str | Path | Plan | None = None,
    init: str | Path | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    batch: int | None = None,
    loss: str | None = None,
    optimizer: str | None = None,
    lr: float | None = None,
    schedule: str | None = None,
    select: str = "last",
    resume: bool = False,
    overwrite: bool = False,
    seed: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    workers: int | None = None,
    deterministic: bool = False,
    memory: str | int | None = None,
    gpu_memory: str | int | None = None,
    bar: bool = False,
) -> Outcome:
    """Train a network on a data set; the same call again finishes what is left.

    Args:
        dataset: MSD or nnU-Net folder, images/ + labels/ folder, or a store that `preprocess` made.
        out: the run's folder, a model folder from its first checkpoint on.
        network: a name that `voxelwise networks` lists, or file.py:Class; the plan's otherwise (as for the options
            below).
        dims: 2 trains on slices, 3 on volumes.
        width: channels of the first level.
        options: options of the network; `weights` (a file, or imagenet) and `channel_order` (rgb, bgr) say what it
            starts from.
        fold: number of the fold, or `all` for every case and no validation.
        cross_validate: all folds, one after the other.
        splits: JSON file with the user's own folds (nnU-Net's splits_final.json).
        plan: plan.yaml to follow.
        init: model folder to fine-tune: network, weights and all that these depend on are the model's, its head too
            where the labels are the same.
        epochs: length of the run; or
        minutes: time for everything, preprocessing included; or
        steps: optimiser steps.
        batch: patches of one step.
        loss: dice_ce, dice (V-Net's), cross_entropy, bce, dice_bce or sen_spe.
        optimizer: adamw, adam or sgd.
        lr: learning rate.
        schedule: cosine, poly or constant.
        select: `last` weights or those of the `best` epoch on the validation cases.
        resume: go on from the newest whole checkpoint (a run that was cut off does so with or without it).
        overwrite: start anew.
        seed: of every random draw.
        device: auto, cpu, cuda:0.
        precision: auto, float32, bf16, fp16.
        workers: processes that draw patches (default: none on a CPU).
        deterministic: bit-equal runs on a GPU.
        memory: RAM for the plan, such as 8GB.
        gpu_memory: GPU memory for the plan.
        bar: draw a progress bar on standard error.

    Returns:
        Outcome whose `done` are the folds and whose `failures` are the cases left out.

    Raises:
        UsageError: wrong options, options that contradict `init`, or a run with other settings in `out`.
        UnsafeInputError: weights to start from that hold more than tensors, or whose hash is not the plan's.
        NoRoomError: a step needs more than `memory`; the disk is full.
        FolderInUseError: another call prepares the run, trains the same fold, or any fold where `overwrite` is given.
        InterruptedRunError: stopped by a signal.
        NothingDoneError: no case can be trained on, or the loss stays not finite.
    """
    started = time.monotonic()
    budget = Budget(epochs, minutes, steps)
    if select not in SELECTIONS:
        raise unknown("--select", select, SELECTIONS)
    if str(fold) != "all" and not str(fold).isdigit():
        raise UsageError(f"--fold {fold}: must be the number of a fold, or all")
    if select == "best" and str(fold) == "all" and not cross_validate:
        raise UsageError("--select best: --fold all has no validation cases to choose by; leave --select out")
    keep_heap()
    chosen = resolve_device(device)
    settings = RunSettings(
        budget=budget,
        device=chosen,
        precision=resolve_precision(precision, chosen),
        workers=workers if workers is not None else (0 if chosen.type == "cpu" else min(8, (os.cpu_count() or 2) - 1)),
        deterministic=deterministic,
        select=select,
        bar=bar,
    )
    run = Path(out)
    with reserved(run, overwrite=overwrite) as lock:
        prepared = prepare(
            Path(dataset),
            run,
            fold="0" if cross_validate else str(fold),
            plan=plan,
            init=None if init is None else Path(init),
            splits=splits,
            overwrite=overwrite,
            workers=1,
            changes={
                "network": network,
                "dims": dims,
                "width": width,
                "options": dict(options or {}),
                "batch": batch,
                "loss": loss,
                "optimizer": optimizer,
                "lr": lr,
                "schedule": schedule,
                "seed": seed,
                "memory": memory,
                "gpu_memory": gpu_memory,
                "device_kind": chosen.type,
            },
        )
        wanted = list(prepared.folds) if cross_validate else [str(fold)]
        if select == "best":
            _refuse_blind_choice(prepared, wanted)
        used_seconds = time.monotonic() - started
        outcomes = []
        for name in wanted:
            outcomes.append(
                _train_fold(
                    run,
                    name,
                    prepared,
                    settings,
                    resume=resume,
                    overwrite=overwrite,
                    used_seconds=used_seconds,
                    folds=len(wanted),
                    began=lock.release,
                )
            )
    return Outcome(
        out=run,
        done=tuple(case for outcome in outcomes for case in outcome.done),
        skipped=tuple(case for outcome in outcomes for case in outcome.skipped),
        failures=prepared.failures,
        notes={},
    )


def _train_fold(
    run: Path,
    name: str,
    prepared: Prepared,
    settings: RunSettings,
    *,
    resume: bool,
    overwrite: bool,
    used_seconds: float,
    folds: int,
    began: Callable[[], None],
) -> Outcome:
    """Train, validate and record one fold; `began` is called as soon as the fold's folder is locked."""
    folder, fold, store, plan = run / f"fold_{name}", prepared.folds[name], prepared.store, prepared.plan
    agreed = {
        "plan": plan.model_dump(mode="json", exclude={"reasons"}),
        "code_sha256": file_digest(network_file(plan.network.name)[0]) if is_file(plan.network.name) else None,
        "fold": {"train": list(fold.train), "validation": list(fold.validation)},
        "budget": {key: getattr(settings.budget, key) for key in ("epochs", "minutes", "steps")},
        "precision": settings.precision,
        "device": settings.device.type,
        "select": settings.select,
    }
    facts = {"threads": torch.get_num_threads(), "workers": settings.workers, "deterministic": settings.deterministic}
    with OutputFolder(folder, "train", agreed, overwrite=overwrite, facts=facts) as output:
        began()
        inputs = _digest(store, fold)
        if output.is_done(f"fold {name}", inputs):
            log.info("fold %s is finished already; nothing to do (%s)", name, folder)
            return output.finish()
        if overwrite:
            for old in ("checkpoints", "curves"):
                shutil.rmtree(folder / old, ignore_errors=True)
            for old in ("budget.json", START_FILE):
                (folder / old).unlink(missing_ok=True)
        start = newest_whole(folder / "checkpoints")
        if start is not None:
            log.info("going on from step %d (%s)", start[1], start[0].name)
        elif resume:
            log.info("no checkpoint in %s; starting from the beginning", folder)
        steps, scores = fit(folder, name, fold, store, plan, settings, used_seconds=used_seconds, folds=folds)
        files = [folder / "weights.safetensors", folder / "validation.json"]
        write_json(folder / "validation.json", scores)
        output.record(f"fold {name}", files, inputs, {"steps": steps, "selected": settings.select})
        return output.finish()


def _refuse_blind_choice(prepared: Prepared, wanted: Sequence[str]) -> None:
    blind = [name for name in wanted if not prepared.folds[name].validation or not prepared.plan.validation_cases]
    if blind:
        raise UsageError(
            f"--select best: fold {blind[0]} validates no case, so there is nothing to choose the best epoch by; leave "
            "--select out, or give the plan validation_cases and the fold some"
        )


def _digest(store: Store, fold: Fold) -> str:
    """Of what the fold's cases were made from and what became of them."""
    records = {name: store.records[name] for name in (*fold.train, *fold.validation)}
    return hashlib.sha256(json.dumps(records, sort_keys=True).encode()).hexdigest()
