"""`voxelwise networks`: what networks there are."""

from __future__ import annotations

from dataclasses import asdict

from . import options
from .terminal import document, table


def run(as_json: options.AsJson = False, debug: options.Debug = False) -> int:
    """What networks there are: name, 2D/3D, parameters (from 1 channel to 2 classes), paper.

    Your own is --network path/to/file.py:Class. The class subclasses voxelwise.networks.base.SegmentationNetwork, or
    has its attributes, and is built as Class(spatial_dims, in_channels, out_channels, **options).
    """
    from ..networks.registry import describe_networks

    rows = describe_networks()
    if as_json:
        document([asdict(row) for row in rows])
        return 0
    lines = []
    for row in rows:
        sizes = ", ".join(
            f"{count / 1e6:.1f} M ({dims}D)" for dims, count in zip(row.dims, row.parameters, strict=True)
        )
        lines.append((row.name, sizes, row.paper))
    print(table(("name", "parameters", "paper"), lines))
    print("\nYour own: --network path/to/file.py:Class; `voxelwise networks --help` says what the class must have")
    return 0
