"""What networks are run by: torch, or an engine that they are converted for when their first window comes.

A converted network is believed once it has given on that window what torch gives in float32. `auto` goes back to torch
where it has not, or where it does not convert; an engine that was named stops the run instead. Windows of one value or
nearly so, such as air outside of a body, tell nothing: norms blow up what rounding leaves of them. Torch takes those
that come before the first other one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Protocol

import psutil
import torch
from torch import Tensor, nn

from ...errors import UsageError, unknown
from ...networks.base import SegmentationNetwork
from ...transforms.volume import Entry
from ..devices import autocast, memory_format
from .engines_backends import Backend, Compiler, EngineError, Run
from .engines_openvino import OpenVino

log = logging.getLogger(__name__)

ENGINES = ("auto", "torch", "compile", "openvino", "tensorrt")
DISTRIBUTIONS = {"torch": "torch", "compile": "torch", "openvino": "openvino", "tensorrt": "torch_tensorrt"}
# of the range of torch's float32 logits, at the worst voxel: float32 sums in another order differ by 1e-4 and less, of
# numbers with 8 (bf16) or 11 (fp16) bits a few per cent may be left after dozens of layers; wrong ones differ by it all
TOLERANCE = {"float32": 1e-3, "bf16": 0.1, "fp16": 0.02}
MOST_TRIES = 8  # windows on which rounding decides, which take four times as long
ROUNDING = 2e-7  # of the largest value of a window
Key = tuple[int, int, bool, tuple[int, ...]]  # network, slice axis, whether features are wanted, size of a window
OPENVINO_BYTES = 80 * 10**6  # of the library at work
TRACED_SHARE = 2  # of the activations, that a conversion and its check take beside what is held for good
HELD_PART = 0.5  # of the memory that is left, for what an engine holds for good
LEAST_ACTIVATIONS = 16 * 10**6  # of a window, that a conversion (a second of each core) is worth: below, it takes 10 ms
INSTEAD = "use --engine torch"


class Engine(Protocol):
    """What runs networks."""

    @property
    def facts(self) -> dict[str, str]:
        """Its name, version and precision."""
        ...

    def __call__(self, network: SegmentationNetwork, windows: Tensor, *, features: bool) -> Tensor:
        """Windows (N, C, *S), float32 on the device, to logits or to the features in front of the head."""
        ...

    def notes(self) -> tuple[Entry, ...]:
        """What a reader of the next result should know; told once."""
        ...


class TorchEngine:
    """Torch as it is.

    Args:
        device: where networks are.
        precision: resolved word.
    """

    def __init__(self, device: torch.device, precision: str) -> None:
        self.device, self.precision = device, precision

    @property
    def facts(self) -> dict[str, str]:
        """Its name, version and precision."""
        return {"name": "torch", "version": str(torch.__version__), "precision": self.precision}

    def __call__(self, network: SegmentationNetwork, windows: Tensor, *, features: bool) -> Tensor:
        """Windows (N, C, *S), on the device, to logits or features."""
        seen = windows.contiguous(memory_format=memory_format(windows.ndim - 2))
        with autocast(self.device, self.precision):
            found: Tensor = network.features(seen) if features else network(seen)
        return found

    def notes(self) -> tuple[Entry, ...]:
        """Nothing."""
        return ()


class CheckedEngine:
    """A backend's converted networks, each checked on its first window.

    Args:
        backend: that networks are converted for.
        plain: torch, in the same precision.
        fall_back: whether torch takes over where the backend fails; else that is an error.
    """

    def __init__(self, backend: Backend, plain: TorchEngine, *, fall_back: bool) -> None:
        self.backend, self.plain, self.fall_back = backend, plain, fall_back
        self.failure = ""
        self._told = False
        self._runs: dict[Key, tuple[nn.Module, Run]] = {}
        self._unsure: dict[Key, tuple[nn.Module, Run]] = {}  # converted, and no window has told yet
        self._tries = 0

    @property
    def facts(self) -> dict[str, str]:
        """Name, version and precision of what runs networks; and what torch stands in for."""
        if self.failure:
            return {**self.plain.facts, "instead": self.failure}
        if self._unsure and not self._runs:
            return {**self.plain.facts, "instead": f"no window was one to check {self.backend.name} on"}
        return {"name": self.backend.name, "version": self.backend.version, "precision": self.plain.precision}

    def __call__(self, network: SegmentationNetwork, windows: Tensor, *, features: bool) -> Tensor:
        """Windows (N, C, *S), on the device, to logits or features.

        Raises:
            UsageError: the backend fails, and it was named.
        """
        if not self.failure:
            try:
                return self._found(network, windows, features)
            except EngineError as error:
                self._fail(error)
        return self.plain(network, windows, features=features)

    def notes(self) -> tuple[Entry, ...]:
        """That torch has taken over, once."""
        if self._told or not self.failure:
            return ()
        self._told = True
        return (Entry("engine", f"{self.failure}; torch was used"),)

    def _found(self, network: SegmentationNetwork, windows: Tensor, features: bool) -> Tensor:
        # slice networks are made anew for each view: the one inside tells; an id is of one object while that lives
        inner = getattr(network, "network", network)
        key = (id(inner), int(getattr(network, "axis", -1)), features, tuple(windows.shape[1:]))
        if key in self._runs:
            return self._runs[key][1](windows)
        values = windows.flatten(2)
        telling = (values.amax(2) > values.amin(2)).any(1).nonzero()
        if not len(telling):
            return self.plain(network, windows, features=features)
        first = int(telling[0])
        one = windows[first : first + 1]
        exact = TorchEngine(self.plain.device, "float32")
        if key in self._unsure:
            run, expected = self._unsure[key][1], None
        else:
            run, expected = self.backend.convert(_Part(network, features), one)
        if expected is None:
            expected = exact(network, one, features=features)
        found = run(windows)
        try:
            check(found[first : first + 1], expected, self.plain.precision)
        except EngineError:
            if not self._rounding_tells(exact(network, _nudged(one), features=features), expected):
                raise
            self._unsure[key] = inner, run
            self._tries += 1
            if self._tries == MOST_TRIES:
                raise EngineError(f"cannot be checked: rounding decides on each of {MOST_TRIES} windows") from None
            return self.plain(network, windows, features=features)
        self._unsure.pop(key, None)
        self._runs[key] = inner, run
        return found

    def _rounding_tells(self, nudged: Tensor, expected: Tensor) -> bool:
        """Whether torch itself would not hold for a window that differs by rounding."""
        try:
            check(nudged, expected, self.plain.precision)
        except EngineError:
            return True
        return False

    def _fail(self, error: EngineError) -> None:
        reason = f"{self.backend.name} {error}"
        if not self.fall_back:
            raise UsageError(f"--engine {reason}; {INSTEAD}") from error
        self.failure = reason
        self._runs.clear()
        self._unsure.clear()
        log.warning("%s; torch is used", reason)


def _nudged(window: Tensor) -> Tensor:
    """A window that differs by as much as rounding does."""
    noise = torch.randn(window.shape, generator=torch.Generator().manual_seed(0)).to(window.device)
    return window + noise * (ROUNDING * window.abs().max())


class _Part(nn.Module):
    """A network, or what of it stands in front of its head."""

    def __init__(self, network: SegmentationNetwork, features: bool) -> None:
        super().__init__()
        self.network, self.features = network, features
        self.eval()

    def forward(self, windows: Tensor) -> Tensor:
        """Logits or features."""
        found: Tensor = self.network.features(windows) if self.features else self.network(windows)
        return found


def check(found: Tensor, expected: Tensor, precision: str) -> None:
    """Compare what an engine gives for a window with what torch gives in float32.

    Raises:
        EngineError: they differ by more than `TOLERANCE` of the range of torch's, or are not finite where torch's are.
    """
    if found.shape != expected.shape:
        raise EngineError(f"gave {tuple(found.shape)} for a window of which torch makes {tuple(expected.shape)}")
    if not bool(torch.isfinite(expected).all()):
        return  # the stitcher says so
    low, high = float(expected.min()), float(expected.max())
    scale = max(high - low, abs(high), abs(low), torch.finfo(torch.float32).tiny)
    worst = float((found.float() - expected).abs().max()) / scale
    if not worst <= TOLERANCE[precision]:  # NaN is worse than any number
        told = "NaN or inf" if not math.isfinite(worst) else f"logits that differ by {worst:.2g} of their range"
        raise EngineError(
            f"gave {told} on the first window, {TOLERANCE[precision]:g} is allowed against torch in {precision}"
        )


BACKENDS: dict[str, Callable[[torch.device, str], Backend]] = {
    "compile": lambda device, precision: Compiler("compile", device, precision),
    "openvino": OpenVino,
    "tensorrt": lambda device, precision: Compiler("tensorrt", device, precision),
}


def choose_engine(
    name: str,
    networks: Sequence[SegmentationNetwork],
    *,
    device: torch.device,
    precision: str,
    patch: Sequence[int],
    room: int | None = None,
    exact: bool = False,
) -> Engine:
    """The engine for a word.

    `auto` is OpenVINO on a CPU where it is installed, windows are large enough to pay for the conversion, and what it
    holds for good leaves room for the rest; else torch. What compiles for a minute is taken where it is named alone.

    Args:
        name: one of `ENGINES`.
        networks: that it will run.
        device: where they are.
        precision: resolved word.
        patch: of a window.
        room: bytes of RAM that a limit leaves to the process; None where there is no limit.
        exact: whether windows are tiles of many sizes.

    Raises:
        UsageError: an unknown word; an engine that is not installed, or not for this device, precision, tiling or room.
    """
    check_engine(name)
    plain = TorchEngine(device, precision)
    asked = name != "auto"
    if name == "torch" or (not asked and (exact or not _suits(networks, device, patch, room))):
        return plain
    if exact:
        raise UsageError(f"--engine {name} is for windows of one size, exact tiles have many; {INSTEAD}")
    name = name if asked else "openvino"
    if asked and name == "openvino":
        _check_memory(networks, patch, room)
    try:
        return CheckedEngine(BACKENDS[name](device, precision), plain, fall_back=not asked)
    except EngineError as error:
        if asked:
            raise UsageError(f"--engine {name} {error}; {INSTEAD}") from error
        return plain


def check_engine(name: str) -> None:
    """Refuse a word that is no engine.

    Raises:
        UsageError: with the nearest one.
    """
    if name not in ENGINES:
        raise unknown("--engine", name, ENGINES)


def available_engines() -> dict[str, str | None]:
    """The version of each engine's library; None where it is not installed."""
    return {name: _version(library) for name, library in DISTRIBUTIONS.items()}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True)
class _Memory:
    """What OpenVINO takes of the RAM.

    Args:
        held: for good.
        most: at most, while it is made ready.
    """

    held: int
    most: int

    @classmethod
    def of(cls, networks: Sequence[SegmentationNetwork], patch: Sequence[int]) -> _Memory:
        """Of networks, for windows of a size."""
        weights = sum(one.numel() * one.element_size() for network in networks for one in network.parameters())
        activations = [_activations(network, patch) for network in networks]
        held = OPENVINO_BYTES + weights + sum(activations)
        return cls(held, held + TRACED_SHARE * max(activations))


def _suits(
    networks: Sequence[SegmentationNetwork], device: torch.device, patch: Sequence[int], room: int | None
) -> bool:
    """Whether OpenVINO is installed, pays for its start, and leaves memory for everything else."""
    if device.type != "cpu" or _version("openvino") is None:
        return False
    if min(_activations(network, patch) for network in networks) < LEAST_ACTIVATIONS:
        return False
    left = int(psutil.virtual_memory().available) if room is None else room
    memory = _Memory.of(networks, patch)
    return memory.most <= left and memory.held <= HELD_PART * left


@torch.inference_mode()
def _activations(network: SegmentationNetwork, patch: Sequence[int]) -> int:
    """About what the activations of a window take: the layer with the largest maps, and half as much for those that
    wait, from a smaller window. Tracing the window itself would load torch's compiler, 170 MB and seconds."""
    most = [0]

    def count(layer: nn.Module, given: tuple[object, ...], result: object) -> None:
        most.append(sum(one.nbytes for one in (*given, result) if isinstance(one, Tensor)))

    sides = zip(patch, network.stride, network.minimum_size, strict=True)
    small = [min(side, max(step, side // 2 // step * step, least)) for side, step, least in sides]
    hooks = [layer.register_forward_hook(count) for layer in network.modules() if not list(layer.children())]
    try:
        network(torch.zeros(1, network.in_channels, *small, device=next(network.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return int(1.5 * max(most)) * math.prod(patch) // math.prod(small)


def _check_memory(networks: Sequence[SegmentationNetwork], patch: Sequence[int], room: int | None) -> None:
    """Refuse OpenVINO where a limit of memory would be overstepped before the first case.

    Raises:
        UsageError: so it is.
    """
    most = _Memory.of(networks, patch).most
    if room is not None and most > room:
        raise UsageError(
            f"--engine openvino takes up to {most / 1e9:.2f} GB, of --memory {max(0, room) / 1e9:.2f} GB are left "
            f"before an image is read; {INSTEAD}, or give more"
        )
