"""`voxelwise train`: a data set -> a model folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from . import options as shared
from .terminal import finish


def run(
    dataset: Annotated[
        Path,
        typer.Argument(metavar="DATASET", help="MSD or nnU-Net folder, images/ + labels/, or a preprocessed cache."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the run, a model folder from its first checkpoint on.")],
    network: shared.Network = None,
    dims: shared.Dims = None,
    width: shared.Width = None,
    options: shared.NetworkOptions = None,
    fold: Annotated[str, typer.Option("--fold", help="Number of a fold, or all: every case and no validation.")] = "0",
    cross_validate: Annotated[bool, typer.Option("--cross-validate", help="All folds, one after the other.")] = False,
    splits: Annotated[
        Path | None, typer.Option("--splits", help="JSON file with your own folds, as nnU-Net's splits_final.json.")
    ] = None,
    plan: Annotated[Path | None, typer.Option("--plan", help="plan.yaml to follow; made where none is given.")] = None,
    init: Annotated[
        Path | None,
        typer.Option("--init", metavar="MODEL", help="Model folder to fine-tune: its network, weights and grid."),
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Length of the run; or:")] = None,
    minutes: Annotated[float | None, typer.Option("--minutes", help="Time for everything, or:")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Steps of the optimiser.")] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Patches of one step.  [default: the plan's]")
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option("--loss", help="dice_ce, dice, cross_entropy, bce, dice_bce or sen_spe.  [default: dice_ce]"),
    ] = None,
    optimizer: Annotated[str | None, typer.Option("--optimizer", help="adamw, adam or sgd.  [default: adamw]")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate.  [default: the plan's]")] = None,
    schedule: Annotated[str | None, typer.Option("--schedule", help="cosine, poly or constant.")] = None,
    select: Annotated[
        str, typer.Option("--select", help="last weights, or best epoch on the validation cases.")
    ] = "last",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint; starts if there is none.")
    ] = False,
    overwrite: shared.Overwrite = False,
    seed: shared.Seed = None,
    device: shared.Device = "auto",
    precision: shared.Precision = "auto",
    workers: shared.Workers = None,
    deterministic: Annotated[bool, typer.Option("--deterministic", help="Bit-equal runs on a GPU; slower.")] = False,
    memory: shared.Memory = None,
    gpu_memory: shared.GpuMemory = None,
    as_json: shared.AsJson = False,
    quiet: shared.Quiet = False,
    debug: shared.Debug = False,
) -> int:
    """Train a network; the same command again finishes what is left."""
    from ..pipeline.training.supervised import train

    outcome = train(
        dataset,
        out=out,
        network=network,
        dims=dims,
        width=width,
        options=shared.parse_options(options),
        fold=fold,
        cross_validate=cross_validate,
        splits=splits,
        plan=plan,
        init=init,
        epochs=epochs,
        minutes=minutes,
        steps=steps,
        batch=batch,
        loss=loss,
        optimizer=optimizer,
        lr=lr,
        schedule=schedule,
        select=select,
        resume=resume,
        overwrite=overwrite,
        seed=seed,
        device=device,
        precision=precision,
        workers=workers,
        deterministic=deterministic,
        memory=memory,
        gpu_memory=gpu_memory,
        bar=sys.stderr.isatty() and not quiet,
    )
    return finish("train", outcome, as_json=as_json, quiet=quiet, next_step=f"next: voxelwise predict {out} INPUT OUT")
