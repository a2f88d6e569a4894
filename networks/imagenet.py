"""ImageNet weights as the start of a network's trunk, through the loaders of the libraries that hold them.

torchvision has them for ResNet, VGG-16 and GoogLeNet, segmentation-models-pytorch for its own encoders. Nothing is
fetched before a user asks for it by name, and never by a constructor.

They were trained on red, green and blue with the mean taken off. torchvision's ResNets have the step of a bottleneck in
its 3x3 convolution (`fcrn50` and `fcrn101` have it in the first 1x1), its GoogLeNet scales the colours by itself.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UnsafeInputError, UsageError
from .base import SegmentationNetwork
from .encoders import RESNETS, build_encoder
from .fcn import FCN
from .googlenet import GoogLeNet
from .resnet import DEPTHS, ResNet
from .unet import UNet
from .vgg import VGG16
from .weights import TRUNKS, LoadReport, refuse_another, transplant

TORCHVISION = "torchvision"
SMP = "segmentation-models-pytorch"
IMAGENET = "imagenet"  # what segmentation-models-pytorch calls these weights


class Source(NamedTuple):
    """What a library calls a trunk."""

    library: str
    name: str

    def __str__(self) -> str:
        return f"{self.name} of {self.library}"


def imagenet_source(network: SegmentationNetwork) -> Source:
    """Where ImageNet weights of the network's trunk are.

    Raises:
        UsageError: it has no trunk that a library has weights of.
    """
    if isinstance(network, FCN):
        return Source(TORCHVISION, "vgg16")
    if isinstance(network, UNet) and network.encoder_name is not None:
        return Source(TORCHVISION if network.encoder_name in RESNETS else SMP, network.encoder_name)
    for part in (getattr(network, name, None) for name in TRUNKS):
        if isinstance(part, VGG16):
            return Source(TORCHVISION, "vgg16")
        if isinstance(part, GoogLeNet):
            return Source(TORCHVISION, "googlenet")
        if isinstance(part, ResNet) and network.spatial_dims == 2:
            for depth, kind in DEPTHS.items():
                if part.kind == kind:
                    return Source(TORCHVISION, f"resnet{depth}")
    raise UsageError(f"{type(network).__name__} has no trunk that ImageNet weights are known for")


def check_imagenet(network: SegmentationNetwork) -> None:
    """Hold the network's trunk against the library's, on the meta device: nothing is fetched.

    Raises:
        UsageError: there are no such weights, or they have other widths.
    """
    _start(network, imagenet_source(network), fetch=False)


def start_from_imagenet(network: SegmentationNetwork) -> LoadReport:
    """Give the network's trunk the library's ImageNet weights, which it fetches where it has not got them.

    Raises:
        UsageError: there are no such weights, they have other widths, or they cannot be fetched or read.
        UnsafeInputError: what came is not what the library expects.
    """
    source = imagenet_source(network)
    try:
        return _start(network, source, fetch=True)
    except UsageError:
        raise
    except OSError as error:  # those of urllib and of huggingface_hub are
        raise UsageError(
            f"ImageNet weights of {source} cannot be fetched ({error}); bring a file of them and name it"
        ) from error
    except Exception as error:  # each reader has errors of its own
        why = next(iter(str(error).splitlines()), type(error).__name__)
        if "invalid hash" in why:
            raise UnsafeInputError(
                f"ImageNet weights of {source}: the hash is wrong ({why}); nothing was taken"
            ) from error
        raise UsageError(
            f"ImageNet weights of {source} cannot be read ({why}); delete the library's copy and try again"
        ) from error


def _start(network: SegmentationNetwork, source: Source, *, fetch: bool) -> LoadReport:
    if source.library == TORCHVISION:
        weights = _of_torchvision(source.name, fetch=fetch)
    elif fetch:
        weights = build_encoder(source.name, 3, IMAGENET)[0].state_dict()
    else:
        with torch.device("meta"):
            weights = build_encoder(source.name, 3)[0].state_dict()
    report = transplant(network, weights)
    refuse_another(f"ImageNet weights of {source} (of its full width)", network, weights, set(report.taken))
    return report


def _of_torchvision(name: str, *, fetch: bool) -> dict[str, Tensor]:
    try:
        from torchvision import models
    except ImportError as error:
        raise UsageError(
            f"ImageNet weights of {name} come from torchvision, which is not installed ({error}); "
            "pip install 'voxelwise[encoders]'"
        ) from error
    if fetch:
        entry = models.get_model_weights(name).DEFAULT
        fetched: dict[str, Tensor] = entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
        return fetched
    options = {"init_weights": False} if name == "googlenet" else {}  # it warns of its slow default
    with torch.device("meta"):
        empty: dict[str, Tensor] = models.get_model(name, weights=None, **options).state_dict()
    return empty
