"""`voxelwise predict`: a model and images -> label maps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..pipeline.start import NOT_NEEDED, left_out
from ..transforms.read_options import DEFAULT, ReadOptions
from . import options
from .terminal import finish


@options.with_reading(without=["phi"])
def run(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder, as `train` leaves behind.")],
    input: Annotated[
        Path, typer.Argument(metavar="INPUT", help="File, DICOM folder, archive, or a data set, of which every image.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder, or a file where INPUT is one volume.")],
    fold: Annotated[
        str | None, typer.Option("--fold", help="With a data set: predict the validation cases of this fold alone.")
    ] = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    overlap: Annotated[
        float | None, typer.Option("--overlap", help="Of neighbouring windows, 0 to 0.9.  [default: the plan's]")
    ] = None,
    tta: Annotated[
        bool | None, typer.Option("--tta/--no-tta", help="Average over mirrored images.  [default: the plan's]")
    ] = None,
    tiling: Annotated[
        str,
        typer.Option(
            "--tiling",
            metavar="blend|exact",
            help="exact: as one pass over the whole volume, with networks that see a bounded neighbourhood.",
        ),
    ] = "blend",
    name: options.Name = None,
    salt: options.Salt = None,
    network: Annotated[
        str | None, typer.Option("--network", help="file.py:Class again, for a model of your own class.")
    ] = None,
    overwrite: options.Overwrite = False,
    fill_nan: Annotated[
        str | None, typer.Option("--fill-nan", help="min: NaN and infinite voxels get the least value of the image.")
    ] = None,
    memory: options.Memory = None,
    gpu_memory: options.GpuMemory = None,
    reading: ReadOptions = DEFAULT,
    preview: Annotated[bool, typer.Option("--preview", help="A picture of each result beside it.")] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            help="2: read the next image while one is segmented.  [default: 2 on a GPU, 1 else and with --memory]",
        ),
    ] = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """Label maps on exactly the grids of the images."""
    with left_out(NOT_NEEDED):
        from ..pipeline.inference.predict import predict

    outcome = predict(
        model,
        input,
        out,
        fold=fold,
        device=device,
        precision=precision,
        overlap=overlap,
        tta=tta,
        tiling=tiling,
        name=name,
        salt=salt,
        network=network,
        overwrite=overwrite,
        preview=preview,
        options=reading,
        fill_nan=fill_nan,
        memory=memory,
        gpu_memory=gpu_memory,
        workers=workers,
    )
    return finish("predict", outcome, as_json=as_json, quiet=quiet)
