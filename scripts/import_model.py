"""`voxelwise import-model`: a model of another program as a model folder."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..pipeline.start import NOT_NEEDED, left_out
from . import options
from .terminal import document, one_line

HEADINGS = {"taken": "taken over", "ignored": "ignored", "differs": "differs"}


def run(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="Folder of nnU-Net v2 (TRAINER__PLANS__CONFIGURATION) or bundle."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Model folder to make.")],
    fold: Annotated[
        str | None,
        typer.Option(
            "--fold", metavar="0,1,2|all", help="Folds of nnU-Net to take; all is fold_all.  [default: numbered ones]"
        ),
    ] = None,
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", metavar="final|best", help="Which checkpoint of nnU-Net.")
    ] = "final",
    orientation: Annotated[
        str | None,
        typer.Option(
            "--orientation", metavar="RAS", help="Turn images so first, as all of an nnU-Net's training were."
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """A trained model of nnU-Net v2 or a MONAI bundle as a model folder that predict, train, evaluate and export take.

    Nothing of it is executed: checkpoints are read by torch's restricted reader in a process of its own.
    """
    with left_out(NOT_NEEDED):
        from ..pipeline.importing.import_model import import_model

    made = import_model(
        source, out, fold=fold or (), checkpoint=checkpoint, orientation=orientation, overwrite=overwrite
    )
    report = asdict(made.report)
    if not quiet:
        for part, heading in HEADINGS.items():
            for line in report[part]:
                print(one_line(f"{heading}: {line}"), file=sys.stderr)
        folds = ", ".join(made.folds)
        print(f"import-model: {made.kind}, fold {folds} -> {one_line(str(made.out))}", file=sys.stderr)
    if as_json:
        document({"command": "import-model", "exit_code": 0, **vars(made), "report": report, "files": dict(made.files)})
    return 0
