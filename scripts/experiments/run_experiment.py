"""A comparison of the sources on a data set: each arm with the same cases, folds and length, and their figures.

    python scripts/experiments/run_experiment.py scripts/experiments/vein_ultrasound.yaml DATASET --out DIR

An experiment is a YAML file: `plan` (fields of the plan that all arms share), `arms` (name -> network, options and
further fields of its own; or `multi_otsu`, which learns nothing), `epochs`, `select`, `figures` (what the source prints
of each arm). Everything else is planned from the data set. --width makes all networks as narrow, --steps the runs as
short as one likes. The same command again finishes what is left.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from skimage.filters import threshold_multiotsu
from voxelwise import preprocess, train
from voxelwise.errors import UsageError, VoxelwiseError
from voxelwise.networks.registry import NETWORKS, count_parameters
from voxelwise.pipeline.dataset.fingerprint import take_fingerprint
from voxelwise.pipeline.dataset.folds import make_folds
from voxelwise.pipeline.dataset.plan import Plan, make_plan, read_plan, write_plan
from voxelwise.pipeline.dataset.store import Store, open_store, stored_dataset
from voxelwise.pipeline.training.prepare import check_network
from voxelwise.transforms.writers import write_text

FIELDS = {"title", "plan", "arms", "epochs", "select", "figures", "measure"}


def main(words: Sequence[str] | None = None) -> int:
    """Run the experiment of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", help="names, separated by commas; all by default")
    parser.add_argument("--fold", default="0")
    parser.add_argument("--width", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--patch", type=int, nargs=3)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args(words)
    try:
        return run(given)
    except VoxelwiseError as error:
        print(f"run_experiment: {error}", file=sys.stderr)
        return error.exit_code


def run(given: argparse.Namespace) -> int:
    """Every arm, then the table."""
    experiment = yaml.safe_load(given.experiment.read_text(encoding="utf-8"))
    if unknown := set(experiment) - FIELDS:
        raise UsageError(f"{given.experiment}: unknown fields {', '.join(sorted(unknown))}")
    arms = {name: experiment["arms"][name] for name in (given.arms.split(",") if given.arms else experiment["arms"])}
    plans = plans_of(experiment, arms, given)
    store = given.out / "cases"
    preprocess(given.dataset, out=store, plan=next(iter(plans.values())))
    dataset = stored_dataset(store)
    assert dataset is not None
    rows = []
    for name, plan in plans.items():
        figure = experiment.get("figures", {}).get(name, "")
        if "multi_otsu" in arms[name]:
            names = make_folds(dataset[0])[int(given.fold)].validation
            scores = multi_otsu(open_store(store), names, len(plan.labels), **arms[name]["multi_otsu"])
            rows.append((name, "-", scores, figure))
            continue
        length = {"steps": given.steps} if given.steps else {"epochs": experiment["epochs"]}
        train(
            store,
            out=given.out / name,
            plan=plan,
            fold=given.fold,
            select=experiment.get("select", "last"),
            device=given.device,
            **length,
        )
        record = json.loads((given.out / name / f"fold_{given.fold}" / "validation.json").read_text())
        rows.append((name, f"{count_parameters(check_network(plan)):,}", record.get("mean"), figure))
    write_text(given.out / "table.md", table(experiment, rows, given))
    print((given.out / "table.md").read_text())
    return 0


def plans_of(experiment: Mapping[str, Any], arms: Mapping[str, Any], given: argparse.Namespace) -> dict[str, Plan]:
    """One plan an arm, kept in the folder; the preprocessing is the same in all of them."""
    fingerprint, plans = None, {}
    for name, arm in arms.items():
        kept = given.out / f"{name}.yaml"
        if not kept.is_file():
            fingerprint = fingerprint or take_fingerprint(given.dataset)
            fields = {**experiment["plan"], **{key: value for key, value in arm.items() if key != "multi_otsu"}}
            network = fields.pop("network", "unet")
            options = dict(fields.pop("options", {}))
            if given.width and "widths" not in options and network != "unet":
                options["width" if network != "autocontext" else "options"] = (
                    given.width if network != "autocontext" else {"width": given.width}
                )
            if given.patch:
                fields["patch"] = given.patch
            if network not in NETWORKS:
                raise UsageError(f"{given.experiment}: arm {name} has no network of ours, {network!r}")
            width = given.width if network == "unet" else None
            made = make_plan(fingerprint, network=network, options=options, width=width, **fields)
            given.out.mkdir(parents=True, exist_ok=True)
            write_plan(made, kept)
        plans[name] = read_plan(kept)
    return plans


def multi_otsu(store: Store, names: Sequence[str], classes: int, *, parts: int, foreground: str) -> float | None:
    """Mean Dice of thresholding each image into `parts`, of which the `darkest` or `brightest` is the foreground."""
    if classes != 2:
        raise UsageError(f"multi-Otsu tells one foreground from the background; the data set has {classes - 1}")
    scores = []
    for name in names:
        image, truth = np.asarray(store.image(name)[...]).mean(axis=0), np.asarray(store.labels(name)[...]) > 0
        levels = threshold_multiotsu(image, parts)
        found = image <= levels[0] if foreground == "darkest" else image > levels[-1]
        if total := int(found.sum() + truth.sum()):
            scores.append(2 * float((found & truth).sum()) / total)
    return float(np.mean(scores)) if scores else None


def table(experiment: Mapping[str, Any], rows: Sequence[tuple[Any, ...]], given: argparse.Namespace) -> str:
    """What was found beside what the source prints."""
    length = f"{given.steps} steps" if given.steps else f"{experiment['epochs']} epochs"
    lines = [
        f"{experiment['title']}: {given.dataset}, fold {given.fold}, {length}, torch {torch.__version__}.",
        "",
        f"| arm | parameters | mean Dice, validation cases | the source: {experiment.get('measure', 'figures')} |",
        "| --- | --- | --- | --- |",
    ]
    for name, parameters, score, figure in rows:
        lines.append(f"| {name} | {parameters} | {'-' if score is None else f'{score:.3f}'} | {figure} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
