"""`voxelwise plan`: what will be done with a data set, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .terminal import document


def run(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="MSD or nnU-Net folder, or images/ + labels/.")],
    out: Annotated[Path, typer.Option("--out", help="The file that you may edit and give back with --plan.")] = Path(
        "plan.yaml"
    ),
    network: options.Network = None,
    dims: options.Dims = None,
    width: options.Width = None,
    option: options.NetworkOptions = None,
    memory: options.Memory = None,
    gpu_memory: options.GpuMemory = None,
    seed: options.Seed = None,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """Fingerprint of a data set and plan, each line with its reason."""
    from ..pipeline.dataset.plan import plan

    made = plan(dataset, out=out)
    if as_json:
        document(made.model_dump(mode="json"))
    return 0
