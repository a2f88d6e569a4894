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
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", exists=True, help="Model folder, as `train` leaves behind.")
    ],
    input: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT", exists=True, help="File, DICOM folder, archive, or a data set, of which every image."
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder, or a file where INPUT is one volume.")],
    fold: Annotated[
        str | None,
        typer.Option("--fold", help="Weights of this fold alone; with a data set its validation cases alone."),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="auto (all GPUs of the machine, or its CPU), cpu, or cuda:0,cuda:1.")
    ] = "auto",
    precision: options.Precision = "auto",
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            metavar="auto|torch|openvino|compile|tensorrt",
            help="What runs the network; auto: openvino on a CPU where it is installed, else torch.",
        ),
    ] = "auto",
    overlap: Annotated[
        float | None, typer.Option("--overlap", help="Of neighbouring windows, 0 to below 1.  [default: the plan's]")
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
    classes: Annotated[
        str | None, typer.Option("--classes", help="Names or label values, as liver,spleen: these alone are written.")
    ] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Those of the classes too, CASE_probabilities.b2nd.")
    ] = False,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="A map of it too, its mean in the manifest, a note where it is high.")
    ] = False,
    with_model: Annotated[
        list[Path], typer.Option("--with-model", help="A model whose scores are averaged with MODEL's; repeatable.")
    ] = [],  # noqa: B006
    coarse: Annotated[
        Path | None, typer.Option("--coarse", help="A model that finds the region to which MODEL is confined.")
    ] = None,
    margin: Annotated[float, typer.Option("--margin", help="Millimetres around that region.")] = 20.0,
    skip_background: Annotated[
        bool, typer.Option("--skip-background", help="Leave out windows of nothing but the plan's background.")
    ] = False,
    views: Annotated[
        str | None,
        typer.Option("--views", help="all, or axial,coronal,sagittal: slicings of a 2D model that are averaged."),
    ] = None,
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
        typer.Option("--workers", min=1, help="Processes on this machine.  [default: one a GPU, else 1]"),
    ] = None,
    scheduler: options.Scheduler = None,
    tls_config: options.TlsConfig = None,
    single_process: Annotated[
        bool, typer.Option("--single-process", help="Start no process and no thread; torch's own threads stay.")
    ] = False,
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
        engine=engine,
        overlap=overlap,
        tta=tta,
        tiling=tiling,
        classes=classes,
        probabilities=probabilities,
        uncertainty=uncertainty,
        with_model=with_model,
        coarse=coarse,
        margin=margin,
        skip_background=skip_background,
        views=views,
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
        scheduler=scheduler,
        tls_config=tls_config,
        single_process=single_process,
    )
    return finish("predict", outcome, as_json=as_json, quiet=quiet)
