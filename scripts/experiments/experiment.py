"""The file of an experiment, and the plan of each of its arms.

title     heading of the table
plan      fields of the plan that all arms share; everything else is planned from the data set
arms      name -> network, options, and fields of the plan of its own; or multi_otsu, which learns nothing
epochs    length of each run
select    `last` weights (the default), or those of the `best` epoch on cases that are no test cases
measures  columns of the table beside the usual ones
figures   arm -> what the source prints of it, word -> value
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, Field, ValidationError, field_validator
from voxelwise.errors import UsageError, unknown
from voxelwise.networks.registry import NETWORKS
from voxelwise.pipeline.dataset.cases import Dataset
from voxelwise.pipeline.dataset.fingerprint import Fingerprint, take_fingerprint
from voxelwise.pipeline.dataset.plan import Plan, make_plan, read_plan, write_plan
from voxelwise.pipeline.dataset.plan_parts import Record
from voxelwise.pipeline.training.planning import check_network
from voxelwise.transforms.writers import write_json

RESERVED = ("cases", "plans", "results")  # folders beside those of the arms
# measure -> its column, and where `evaluate` keeps it: aggregation, classes, score
MEASURES = {
    "dice": ("Dice, mean over cases", "mean_over_cases", "foreground", "dice"),
    "dice_pooled": ("Dice, pooled", "pooled", "foreground", "dice"),
    "miou": ("mIoU, pooled", "pooled", "all", "iou"),
    "accuracy": ("accuracy, pooled", "pooled", "all", "voxel_accuracy"),
    "iou": ("IoU, pooled", "pooled", "foreground", "iou"),
    "precision": ("precision, pooled", "pooled", "foreground", "precision"),
    "sensitivity": ("sensitivity, pooled", "pooled", "foreground", "sensitivity"),
    "specificity": ("specificity, pooled", "pooled", "foreground", "specificity"),
}
USUAL = ("dice", "dice_pooled", "miou", "accuracy")


class MultiOtsu(Record):
    """The classical arm: `parts` of the grey values, of which one is the foreground.

    `fitted` takes the darkest or the brightest, whichever fits the labels of the training cases better.
    """

    parts: int = Field(default=3, ge=2, le=5)
    foreground: Literal["darkest", "brightest", "fitted"] = "fitted"


class Arm(Record):
    """One line of the table; what is not named here is a field of the plan."""

    model_config = ConfigDict(extra="allow")

    network: str = "unet"
    options: dict[str, Any] = Field(default_factory=dict)
    multi_otsu: MultiOtsu | None = None


class Experiment(Record):
    """A file of this folder; see the top of this module."""

    title: str
    plan: dict[str, Any]
    arms: dict[str, Arm] = Field(min_length=1)
    epochs: int = Field(ge=1)
    select: Literal["last", "best"] = "last"
    measures: list[str] = Field(default_factory=list)
    figures: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @field_validator("arms")
    @classmethod
    def _no_folder_twice(cls, arms: dict[str, Arm]) -> dict[str, Arm]:
        for name in arms:
            if name in RESERVED or not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(f"{name!r} is the name of a folder that it cannot have; choose another")
        return arms

    @property
    def columns(self) -> list[str]:
        """Measures of the table."""
        return [*USUAL, *(name for name in self.measures if name not in USUAL)]


@dataclass(frozen=True)
class Smaller:
    """What the command line changes in every arm; None leaves a thing as it is."""

    width: int | None = None
    patch: Sequence[int] | None = None
    seed: int | None = None


def read_experiment(path: Path) -> Experiment:
    """Read and check a file.

    Raises:
        UsageError: no such file, not YAML, a field that is missing, wrong or unknown; a network that is not ours.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); give one of the YAML files of this folder") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark is not None else ""
        raise UsageError(f"{path}: not YAML{where} ({getattr(error, 'problem', error)}); correct that line") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: found {type(content).__name__}, expected title, plan, arms and epochs")
    try:
        for field in content:
            _known("field", field, Experiment.model_fields)
        experiment = Experiment.model_validate(content)
        for measure in experiment.measures:
            _known("measure", measure, MEASURES)
        for name, arm in experiment.arms.items():
            _known(f"network of arm {name}:", arm.network, NETWORKS)
        for name in experiment.figures:
            _known("arm with figures", name, experiment.arms)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{path}: {where}: {str(first['msg']).removeprefix('Value error, ')}") from None
    return experiment


def chosen_arms(experiment: Experiment, words: str | None) -> dict[str, Arm]:
    """The arms that were asked for, all without words.

    Raises:
        UsageError: an arm that is not there.
    """
    names = words.split(",") if words else list(experiment.arms)
    for name in names:
        _known("arm", name, experiment.arms)
    return {name: experiment.arms[name] for name in names}


def plans_of(
    experiment: Experiment, arms: Mapping[str, Arm], dataset: Dataset, folder: Path, smaller: Smaller
) -> dict[str, Plan]:
    """One plan an arm, made once and kept in `folder`.

    Raises:
        UsageError: a field, option or value that does not fit; a plan there that was made for something else.
    """
    fingerprint, plans, made = None, {}, {}
    for name, arm in arms.items():
        asked = _asked(experiment, arm, smaller)
        if (folder / f"{name}.yaml").is_file():
            hold_to(folder / f"{name}.json", asked)
            plans[name] = read_plan(folder / f"{name}.yaml")
            continue
        fingerprint = fingerprint or take_fingerprint(dataset)
        try:
            plans[name] = made[name] = _planned(fingerprint, asked)
        except (UsageError, ValueError, TypeError) as error:
            raise UsageError(f"arm {name}: {error}") from None
        if arm.multi_otsu is not None and len(made[name].labels) != 2:
            raise UsageError(
                f"arm {name}: multi-Otsu tells one class from the background, {dataset.root} has "
                f"{len(made[name].labels) - 1}; leave it out with --arms"
            )
    for name, plan in made.items():
        folder.mkdir(parents=True, exist_ok=True)
        hold_to(folder / f"{name}.json", _asked(experiment, arms[name], smaller))
        write_plan(plan, folder / f"{name}.yaml")
    return plans


def hold_to(record: Path, settings: Mapping[str, Any]) -> None:
    """Keep what decides the results in a file; refuse other settings where there is one.

    Raises:
        UsageError: names what differs.
    """
    now = json.loads(json.dumps(settings))
    if not record.is_file():
        write_json(record, now)
        return
    before = json.loads(record.read_text(encoding="utf-8"))
    differ = [
        f"{name}: {json.dumps(before.get(name))} -> {json.dumps(now.get(name))}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    if differ:
        raise UsageError(f"{record} was written for other settings ({'; '.join(differ)}); choose another --out")


def _asked(experiment: Experiment, arm: Arm, smaller: Smaller) -> dict[str, Any]:
    """Arguments of `make_plan`: the file's, then the command line's."""
    asked = {**experiment.plan, **(arm.model_extra or {}), "network": arm.network, "options": dict(arm.options)}
    if smaller.patch:
        asked["patch"] = list(smaller.patch)
    if smaller.seed is not None:
        asked["seed"] = smaller.seed
    if smaller.width is None:
        return asked
    if arm.network == "autocontext":
        asked["options"]["options"] = {**asked["options"].get("options", {}), "width": smaller.width}
    else:
        asked["width"] = smaller.width
    return asked


def _planned(fingerprint: Fingerprint, asked: Mapping[str, Any]) -> Plan:
    plan = make_plan(fingerprint, **asked)
    check_network(plan)
    return plan


def _known(what: str, name: Any, choices: Mapping[str, Any]) -> None:
    if name not in choices:
        raise unknown(what, str(name), choices)
