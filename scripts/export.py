"""`voxelwise export`: a model folder for elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..pipeline.start import NOT_NEEDED, left_out
from . import options
from .terminal import document, one_line


def run(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder, as `train` leaves behind.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    format: Annotated[
        str, typer.Option("--format", metavar="monai|torch|torchscript|onnx", help="What is written.")
    ] = "monai",
    fold: Annotated[str | None, typer.Option("--fold", help="Whose weights, where there are several.")] = None,
    network: Annotated[
        str | None, typer.Option("--network", help="file.py:Class again, for a model of your own class.")
    ] = None,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """The network of MODEL as a MONAI bundle, torch.export program, TorchScript or ONNX, held against the original."""
    with left_out(NOT_NEEDED):
        from ..pipeline.exporting.export import export_model

    made = export_model(model, out, format=format, fold=fold, network=network, overwrite=overwrite)
    if not quiet:
        many = "any number of windows" if made.any_number else "one window at a time"
        print(
            f"export: fold {made.fold} as {made.format}, {many}; logits differ by at most {made.max_difference:.2g} "
            f"-> {one_line(str(made.out))}",
            file=sys.stderr,
        )
    if as_json:
        document({"command": "export", "exit_code": 0, **vars(made), "files": dict(made.files)})
    return 0
