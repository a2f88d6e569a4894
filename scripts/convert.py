"""`voxelwise convert`: every usable volume as NIfTI."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .terminal import finish


def run(
    input: Annotated[Path, typer.Argument(metavar="INPUT", help="File, DICOM folder or archive.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder, or a .nii.gz file where INPUT is one volume.")],
    overwrite: options.Overwrite = False,
    name: options.Name = None,
    salt: options.Salt = None,
    workers: options.Workers = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """Every usable volume of INPUT -> NIfTI + JSON sidecar in OUT; what is stopped stands in failures.csv."""
    from ..pipeline.archive.convert import convert

    outcome = convert(input, out, overwrite=overwrite, name=name, salt=salt, workers=workers)
    return finish("convert", outcome, as_json=as_json, quiet=quiet)
