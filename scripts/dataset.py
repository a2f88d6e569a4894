"""`voxelwise dataset`: images and label maps matched into a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..transforms.read_options import DEFAULT, ReadOptions
from . import options
from .terminal import finish


@options.with_reading(without=["phi"])
def run(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="DICOM archive, or a folder of NIfTI, NRRD, MHA.")],
    labels: Annotated[
        Path, typer.Argument(metavar="LABELS", help="DICOM SEG and RTSTRUCT, or label maps called as their images.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the data set.")],
    pairs: Annotated[
        Path | None,
        typer.Option("--pairs", metavar="FILE", help="CSV table that pairs them: image, label[, case][, patient]."),
    ] = None,
    channels: Annotated[
        str | None,
        typer.Option("--channels", metavar="NAMES", help="Channels of a case in order, with commas, such as T1,T2."),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option("--classes", metavar="NAMES", help="Classes 1, 2, ... with commas; a later one stays on top."),
    ] = None,
    register: Annotated[
        str | None, typer.Option("--register", help="rigid or affine: align each channel to the first one.")
    ] = None,
    resample_label: Annotated[
        bool, typer.Option("--resample-label", help="Put a label map on another grid on its image's, nearest voxel.")
    ] = False,
    salt: options.Salt = None,
    overwrite: options.Overwrite = False,
    workers: options.Workers = None,
    reading: ReadOptions = DEFAULT,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """Images and label maps, matched by reference or name and proved to lie on one grid -> a data set for training."""
    from ..pipeline.dataset.assemble import dataset

    outcome = dataset(
        images,
        labels,
        out,
        pairs=pairs,
        channels=options.comma_separated(channels),
        classes=options.comma_separated(classes),
        register=register,
        resample_label=resample_label,
        overwrite=overwrite,
        salt=salt,
        workers=workers,
        options=reading,
    )
    next_step = f"next: voxelwise plan {out}"
    return finish("dataset", outcome, as_json=as_json, quiet=quiet, next_step="" if quiet else next_step)
