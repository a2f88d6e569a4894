"""`voxelwise plan`: what will be done with a data set, and why."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .terminal import document, short, table


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
    seed: options.Seed = None,
    workers: options.Workers = None,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """Fingerprint of a data set and plan, each line with its reason."""
    from ..pipeline.dataset.plan import plan
    from ..pipeline.sizes import parse_bytes

    made = plan(
        dataset,
        out=out,
        overwrite=overwrite,
        workers=workers,
        network=network,
        dims=dims,
        width=width,
        options=options.parse_options(option),
        memory_bytes=parse_bytes(memory),
        seed=seed,
    )
    if as_json:
        document(made.model_dump(mode="json"))
        return 0
    values = made.model_dump(mode="json")
    rows = [(name, short(values.get(name)), reason) for name, reason in made.reasons.items()]
    print(table(("field", "value", "reason"), rows))
    if not quiet:
        print(f"written to {out}; next: voxelwise train {dataset} --out RUN --plan {out}", file=sys.stderr)
    return 0
