"""Weights from elsewhere as the start of a network, by rules, with a report of what became of each.

Rules, in this order, for each tensor of the file:

1. Names of VGG-16 in torchvision (`features.N`, `classifier.N`) become those of FCN (`conv1_1` to `conv5_3`, `fc6`,
   `fc7`) where the network has these: a dense layer is reshaped to the convolution that computes the same. The dense
   layer of the 1000 classes is dropped.
2. Names of a trunk (ResNet, GoogLeNet, VGG-16 in torchvision) are looked for in the network's `encoder` or `trunk`.
3. A dash in a name is an underscore (Caffe's `score-fr`); fixed bilinear kernels (`upscore...`) are dropped.
4. The first convolution's weights for three channels are summed for an image of one: the same as three equal channels.
   With `channel_order="bgr"` (Caffe) the first convolution's channels are turned around to red, green, blue.
5. What has the name and shape of a tensor of the network is taken; what has no name or another shape is dropped, such
   as score layers of other classes. What the network has beyond that keeps its fresh weights.
6. Where less than half of the file's layers fit and they fill less than half of the network, they are of another one,
   and refused.

The staged training of FCN (32s, 16s, 8s) is rule 5: layers that both have share their names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from ..errors import UnsafeInputError, UsageError, unknown
from .base import SegmentationNetwork
from .fcn import FCN
from .vgg import DEPTHS as VGG_DEPTHS

SUFFIXES = (".safetensors", ".pt", ".pth", ".npz")
TRUNKS = ("encoder", "trunk")
ORDERS = ("rgb", "bgr")
DENSE = {"classifier.0": "fc6", "classifier.3": "fc7"}


@dataclass(frozen=True)
class LoadReport:
    """What became of the tensors of a file and of the network.

    Args:
        taken: names in the network that got the file's weights.
        dropped: names in the file that were not used, and why.
        new: names in the network that keep fresh weights.
    """

    taken: tuple[str, ...]
    dropped: Mapping[str, str]
    new: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"taken: {len(self.taken)}, dropped: {len(self.dropped)}, new: {len(self.new)}"]
        lines += [f"dropped {name}: {why}" for name, why in self.dropped.items()]
        lines += [f"new {name}" for name in self.new]
        return "\n".join(lines)


def start_from(network: SegmentationNetwork, path: Path, *, channel_order: str = "rgb") -> LoadReport:
    """Give the network the weights of a file, as far as the rules lead.

    Args:
        network: changed in place.
        path: .safetensors, .npz, or .pt and .pth (tensors only: nothing in them is executed).
        channel_order: "rgb", or "bgr" where the weights were trained on blue, green, red.

    Raises:
        UsageError: the file cannot be read, or is of another network.
        UnsafeInputError: a pickle that holds more than tensors.
    """
    weights = read_weights(path)
    report = transplant(network, weights, channel_order=channel_order)
    refuse_another(path, network, weights, set(report.taken))
    return report


def refuse_another(
    source: object, network: SegmentationNetwork, weights: Mapping[str, Tensor], taken: Set[str]
) -> None:
    """Refuse weights of which less than half fit, and that fill less than half of the network: by chance, then.

    Layers are counted, not what stands beside their kernels: a bias of as many classes fits any network.

    Args:
        source: what the weights are called.
        network: that they were meant for.
        weights: all of them.
        taken: names in the network that got one.

    Raises:
        UsageError: with some of the names.
    """
    layers = {name for name, value in network.state_dict().items() if value.ndim > 1 and not is_fixed(name)}
    given = [name for name, value in weights.items() if value.ndim > 1]
    fitting = len(layers & taken)
    if fitting and 2 * fitting >= min(len(layers), len(given)):
        return
    what = f"{fitting} of its {len(given)} layers fit" if fitting else "nothing in it fits"
    raise UsageError(f"{source}: {what} {type(network).__name__}; it holds {_some(given or weights)}")


@torch.no_grad()
def transplant(
    network: SegmentationNetwork, weights: Mapping[str, Tensor], *, channel_order: str = "rgb"
) -> LoadReport:
    """Give the network those of the weights that the rules lead to; the others are reported.

    Weights on the meta device are held against the network, and nothing is changed.
    """
    if channel_order not in ORDERS:
        raise unknown("channel order", channel_order, ORDERS)
    own = {name: value for name, value in network.state_dict().items() if not is_fixed(name)}
    first = next((name for name, value in own.items() if value.ndim == network.spatial_dims + 2), None)
    vgg = _vgg_names() if isinstance(network, FCN) else {}
    taken: list[str] = []
    dropped: dict[str, str] = {}
    for source, value in weights.items():
        name = _renamed(source, own, vgg)
        if name.startswith("upscore") or is_fixed(name):
            dropped[source] = "bilinear kernels are fixed"
            continue
        if name not in own:
            dropped[source] = "the network has no such layer"
            continue
        fitting = _fitted(value, own[name].shape, dense=source.rpartition(".")[0] in DENSE)
        if name == first:
            fitting = _first_layer(fitting, own[name].shape, channel_order)
        if fitting.shape != own[name].shape:
            dropped[source] = f"it has the shape {tuple(value.shape)}, the network's {tuple(own[name].shape)}"
            continue
        if not value.is_meta:
            own[name].copy_(fitting)
        taken.append(name)
    new = tuple(name for name in own if name not in taken)
    return LoadReport(tuple(taken), dropped, new)


def is_fixed(name: str) -> bool:
    """Whether a value is one that every network computes by itself: a bilinear kernel."""
    return name.endswith(".kernel")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path}: weights are read from {', '.join(SUFFIXES)}, not from {path.suffix or 'this'}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each reader has errors of its own
        why = next(iter(str(error).splitlines()), type(error).__name__)
        if type(error).__name__ == "UnpicklingError" or "allow_pickle" in why:  # the restricted readers say so
            raise UnsafeInputError(f"{path} holds more than tensors, or none; it was not read") from error
        raise UsageError(f"{path} cannot be read as weights: {why}") from error
    inner = found.get("state_dict", found) if isinstance(found, dict) else None
    named = inner.items() if isinstance(inner, dict) else ()
    tensors = {name: value for name, value in named if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        raise UsageError(f"{path} holds no tensors by name")
    return tensors


def _renamed(source: str, own: Mapping[str, Tensor], vgg: Mapping[str, str]) -> str:
    """The network's name for a tensor of the file."""
    layer, _, kind = source.rpartition(".")
    if layer in vgg:
        return f"{vgg[layer]}.{kind}"
    name = source.replace("-", "_")
    if name not in own:
        for trunk in TRUNKS:
            if f"{trunk}.{name}" in own:
                return f"{trunk}.{name}"
    return name


def _vgg_names() -> dict[str, str]:
    """torchvision's names of the layers of VGG-16, and those of FCN."""
    names = dict(DENSE)
    position = 0
    for stage, depth in enumerate(VGG_DEPTHS, start=1):
        for step in range(1, depth + 1):
            names[f"features.{position}"] = f"conv{stage}_{step}"
            position += 2  # the convolution and its ReLU
        position += 1  # the pooling
    return names


def _fitted(value: Tensor, shape: torch.Size, *, dense: bool) -> Tensor:
    """A dense layer's weights as those of the convolution that computes the same."""
    if dense and value.ndim == 2 and value.numel() == shape.numel() and value.shape[0] == shape[0]:
        return value.reshape(shape)
    return value


def _first_layer(value: Tensor, shape: torch.Size, channel_order: str) -> Tensor:
    if value.ndim == len(shape) and value.shape[1] == 3:
        value = value.flip(1) if channel_order == "bgr" else value
        return value.sum(dim=1, keepdim=True) if shape[1] == 1 else value
    return value


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
