"""The network of a MONAI bundle and its weights, as ours holds them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ...errors import UnsafeInputError, UsageError
from ...networks.base import SegmentationNetwork
from ...networks.monai_network import CLASSES, LEFT_OUT, SIZES, MonaiNetwork, monai_weights, usual_sizes
from ...networks.registry import build_network
from .bounds import LARGEST_NUMBER, few_parts, too_large, values_in
from .bundle_config import Config, file_within
from .bundle_findings import Findings, Step
from .checkpoint import CheckpointReader
from .weights import check_dtypes, not_finite

NAME = "monai"  # in our registry
MODELS, USUAL = "models", "model"
SUFFIXES = (".safetensors", ".pt", ".pth")
KEYS = ("model", "state_dict", "network", "net", "")


@dataclass(frozen=True, eq=False)
class Described:
    """A network as a bundle describes it.

    Args:
        class_name: a key of `CLASSES`.
        sizes: spatial dims, channels of the image, outputs.
        arguments: of the class beyond these.
    """

    class_name: str
    sizes: tuple[int, int, int]
    arguments: Mapping[str, Any]

    @property
    def options(self) -> dict[str, Any]:
        """Of the network in our registry."""
        return {"class_name": self.class_name, "arguments": dict(self.arguments)}

    def build(self) -> MonaiNetwork:
        """With fresh weights.

        Raises:
            UsageError: arguments that MONAI's class does not take.
        """
        try:
            with few_parts(f"MONAI's {self.class_name} with these arguments"):
                network = build_network(NAME, *self.sizes, **self.options)
        except (ValueError, TypeError, KeyError, NotImplementedError, AssertionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UsageError(f"MONAI's {self.class_name} cannot be built with these arguments: {reason}") from error
        assert isinstance(network, MonaiNetwork)
        return network.eval()


def read_network(step: Step | None, findings: Findings) -> Described | None:
    """What the bundle says of its network; None where something stands in the way, which is noted."""
    if step is None:
        return None
    known = {name.lower(): name for name in CLASSES}
    if step.name.lower() not in known:
        step.stop(f"is none of the networks that are taken ({', '.join(sorted(CLASSES))})")
        return None
    name = known[step.name.lower()]
    usual = {**usual_sizes(name), **({"spatial_dims": step.get("dimensions")} if "dimensions" in step.values else {})}
    sizes = [step.number(key, usual.get(key)) for key in SIZES]
    arguments = {}
    for key in step.values:
        if key in LEFT_OUT:
            findings.ignored.append(f"{key} of {name}, which changes nothing of what a trained network gives")
        elif key not in (*SIZES, "dimensions"):
            arguments[key] = step.get(key)
    if any(size is None or not 0 < size <= LARGEST_NUMBER or size != int(size) for size in sizes):
        step.stop(f"its sizes ({', '.join(SIZES)}) are {sizes}")
        return None
    if (number := too_large(arguments)) is not None:
        step.stop(f"holds the number {number}, which no network has")
        return None
    dims, channels, outputs = (int(size) for size in sizes if size is not None)
    return Described(name, (dims, channels, outputs), arguments)


def try_network(described: Described, patch: Sequence[int], findings: Findings) -> bool:
    """Whether the network can be built and takes windows of this size, tried without memory; if not, it is noted."""
    sides = [side for side in patch if side != 1] if described.sizes[0] == 2 else list(patch)
    try:
        with torch.device("meta"), torch.no_grad():
            network = described.build()
            shape = tuple(network(torch.empty(1, described.sizes[1], *sides)).shape)
    except (UsageError, RuntimeError, ValueError, TypeError, LookupError) as error:
        findings.obstacles.append("network_def: " + " ".join(str(error).split())[:300])
        return False
    if any(side % step for side, step in zip(sides, network.stride, strict=True)):
        findings.obstacles.append(
            f"inferer: roi_size {sides} is no multiple of {list(network.stride)}, as the network's"
        )
        return False
    if shape != (1, described.sizes[2], *sides):
        findings.obstacles.append(
            f"network_def gives {shape} for a window of {sides}, expected {described.sizes[2]} outputs"
        )
        return False
    return True


def load_network(described: Described, weights: Mapping[str, Tensor], order: Sequence[int]) -> SegmentationNetwork:
    """The network with its weights.

    Args:
        described: what is built.
        weights: under MONAI's names.
        order: of the outputs, where it is another one than MONAI's; a network without a head has none.

    Raises:
        UsageError: weights of another network, or that are not finite.
    """
    with torch.device("meta"):
        monai_weights(described.build(), described.class_name, weights)
    network = described.build()
    found = monai_weights(network, described.class_name, weights)
    if (wrong := not_finite(found)) is not None:
        raise UsageError(f"the weights of {wrong} are not finite; its training failed, get other weights")
    if order and list(order) != list(range(len(order))):
        for name in ("head.weight", "head.bias"):
            if name in found:
                found[name] = found[name][list(order)]
    network.load_state_dict(found, strict=True)
    return network


def weights_file(config: Config, findings: Findings) -> tuple[Path | None, tuple[str, ...]]:
    """The file of the weights, and the names that they may have in it; None where it cannot be had, which is noted."""
    named, keys = _checkpoint_of(config)
    folder = config.root / MODELS
    candidates = [config.root / named] if named else []
    candidates += [folder / f"{USUAL}{suffix}" for suffix in SUFFIXES]
    for path in candidates:
        if path.suffix in SUFFIXES and file_within(config.root, path) is not None:
            if path.suffix != ".safetensors" and _is_program(path):
                findings.obstacles.append(f"{path.name} is TorchScript, which is a program; a state dict is taken")
                return None, keys
            return path, keys
    wanted = named or f"{MODELS}/{USUAL}.pt"
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    program = "; model.ts is TorchScript, which is a program" if f"{USUAL}.ts" in there else ""
    findings.obstacles.append(
        f"the weights {wanted} are not there (found: {', '.join(there[:6]) or 'nothing'}){program}; a state dict is "
        "taken, as .pt or .safetensors"
    )
    return None, keys


def read_weights(path: Path, keys: Sequence[str], reader: CheckpointReader) -> Mapping[str, Tensor]:
    """Weights under MONAI's names.

    Raises:
        UsageError: the file is damaged, or holds other numbers than those of a network.
        UnsafeInputError: it holds other types than tensors and plain values.
    """
    if path.suffix != ".safetensors":
        return reader.read(path, tuple(keys)).weights
    try:
        weights = safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise UnsafeInputError(f"{path} is no whole safetensors file ({error}); get the bundle again") from error
    try:
        check_dtypes(weights)
    except ValueError as error:
        raise UsageError(f"{path} cannot be read: {error}; get the bundle again") from error
    return weights


def _checkpoint_of(config: Config) -> tuple[str, tuple[str, ...]]:
    """What the first CheckpointLoader reads, and under which names; nothing where there is none that can be read."""
    for key, value in config.content.items():
        if not any(isinstance(one, str) and "CheckpointLoader" in one for one in values_in(value)):
            continue
        found = config[key]
        for one in found if isinstance(found, list) else [found]:
            if isinstance(one, Mapping) and str(one.get("_target_", "")).endswith("CheckpointLoader"):
                path, names = one.get("load_path"), one.get("load_dict")
                keys = tuple(map(str, names)) if isinstance(names, Mapping) else ()
                return (path.removeprefix("./") if isinstance(path, str) else ""), tuple(dict.fromkeys((*keys, *KEYS)))
    return "", KEYS


def _is_program(path: Path) -> bool:
    """Whether an archive of torch holds code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name or name.endswith("constants.pkl") for name in archive.namelist())
