"""The options that several verbs share: one word for one thing, with one explanation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
    typer.Option("--name", help="Names of the outputs: a template of {folder}, {series}, {modality}, {number}."),
]
Salt = Annotated[
    Path | None,
    typer.Option("--salt", help="Text file with the salt of the case ids, for equal ids in several runs."),
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
