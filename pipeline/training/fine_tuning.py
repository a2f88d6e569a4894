"""The plan of a run that fine-tunes a model: what the weights depend on is the model's, the rest the data set's."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import CaseError, UsageError
from ...transforms.chains import preprocessing_steps
from ..dataset.choices import choose_mirror_axes
from ..dataset.fingerprint import Fingerprint
from ..dataset.plan import Plan, make_plan, plan_from
from ..dataset.plan_parts import Label
from ..inference.checks import COMPARABLE, check_channel_names
from ..model_folder import MODEL_FILE, ModelFolder, name_to_build, read_model_folder

log = logging.getLogger(__name__)

NETWORK_WORDS = ("network", "dims", "width", "options")
OF_MODEL = (
    "dims", "spacing_mm", "resampling", "orientation", "crop", "bias_field", "normalisation", "patch", "slices",
    "mirror_axes", "overlap", "blending", "windows", "tta",
)  # fmt: skip
UNNAMED = re.compile(r"(?:label|class) \d+")  # what a label is called that nobody named
WORLD_AXES = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}


@dataclass(frozen=True, eq=False)
class Initial:
    """A model to fine-tune.

    Args:
        model: its folder, absolute.
        plan: of it, with the network as it can be built here.
    """

    model: ModelFolder
    plan: Plan

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.model.folder.name


def read_initial(init: Path, asked: Mapping[str, Any]) -> Initial:
    """Read a model and hold what else was asked for against it.

    Args:
        init: model folder.
        asked: options of the command line.

    Raises:
        UsageError: no model folder, or options that contradict it.
        UnsafeInputError: weights that are not those of its model.yaml.
    """
    folder = model_path(init)
    model = read_model_folder(folder)
    name = name_to_build(model, asked.get("network"))
    stated = {"dataset": folder.name, "batch": 2, "modality": "other", **model.plan}
    labels = [{key: getattr(label, key) for key in ("value", "name")} for label in model.labels]
    network = {"name": name, "options": dict(model.network.options)}
    plan = plan_from({"labels": labels, **stated, "network": network}, where=str(folder / MODEL_FILE))
    steps = preprocessing_steps(**{**plan.model_dump(), **model.plan})
    if model.preprocessing and [dict(step) for step in model.preprocessing] != steps:
        raise UsageError(f"--init {init}: its preprocessing is not that of its plan, so none can be planned like it")
    refuse_contradictions(init, plan, asked)
    return Initial(model, plan)


def model_path(init: Path) -> Path:
    """The absolute path of a model folder that may be named by its model.yaml."""
    path = init.expanduser().absolute()
    return path.parent if path.name == MODEL_FILE else path


def refuse_contradictions(init: Path, plan: Plan, asked: Mapping[str, Any]) -> None:
    """Refuse options that ask for another network than the model's.

    Raises:
        UsageError: names the first.
    """
    options = plan.network.options
    width = options.get("width", next(iter(options.get("widths") or ()), None))
    wanted = {"network": plan.network.name, "dims": plan.dims, "width": width}
    for word, value in wanted.items():
        if asked.get(word, value) != value:
            raise UsageError(f"--{word} {asked[word]}: the model {init} has {word} {value}; leave --{word} out")
    for name, value in dict(asked.get("options") or {}).items():
        if name not in options or options[name] != value:
            has = f"{name}={options[name]}" if name in options else f"no option {name}"
            raise UsageError(f"--option {name}={value}: the model {init} has {has}; leave it out")


def check_init(init: Path, run: Path) -> None:
    """Refuse a model that is the run itself.

    Raises:
        UsageError: it is.
    """
    if model_path(init).resolve() == run.resolve():
        raise UsageError(f"--init {init} is the folder of the run; choose another --out")


def check_same_start(before: Plan, init: Path, run: Path) -> None:
    """Refuse to go on with a run that started from something else.

    Raises:
        UsageError: names what it started from.
    """
    start = before.network.start
    if start is not None and start.folds and Path(start.weights) == model_path(init):
        return
    source = f"from {start.weights}" if start is not None else "from fresh weights"
    raise UsageError(f"--init {init}: {run} holds a run that started {source}; use --overwrite or another folder")


def plan_fine_tuning(initial: Initial, fingerprint: Fingerprint, choices: Mapping[str, Any]) -> Plan:
    """The plan of a data set for the network of a model.

    Args:
        initial: the model.
        fingerprint: of the data set.
        choices: of `make_plan`: batch, loss, optimizer, seed, memory_bytes, device_kind.

    Raises:
        UsageError: another number of channels or dimensions, or channels in another order.
    """
    model, root = initial.plan, fingerprint.dataset.root
    if model.dims == 3 and fingerprint.is_pictures:
        raise UsageError(
            f"--init {initial.name}: the model takes volumes (dims 3), and {root} holds pictures (dims 2); fine-tune a "
            "model of pictures"
        )
    _check_channels(initial, fingerprint.dataset.channels, root)
    values = {name: value for name, value in model.model_dump().items() if name in OF_MODEL}
    made = make_plan(fingerprint, network=model.network.name, options=model.network.options, **values, **choices)
    return united(initial, made, _without_sides(initial, fingerprint))


def plan_fine_tuning_of_store(initial: Initial, plan: Plan, cache: Path) -> Plan:
    """The same of a store of preprocessed cases, by the plan that it was made by.

    Raises:
        UsageError: another number of channels or dimensions, or channels in another order.
    """
    _check_channels(initial, plan.channels, cache)
    return united(initial, plan, plan.mirror_axes)


def united(initial: Initial, plan: Plan, allowed: Sequence[int]) -> Plan:
    """A data set's plan with all that the weights of a model depend on.

    Args:
        initial: the model.
        plan: of the data set.
        allowed: axes along which the data set's labels may be mirrored; of no matter where they are the model's.
    """
    model, reason = initial.plan, f"of the model {initial.name}"
    same = same_labels(model.labels, plan.labels)
    axes = [axis for axis in model.mirror_axes if same or axis in allowed]
    given = model.model_dump()
    values = {key: value for key, value in plan.model_dump().items() if key not in (*OF_MODEL, "regions")}
    values |= {key: given[key] for key in OF_MODEL if key in given}
    values |= {"mirror_axes": axes, "tta": model.tta and bool(axes)}
    reasons = {**plan.reasons, **dict.fromkeys(OF_MODEL, reason), "network": reason}
    if axes != model.mirror_axes:
        reasons["mirror_axes"] = f"{reason}, but for those that labels of the data set name or lie apart along"
    if _clash(model.modality, plan.modality):
        log.warning("the data set is %s, the model was trained on %s", plan.modality, model.modality)
    else:
        values |= {"modality": model.modality, "channels": model.channels}
        reasons |= {"modality": reason, "channels": reason}
    if same:
        values |= {"labels": _named(given["labels"], plan.labels), "regions": given.get("regions", [])}
        reasons |= {"labels": f"{reason}, and the data set's", "regions": reason}
    start = {
        "weights": str(initial.model.folder),
        "folds": {fold: initial.model.sha256(fold) for fold in initial.model.folds},
        "fresh_head": not same,
    }
    values["network"] = {"name": model.network.name, "options": model.network.options, "start": start}
    return plan_from({**values, "reasons": reasons}, where=f"plan of {plan.dataset} with --init {initial.name}")


def same_labels(model: Sequence[Label], dataset: Sequence[Label]) -> bool:
    """Whether values and names are the same; the background's name, and one that nobody gave, are any."""
    ours, theirs = ({label.value: label.name.strip().lower() for label in labels} for labels in (model, dataset))
    if ours.keys() != theirs.keys() or model[0].value != dataset[0].value:
        return False
    pairs = [(ours[label.value], theirs[label.value]) for label in model[1:]]
    return all(one == other or UNNAMED.fullmatch(one) or UNNAMED.fullmatch(other) for one, other in pairs)


def _named(labels: Sequence[Mapping[str, Any]], dataset: Sequence[Label]) -> list[dict[str, Any]]:
    """The model's labels, those that nobody named by the data set's names."""
    names = {label.value: label.name for label in dataset}
    return [
        {**label, "name": names[label["value"]] if UNNAMED.fullmatch(label["name"].lower()) else label["name"]}
        for label in labels
    ]


def _check_channels(initial: Initial, channels: Sequence[str], root: Path) -> None:
    wanted = initial.plan.channels
    if len(channels) != len(wanted):
        count = "1 channel" if len(wanted) == 1 else f"{len(wanted)} channels"
        raise UsageError(
            f"--init {initial.name}: the model takes {count} ({', '.join(wanted)}), and {root} has {len(channels)} "
            f"({', '.join(channels)}); give a data set of the same channels"
        )
    try:
        check_channel_names(channels, {"channels": wanted})
    except CaseError as error:
        if error.code == "channels":  # another modality may be what the fine-tuning is for
            raise UsageError(f"--init {initial.name}: {root}: {error}") from None


def _clash(model: str, found: str) -> bool:
    return model != found and {model, found} <= COMPARABLE


def _without_sides(initial: Initial, fingerprint: Fingerprint) -> list[int]:
    """Axes of the model's grid along which no label of a data set means a side or an end."""
    free, _, _ = choose_mirror_axes(fingerprint, None, None)
    fixed = initial.plan.orientation
    codes = {fixed} if fixed is not None else {case.orientation for case in fingerprint.cases}
    named = [word or "RAS" for word in codes]  # pictures have no place in the world
    return [axis for axis in range(3) if all(WORLD_AXES[word[axis]] in free for word in named)]
