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

The staged training of FCN (32s, 16s, 8s) is rule 5: layers that both have share their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from ..errors import UnsafeInputError, UsageError, unknown
from .base import SegmentationNetwork
from .encoders import RESNETS
from .fcn import DEPTHS as VGG_DEPTHS
from .fcn import FCN
from .fcrn import VGG16
from .googlenet import GoogLeNet
from .resnet import DEPTHS as RESNET_DEPTHS
from .resnet import ResNet
from .unet import UNet

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
        UsageError: the file cannot be read, or nothing in it fits.
        UnsafeInputError: a pickle that holds more than tensors.
    """
    report = transplant(network, read_weights(path), channel_order=channel_order)
    if not report.taken:
        raise UsageError(f"{path}: nothing in it fits {type(network).__name__}; it holds {_some(report.dropped)}")
    return report


def start_from_imagenet(network: SegmentationNetwork) -> LoadReport:
    """Give the network's trunk torchvision's ImageNet weights, which that library fetches where it has not got them.

    Raises:
        UsageError: the network has no such trunk, or the weights cannot be fetched.
        UnsafeInputError: what came is not what the library expects.
    """
    name = imagenet_name(network)
    from torchvision import models

    try:
        entry = models.get_model_weights(name).DEFAULT
        weights = entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except RuntimeError as error:
        raise UnsafeInputError(f"ImageNet weights of {name}: the hash is wrong ({error}); nothing was taken") from error
    except OSError as error:  # urllib's errors are
        raise UsageError(
            f"ImageNet weights of {name} cannot be fetched ({error}); bring a file of torchvision's {name} and name it"
        ) from error
    return transplant(network, weights)


def imagenet_name(network: SegmentationNetwork) -> str:
    """What torchvision calls the network's trunk."""
    if isinstance(network, FCN):
        return "vgg16"
    if isinstance(network, UNet) and network.encoder_name in RESNETS:
        return str(network.encoder_name)
    for part in (getattr(network, name, None) for name in TRUNKS):
        if isinstance(part, VGG16):
            return "vgg16"
        if isinstance(part, GoogLeNet):
            return "googlenet"
        if isinstance(part, ResNet) and network.spatial_dims == 2:
            for depth, kind in RESNET_DEPTHS.items():
                if part.kind == kind:
                    return f"resnet{depth}"
    raise UsageError(f"{type(network).__name__} has no trunk that ImageNet weights are known for")


@torch.no_grad()
def transplant(
    network: SegmentationNetwork, weights: Mapping[str, Tensor], *, channel_order: str = "rgb"
) -> LoadReport:
    """Give the network those of the weights that the rules lead to; the others are reported."""
    if channel_order not in ORDERS:
        raise unknown("channel order", channel_order, ORDERS)
    own = dict(network.state_dict())
    # non-trainable values that every network computes by itself
    fixed = {name for name in own if name.endswith(".kernel")}
    first = next(name for name, value in own.items() if value.ndim == network.spatial_dims + 2 and name not in fixed)
    vgg = _vgg_names() if isinstance(network, FCN) else {}
    taken: list[str] = []
    dropped: dict[str, str] = {}
    for source, value in weights.items():
        name = _renamed(source, own, vgg)
        if name.startswith("upscore") or name in fixed:
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
        own[name].copy_(fitting)
        taken.append(name)
    new = tuple(name for name in own if name not in fixed and name not in taken)
    return LoadReport(tuple(taken), dropped, new)


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
    tensors = {} if inner is None else {name: value for name, value in inner.items() if isinstance(value, Tensor)}
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


def _some(names: Mapping[str, str]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
