"""Which networks there are, and how one is built from its name."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ..errors import UsageError, unknown
from .base import SegmentationNetwork
from .unet import UNet
from .vnet import VNet

# what a network must declare; a class from a user's file is held to it when it is built
CONTRACT = (
    "spatial_dims",
    "in_channels",
    "out_channels",
    "stride",
    "minimum_size",
    "receptive_field",
    "window_global",
    "head",
    "features",
    "activation_bytes",
)


@dataclass(frozen=True)
class Entry:
    """One network of the registry.

    Args:
        build: its class, called as `build(spatial_dims, in_channels, out_channels, **options)`.
        spatial_dims: what it supports, its default first.
        paper: one line.
        small: options of a version that is built and run in no time; the contract test takes it.
    """

    build: Callable[..., SegmentationNetwork]
    spatial_dims: tuple[int, ...]
    paper: str
    small: Mapping[str, Any]


NETWORKS: dict[str, Entry] = {
    "unet": Entry(
        UNet,
        (3, 2),
        "Ronneberger et al., MICCAI 2015; Çiçek et al., MICCAI 2016; ours, see its file",
        {"widths": (4, 6, 8)},
    ),
    "vnet": Entry(VNet, (3, 2), "Milletari et al., 3DV 2016", {"width": 2, "kernel": 3, "head_kernel": 3}),
}


@dataclass(frozen=True)
class NetworkRow:
    """A line of `voxelwise networks`; one number of parameters for each of `dims`, from 1 channel to 2 classes."""

    name: str
    dims: tuple[int, ...]
    parameters: tuple[int, ...]
    paper: str


def build_network(
    name: str, spatial_dims: int, in_channels: int, out_channels: int, **options: Any
) -> SegmentationNetwork:
    """The network called `name`, with fresh weights.

    Args:
        name: a key of `NETWORKS`, or `path/to/file.py:Class`. The file is executed: give only what the user named.
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, background included.
        options: what the class takes beyond these, such as `widths`.

    Raises:
        UsageError: no such network, option or dimension; or a class that does not keep the contract.
    """
    if is_file(name):
        return _from_file(name, spatial_dims, in_channels, out_channels, options)
    if name not in NETWORKS:
        raise unknown("network", name, NETWORKS)
    entry = NETWORKS[name]
    if spatial_dims not in entry.spatial_dims:
        there_is = " and ".join(f"{dims}D" for dims in entry.spatial_dims)
        raise UsageError(f"network {name!r} is {there_is}, not {spatial_dims}D; see `voxelwise networks`")
    _check_options(name, entry.build, options)
    return entry.build(spatial_dims, in_channels, out_channels, **options)


def describe_networks() -> list[NetworkRow]:
    """All networks with their numbers of parameters, counted on the meta device: no memory is used.

    This is what the verb `networks` prints; `voxelwise.networks` is the package that holds them.
    """
    rows = []
    for name, entry in NETWORKS.items():
        counts = []
        for dims in entry.spatial_dims:
            with torch.device("meta"):
                counts.append(count_parameters(entry.build(dims, 1, 2)))
        rows.append(NetworkRow(name, entry.spatial_dims, tuple(counts), entry.paper))
    return rows


def count_parameters(network: nn.Module) -> int:
    """Number of learned values."""
    return sum(parameter.numel() for parameter in network.parameters())


def is_file(name: str) -> bool:
    """Whether a network is named as a class in a file instead of a key of `NETWORKS`."""
    return ".py" in name or "/" in name


def network_file(name: str) -> tuple[Path, str]:
    """`path/to/file.py:Class` in its two parts."""
    path, _, class_name = name.rpartition(":")
    if not path.endswith(".py") or not class_name.isidentifier():
        raise UsageError(f"network {name!r} is no name of a class in a file; write path/to/file.py:Class")
    if not Path(path).is_file():
        raise UsageError(f"network {name!r}: {path} does not exist or is no file")
    return Path(path), class_name


def _from_file(
    name: str, spatial_dims: int, in_channels: int, out_channels: int, options: Mapping[str, Any]
) -> SegmentationNetwork:
    path, class_name = network_file(name)
    build = _load_class(path, class_name)
    _check_options(name, build, options)
    try:
        network = build(spatial_dims, in_channels, out_channels, **options)
    except TypeError as error:
        raise UsageError(
            f"{path}: class {class_name} cannot be built from (spatial_dims, in_channels, out_channels, **options): "
            f"{error}"
        ) from error
    missing = [attribute for attribute in CONTRACT if not hasattr(network, attribute)]
    if missing:
        raise UsageError(
            f"{path}: class {class_name} lacks {', '.join(missing)}; subclass "
            "voxelwise.networks.base.SegmentationNetwork"
        )
    declared = (network.spatial_dims, network.in_channels, network.out_channels)
    if declared != (spatial_dims, in_channels, out_channels):
        raise UsageError(
            f"{path}: class {class_name} was built with (spatial_dims, in_channels, out_channels) = "
            f"{(spatial_dims, in_channels, out_channels)} and declares {declared}; it must keep them"
        )
    for attribute in ("stride", "minimum_size", "receptive_field"):
        sides = getattr(network, attribute)
        if attribute == "receptive_field" and sides is None and network.window_global:
            continue
        if not (isinstance(sides, tuple) and len(sides) == spatial_dims and all(isinstance(s, int) for s in sides)):
            raise UsageError(
                f"{path}: class {class_name} declares {attribute}={sides!r}; expected a tuple of {spatial_dims} whole "
                "numbers (receptive_field may be None where window_global is True)"
            )
    return network


def _load_class(path: Path, class_name: str) -> Callable[..., SegmentationNetwork]:
    """Execute a Python file and take one class out of it."""
    spec = importlib.util.spec_from_file_location(f"voxelwise_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} cannot be read as a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"{path} fails when it is executed: {type(error).__name__}: {error}") from error
    found = getattr(module, class_name, None)
    if not inspect.isclass(found):
        classes = [
            name
            for name, value in vars(module).items()
            if inspect.isclass(value) and value.__module__ == module.__name__
        ]
        raise unknown(f"class in {path}:", class_name, classes)
    if not issubclass(found, nn.Module):
        raise UsageError(
            f"{path}: class {class_name} is no torch.nn.Module; subclass voxelwise.networks.base.SegmentationNetwork"
        )
    return cast(Callable[..., SegmentationNetwork], found)


def _check_options(name: str, build: Callable[..., nn.Module], options: Mapping[str, Any]) -> None:
    """Refuse options that the class does not take."""
    parameters = inspect.signature(build).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters][3:]
    for option in options:
        if option not in known:
            raise unknown(f"option of network {name!r}:", option, known)
