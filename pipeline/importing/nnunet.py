"""A trained folder of nnU-Net v2 as a plan and networks of ours.

Isensee et al., Nature Methods 18 (2021). Nothing of nnU-Net is imported or run: what its files say is checked and put
into our terms (`nnunet_plan`, `networks.nnunet`), and what is not known here is refused by name. Not read: cascades,
whose second network takes the labels of the first; trainers with networks of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ...networks.base import SegmentationNetwork
from ...networks.nnunet import unet_from_nnunet
from ...networks.nnunet_weights import weights_from_nnunet
from ..dataset.plan import Plan
from ..identity import file_digest
from .bounds import too_large
from .checkpoint import CheckpointReader
from .conversion import Conversion
from .nnunet_folder import DATASET_FILE, PLANS_FILE, NnUNetFolder, read_nnunet_folder
from .nnunet_labels import read_labels
from .nnunet_plan import Understood, plan_of
from .nnunet_plans import CASCADE_FIELD, Configuration, Plans, checked, inherited
from .nnunet_report import PLAIN_TRAINER, report_of
from .weights import not_finite

WEIGHTS = "network_weights"
WITHOUT_DEEP_SUPERVISION = "NoDeepSupervision"  # in the name of such a trainer


@dataclass(frozen=True)
class Wanted:
    """What is asked for of a folder.

    Args:
        folds: numbers or "all"; all numbered ones when left out.
        checkpoint: "final" or "best".
        orientation: axis codes that images are turned to before all else; None leaves it to nnU-Net's reader.
    """

    folds: tuple[str, ...] = ()
    checkpoint: str = "final"
    orientation: str | None = None


@dataclass(frozen=True, eq=False)
class Trained:
    """What one checkpoint holds.

    Args:
        path: of it.
        weights: under nnU-Net's names.
        trainer: name of its class.
        configuration: name of it.
        mirror_axes: that it allows in prediction, in nnU-Net's order.
        epochs: that it was trained for, None where it does not say.
    """

    path: Path
    weights: Mapping[str, Tensor]
    trainer: str
    configuration: str
    mirror_axes: tuple[int, ...]
    epochs: int | None

    @property
    def settings(self) -> tuple[Any, ...]:
        """What all folds of a model share."""
        return self.trainer, self.configuration, self.mirror_axes


def convert_nnunet(root: Path, reader: CheckpointReader, wanted: Wanted) -> Conversion:
    """Understand a folder; its networks are made when they are asked for, while the reader is open.

    Args:
        root: TRAINER__PLANS__CONFIGURATION.
        reader: of the checkpoints.
        wanted: folds, which checkpoint of them, and an orientation.

    Raises:
        UsageError: no such folder, a fold that is not there, something that ours cannot do, weights that do not fit.
        UnsafeInputError: a checkpoint that holds other types.
        NoRoomError: out of memory.
    """
    folder = read_nnunet_folder(root, wanted.folds, wanted.checkpoint)
    first_fold, first_path = next(iter(folder.checkpoints.items()))
    first = read_trained(reader, first_path)
    found = understand(folder, first)
    plan = plan_of(found, str(folder.root / PLANS_FILE), orientation=wanted.orientation)

    def networks() -> Iterator[tuple[str, SegmentationNetwork]]:
        for fold, path in folder.checkpoints.items():
            trained = first if fold == first_fold else read_trained(reader, path)
            if trained.settings != first.settings:
                raise UsageError(
                    f"{path} was trained otherwise than fold {first_fold}: trainer, configuration and mirror axes are "
                    f"{trained.settings}, there {first.settings}; import its fold alone with --fold {fold}"
                )
            yield fold, network_of(found, plan, trained)

    return Conversion(
        kind="nnU-Net",
        plan=plan,
        networks=networks(),
        report=report_of(folder, found, plan, first.trainer),
        source=source_of(folder, found, first),
    )


def read_trained(reader: CheckpointReader, path: Path) -> Trained:
    """Read a checkpoint and check what it says of its training.

    Raises:
        UsageError: it lacks the name of its trainer or configuration, or its weights are not finite.
        UnsafeInputError: it holds other types.
    """
    found = reader.read(path, (WEIGHTS,))
    facts = found.facts
    arguments = facts.get("init_args")
    trainer, configuration = facts.get("trainer_name"), None
    if isinstance(arguments, Mapping):
        configuration = arguments.get("configuration")
    if not isinstance(trainer, str) or not isinstance(configuration, str):
        raise UsageError(f"{path} does not say by which trainer and configuration it was made; is it nnU-Net v2's?")
    axes = facts.get("inference_allowed_mirroring_axes") or ()
    if not isinstance(axes, list | tuple) or not all(axis in (0, 1, 2) for axis in axes):
        raise UsageError(f"{path}: inference_allowed_mirroring_axes are {axes!r}, expected axes 0, 1, 2")
    if (wrong := not_finite(found.weights)) is not None:
        raise UsageError(f"{path}: the weights of {wrong} are not finite; its training failed, take another checkpoint")
    epochs = facts.get("current_epoch")
    return Trained(
        path, found.weights, trainer, configuration, tuple(axes), epochs if isinstance(epochs, int) else None
    )


def understand(folder: NnUNetFolder, trained: Trained) -> Understood:
    """What plans.json and dataset.json say of a checkpoint's configuration.

    Raises:
        UsageError: a cascade, a network that ours is not, or a field that is missing or wrong.
    """
    where = str(folder.root / PLANS_FILE)
    plans = checked(Plans, folder.plans, where)
    values = inherited(plans, trained.configuration, where)
    if values.get(CASCADE_FIELD) is not None:
        raise UsageError(
            f"{folder.root}: {trained.configuration} is the second stage of a cascade, which takes the labels of "
            f"{values[CASCADE_FIELD]}, and cannot be imported; import {values[CASCADE_FIELD]} or 3d_fullres"
        )
    configuration = checked(Configuration, values, f"{where}: {trained.configuration}")
    if (number := too_large(values)) is not None:
        raise UsageError(
            f"{where}: {trained.configuration}: holds the number {number}, which no network or patch has; get the "
            "folder again"
        )
    try:
        network = unet_from_nnunet(
            values,
            plans.transpose_forward,
            batch_norm=any(name.endswith(".running_mean") for name in trained.weights),
            deep_supervision=WITHOUT_DEEP_SUPERVISION not in trained.trainer,
        )
    except UsageError as error:
        raise UsageError(f"{folder.root}: {error}") from error
    dims = network.spatial_dims
    if any(axis >= dims for axis in trained.mirror_axes):
        raise UsageError(f"{trained.path}: mirrors along the axes {list(trained.mirror_axes)} of {dims}")
    dataset = str(folder.root / DATASET_FILE)
    return Understood(
        plans=plans,
        configuration=configuration,
        name=trained.configuration,
        channels=channels_of(folder.dataset, dataset),
        labels=read_labels(folder.dataset, dataset),
        network=network,
        mirror_axes=trained.mirror_axes,
    )


def channels_of(dataset: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Names of the channels, in order.

    Raises:
        UsageError: they are not numbered from 0 on.
    """
    named = dataset.get("modality", dataset.get("channel_names"))
    if isinstance(named, list):
        named = {str(at): name for at, name in enumerate(named)}
    numbers = [str(at) for at in range(len(named))] if isinstance(named, Mapping) else []
    if not isinstance(named, Mapping) or not numbers or {str(key) for key in named} != set(numbers):
        raise UsageError(f'{where}: channel_names must number the channels, as {{"0": "CT"}} does; found {named!r:.80}')
    by_number = {str(key): str(name) for key, name in named.items()}
    return tuple(by_number[number] for number in numbers)


def network_of(found: Understood, plan: Plan, trained: Trained) -> SegmentationNetwork:
    """Our network with the weights of a checkpoint.

    Raises:
        UsageError: they do not fit.
    """
    channels, outputs = len(plan.channels), found.labels.outputs
    try:
        weights = weights_from_nnunet(trained.weights, found.network, channels, outputs)
    except UsageError as error:
        hint = "" if trained.trainer == PLAIN_TRAINER else f" (has trainer {trained.trainer} a network of its own?)"
        raise UsageError(f"{trained.path}: {error}{hint}") from error
    with torch.device("meta"):
        network = found.network.build(channels, outputs)
    network.load_state_dict(weights, strict=True, assign=True)
    return network.eval()


def source_of(folder: NnUNetFolder, found: Understood, first: Trained) -> dict[str, Any]:
    """Where the weights come from, for the provenance."""
    root = folder.root
    files = [root / PLANS_FILE, root / DATASET_FILE, *folder.checkpoints.values()]
    return {
        "program": "nnU-Net v2",
        "folder": root.resolve().name,
        "dataset": found.plans.dataset_name,
        "trainer": first.trainer,
        "plans": found.plans.plans_name,
        "configuration": first.configuration,
        "epochs": first.epochs,
        "files": {path.relative_to(root).as_posix(): file_digest(path) for path in files},
    }
