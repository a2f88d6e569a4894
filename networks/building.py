"""Building a network from what a user gave: wrong dimensions and options end in one line that says what is wrong."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from ..errors import UsageError, unknown

Built = TypeVar("Built", bound=nn.Module)


def check_options(name: str, build: Callable[..., nn.Module], options: Mapping[str, Any], sizes: int = 3) -> None:
    """Refuse options that a network does not have, and values of another type than its signature says.

    Args:
        name: of the network, for the message.
        build: its class or function.
        options: what the user gave.
        sizes: how many arguments come first and are no options.

    Raises:
        UsageError: with the nearest option, or with what its value should be.
    """
    parameters = list(inspect.signature(build).parameters.values())[sizes:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters]
    types = _types_of(build)
    for option, value in options.items():
        if option not in known:
            raise unknown(f"option of network {name!r}:", option, known)
        try:
            TypeAdapter(types.get(option, Any)).validate_python(value, strict=True)
        except ValidationError as error:
            expected = error.errors()[0]["msg"]
            raise UsageError(
                f"option {option} of network {name!r}: found {value!r}, expected: {expected[0].lower()}{expected[1:]}"
            ) from error


def build_checked(name: str, build: Callable[..., Built], sizes: Sequence[int], options: Mapping[str, Any]) -> Built:
    """A network of the registry, or one line that says which options it cannot be built with.

    Without options the fault is ours, and the error is left as it is.

    Raises:
        UsageError: an option that there is not, or a value that the network cannot be built with.
    """
    check_options(name, build, options, sizes=len(sizes))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # an error, below
            network = build(*sizes, **options)
    except (ArithmeticError, LookupError, RuntimeError, TypeError) as error:
        if not options or isinstance(error, torch.OutOfMemoryError):
            raise
        why = " ".join(str(error).split())
        raise UsageError(f"network {name!r} cannot be built with {dict(options)}: {why}") from error
    if any(parameter.numel() == 0 for parameter in network.parameters()):
        raise UsageError(f"network {name!r}: {dict(options)} leaves a layer without channels; give a larger width")
    return network


def check_dims(name: str, spatial_dims: int, supported: Sequence[int]) -> None:
    """Refuse dimensions that a network does not have.

    Raises:
        UsageError: with those that it has.
    """
    if spatial_dims not in supported:
        there_is = " and ".join(f"{dims}D" for dims in supported)
        raise UsageError(
            f"network {name!r} is {there_is}, not {spatial_dims}D; use --dims {supported[0]} (see `voxelwise networks`)"
        )


def _types_of(build: Callable[..., nn.Module]) -> dict[str, Any]:
    """Types of the arguments; none where a user's file names what it does not import."""
    try:
        return get_type_hints(build.__init__ if inspect.isclass(build) else build)
    except NameError:
        return {}
