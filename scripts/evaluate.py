"""`voxelwise evaluate`: label maps against references."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .terminal import finish


def run(
    predictions: Annotated[Path, typer.Argument(metavar="PREDICTIONS", help="Folder of label maps, or one file.")],
    references: Annotated[
        Path, typer.Argument(metavar="REFERENCES", help="Folder of label maps, a data set, or one file.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the tables.")],
    tolerance: Annotated[
        float, typer.Option("--tolerance", metavar="MM", help="How far apart surfaces may lie and agree.")
    ] = 2.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the bootstrap intervals.")] = 0,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """Scores per case and class, and their summary."""
    from ..pipeline.evaluation.evaluate import evaluate

    outcome = evaluate(predictions, references, out=out, tolerance=tolerance, overwrite=overwrite, seed=seed)
    dice = outcome.facts.get("mean_foreground_dice")
    told = "" if dice is None else f"mean Dice without background {dice:.4f}; see {out}/summary.csv and scores.csv"
    return finish("evaluate", outcome, as_json=as_json, quiet=quiet, next_step=told)
