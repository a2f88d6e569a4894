"""The options that several verbs share: one word for one thing, with one explanation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..transforms.read_options import ReadOptions

Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and the warnings of libraries.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document and nothing else on standard output.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Throw earlier results away and start anew.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Of every random draw.  [default: the plan's]")]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Processes on this machine.")]
Memory = Annotated[str | None, typer.Option("--memory", help="RAM to stay within, such as 4GB.")]
GpuMemory = Annotated[str | None, typer.Option("--gpu-memory", help="GPU memory to stay within, such as 8GB.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda:0.")]
Precision = Annotated[str, typer.Option("--precision", help="auto, float32, bf16 or fp16.")]
Fold = Annotated[str | None, typer.Option("--fold", help="Number of a fold, or all.")]
Name = Annotated[
    str | None,
    typer.Option(
        "--name",
        help="Names of the outputs: a template of {folder}, {path}, {name}, {series}, {study}, {patient}, {modality}, "
        "{part}, {number}.",
    ),
]
Salt = Annotated[
    Path | None,
    typer.Option("--salt", help="Text file with the salt of the case ids, for equal ids in several runs."),
]
Scheduler = Annotated[
    str | None,
    typer.Option("--scheduler", metavar="ADDRESS", help="A Dask cluster: tcp:// on this machine, or tls:// anywhere."),
]
TlsConfig = Annotated[
    Path | None,
    typer.Option("--tls-config", metavar="FILE", help="YAML file with ca-file, cert and key for a tls:// scheduler."),
]
Layout = Annotated[str, typer.Option("--layout", help="flat, bids or msd: how the output folder is arranged.")]

# The ways out that a user has when a source is refused; `read_options` makes one record of them.
Strict = Annotated[bool, typer.Option("--strict", help="Stop a series whose slices may be missing, not only note it.")]
Gaps = Annotated[
    str, typer.Option("--gaps", help="stop, or resample: put unevenly spaced slices on an even grid by interpolation.")
]
Time = Annotated[str, typer.Option("--time", help="Time points of a 4D source: all, first, or a number from 0.")]
GeometryFile = Annotated[
    Path | None,
    typer.Option("--geometry", metavar="FILE", help="JSON file that states what the headers lack of the geometry."),
]
Affine = Annotated[
    str | None, typer.Option("--affine", help="sform or qform, where the two of a NIfTI file contradict each other.")
]
GroupBy = Annotated[
    str | None,
    typer.Option("--group-by", metavar="TAGS", help="DICOM keywords, with commas, that tell series apart."),
]
MaxVoxels = Annotated[
    int | None, typer.Option("--max-voxels", min=1, help="The largest number of voxels that one file may claim.")
]
RefuseLossy = Annotated[bool, typer.Option("--refuse-lossy", help="Stop what was compressed with loss.")]
RefuseBurnedIn = Annotated[
    bool, typer.Option("--refuse-burned-in", help="Stop what says that text is burned into its pixels.")
]
Phi = Annotated[
    bool, typer.Option("--phi", help="Keep names, dates and descriptions of the headers in what is written.")
]
Network = Annotated[
    str | None, typer.Option("--network", help="A name that `voxelwise networks` lists, or path/to/file.py:Class.")
]
Dims = Annotated[int | None, typer.Option("--dims", help="2: on slices, 3: on volumes.")]
Width = Annotated[int | None, typer.Option("--width", min=1, help="Channels of the first level of the network.")]
NetworkOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="KEY=VALUE",
        help="Option of the network; may be repeated. weights=FILE or weights=imagenet: where training starts.",
    ),
]


def read_options(
    *,
    strict: bool = False,
    gaps: str = "stop",
    time: str = "all",
    geometry: Path | None = None,
    affine: str | None = None,
    group_by: str | None = None,
    max_voxels: int | None = None,
    refuse_lossy: bool = False,
    refuse_burned_in: bool = False,
    phi: bool = False,
) -> ReadOptions:
    """The record that the readers take, from the words of the command line; a verb gives those that it has."""
    from ..transforms.read_options import ReadOptions

    return ReadOptions(
        strict=strict,
        gaps=gaps,
        time=time,
        geometry=geometry,
        affine=affine,
        group_by=tuple(word.strip() for word in (group_by or "").split(",") if word.strip()),
        max_voxels=max_voxels,
        refuse_lossy=refuse_lossy,
        refuse_burned_in=refuse_burned_in,
        phi=phi,
    )


def parse_options(pairs: list[str] | None) -> dict[str, object]:
    """`key=value` words as a dictionary; values are read as YAML (numbers, true, [1, 2]), else taken as text."""
    import yaml

    from ..errors import UsageError

    options: dict[str, object] = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"--option {pair!r}: expected key=value, such as --option norm=batch")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            options[key] = value
    return options
