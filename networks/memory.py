"""How much memory a network's activations take, traced on the meta device: shapes only, nothing is computed.

The first trace in a process takes seconds, since torch loads its compiler for a convolution on the meta device; the
others take a tenth of a second.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def live_bytes(network: nn.Module, size: Sequence[int], dtype: torch.dtype = torch.float32) -> int:
    """Peak of what is alive at once while `network` predicts an input of `size` (N, C, *S), the input counted."""
    image = torch.empty(tuple(size), dtype=dtype, device="meta")
    with _on_meta(network, dtype, training=False) as (run, _), torch.no_grad(), _Alive() as alive:
        run(image)
    return alive.peak + image.nbytes


def saved_bytes(network: nn.Module, size: Sequence[int], dtype: torch.dtype = torch.float32) -> int:
    """What the forward pass keeps for the backward pass of an input of `size` (N, C, *S), the input counted."""
    image = torch.empty(tuple(size), dtype=dtype, device="meta")
    kept: dict[int, Tensor] = {}  # the tensors themselves, so that no key is used twice

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(_storage(tensor), tensor)
        return tensor

    with (
        _on_meta(network, dtype, training=True) as (run, weights),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        result = run(image)
        others = {_storage(weight) for weight in weights} | {_storage(image)}
        total = sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in others)
        del result
    return total + image.nbytes


@contextmanager
def _on_meta(
    network: nn.Module, dtype: torch.dtype, *, training: bool
) -> Iterator[tuple[Callable[[Tensor], Any], list[Tensor]]]:
    """The network with weights of no content; its own weights, buffers and mode stay as they are."""

    def empty(tensor: Tensor) -> Tensor:
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        return torch.empty_like(tensor, dtype=kind, device="meta").requires_grad_(training and tensor.requires_grad)

    weights = {name: empty(tensor) for name, tensor in network.named_parameters()}
    weights.update({name: empty(tensor) for name, tensor in network.named_buffers()})
    modes = [(module, module.training) for module in network.modules()]
    network.train(training)
    try:
        yield lambda image: torch.func.functional_call(network, weights, (image,)), list(weights.values())
    finally:
        for module, mode in modes:
            module.training = mode


class _Alive(TorchDispatchMode):
    """Follows the storages that operations make, until each is released."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = 0
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._follow(leaf, given)
        return result

    def _follow(self, tensor: Tensor, given: set[int]) -> None:
        key = _storage(tensor)
        if key in given or key in self.sizes:
            return
        storage = tensor.untyped_storage()
        self.sizes[key] = storage.nbytes()
        self.now += self.sizes[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
