"""A network as one file of a foreign format, and that file run again to be held against the network.

Whatever is traced here takes windows of the plan's size, and any number of them where the network allows that. None of
the files holds a Python pickle that a reader of ours would run: `.pt2` and ONNX are archives of tensors and a graph,
TorchScript's loader builds tensors and compiled code alone.
"""

from __future__ import annotations

import importlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ...errors import NothingDoneError, UsageError

SAMPLES = 2  # a trace of one window would take "one" for a part of the network
ONNX_LIMIT = 2**31 - 2**20
INSTALL_ONNX = "pip install 'voxelwise[onnx]'"

Write = Callable[[nn.Module, Tensor, Path], bool]
Run = Callable[[Path, Sequence[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class Form:
    """A format.

    Args:
        suffix: of the file.
        reader: what reads it, for people.
        write: network, windows (N, C, *patch), path -> whether the file takes any number of windows.
        run: path, batches of windows -> logits of each; None where what would run it is not installed.
    """

    suffix: str
    reader: str
    write: Write
    run: Run

    def check_installed(self) -> None:
        """Refuse a format that needs what is not there, before any work is done."""
        if self.suffix == ".onnx":
            _optional("onnxscript")


def write_program(network: nn.Module, windows: Tensor, path: Path) -> bool:
    """torch.export's archive."""
    for any_number in (True, False):
        batch = torch.export.Dim("batch", min=1, max=1024)
        sample = windows if any_number else windows[:1]
        try:
            program = torch.export.export(
                network, (sample,), dynamic_shapes=({0: batch},) if any_number else None, strict=False
            )
        except Exception:
            if any_number:
                continue
            raise
        with path.open("wb") as file:
            torch.export.save(program, file)
        return any_number
    raise AssertionError("one of the two was written or raised")


def run_program(path: Path, batches: Sequence[Tensor]) -> Sequence[Tensor]:
    """What the archive gives."""
    with path.open("rb") as file:
        module = torch.export.load(file).module()
    return [module(batch) for batch in batches]


def write_torchscript(network: nn.Module, windows: Tensor, path: Path) -> bool:
    """A trace, which keeps the sizes of its windows."""
    traced = torch.jit.trace(network, windows, check_trace=False)
    torch.jit.save(traced, str(path))
    try:
        return torch.jit.load(str(path))(windows[:1]).shape[0] == 1
    except RuntimeError:
        torch.jit.save(torch.jit.trace(network, windows[:1], check_trace=False), str(path))
        return False


def run_torchscript(path: Path, batches: Sequence[Tensor]) -> Sequence[Tensor]:
    """What the trace gives."""
    module = torch.jit.load(str(path), map_location="cpu")
    return [module(batch) for batch in batches]


def write_onnx(network: nn.Module, windows: Tensor, path: Path) -> bool:
    """An ONNX graph with its weights, by torch's own exporter."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    if size > ONNX_LIMIT:
        raise ValueError(f"its weights have {size / 1e9:.1f} GB, an ONNX file holds 2 GB")
    for any_number in (True, False):
        batch = torch.export.Dim("batch", min=1, max=1024)
        try:
            program = torch.onnx.export(
                network,
                (windows if any_number else windows[:1],),
                dynamo=True,
                dynamic_shapes=({0: batch},) if any_number else None,
                input_names=["image"],
                output_names=["logits"],
                verbose=False,
            )
        except Exception:
            if any_number:
                continue
            raise
        assert program is not None
        program.save(str(path), external_data=False)
        return any_number
    raise AssertionError("one of the two was written or raised")


def run_onnx(path: Path, batches: Sequence[Tensor]) -> Sequence[Tensor]:
    """What ONNX Runtime gives, or the reference interpreter of ONNX where it is not installed."""
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError:
        reference = importlib.import_module("onnx.reference")
        session = reference.ReferenceEvaluator(str(path))
    else:
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(session.run(None, {"image": batch.numpy()})[0]) for batch in batches]


FORMS = {
    "torch": Form(".pt2", "torch.export.load(FILE).module()", write_program, run_program),
    "torchscript": Form(".ts", "torch.jit.load(FILE)", write_torchscript, run_torchscript),
    "onnx": Form(".onnx", "onnxruntime.InferenceSession(FILE)", write_onnx, run_onnx),
}


@dataclass(frozen=True)
class Checked:
    """A file that gives what its network gives.

    Args:
        any_number: whether it takes any number of windows; else one at a time.
        difference: the largest one of a logit from the network's own.
        largest: the largest logit of the network, either sign.
    """

    any_number: bool
    difference: float
    largest: float


def write_checked(network: nn.Module, size: Sequence[int], form: Form, path: Path, tolerance: float) -> Checked:
    """Write a network (eval mode, CPU) and run the file against it.

    Args:
        network: windows (N, *size) to logits.
        size: (C, *patch) of a window.
        form: of the file.
        path: of the file.
        tolerance: of a logit, for logits up to 1 or relative to the largest one.

    Raises:
        NothingDoneError: the network cannot be written so, or the file gives something else.
        UsageError: what writes the format is not installed.
    """
    form.check_installed()
    windows = torch.randn(SAMPLES, *size, generator=torch.Generator().manual_seed(0))
    kind = type(network).__name__
    with silent(), torch.no_grad():
        try:
            any_number = form.write(network, windows, path)
            batches = [windows, windows[:1]] if any_number else list(windows.split(1))
            found = form.run(path, batches)
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            reason = lines[0].strip().rstrip(":.")[:200]
            raise NothingDoneError(
                f"{kind} cannot be exported as {form.suffix}: {reason}; try another --format, or another network"
            ) from error
        wanted = [network(batch) for batch in batches]
    shapes = [tuple(one.shape) for one in found], [tuple(one.shape) for one in wanted]
    if shapes[0] != shapes[1]:
        raise NothingDoneError(f"{kind} as {form.suffix} gives {shapes[0]}, the network {shapes[1]}: nothing was kept")
    difference = max(float((one - other).abs().max()) for one, other in zip(found, wanted, strict=True))
    largest = max(float(one.abs().max()) for one in wanted)
    if not difference <= tolerance * max(1.0, largest):
        raise NothingDoneError(
            f"{kind} as {form.suffix} gives logits that differ by {difference:.2g} (of up to {largest:.2g}) from the "
            "network's: nothing was kept; try another --format"
        )
    return Checked(any_number, difference, largest)


@contextmanager
def silent() -> Iterator[None]:
    """Keep what exporters say of their own work from the terminal; what matters of it is checked."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _optional(name: str) -> None:
    try:
        importlib.import_module(name)
    except ImportError:
        raise UsageError(f"--format onnx needs {name}, which is not installed; {INSTALL_ONNX}") from None
