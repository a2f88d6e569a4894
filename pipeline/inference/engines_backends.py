"""What a network can be converted for: the contract, and torch's own compiler, by which TensorRT comes too."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..devices import DTYPES, autocast, memory_format

Run = Callable[[Tensor], Tensor]  # windows (N, C, *S), any N, on the device, to what the module gives for them
Converted = tuple[Run, Tensor | None]


class EngineError(Exception):
    """An engine that cannot run a network here; the message is the rest of a sentence that names the engine."""


class Backend(Protocol):
    """Something that networks are converted for."""

    @property
    def name(self) -> str:
        """The word for it."""
        ...

    @property
    def version(self) -> str:
        """Of its library."""
        ...

    def convert(self, module: nn.Module, windows: Tensor) -> Converted:
        """What runs a module on windows of this size.

        Args:
            module: in eval mode, on the device of the windows.
            windows: (N, C, *S), float32, of what it will be run on.

        Returns:
            What runs it, and what torch gives in float32 for the first window, where that was computed on the way.

        Raises:
            EngineError: it cannot be converted.
        """
        ...


class Compiler:
    """`torch.compile` with the compiler of torch or that of TensorRT.

    Args:
        name: compile or tensorrt.
        device: where networks are.
        precision: resolved word.

    Raises:
        EngineError: it is not installed, or not for this device.
    """

    def __init__(self, name: str, device: torch.device, precision: str) -> None:
        self.name, self.device, self.precision = name, device, precision
        self.version = str(torch.__version__)
        if name != "tensorrt":
            return
        if device.type != "cuda":
            raise EngineError(f"runs on NVIDIA GPUs alone, the device is {device}")
        if find_spec("torch_tensorrt") is None:
            raise EngineError("is not installed; run pip install torch_tensorrt")
        self.version = str(importlib.import_module("torch_tensorrt").__version__)  # registers its compiler with torch

    def convert(self, module: nn.Module, windows: Tensor) -> Converted:
        """The compiled module; it is compiled once more for another number of windows, and then for any number."""
        layout = memory_format(windows.ndim - 2)
        if self.name == "tensorrt":
            full = self.precision == "float32"
            options: Any = {"enabled_precisions": {torch.float32, DTYPES[self.precision]}, "disable_tf32": full}
            compiled = torch.compile(module, backend="tensorrt", options=options)
        else:
            compiled = torch.compile(module)
        lowered = "float32" if self.name == "tensorrt" else self.precision  # TensorRT chooses by its options

        def run(windows: Tensor) -> Tensor:
            with autocast(self.device, lowered):
                found: Tensor = compiled(windows.contiguous(memory_format=layout))
            return found

        try:
            run(windows)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise EngineError(f"does not take the network ({first_line(error)})") from error
        return run, None


def first_line(error: BaseException) -> str:
    """What an error of a library says, in one line."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
