"""A network of the user's own: a class in a Python file, held to what every network declares."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import nn

from ..errors import UsageError, unknown
from .base import SegmentationNetwork
from .building import check_options

# what a network must declare
CONTRACT = (
    "spatial_dims",
    "in_channels",
    "out_channels",
    "stride",
    "minimum_size",
    "receptive_field",
    "window_global",
    "moves_with_image",
    "head",
    "layout",
    "features",
    "activation_bytes",
)
SUBCLASS = "subclass voxelwise.networks.base.SegmentationNetwork"


def build_own(
    path: Path, class_name: str, sizes: tuple[int, int, int], options: Mapping[str, Any]
) -> SegmentationNetwork:
    """A network of a class in a file, which is executed.

    Args:
        path: the file.
        class_name: the class in it.
        sizes: spatial dims, channels of the image, classes.
        options: what the class takes beyond these.

    Raises:
        UsageError: no such class or option; code that fails; a class that does not keep the contract.
    """
    build = load_class(path, class_name)
    check_options(f"{path}:{class_name}", build, options)
    where = f"{path}: class {class_name}"
    try:
        network = build(*sizes, **options)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"{where} cannot be built from (spatial_dims, in_channels, out_channels, **options): {_said(error)}"
        ) from error
    check_contract(network, where, sizes)
    return network


def load_class(path: Path, class_name: str) -> Callable[..., SegmentationNetwork]:
    """Execute a Python file and take one class out of it."""
    module_name = f"voxelwise_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} cannot be read as a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # where data classes look their types up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise UsageError(f"{path} fails when it is executed: {_said(error)}") from error
    found = getattr(module, class_name, None)
    if not inspect.isclass(found):
        classes = [one for one, value in vars(module).items() if getattr(value, "__module__", "") == module_name]
        raise unknown(f"class in {path}:", class_name, [one for one in classes if inspect.isclass(vars(module)[one])])
    if not issubclass(found, nn.Module):
        raise UsageError(f"{path}: class {class_name} is no torch.nn.Module; {SUBCLASS}")
    return cast(Callable[..., SegmentationNetwork], found)


def check_contract(network: SegmentationNetwork, where: str, sizes: tuple[int, int, int]) -> None:
    """Refuse a network that does not declare what the stages ask for, or declares something else.

    Args:
        network: as it was built.
        where: file and class, for the message.
        sizes: spatial dims, channels of the image and classes that it was built with.
    """
    missing = [attribute for attribute in CONTRACT if not hasattr(network, attribute)]
    if missing:
        raise UsageError(f"{where} lacks {', '.join(missing)}; {SUBCLASS}")
    declared = (network.spatial_dims, network.in_channels, network.out_channels)
    if declared != sizes:
        raise UsageError(
            f"{where} was built with (spatial_dims, in_channels, out_channels) = {sizes} and declares {declared}; it "
            "must keep them"
        )
    for attribute in ("stride", "minimum_size", "receptive_field"):
        sides = getattr(network, attribute)
        if attribute == "receptive_field" and sides is None and network.window_global:
            continue
        if not _are_sides(sides, network.spatial_dims):
            raise UsageError(
                f"{where} declares {attribute}={sides!r}; expected a tuple of {network.spatial_dims} whole numbers "
                "from 1 on (receptive_field may be None where window_global is True)"
            )


def _are_sides(sides: Sequence[int] | None, spatial_dims: int) -> bool:
    return (
        isinstance(sides, tuple)
        and len(sides) == spatial_dims
        and all(isinstance(side, int) and side >= 1 for side in sides)
    )


def _said(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
