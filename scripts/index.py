"""`voxelwise index`: what an archive holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .terminal import finish, short, table


def run(
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="Folder that is walked to its leaves, or a file.")],
    db: Annotated[Path, typer.Option("--db", help="SQLite file of the index.")] = Path("voxelwise-index.db"),
    show: Annotated[bool, typer.Option("--show", help="The volumes as a table on standard output.")] = False,
    modality: Annotated[
        str | None, typer.Option("--modality", help="Show and export these alone, such as CT or MR,PT.")
    ] = None,
    min_slices: Annotated[
        int | None, typer.Option("--min-slices", min=1, help="Show and export what has as many or more.")
    ] = None,
    export: Annotated[Path | None, typer.Option("--export", metavar="FILE", help="The table as CSV.")] = None,
    salt: options.Salt = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """Inventory: every series, its geometry, verdict, reason. Headers are read, pixels are not."""
    from ..pipeline.archive.index import COLUMNS, index

    outcome = index(archive, db=db, modality=modality, min_slices=min_slices, export=export, salt=salt)
    rows = outcome.facts["volumes"]
    if show and not as_json:
        shown = ("id", "verdict", "modality", "shape", "spacing_mm", "body_part", "files", "place", "reason")
        print(table(shown, ([short(row[COLUMNS.index(column)]) for column in shown] for row in rows)))
    if as_json:
        outcome.facts["volumes"][:] = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    return finish("index", outcome, as_json=as_json, quiet=quiet)
