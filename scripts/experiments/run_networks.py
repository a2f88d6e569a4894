"""Each segmentation network for a few steps on real data: does its loss go down, how long is a step, what memory?

    python scripts/experiments/run_networks.py OUT --flat DATA/2d_em_membrane --volumes DATA/hippocampus

Each network runs in a process of its own, so that its peak memory is its own, through `voxelwise train`: the same plan,
cases and patches for all, in its default number of dimensions (--all-dims: in both). OUT/table.md is the result;
OUT/NAME-2d.json keeps each network's part, and the same command again does what is left or went wrong. The loss is
that of one fixed batch in training mode, dropout off. Exit code 1 where a network fails or learns nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from voxelwise import preprocess, train
from voxelwise.networks.base import SliceNetwork
from voxelwise.networks.registry import NETWORKS, count_parameters
from voxelwise.pipeline.dataset.fingerprint import take_fingerprint
from voxelwise.pipeline.dataset.folds import Fold
from voxelwise.pipeline.dataset.layouts import read_dataset
from voxelwise.pipeline.dataset.plan import Plan, make_plan, read_plan, write_plan
from voxelwise.pipeline.dataset.plan_parts import Network
from voxelwise.pipeline.dataset.store import open_store
from voxelwise.pipeline.seeds import draw_seed
from voxelwise.pipeline.training.budget import time_one_step
from voxelwise.pipeline.training.data import Patches
from voxelwise.pipeline.training.fit import network_of
from voxelwise.pipeline.training.module import SegmentationModule
from voxelwise.pipeline.training.planning import changed
from voxelwise.transforms.augment import augmentation_steps

CASES = 10  # of each data set
PATCH = {2: [128, 128, 1], 3: [32, 40, 32]}
BATCH = {2: 4, 3: 2}
# options for two cores where one width is not enough, or not the one asked for
NARROW: dict[str, dict[str, Any]] = {
    "unet3d2016": {"width": 4},  # its valid convolutions look at 120 x 128 x 120 voxels for such a patch
    "mscnn": {"widths": [4, 8]},  # two convolutions a branch: its dense form reaches far beyond such a patch
    "swin_unetr": {"width": 12},  # the least that its heads divide
    "unetr": {"width": 8, "hidden": 96, "mlp": 384},
}
COLUMNS = (
    *("network", "dims", "width", "other options", "parameters", "the paper's", "learning rate"),
    *("loss before", "loss after", "s per step", "peak memory, MB"),
)


def main(words: Sequence[str] | None = None) -> int:
    """Run what is asked for, or, with --only, one network in this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--flat", type=Path, help="2D data set")
    parser.add_argument("--volumes", type=Path, help="3D data set")
    parser.add_argument("--networks", help="names, separated by commas; all by default")
    parser.add_argument("--all-dims", action="store_true", help="each network in 2D and in 3D where it has both")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--timeout", type=float, default=900, help="seconds for each network")
    parser.add_argument("--only", nargs=2, metavar=("NAME", "DIMS"), help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.only:
        name, dims = given.only[0], int(given.only[1])
        result = run_one(given.out, name, dims, given.width, given.steps)
        (given.out / f"{name}-{dims}d.json").write_text(json.dumps(result, indent=1))
        return 0
    wanted = given.networks.split(",") if given.networks else list(NETWORKS)
    datasets = {2: given.flat, 3: given.volumes}
    rows, failed = [], []
    for name in wanted:
        dims_of = NETWORKS[name].spatial_dims
        for dims in dims_of if given.all_dims else dims_of[:1]:
            if datasets[dims] is None:
                continue
            prepare(given.out, dims, datasets[dims])
            row = result_of(given, name, dims)
            rows.append(row)
            if "error" in row or not row["after"] < row["before"]:
                failed.append(f"{name} {dims}D: {row.get('error', 'its loss did not go down')}")
            (given.out / "table.md").write_text(table(rows, given))
    print((given.out / "table.md").read_text())
    print("\n".join(failed), file=sys.stderr)
    return 1 if failed else 0


def prepare(out: Path, dims: int, dataset: Path) -> None:
    """A store of some cases, with the plan that all networks share."""
    store = out / f"cases-{dims}d"
    if (store / "manifest.json").is_file():
        return
    cases = read_dataset(dataset)
    fingerprint = take_fingerprint(replace(cases, cases=cases.cases[:CASES]))
    plan = make_plan(
        fingerprint,
        dims=dims,
        patch=PATCH[dims],
        batch=BATCH[dims],
        network="unet",
        average_weights=0.0,
        validation_cases=0,
    )
    preprocess(fingerprint.dataset, out=store, plan=plan)


def result_of(given: argparse.Namespace, name: str, dims: int) -> dict[str, Any]:
    """What an earlier call found, or a new process finds."""
    kept = given.out / f"{name}-{dims}d.json"
    if kept.is_file():
        result = json.loads(kept.read_text())
        same = (result["steps"], result["options"]) == (given.steps, narrow(name, given.width))
        if same and result["after"] < result["before"]:
            return dict(result)
    command = [sys.executable, __file__, str(given.out), "--only", name, str(dims)]
    command += ["--width", str(given.width), "--steps", str(given.steps)]
    started = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=given.timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"name": name, "dims": dims, "error": f"took more than {given.timeout:g} s"}
    print(f"{name} {dims}D: {time.monotonic() - started:.0f} s, exit code {done.returncode}", file=sys.stderr)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        return {"name": name, "dims": dims, "error": last[0]}
    return dict(json.loads(kept.read_text()))


def run_one(out: Path, name: str, dims: int, width: int, steps: int) -> dict[str, Any]:
    """Train one network in this process."""
    logging.basicConfig(level=logging.WARNING)
    store = out / f"cases-{dims}d"
    options = narrow(name, width)
    plan = plan_of(read_plan(store / "plan.yaml"), name, options, steps)
    run = out / f"run-{name}-{dims}d"
    write_plan(plan, out / f"plan-{name}-{dims}d.yaml")
    names = sorted(open_store(store).cases)
    splits = out / f"splits-{dims}d.json"
    splits.write_text(json.dumps([{"train": names[1:], "val": names[:1]}]))
    train(store, out=run, plan=plan, splits=splits, steps=steps, device="cpu", precision="float32", overwrite=True)
    trained = load_file(run / "fold_0" / "weights.safetensors")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    torch.manual_seed(draw_seed(plan.seed, 0))
    network = network_of(plan)
    inner = network.network if isinstance(network, SliceNetwork) else network
    patches = patches_of(plan, store, Fold(tuple(names[1:]), tuple(names[:1])))
    module = SegmentationModule(network, plan, steps=steps, score=lambda *_: torch.zeros(1))
    before = batch_loss(module, patches)
    inner.load_state_dict(trained)
    after = batch_loss(module, patches)
    return {
        "name": name,
        "dims": dims,
        "options": options,
        "steps": steps,
        "parameters": count_parameters(network),
        "of_the_paper": parameters_of(plan_of(plan, name, {}, steps)),
        "learning_rate": plan.optimizer.lr,
        "before": before,
        "after": after,
        "seconds": time_one_step(module, patches, torch.device("cpu"), "float32"),
        "megabytes": peak / 1000,
    }


def narrow(name: str, width: int) -> dict[str, Any]:
    """Options that make a network as narrow as asked for."""
    if name == "unet":
        return {"widths": [width * times for times in (1, 2, 4, 8, 10)]}
    return NARROW.get(name, {"width": width})


def plan_of(shared: Plan, name: str, options: Mapping[str, Any], steps: int) -> Plan:
    """The shared plan with another network, as `voxelwise train` makes it."""
    bare = shared.model_copy(update={"network": Network(name="unet"), "steps_per_epoch": steps})
    return changed(bare, {"network": name, "options": dict(options)})


def parameters_of(plan: Plan) -> int:
    """Counted without memory."""
    with torch.device("meta"):
        return count_parameters(network_of(plan))


def patches_of(plan: Plan, store: Path, fold: Fold) -> Patches:
    """The training's own."""
    return Patches(
        open_store(store),
        fold.train,
        steps=augmentation_steps(
            plan.patch, spacing_mm=plan.spacing_mm, mirror_axes=plan.mirror_axes, strength=plan.augmentation
        ),
        batch=plan.batch,
        seed=plan.seed,
        oversample_foreground=plan.oversample_foreground,
    )


@torch.no_grad()
def batch_loss(module: SegmentationModule, patches: Patches) -> float:
    """Loss of the run's first batch, with the statistics of that batch and without dropout."""
    kept = {key: value.clone() for key, value in module.network.state_dict().items()}
    module.network.train()
    for part in module.network.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.eval()
    drawn = [patches[slot] for slot in range(patches.batch)]
    image = torch.stack([one["image"] for one in drawn]).contiguous(memory_format=module.format)
    logits = module.network(image)
    loss = module.loss(logits if isinstance(logits, list) else [logits], torch.stack([one["labels"] for one in drawn]))
    module.network.load_state_dict(kept)
    return float(loss)


def table(rows: Sequence[Mapping[str, Any]], given: argparse.Namespace) -> str:
    """The results in Markdown."""
    lines = [
        f"{given.steps} steps, patches {PATCH[2][:2]} (batch {BATCH[2]}) in 2D and {PATCH[3]} (batch {BATCH[3]}) in "
        f"3D, {torch.get_num_threads()} threads, torch {torch.__version__}. Peak memory is that of the whole process.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{' --- |' * len(COLUMNS)}",
    ]
    return "\n".join([*lines, *(line(row) for row in rows)]) + "\n"


def line(row: Mapping[str, Any]) -> str:
    """One network's result."""
    cells = [f"`{row['name']}`", str(row["dims"])]
    if "error" in row:
        cells += [row["error"].replace("|", "/"), *[""] * (len(COLUMNS) - 3)]
    else:
        width, others = width_and_others(row["options"])
        cells += [width, others, f"{row['parameters']:,}", f"{row['of_the_paper']:,}", f"{row['learning_rate']:g}"]
        cells += [f"{row['before']:.3f}", f"{row['after']:.3f}", f"{row['seconds']:.2f}", f"{row['megabytes']:.0f}"]
    return f"| {' | '.join(cells)} |"


def width_and_others(options: Mapping[str, Any]) -> tuple[str, str]:
    """The width (or widths) of the options, and what else they say."""
    others = dict(options)
    width = others.pop("width", None) or ", ".join(map(str, others.pop("widths")))
    return str(width), ", ".join(f"{key} {value}" for key, value in others.items())


if __name__ == "__main__":
    sys.exit(main())
