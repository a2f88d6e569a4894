"""The options that several verbs share: one word for one thing, with one explanation."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer

from ..transforms.read_options import DEFAULT, ReadOptions

Verb = Callable[..., int]
KEYWORD_ONLY = Parameter.KEYWORD_ONLY

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


# The ways out that a user has when a source is refused: field of `ReadOptions`, which has its default -> option.
READING: Mapping[str, Any] = {
    "strict": Annotated[
        bool, typer.Option("--strict", help="Stop a series whose slices may be missing, not only note it.")
    ],
    "gaps": Annotated[
        str,
        typer.Option("--gaps", help="stop, or resample: put unevenly spaced slices on an even grid by interpolation."),
    ],
    "time": Annotated[str, typer.Option("--time", help="Time points of a 4D source: all, first, or a number from 0.")],
    "geometry": Annotated[
        Path | None,
        typer.Option("--geometry", metavar="FILE", help="JSON file that states what the headers lack of the geometry."),
    ],
    "affine": Annotated[
        str | None,
        typer.Option("--affine", help="sform or qform, where the two of a NIfTI file contradict each other."),
    ],
    "group_by": Annotated[
        str | None,
        typer.Option("--group-by", metavar="TAGS", help="DICOM keywords, with commas, that tell series apart."),
    ],
    "max_voxels": Annotated[
        int | None, typer.Option("--max-voxels", min=1, help="The largest number of voxels that one file may claim.")
    ],
    "refuse_lossy": Annotated[bool, typer.Option("--refuse-lossy", help="Stop what was compressed with loss.")],
    "refuse_burned_in": Annotated[
        bool, typer.Option("--refuse-burned-in", help="Stop what says that text is burned into its pixels.")
    ],
    "phi": Annotated[
        bool, typer.Option("--phi", help="Keep names, dates and descriptions of the headers in what is written.")
    ],
}


def with_reading(*, without: Collection[str] = ()) -> Callable[[Verb], Verb]:
    """Show the options of `READING` in the place of a verb's parameter `reading`, which gets them as one record.

    The verb that comes out takes keywords alone; typer learns of the options from its signature.

    Args:
        without: names of options that the verb does not have.
    """
    names = [name for name in READING if name not in without]
    shown = [Parameter(name, KEYWORD_ONLY, default=_default(name), annotation=READING[name]) for name in names]

    def decorate(verb: Verb) -> Verb:
        signature = inspect.signature(verb, eval_str=True)
        parameters: list[Parameter] = []
        for one in signature.parameters.values():
            parameters += shown if one.name == "reading" else [one.replace(kind=KEYWORD_ONLY)]

        @functools.wraps(verb)
        def with_record(**words: Any) -> int:
            values = {name: words.pop(name) for name in names if name in words}
            return verb(**words, reading=_record(**values))

        with_record.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        with_record.__annotations__ = {**{one.name: one.annotation for one in parameters}, "return": int}
        return with_record

    return decorate


def _default(name: str) -> Any:
    """What an option of reading is where it is not given."""
    return None if name == "group_by" else getattr(DEFAULT, name)


def _record(*, group_by: str | None = None, **values: Any) -> ReadOptions:
    """The record that the readers take, from the words of the command line."""
    return ReadOptions(group_by=comma_separated(group_by), **values)


def comma_separated(text: str | None) -> tuple[str, ...]:
    """`T1, T2` as its words; none of nothing."""
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


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
