"""`voxelwise networks`: what networks there are."""

from __future__ import annotations

from dataclasses import asdict

from . import options
from .terminal import document, table


def run(as_json: options.AsJson = False, debug: options.Debug = False) -> int:
    """What networks there are: name, kind, 2D/3D, parameters (from which channels to how many classes), paper, sources.

    Your own is --network path/to/file.py:Class. The class subclasses voxelwise.networks.base.SegmentationNetwork, or
    has its attributes, and is built as Class(spatial_dims, in_channels, out_channels, **options).
    """
    from ..networks.registry import SOURCES, describe_networks

    rows = describe_networks()
    if as_json:
        document([asdict(row) for row in rows])
        return 0
    lines = []
    for row in rows:
        sizes = ", ".join(f"{count:,} ({dims}D)" for dims, count in zip(row.dims, row.parameters, strict=True))
        counted = " to ".join(str(channels) for channels in row.counted)
        lines.append((row.name, row.kind, sizes, counted, row.sources or "-", row.paper))
    print(table(("name", "kind", "parameters", "channels", "sources", "paper"), lines))
    print()
    for source, title in SOURCES.items():
        print(f"{source}: {title}")
    print("Your own: --network path/to/file.py:Class; `voxelwise networks --help` says what the class must have")
    return 0
