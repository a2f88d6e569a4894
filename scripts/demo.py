"""`voxelwise demo`: the whole job on an archive that it makes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .terminal import finish


def run(
    out: Annotated[
        Path, typer.Option("--out", help="Folder for archive, model, label maps, tables and report.")
    ] = Path("demo"),
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", help="Time for training.  [default: a fixed number of steps, two to three minutes]"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the archive and of the training.")] = 0,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """DICOM CT -> label maps, table, pictures: the whole job, on an archive that is made first."""
    from ..pipeline.demo.run import demo

    outcome = demo(out=out, minutes=minutes, seed=seed, overwrite=overwrite)
    return finish("demo", outcome, as_json=False, quiet=quiet, next_step="\n".join(outcome.facts.get("next_steps", ())))
