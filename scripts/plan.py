"""`voxelwise plan`: what a data set looks like, what will be done with it, and why."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from . import options as shared
from .terminal import document, short, table


def run(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="MSD or nnU-Net folder, or images/ + labels/.")],
    out: Annotated[Path, typer.Option("--out", help="The file that you may edit and give back with --plan.")] = Path(
        "plan.yaml"
    ),
    network: shared.Network = None,
    dims: shared.Dims = None,
    width: shared.Width = None,
    options: shared.NetworkOptions = None,
    memory: shared.Memory = None,
    gpu_memory: shared.GpuMemory = None,
    seed: shared.Seed = None,
    workers: shared.Workers = None,
    overwrite: shared.Overwrite = False,
    as_json: shared.AsJson = False,
    quiet: shared.Quiet = False,
    debug: shared.Debug = False,
) -> int:
    """Fingerprint of a data set and plan, each line with its reason."""
    from ..pipeline.dataset.fingerprint import take_fingerprint
    from ..pipeline.dataset.plan import plan, refuse_existing
    from ..pipeline.sizes import parse_bytes

    refuse_existing(out, overwrite)
    amounts = {"memory": parse_bytes(memory), "gpu_memory": parse_bytes(gpu_memory, "--gpu-memory")}
    fingerprint = take_fingerprint(dataset, workers=workers)
    made = plan(
        fingerprint,
        out=out,
        network=network,
        dims=dims,
        width=width,
        options=shared.parse_options(options),
        seed=seed,
        overwrite=overwrite,
        **amounts,
    )
    code = 3 if fingerprint.failures else 0
    values, found = made.model_dump(mode="json"), fingerprint.summary()
    if as_json:
        failures = [vars(failure) for failure in fingerprint.failures]
        document({"command": "plan", "exit_code": code, **values, "fingerprint": found, "failures": failures})
        return code
    print(table(("data set", "least", "median", "greatest"), looks(found)))
    print()
    rows = [(name, short(values.get(name)), reason) for name, reason in made.reasons.items()]
    print(table(("field", "value", "reason"), rows))
    if fingerprint.failures:
        left_out = ", ".join(failure.case for failure in fingerprint.failures)
        print(f"plan: {len(fingerprint.failures)} cases left out: {left_out}", file=sys.stderr)
    if not quiet:
        print(f"written to {out}; next: voxelwise train {dataset} --out RUN --plan {out}", file=sys.stderr)
    return code


def looks(found: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    """A fingerprint's summary as rows: name, least, median, greatest."""
    yield "cases", "", str(found["cases"]), ""
    yield "shape", *(_times(found["shape"][word], "{:.0f}") for word in ("least", "median", "greatest"))
    yield "spacing, mm", *(_times(found["spacing_mm"][word], "{:.3g}") for word in ("least", "median", "greatest"))
    yield "orientation", "", ", ".join(filter(None, found["orientations"])) or "picture", ""
    for value, label in found["labels"].items():
        volume = f"{label['median_voxels']:.0f} voxels, {label['median_ml']:.3g} mL, in {label['cases']} cases"
        yield f"class {value}, {label['name']}", "", volume, ""
    for number, channel in enumerate(found["channels"]):
        where = "in the labels" if channel["inside_labels"] else "in the images"
        name = f"channel {number}, {channel['name']}, 0.5, 50 and 99.5 % {where}"
        yield name, *(f"{channel[word]:.4g}" for word in ("percentile_00_5", "percentile_50", "percentile_99_5"))


def _times(sizes: Sequence[float], form: str) -> str:
    return " x ".join(form.format(size) for size in sizes)
