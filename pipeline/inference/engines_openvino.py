"""OpenVINO on the CPU: a network is traced, converted in memory, and compiled for windows of one size.

A compiled model holds the memory of its activations for good, and gains nothing from several windows at a time, so
windows go through one by one. Its input and output are torch's own memory. OpenVINO's front end is called as
`openvino.convert_model` calls it: that function itself would tell a server about every conversion.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..start import left_out
from .engines_backends import Converted, EngineError, first_line

TELEMETRY = "openvino_telemetry"  # what tells the server, and takes 300 MB
HINTS = {"float32": "f32", "bf16": "bf16"}


class OpenVino:
    """OpenVINO's CPU plugin.

    Args:
        device: where networks are.
        precision: resolved word.

    Raises:
        EngineError: it is not installed, or not for this device or precision.
    """

    name = "openvino"

    def __init__(self, device: torch.device, precision: str) -> None:
        if device.type != "cpu":
            raise EngineError(f"is for the CPU, the device is {device}")
        with left_out(TELEMETRY):
            try:
                import openvino
                from openvino.frontend import FrontEndManager
                from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
            except ImportError as error:
                raise EngineError("is not installed; run pip install 'voxelwise[openvino]'") from error
        self.library: Any = openvino
        self.core: Any = openvino.Core()
        self.front_ends: Any = FrontEndManager()
        self.decoder: Any = TorchScriptPythonDecoder
        self.version = str(openvino.__version__).partition("-")[0]
        self.precision = precision
        known = self.core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bf16" and "BF16" not in known:
            raise EngineError("has no bf16 on this CPU")

    def convert(self, module: nn.Module, windows: Tensor) -> Converted:
        """The compiled module, and what it gave while it was traced."""
        given: list[Tensor] = []
        hook = module.register_forward_hook(lambda _, __, found: given.append(found))
        # a trace is of one size and keeps nothing of inference mode
        quiet = warnings.catch_warnings()
        with torch.inference_mode(False), torch.no_grad(), quiet, _plain_weights(module):
            warnings.simplefilter("ignore")
            one = windows[:1].detach().clone(memory_format=torch.contiguous_format)
            try:
                traced = torch.jit.trace(module, one, check_trace=False)
                compiled = self.core.compile_model(self._model(traced, one), "CPU", self.settings())
            except Exception as error:
                raise EngineError(f"does not take the network ({first_line(error)})") from error
            finally:
                hook.remove()
        return _Request(self.library, compiled), given[0]

    def _model(self, traced: nn.Module, window: Tensor) -> Any:
        """The graph of a trace, for windows of the size of this one."""
        front_end = self.front_ends.load_by_framework("pytorch")
        decoder = self.decoder(traced, example_input=window)  # which the graph does not keep alive
        graph = front_end.load(decoder)
        graph.set_partial_shape(graph.get_inputs()[0], self.library.PartialShape(list(window.shape)))
        return front_end.convert(graph)

    def settings(self) -> dict[str, Any]:
        """Of a compiled model: one window at a time on as many threads as torch has."""
        return {
            "INFERENCE_PRECISION_HINT": HINTS[self.precision],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            "ENABLE_HYPER_THREADING": True,  # or it would take fewer threads than it is given
            "ENABLE_CPU_PINNING": False,  # processes beside each other would be pinned to the same cores
        }


@contextmanager
def _plain_weights(module: nn.Module) -> Iterator[None]:
    """Weights in plain order inside the block: the converter stumbles over channels-last ones of 1x1 convolutions."""
    before = [(one, one.data) for one in chain(module.parameters(), module.buffers())]
    try:
        for one, data in before:
            one.data = data.clone(memory_format=torch.contiguous_format) if _is_reordered(data) else data
        yield
    finally:
        for one, data in before:
            one.data = data


def _is_reordered(data: Tensor) -> bool:
    """Whether strides are not those of plain order, be it only along axes of one element."""
    steps = [math.prod(data.shape[at + 1 :]) for at in range(data.ndim)]
    return list(data.stride()) != steps


class _Request:
    """One compiled model at work.

    Args:
        library: openvino.
        compiled: the model.
    """

    def __init__(self, library: Any, compiled: Any) -> None:
        self.library = library
        self.request = compiled.create_infer_request()
        self.shape = tuple(int(side) for side in compiled.output(0).shape)

    def __call__(self, windows: Tensor) -> Tensor:
        """Windows (N, C, *S) to (N, channels, *S)."""
        found = torch.empty((len(windows), *self.shape[1:]))
        given = windows.contiguous()
        for number in range(len(windows)):
            here = slice(number, number + 1)
            self.request.set_input_tensor(self.library.Tensor(given[here].numpy(), shared_memory=True))
            self.request.set_output_tensor(self.library.Tensor(found[here].numpy(), shared_memory=True))
            self.request.start_async()  # `infer` would copy what it gives
            self.request.wait()
        return found
