"""Model folders: what a run leaves behind and `predict` takes.

    model.yaml                     format version, network, plan, preprocessing, labels, provenance, folds with SHA-256
    fold_0/weights.safetensors     one subfolder a fold

Nothing in the folder is ever executed or unpickled. Paths are relative, so that the folder can be moved. The hash of
the weights is checked before they are parsed, and what is not a safetensors file is refused without a look into it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from torch import Tensor

from ..errors import UnsafeInputError, UsageError
from ..networks.base import SegmentationNetwork, SliceNetwork
from ..networks.registry import build_network, is_file, network_file
from ..transforms.chains import preprocessing_steps
from ..transforms.writers import atomic_write, plain_value, write_text
from .identity import file_digest
from .lock import FolderLock

FORMAT = 1
MODEL_FILE, LOCK_FILE = "model.yaml", ".model.lock"
WAIT_SECONDS = 20.0  # for another fold that is writing its weights
LARGEST_MODEL_FILE = 32 << 20
FOLD_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")
FOREIGN_MODELS = {"plans.json": "nnU-Net's", "configs/metadata.json": "a MONAI bundle"}
FOREIGN_MAGIC = {b"\x80": "a pickle", b"PK": "a zip archive, as torch.save writes it", b"\x1f\x8b": "a gzip file"}


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NetworkEntry(_Entry):
    """How the network is built. `code_sha256` is that of the user's file, where the class is not one of ours."""

    name: str
    spatial_dims: int = Field(ge=2, le=3)
    in_channels: int = Field(ge=1)
    out_channels: int = Field(ge=1)
    options: dict[str, Any] = {}
    code_sha256: str | None = None


class LabelEntry(BaseModel):
    """One class: the value it has in label maps, its name, and whatever else the plan says of it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    value: int = Field(ge=0)
    name: str


class RegionEntry(_Entry):
    """A channel of the network's output that stands for a union of label values, and the value that it writes."""

    name: str
    values: list[int] = Field(min_length=1)
    writes: int = Field(ge=1)


class FoldEntry(_Entry):
    """Weights of one fold. `previous_sha256` stands only while they are being replaced; either file is whole then."""

    weights: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    previous_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")


class ModelFile(_Entry):
    """The content of model.yaml."""

    format: int
    network: NetworkEntry
    plan: dict[str, Any]
    preprocessing: list[dict[str, Any]] = []
    labels: list[LabelEntry]
    folds: dict[str, FoldEntry]
    provenance: dict[str, Any] = {}

    @property
    def regions(self) -> tuple[RegionEntry, ...]:
        """What the channels of the network's output are, as the plan has it; empty where they are the classes."""
        return tuple(RegionEntry.model_validate(one) for one in self.plan.get("regions") or ())

    @model_validator(mode="after")
    def _check(self) -> ModelFile:
        if not isinstance(self.plan.get("regions") or [], list):
            raise ValueError("the plan's regions are no list")
        regions, outputs, values = self.regions, self.network.out_channels, {label.value for label in self.labels}
        if regions and len(regions) != outputs:
            raise ValueError(f"the plan has {len(regions)} regions, and the network {outputs} outputs")
        if odd := [region for region in regions if region.writes not in values]:
            raise ValueError(f"region {odd[0].name} writes {odd[0].writes}, which is no label")
        return self


@dataclass(frozen=True, eq=False)
class ModelFolder:
    """A model folder that was read and whose hashes were right.

    Args:
        folder: where it lies.
        content: of its model.yaml.
    """

    folder: Path
    content: ModelFile

    @property
    def network(self) -> NetworkEntry:
        """How the network is built."""
        return self.content.network

    @property
    def plan(self) -> Mapping[str, Any]:
        """The plan, as plain values."""
        return self.content.plan

    @property
    def preprocessing(self) -> Sequence[Mapping[str, Any]]:
        """Steps of the preprocessing chain, names and arguments."""
        return self.content.preprocessing

    @property
    def labels(self) -> Sequence[LabelEntry]:
        """Classes; the index in the list is the network's, where it has no regions."""
        return self.content.labels

    @property
    def regions(self) -> tuple[RegionEntry, ...]:
        """What the network's outputs are where they may overlap; empty for plain classes."""
        return self.content.regions

    @property
    def provenance(self) -> Mapping[str, Any]:
        """How the weights came to be."""
        return self.content.provenance

    @property
    def channels(self) -> int:
        """Of an image: fewer than the network's where it sees several slices of each."""
        return self.network.in_channels // int(self.plan.get("slices", 1))

    @property
    def folds(self) -> tuple[str, ...]:
        """Names of the folds that have weights."""
        return tuple(self.content.folds)

    def sha256(self, fold: str) -> str:
        """Hash of a fold's weights."""
        return self.content.folds[fold].sha256


def write_model_folder(
    folder: Path | str,
    network: SegmentationNetwork,
    options: Mapping[str, Any],
    plan: Mapping[str, Any],
    labels: Sequence[Any] | None = None,
    *,
    fold: str = "0",
    name: str | None = None,
    preprocessing: Sequence[Mapping[str, Any]] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> ModelFolder:
    """Write a network as a model folder, or one more fold into a folder of the same model.

    Killed at any moment, the folder holds either the old weights or the new ones, and is whole.

    Args:
        folder: made if needed.
        network: with its weights; of a `SliceNetwork` the 2D network inside is kept.
        options: what `build_network` needs beyond the name to build it again.
        plan: plain values (`Plan.model_dump()`).
        labels: classes in the network's order, each with `value` and `name`; the plan's own when left out. Of a plan
            with regions, the values of label maps.
        fold: name of the fold.
        name: of the network in the registry, or `path/to/file.py:Class`; the plan's own when left out.
        preprocessing: steps of the chain, names and arguments; made from the plan when left out.
        provenance: how the weights came to be.

    Raises:
        UsageError: the folder holds another model.
        FolderInUseError: another process is writing to it and does not come to an end.
    """
    folder, fold = Path(folder), _fold_name(fold)
    inner = network.network if isinstance(network, SliceNetwork) else network
    name = name or str(plan["network"]["name"])
    code = file_digest(network_file(name)[0]) if is_file(name) else None
    entry = NetworkEntry(
        name=Path(name).name if code else name,  # where the file lay is of this machine alone
        spatial_dims=inner.spatial_dims,
        in_channels=inner.in_channels,
        out_channels=inner.out_channels,
        options=_plain(options),
        code_sha256=code,
    )
    wanted = [label if isinstance(label, Mapping) else vars(label) for label in labels or plan["labels"]]
    regions = len(plan.get("regions") or ())
    if (regions or len(wanted)) != inner.out_channels:
        told = f"{regions} regions" if regions else f"{len(wanted)} labels"
        raise ValueError(f"{told} for a network of {inner.out_channels} classes; name each class once")
    content = ModelFile(
        format=FORMAT,
        network=entry,
        plan=_without_paths(_plain(plan)),
        preprocessing=_plain(preprocessing_steps(**plan) if preprocessing is None else preprocessing),
        labels=[LabelEntry(**_plain(label)) for label in wanted],
        folds={},
        provenance=_plain(provenance or {}),
    )
    data = safetensors.torch.save({key: _stored(value) for key, value in inner.state_dict().items()})
    folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(folder / LOCK_FILE, folder / MODEL_FILE)  # another fold may end its epoch at the same moment
    lock.acquire(WAIT_SECONDS)
    try:
        return ModelFolder(folder, _put_fold(folder, content, fold, data))
    finally:
        lock.release()


def _put_fold(folder: Path, content: ModelFile, fold: str, data: bytes) -> ModelFile:
    """Weights and model.yaml of one more fold, beside the folds that are there."""
    folds = _folds_of(folder, content)
    weights = f"fold_{fold}/weights.safetensors"
    path, new = folder / weights, hashlib.sha256(data).hexdigest()
    path.parent.mkdir(parents=True, exist_ok=True)
    previous = file_digest(path) if path.is_file() else None
    known = {folds[fold].sha256, folds[fold].previous_sha256} if fold in folds else set()
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)
        folds[fold] = FoldEntry(weights=weights, sha256=new, previous_sha256=previous if previous in known else None)
        _write_content(folder, content, folds)
    folds[fold] = FoldEntry(weights=weights, sha256=new)
    return _write_content(folder, content, folds)


def read_model_folder(folder: Path | str) -> ModelFolder:
    """Read model.yaml and check the weights of every fold against it, without parsing them.

    Raises:
        UsageError: no such folder, or no model.yaml that we understand.
        UnsafeInputError: weights with a wrong hash, that are no safetensors, or that lie outside the folder.
    """
    folder = Path(folder)
    if folder.name == MODEL_FILE and folder.is_file():
        folder = folder.parent
    if not folder.is_dir():
        raise UsageError(f"model folder {folder} does not exist; give the folder that a run or write_model_folder made")
    model = ModelFolder(folder, _read_content(folder / MODEL_FILE))
    if not model.folds:
        raise UsageError(f"{folder / MODEL_FILE}: there are no weights yet (folds is empty); train first")
    for fold in model.folds:
        with _weights_path(model, fold).open("rb") as file:
            _check_magic(_weights_path(model, fold), file.read(16))
        _check_hash(model, fold, file_digest(_weights_path(model, fold)))
    return model


def load_network(
    model: ModelFolder | Path | str, fold: str | int | None = None, *, network: str | None = None
) -> SegmentationNetwork:
    """Build the network of a model folder and load the weights of one fold, in eval mode on the CPU.

    A plan whose windows are 1 voxel deep along one axis gives a 2D network wrapped as a `SliceNetwork` along it.

    Args:
        model: a model folder, read or not.
        fold: its name; may be left out where there is only one.
        network: `path/to/file.py:Class`, for a model whose network is a user's own class.

    Raises:
        UsageError: no such fold; weights that do not fit the network; the user's file missing or changed.
        UnsafeInputError: weights with a wrong hash, or that are no safetensors.
    """
    if not isinstance(model, ModelFolder):
        model = read_model_folder(model)
    fold = select_folds(model, fold)[0] if fold is not None or len(model.folds) == 1 else ""
    if not fold:
        raise UsageError(f"{model.folder} holds the folds {', '.join(model.folds)}; name one of them")
    entry = model.network
    built = build_network(
        name_to_build(model, network), entry.spatial_dims, entry.in_channels, entry.out_channels, **entry.options
    )
    path = _weights_path(model, fold)
    data = path.read_bytes()
    _check_magic(path, data[:16])
    _check_hash(model, fold, hashlib.sha256(data).hexdigest())
    try:
        built.load_state_dict(safetensors.torch.load(data), strict=True)
    except SafetensorError as error:
        raise UnsafeInputError(f"{path} is not a whole safetensors file ({error}); get the model again") from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:400]
        raise UsageError(
            f"{path} does not fit network {entry.name!r}: {reason}; was the model made by another version?"
        ) from error
    built.eval()
    if entry.spatial_dims == 3 or model.plan.get("dims") != 2:
        return built
    patch = list(model.plan.get("patch", (0, 0, 1)))
    return SliceNetwork(built, axis=patch.index(1) if 1 in patch else 2).eval()


def select_folds(model: ModelFolder, fold: str | int | None) -> tuple[str, ...]:
    """One fold by name, or all of them.

    Raises:
        UsageError: no such fold.
    """
    if fold is None:
        return model.folds
    if str(fold) not in model.folds:
        raise UsageError(f"--fold {fold}: {model.folder} has no such fold (there are: {', '.join(model.folds)})")
    return (str(fold),)


def name_to_build(model: ModelFolder, network: str | None) -> str:
    """The registry's name; or the user's own file, given again and unchanged. A model folder's code is never run.

    Args:
        model: that was read.
        network: `path/to/file.py:Class`, for a model whose network is a user's own class.

    Raises:
        UsageError: another network than the model's; its file missing or changed.
        UnsafeInputError: a file without its hash.
    """
    entry = model.network
    if entry.code_sha256 is None:
        if is_file(entry.name):
            raise UnsafeInputError(
                f"{model.folder / MODEL_FILE}: network {entry.name!r} names a file without its SHA-256"
            )
        if network is not None and network != entry.name:
            raise UsageError(f"--network {network}: {model.folder} holds network {entry.name!r}; leave --network out")
        return entry.name
    class_name = entry.name.rpartition(":")[2]
    if network is None:
        raise UsageError(
            f"{model.folder} was trained with a network of its user's own, {entry.name}; code is never taken from a "
            f"model folder: give the file again, --network path/to/{entry.name}"
        )
    path, found = network_file(network)
    if found != class_name:
        raise UsageError(f"--network {network}: {model.folder} was trained with class {class_name}; name that one")
    digest = file_digest(path)
    if digest != entry.code_sha256:
        raise UsageError(
            f"--network {network}: the file has SHA-256 {digest[:12]}..., the model was trained with "
            f"{entry.code_sha256[:12]}...; give the file as it was then"
        )
    return network


def _without_paths(plan: dict[str, Any]) -> dict[str, Any]:
    """The plan; of a user's file (network, weights) the file's name alone, as where it lay is of that machine."""
    network = plan.get("network")
    if not isinstance(network, dict):
        return plan
    network = dict(network)
    if is_file(str(network.get("name", ""))):
        network["name"] = Path(str(network["name"])).name
    if isinstance(network.get("start"), dict):
        network["start"] = {**network["start"], "weights": Path(str(network["start"].get("weights"))).name}
    return {**plan, "network": network}


def _folds_of(folder: Path, content: ModelFile) -> dict[str, FoldEntry]:
    """Folds that are there already, of the same model."""
    if not (folder / MODEL_FILE).exists():
        return {}
    there = _read_content(folder / MODEL_FILE)
    for field in ("network", "plan", "preprocessing", "labels"):
        if getattr(there, field) != getattr(content, field):
            raise UsageError(f"{folder} holds another model: its {field} differs; use another folder")
    return dict(there.folds)


def _write_content(folder: Path, content: ModelFile, folds: Mapping[str, FoldEntry]) -> ModelFile:
    written = content.model_copy(update={"folds": dict(sorted(folds.items()))})
    plain = written.model_dump(exclude_none=False)
    for entry in plain["folds"].values():
        if entry["previous_sha256"] is None:
            del entry["previous_sha256"]
    write_text(folder / MODEL_FILE, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120))
    return written


def _read_content(path: Path) -> ModelFile:
    if not path.is_file():
        foreign = [what for name, what in FOREIGN_MODELS.items() if (path.parent / name).is_file()]
        way_out = f"; this is {foreign[0]}: import-model {path.parent} MODEL makes one of it" if foreign else ""
        raise UsageError(f"{path.parent} is no model folder: there is no {MODEL_FILE} in it{way_out}")
    if path.stat().st_size > LARGEST_MODEL_FILE:
        raise UnsafeInputError(f"{path} has {path.stat().st_size / 1e6:.0f} MB; a model.yaml has a few kilobytes")
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path} cannot be read as YAML: {reason}") from error
    version = plain.get("format") if isinstance(plain, dict) else None
    if version != FORMAT:
        raise UsageError(
            f"{path}: found format {version!r}, expected {FORMAT}; use the version of voxelwise that wrote it"
        )
    try:
        return ModelFile.model_validate(plain)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{path}: {where}: {first['msg']} (found {str(first['input'])[:60]!r}); correct it") from error


def _weights_path(model: ModelFolder, fold: str) -> Path:
    """Where a fold's weights lie: a plain file inside the folder, links followed."""
    listed = model.content.folds[fold].weights
    path = model.folder / listed
    outside = Path(listed).is_absolute() or ".." in Path(listed).parts
    if outside or not path.resolve().is_relative_to(model.folder.resolve()):
        raise UnsafeInputError(
            f"{model.folder / MODEL_FILE}: fold {fold} names {listed}, which lies outside of the model folder"
        )
    if not path.is_file():
        raise UsageError(f"{path} is not there, though {MODEL_FILE} names it; copy the whole model folder")
    return path


def _check_magic(path: Path, start: bytes) -> None:
    """A safetensors file starts with the length of its header (8 bytes) and a brace; a foreign one is not opened."""
    for magic, what in FOREIGN_MAGIC.items():
        if start.startswith(magic) and start[8:9] != b"{":
            raise UnsafeInputError(f"{path} is {what}; weights must be safetensors, nothing was read from it")
    if start[8:9] != b"{":
        raise UnsafeInputError(f"{path} is no safetensors file (starts with {start[:9]!r}); nothing was read from it")


def _check_hash(model: ModelFolder, fold: str, found: str) -> None:
    entry = model.content.folds[fold]
    if found not in (entry.sha256, entry.previous_sha256):
        raise UnsafeInputError(
            f"{model.folder / entry.weights}: SHA-256 is {found[:12]}..., {MODEL_FILE} says {entry.sha256[:12]}...; "
            "the file was changed or damaged and was not read. Get the model again"
        )


def _fold_name(fold: str | int) -> str:
    if not FOLD_NAME.fullmatch(str(fold)):
        raise UsageError(f"fold {str(fold)!r} is no name of a fold; use a number or letters")
    return str(fold)


def _stored(value: Tensor) -> Tensor:
    return value.detach().to("cpu", memory_format=torch.contiguous_format).contiguous()


def _plain(value: Any) -> Any:
    """Mappings, sequences and numbers as YAML knows them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    return _plain(plain_value(value))
