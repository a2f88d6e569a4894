"""`voxelwise preprocess`: images and labels as training wants them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .terminal import finish


def run(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="MSD or nnU-Net folder, or images/ + labels/.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="CACHE", help="Folder of the cache, which `train` takes as DATASET.")
    ],
    plan: Annotated[Path | None, typer.Option("--plan", help="plan.yaml to follow; made where none is given.")] = None,
    workers: options.Workers = None,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """Run the preprocessing chain of the plan on every case once."""
    from ..pipeline.dataset.store import preprocess

    outcome = preprocess(dataset, out=out, plan=plan, workers=workers, overwrite=overwrite)
    return finish(
        "preprocess", outcome, as_json=as_json, quiet=quiet, next_step=f"next: voxelwise train {out} --out RUN"
    )
