"""`voxelwise convert`: every usable volume as NIfTI."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .terminal import finish


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
    strict: options.Strict = False,
    gaps: options.Gaps = "stop",
    time: options.Time = "all",
    geometry: options.GeometryFile = None,
    affine: options.Affine = None,
    group_by: options.GroupBy = None,
    max_voxels: options.MaxVoxels = None,
    refuse_lossy: options.RefuseLossy = False,
    refuse_burned_in: options.RefuseBurnedIn = False,
    phi: options.Phi = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """Every usable volume of INPUT -> NIfTI + JSON sidecar in OUT; what is stopped stands in failures.csv."""
    from ..pipeline.archive.convert import convert

    chosen = options.read_options(
        strict=strict,
        gaps=gaps,
        time=time,
        geometry=geometry,
        affine=affine,
        group_by=group_by,
        max_voxels=max_voxels,
        refuse_lossy=refuse_lossy,
        refuse_burned_in=refuse_burned_in,
        phi=phi,
    )
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
        options=chosen,
    )
    return finish("convert", outcome, as_json=as_json, quiet=quiet)
