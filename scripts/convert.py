"""`voxelwise convert`: every usable volume as NIfTI."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..transforms.read_options import DEFAULT, ReadOptions
from . import options
from .terminal import finish


@options.with_reading()
def run(
    input: Annotated[Path, typer.Argument(metavar="INPUT", help="File, DICOM folder, zip or archive.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder, or a .nii.gz file where INPUT is one volume.")],
    layout: options.Layout = "flat",
    format: Annotated[str, typer.Option("--format", help="nii.gz or nii.")] = "nii.gz",
    name: options.Name = None,
    salt: options.Salt = None,
    overwrite: options.Overwrite = False,
    workers: options.Workers = None,
    scheduler: options.Scheduler = None,
    tls_config: options.TlsConfig = None,
    db: Annotated[
        Path | None,
        typer.Option("--db", metavar="FILE", help="An index of INPUT: it then keeps the SHA-256 of every file read."),
    ] = None,
    reading: ReadOptions = DEFAULT,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """Every usable volume of INPUT -> NIfTI + JSON sidecar in OUT; what is stopped stands in failures.csv."""
    from ..pipeline.archive.convert import convert

    outcome = convert(
        input,
        out,
        layout=layout,
        format=format,
        name=name,
        salt=salt,
        overwrite=overwrite,
        workers=workers,
        scheduler=scheduler,
        tls_config=tls_config,
        db=db,
        options=reading,
    )
    return finish("convert", outcome, as_json=as_json, quiet=quiet)
