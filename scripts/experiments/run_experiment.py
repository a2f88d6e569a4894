"""A comparison of the sources on a data set: each arm with the same cases and length, beside their figures.

    python scripts/experiments/run_experiment.py scripts/experiments/vein_ultrasound.yaml DATASET --out DIR

The test cases are the validation cases of one fold; nothing is decided by them: with `select: best` the epoch is chosen
on cases held out of the others. --cases, --width, --patch and --steps make it as small as one likes. The same command
again finishes what is left.

    DIR/ARM/                     the model folder of an arm, as `voxelwise train` leaves it
    DIR/plans/, DIR/cases/       the plan of each arm; the preprocessed cases of all
    DIR/results/fold_K/table.md  the comparison; beside it the test cases, the label maps and scores of each arm
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from experiment import MEASURES, Arm, Experiment, MultiOtsu, Smaller, chosen_arms, hold_to, plans_of, read_experiment
from multi_otsu import better_side, write_parts
from voxelwise import evaluate, predict, preprocess, train
from voxelwise.errors import UsageError, VoxelwiseError
from voxelwise.networks.registry import count_parameters
from voxelwise.pipeline.dataset.cases import Case, Dataset
from voxelwise.pipeline.dataset.folds import FOLDS, Fold, make_folds
from voxelwise.pipeline.dataset.layouts import read_dataset
from voxelwise.pipeline.dataset.plan import Plan
from voxelwise.pipeline.dataset.store import open_store, stored_dataset
from voxelwise.pipeline.inference.loading import load_predictor
from voxelwise.pipeline.training.fit import spread
from voxelwise.pipeline.training.planning import check_network
from voxelwise.scripts.terminal import listen
from voxelwise.transforms.writers import write_json, write_text


@dataclass(frozen=True)
class Comparison:
    """What the arms share.

    Args:
        experiment: what was read.
        given: the command line.
        dataset: its cases, as many as were asked for.
        split: names of the cases that train, choose the epoch (`val`) and test.
        test: the test cases as a data set of their own.
    """

    experiment: Experiment
    given: argparse.Namespace
    dataset: Dataset
    split: Mapping[str, Sequence[str]]
    test: Path

    @property
    def select(self) -> str:
        """`best` only where there are cases to choose by."""
        return self.experiment.select if self.split["val"] else "last"


@dataclass(frozen=True)
class Row:
    """One arm: its name, parameters (None where nothing is learned), scores by measure, cases that were stopped."""

    name: str
    parameters: int | None
    scores: Mapping[str, float | None]
    stopped: int


def main(words: Sequence[str] | None = None) -> int:
    """Run the experiment of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", type=Path, help="a YAML file of this folder, or your own")
    parser.add_argument("dataset", type=Path, help="MSD or nnU-Net folder, images/ + labels/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", help="names, separated by commas; all by default")
    parser.add_argument("--fold", type=int, default=0, help="whose validation cases are the test cases")
    parser.add_argument(
        "--cases", type=at_least_1, help="as many cases, evenly spread over the data set; all by default"
    )
    parser.add_argument("--width", type=at_least_1, help="channels of the first level of every network")
    parser.add_argument("--steps", type=at_least_1, help="of the optimiser, instead of the epochs of the file")
    parser.add_argument("--patch", type=at_least_1, nargs=3, metavar="N")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--device", default="auto")
    try:
        return run(parser.parse_args(words))
    except VoxelwiseError as error:
        print(f"run_experiment: {error}", file=sys.stderr)
        return error.exit_code


def at_least_1(word: str) -> int:
    """A whole number of the command line."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is no whole number from 1 on")
    return int(word)


def run(given: argparse.Namespace) -> int:
    """Every arm, then the table; exit code 3 where a case was stopped."""
    experiment = read_experiment(given.experiment)
    arms = chosen_arms(experiment, given.arms)
    dataset = some_cases(read_dataset(given.dataset), given.cases)
    folds_of(dataset)  # too few patients are said before anything is read
    settings = {"dataset": str(given.dataset.resolve()), "cases": given.cases, "select": experiment.select}
    if (given.out / "experiment.json").is_file():
        hold_to(given.out / "experiment.json", settings)
    plans = plans_of(experiment, arms, dataset, given.out / "plans", Smaller(given.width, given.patch, given.seed))
    hold_to(given.out / "experiment.json", settings)
    prepared = preprocess(dataset, out=given.out / "cases", plan=next(iter(plans.values())))
    comparison = compared(experiment, given, dataset, next(iter(plans.values())))
    rows = []
    for number, (name, arm) in enumerate(arms.items(), start=1):
        print(f"arm {number} of {len(arms)}: {name}", file=sys.stderr, flush=True)
        rows.append(run_arm(name, arm, plans[name], comparison))
    text = table(rows, comparison)
    write_text(comparison.test.parent / "table.md", text)
    print(text)
    return 3 if prepared.failures or any(row.stopped for row in rows) else 0


def some_cases(dataset: Dataset, count: int | None) -> Dataset:
    """A data set of fewer cases."""
    if count is None:
        return dataset
    names = set(spread([case.name for case in dataset.cases], count))
    return replace(dataset, cases=tuple(case for case in dataset.cases if case.name in names))


def compared(experiment: Experiment, given: argparse.Namespace, dataset: Dataset, plan: Plan) -> Comparison:
    """Part the cases, and write down the parts."""
    stored = stored_dataset(given.out / "cases")
    assert stored is not None
    splits = splits_of(stored[0], experiment.select)
    if not 0 <= given.fold < len(splits):
        raise UsageError(f"--fold {given.fold}: there are the folds 0 to {len(splits) - 1}")
    write_json(given.out / "splits.json", splits)
    usable = open_store(given.out / "cases").cases
    test = [case for case in dataset.cases if case.name in splits[given.fold]["test"] and case.name in usable]
    if not test:
        raise UsageError(f"--fold {given.fold}: none of its test cases can be used; choose another")
    folder = given.out / "results" / f"fold_{given.fold}" / "test"
    write_listing(folder, test, plan)
    return Comparison(experiment, given, dataset, splits[given.fold], folder)


def splits_of(dataset: Dataset, select: str) -> list[dict[str, list[str]]]:
    """For each fold the cases that train, choose the epoch and test; where none are needed to choose by, `val` tests.

    No patient stands in two of them.
    """
    splits = []
    for fold in folds_of(dataset):
        train_names, chosen_by = list(fold.train), list(fold.validation)
        if select == "best":
            others = replace(dataset, cases=tuple(case for case in dataset.cases if case.name in fold.train))
            chosen_by = []
            if len(patients_of(others)) > 1:
                inner = folds_of(others)[0]
                train_names, chosen_by = list(inner.train), list(inner.validation)
        splits.append({"train": train_names, "val": chosen_by, "test": list(fold.validation)})
    return splits


def folds_of(dataset: Dataset) -> list[Fold]:
    """The folds of `voxelwise train`, without its warning that there are fewer where there are few patients."""
    return make_folds(dataset, count=min(FOLDS, len(patients_of(dataset))))


def patients_of(dataset: Dataset) -> set[str]:
    """Each once."""
    return {case.patient for case in dataset.cases}


def write_listing(folder: Path, cases: Sequence[Case], plan: Plan) -> None:
    """Cases as a data set (Decathlon's dataset.json) that lists the files where they lie."""
    folder.mkdir(parents=True, exist_ok=True)
    listing = {
        "name": plan.dataset,
        "channel_names": {str(number): name for number, name in enumerate(plan.channels)},
        "labels": {str(label.value): label.name for label in plan.labels},
        "training": [
            {"image": [str(image.resolve()) for image in case.images], "label": str(case.label.resolve())}
            for case in cases
            if case.label is not None
        ],
    }
    write_json(folder / "dataset.json", listing)


def run_arm(name: str, arm: Arm, plan: Plan, comparison: Comparison) -> Row:
    """The label maps of the test cases, and their scores."""
    results = comparison.test.parent / name
    labels, parameters, stopped = results / "labels", None, 0
    if arm.multi_otsu is None:
        parameters = count_parameters(check_network(plan))
        stopped = learn(name, plan, comparison, labels)
    else:
        name = f"{name} ({threshold(arm.multi_otsu, plan, comparison, labels)} of {arm.multi_otsu.parts})"
    classes = {label.value: label.name for label in plan.labels}
    scored = evaluate(labels, comparison.test, out=results / "scores", labels=classes)
    summary = json.loads((results / "scores" / "summary.json").read_text(encoding="utf-8"))
    scores = {
        measure: summary[aggregation][group][score]["value"]
        for measure, (_, aggregation, group, score) in MEASURES.items()
    }
    return Row(name, parameters, scores, stopped + len(scored.failures))


def learn(name: str, plan: Plan, comparison: Comparison, labels: Path) -> int:
    """Train a network and segment the test cases with it; how many of these were stopped."""
    given = comparison.given
    length = {"steps": given.steps} if given.steps else {"epochs": comparison.experiment.epochs}
    train(
        given.out / "cases",
        out=given.out / name,
        plan=plan,
        fold=given.fold,
        splits=given.out / "splits.json",
        select=comparison.select,
        device=given.device,
        **length,
    )
    model = load_predictor(given.out / name, fold=str(given.fold), device=given.device)
    return len(predict(model, comparison.test, labels).failures)


def threshold(settings: MultiOtsu, plan: Plan, comparison: Comparison, labels: Path) -> str:
    """Segment the test cases by multi-Otsu; which part was taken for the foreground."""
    background, foreground = (label.value for label in plan.labels)
    side: str = settings.foreground
    if side == "fitted":
        others = {*open_store(comparison.given.out / "cases").cases} - {*comparison.split["test"]}
        known = [case for case in comparison.dataset.cases if case.name in others]
        side = better_side(known, settings.parts, foreground)
    tested = read_dataset(comparison.test).cases
    write_parts(tested, labels, settings.parts, side, (background, foreground))
    return side


def table(rows: Sequence[Row], comparison: Comparison) -> str:
    """What was found beside what the source prints."""
    experiment, given, split = comparison.experiment, comparison.given, comparison.split
    columns = experiment.columns
    headings = ["arm", "parameters", *(MEASURES[measure][0] for measure in columns), "the source"]
    length = f"{given.steps} steps" if given.steps else f"{experiment.epochs} epochs"
    parts = [f"{len(split['train'])} cases train"]
    parts += [f"{len(split['val'])} choose the epoch"] if comparison.select == "best" else []
    parts += [f"{len(read_dataset(comparison.test).cases)} test"]
    lines = [
        f"{experiment.title}: {comparison.dataset.name}, fold {given.fold} ({', '.join(parts)}), {length}, "
        f"{comparison.select} weights, {'width ' + str(given.width) if given.width else 'full width'}, "
        f"torch {torch.__version__}.",
        "",
        f"| {' | '.join(headings)} |",
        f"|{' --- |' * len(headings)}",
    ]
    for row in rows:
        found = [_shown(row.scores[measure]) for measure in columns]
        figures: Mapping[str, Any] = experiment.figures.get(row.name.partition(" ")[0], {})
        said = ", ".join(
            f"{word} {value:.3f}" if isinstance(value, float) else f"{word} {value}" for word, value in figures.items()
        )
        count = "-" if row.parameters is None else f"{row.parameters:,}"
        lines.append(f"| {row.name} | {count} | {' | '.join(found)} | {said} |")
    lines += [
        "",
        "Dice, IoU, precision, sensitivity and specificity: mean over the classes without background; mIoU: over all "
        "classes. Pooled: all test cases as one image.",
    ]
    for row in rows:
        if row.stopped:
            lines.append(f"{row.name}: {row.stopped} test cases were stopped; the scores are those of the others.")
    return "\n".join(lines) + "\n"


def _shown(score: float | None) -> str:
    return "-" if score is None else f"{score:.3f}"


if __name__ == "__main__":
    listen(quiet=False, debug=False)
    sys.exit(main())
