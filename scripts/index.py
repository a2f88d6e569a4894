"""`voxelwise index`: what an archive holds."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..pipeline.text import printable
from ..transforms.read_options import DEFAULT, ReadOptions
from . import options
from .terminal import finish

HEADINGS = ("id", "verdict", "what", "use", "shape", "spacing mm", "files", "place", "why")
DROPPED = ("use", "spacing mm", "shape", "files")  # where a terminal is narrow, in this order
NARROWEST_PLACE, NARROWEST_WHY, WIDEST_PLACE = 16, 24, 60


@options.with_reading()
def run(
    archive: Annotated[
        Path, typer.Argument(metavar="ARCHIVE", help="Folder that is walked to its leaves, a zip archive, or a file.")
    ],
    db: Annotated[Path, typer.Option("--db", help="SQLite file of the index.")] = Path("voxelwise-index.db"),
    show: Annotated[bool, typer.Option("--show", help="The volumes as a table on standard output.")] = False,
    modality: Annotated[
        str | None, typer.Option("--modality", help="Show and export these alone, such as CT or MR,PT.")
    ] = None,
    min_slices: Annotated[
        int | None, typer.Option("--min-slices", min=1, help="Show and export what has as many or more.")
    ] = None,
    verdict: Annotated[
        str | None, typer.Option("--verdict", help="Show and export these alone: usable, stopped, listed.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="FILE", help="The table as CSV, without paths.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every file whole and compare it with its recorded checksum.")
    ] = False,
    workers: options.Workers = None,
    salt: options.Salt = None,
    reading: ReadOptions = DEFAULT,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """Inventory: every series, its geometry, verdict, reason. Headers are read, pixels are not."""
    from ..pipeline.archive.index import index

    outcome = index(
        archive,
        db=db,
        modality=modality,
        min_slices=min_slices,
        verdict=verdict,
        export=export,
        salt=salt,
        verify=verify,
        workers=workers,
        options=reading,
    )
    volumes = outcome.facts["volumes"]
    if as_json:
        return finish("index", outcome_with(outcome, list(as_rows(volumes))), as_json=True, quiet=quiet)
    if show:
        print_table(volumes)
    return finish("index", outcome, as_json=False, quiet=quiet)


def as_rows(volumes: Iterable[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """The volumes of an index, one by one, by the names of their columns."""
    from ..pipeline.archive.index import COLUMNS

    return (dict(zip(COLUMNS, volume, strict=True)) for volume in volumes)


def outcome_with(outcome: Any, rows: list[dict[str, Any]]) -> Any:
    """The outcome with its rows written out; repairs and notes as lists."""
    import json
    from dataclasses import replace

    for row in rows:
        row.update({name: json.loads(row[name] or "[]") for name in ("repairs", "notes")})
    return replace(outcome, facts={**outcome.facts, "volumes": rows})


def print_table(volumes: Iterable[tuple[Any, ...]]) -> None:
    """The volumes, a line each as wide as the terminal, and what they come to; they are gone through three times."""
    width = shutil.get_terminal_size((80, 24)).columns if sys.stdout.isatty() else None
    for line in table_lines(volumes, width):
        print(line)
    print()
    for line in summary_lines(volumes):
        print(line)


def table_lines(volumes: Iterable[tuple[Any, ...]], width: int | None) -> Iterator[str]:
    """A heading, and a line a volume.

    Args:
        volumes: are gone through twice, and not kept.
        width: the place and the reason share what room is left; where it is little, columns are left out. None cuts
            no reason.
    """
    sizes = [len(heading) for heading in HEADINGS]
    for row in as_rows(volumes):
        sizes = list(map(max, sizes, map(len, cells_of(row))))
    *fixed, place, why = range(len(HEADINGS))
    sizes[place] = min(sizes[place], WIDEST_PLACE)
    if width is not None:
        needed = min(sizes[place], NARROWEST_PLACE) + NARROWEST_WHY
        for heading in DROPPED:
            if _width(sizes, fixed) + needed > width:
                fixed.remove(HEADINGS.index(heading))
        left = width - _width(sizes, fixed)
        sizes[place] = min(sizes[place], max(NARROWEST_PLACE, 2 * left // 5))
        sizes[why] = max(NARROWEST_WHY, left - sizes[place])
    chosen = [*fixed, place, why]
    yield _line(HEADINGS, chosen, sizes)
    yield _line([*("-" * size for size in sizes[:why]), "---"], chosen, sizes)
    for row in as_rows(volumes):
        yield _line(cells_of(row), chosen, sizes)


def _width(sizes: Sequence[int], fixed: Sequence[int]) -> int:
    """Room that some columns take, with the gaps between them and before the last two."""
    return sum(sizes[k] for k in fixed) + 2 * (len(fixed) + 1)


def _line(cells: Sequence[str], chosen: Sequence[int], sizes: Sequence[int]) -> str:
    """One line of the table."""
    *others, place, why = chosen
    parts = [cells[k].rjust(sizes[k]) if HEADINGS[k] == "files" else cells[k].ljust(sizes[k]) for k in others]
    parts += [from_its_end(cells[place], sizes[place]).ljust(sizes[place]), from_its_start(cells[why], sizes[why])]
    return "  ".join(parts).rstrip()


def cells_of(row: dict[str, Any]) -> list[str]:
    """One volume as the cells of a line."""
    from ..pipeline.archive.index import codes_of

    why = short_reason(row)
    if row["verdict"] == "usable":
        why = ", ".join([*codes_of(row["repairs"]), *codes_of(row["notes"])])
    steps = "x".join(f"{float(step):.3g}" for step in row["spacing_mm"].split("x")) if row["spacing_mm"] else None
    what = row["modality"] or row["kind"]
    texts = [row["id"], row["verdict"], what, row["use"], row["shape"], steps, row["files"]]
    return [printable("" if text is None else str(text)) for text in [*texts, row["place"] or ".", why]]


def short_reason(row: dict[str, Any]) -> str:
    """The code, and the sentence without the path that it begins with."""
    reason = " ".join((row["reason"] or "").split())
    if row["verdict"] == "listed":
        return reason.removeprefix("not a volume: ")
    _, colon, text = reason.partition(": ")
    return f"{row['code']}: {text if colon and reason.startswith('/') else reason}"


def summary_lines(volumes: Iterable[tuple[Any, ...]]) -> Iterator[str]:
    """How many volumes of each modality there are for each verdict, and how often each code stopped one."""
    counts: dict[str, Counter[str]] = {"usable": Counter(), "stopped": Counter(), "listed": Counter()}
    for row in as_rows(volumes):
        what = row["code"] if row["verdict"] == "stopped" else row["modality"]
        counts[row["verdict"]][what or row["kind"] or "other"] += 1
    for verdict, counted in counts.items():
        if counted:
            parts = ", ".join(f"{count} {name}" for name, count in counted.most_common())
            yield f"{counted.total():6d} {verdict:8} {parts}"
    if not any(counts.values()):
        yield "nothing to show"


def from_its_start(text: str, width: int) -> str:
    """A text cut at its end."""
    return text if len(text) <= width else f"{text[: width - 3]}..."


def from_its_end(text: str, width: int) -> str:
    """A text cut at its start."""
    return text if len(text) <= width else f"...{text[3 - width :]}"
