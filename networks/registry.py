"""Which networks there are, and how one is built from its name."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..errors import UsageError, unknown
from .adid_unet import ADIDUNet
from .attention_unet import AttentionUNet
from .autocontext import AutoContext
from .base import SegmentationNetwork
from .cen import CEN, CENS
from .conv_rbm import ConvRBM
from .csae import CSAE
from .deeplabv3plus import DeepLabV3Plus
from .dilated_unet import DilatedUNet
from .fcn import FCN8s, FCN16s, FCN32s
from .fcn_alexnet import FCNAlexNet
from .fcrn import FCNVGG16, FCRN38, FCRN50, FCRN101, FCNGoogLeNet
from .features import FeatureNetwork
from .jule3d import JULE3D
from .monai_networks import DynUNet, HighResNet, MedNeXt, SegResNet, VNetMonai
from .monai_transformers import UNETR, SwinUNETR
from .mscnn import MSCNN
from .patch_classifier import PatchClassifier
from .r2u_net import R2UNet
from .res_att_unet import ResAttUNet, ResUNet
from .resnet34_unet import ResNet34UNet
from .ssae import SSAE
from .unet import UNet
from .unet3d2016 import UNet3D2016
from .unet2015 import UNet2015
from .unetpp import UNetPP
from .vnet import VNet
from .voxresnet import VoxResNet

# what a network must declare; a class from a user's file is held to it when it is built
CONTRACT = (
    "spatial_dims",
    "in_channels",
    "out_channels",
    "stride",
    "minimum_size",
    "receptive_field",
    "window_global",
    "head",
    "features",
    "activation_bytes",
)


# the four texts that this collection was written from
SOURCES = {
    "S1": "Xu et al., a review of convolutional networks in medical image segmentation, 2019",
    "S2": "Qin et al., ResNet34-UNet for veins in ultrasound, 2021",
    "S3": "Ye and Hua, ResAttUNet for COVID-19 in CT, 2022",
    "S4": "FCN-8s for subcutaneous fat in CT, an article on NVIDIA DIGITS",
}


@dataclass(frozen=True)
class Entry:
    """One network of the registry.

    Args:
        build: its class, called as `build(spatial_dims, in_channels, out_channels, **options)`.
        spatial_dims: what it supports, its default first.
        paper: one line.
        small: options of a version that is built and run in no time; the contract test takes it.
        counted: channels in and out that its paper's count is stated with.
        sources: which of `SOURCES` have it; "" where none does and users expect it.
    """

    build: Callable[..., SegmentationNetwork]
    spatial_dims: tuple[int, ...]
    paper: str
    small: Mapping[str, Any]
    counted: tuple[int, int] = (1, 2)
    sources: str = ""


def build_autocontext(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    *,
    network: str = "voxresnet",
    options: Mapping[str, Any] | None = None,
    second: str | None = None,
    second_options: Mapping[str, Any] | None = None,
) -> AutoContext:
    """Two stages of one network, or of two.

    Args:
        spatial_dims: of both.
        in_channels: of the image.
        out_channels: classes, background included.
        network: a key of `NETWORKS` for both stages.
        options: of the network.
        second: a key of `NETWORKS` for the second stage, if it is another one.
        second_options: of the second stage; by default those of the first where it is the same network.

    Raises:
        UsageError: as `build_network`; or a stage of two stages.
    """
    after = second or network
    if "autocontext" in (network, after):
        raise UsageError("a stage of network 'autocontext' is another network of the registry, not itself")
    further = options if second_options is None and after == network else second_options
    return AutoContext(
        build_network(network, spatial_dims, in_channels, out_channels, **(options or {})),
        build_network(after, spatial_dims, in_channels + out_channels, out_channels, **(further or {})),
    )


NETWORKS: dict[str, Entry] = {
    "unet": Entry(
        UNet,
        (3, 2),
        "Ronneberger et al., MICCAI 2015; Çiçek et al., MICCAI 2016; ours, see its file",
        {"widths": (4, 6, 8)},
        sources="S1, S2, S3",
    ),
    "unet2015": Entry(
        UNet2015, (2,), "Ronneberger et al., MICCAI 2015, arXiv 1505.04597", {"width": 4}, sources="S1, S2, S3"
    ),
    "unet3d2016": Entry(
        UNet3D2016, (3, 2), "Çiçek et al., MICCAI 2016, arXiv 1606.06650", {"width": 4}, counted=(3, 3), sources="S1"
    ),
    "dilated_unet": Entry(
        DilatedUNet,
        (2, 3),
        "in the manner of Yan, MSc thesis, Dalian University of Technology 2019",
        {"width": 4},
        counted=(1, 1),
        sources="S3",
    ),
    "attention_unet": Entry(
        AttentionUNet,
        (2, 3),
        "Oktay et al., MIDL 2018, arXiv 1804.03999",
        {"width": 4},
        counted=(3, 1),
        sources="S3 (ablation)",
    ),
    "unetpp": Entry(
        UNetPP,
        (2, 3),
        "Zhou et al., DLMIA 2018, arXiv 1807.10165",
        {"width": 4},
        counted=(1, 1),
        sources="S2, S3 (named)",
    ),
    "vnet": Entry(
        VNet, (3, 2), "Milletari et al., 3DV 2016", {"width": 2, "kernel": 3, "head_kernel": 3}, sources="S1"
    ),
    "voxresnet": Entry(
        VoxResNet, (3, 2), "Chen et al., NeuroImage 2018, arXiv 1608.05895", {"width": 4}, counted=(3, 4), sources="S1"
    ),
    "fcn32s": Entry(
        FCN32s, (2,), "Long et al., CVPR 2015, arXiv 1411.4038", {"width": 2}, counted=(3, 21), sources="S1, S2, S4"
    ),
    "fcn16s": Entry(
        FCN16s, (2,), "Long et al., CVPR 2015, arXiv 1411.4038", {"width": 2}, counted=(3, 21), sources="S1, S2, S4"
    ),
    "fcn8s": Entry(
        FCN8s, (2,), "Long et al., CVPR 2015, arXiv 1411.4038", {"width": 2}, counted=(3, 21), sources="S1, S2, S4"
    ),
    "fcn_alexnet": Entry(
        FCNAlexNet,
        (2,),
        "Long et al., CVPR 2015, arXiv 1411.4038; NVIDIA DIGITS",
        {"width": 2},
        counted=(3, 21),
        sources="S4 (what it links)",
    ),
    "r2u_net": Entry(
        R2UNet, (2, 3), "Alom et al., arXiv 1802.06955", {"width": 4}, counted=(3, 1), sources="S2 (named)"
    ),
    "adid_unet": Entry(ADIDUNet, (2,), "Joseph Raj et al., PeerJ CS 2021", {"width": 4}, counted=(1, 1), sources="S3"),
    "fcrn38": Entry(FCRN38, (2,), "Yu et al., IEEE TMI 2017", {"width": 4}, counted=(3, 2), sources="S1"),
    "fcrn50": Entry(
        FCRN50, (2,), "Yu et al., IEEE TMI 2017", {"width": 4, "blocks": (1, 2, 1, 1)}, counted=(3, 2), sources="S1"
    ),
    "fcrn101": Entry(
        FCRN101, (2,), "Yu et al., IEEE TMI 2017", {"width": 4, "blocks": (1, 1, 2, 1)}, counted=(3, 2), sources="S1"
    ),
    "fcn_vgg16": Entry(
        FCNVGG16, (2,), "baseline of Yu et al., IEEE TMI 2017", {"width": 4}, counted=(3, 2), sources="S1 (baseline)"
    ),
    "fcn_googlenet": Entry(
        FCNGoogLeNet,
        (2,),
        "baseline of Yu et al., IEEE TMI 2017",
        {"width": 8},
        counted=(3, 2),
        sources="S1 (baseline)",
    ),
    "resnet34_unet": Entry(
        ResNet34UNet, (2, 3), "Qin et al. 2021; He et al., CVPR 2016", {"width": 4}, counted=(3, 1), sources="S2"
    ),
    "res_att_unet": Entry(ResAttUNet, (2, 3), "Ye and Hua 2022", {"width": 4}, counted=(3, 1), sources="S3"),
    "res_unet": Entry(
        ResUNet, (2, 3), "ablation arm of Ye and Hua 2022", {"width": 4}, counted=(3, 1), sources="S3 (ablation)"
    ),
    "deeplabv3plus": Entry(
        DeepLabV3Plus,
        (2,),
        "Chen et al., ECCV 2018, arXiv 1802.02611",
        {"width": 4, "encoder": "resnet18"},
        counted=(3, 1),
        sources="S2 (baseline)",
    ),
    "cen": Entry(
        CEN,
        (3, 2),
        "in the manner of Brosch et al., IEEE TMI 2016",
        {"width": 8, "kernel": 3},
        counted=(3, 1),
        sources="S1",
    ),
    "cen_s": Entry(
        CENS,
        (3, 2),
        "in the manner of Brosch et al., IEEE TMI 2016",
        {"width": 8, "kernel": 3},
        counted=(3, 1),
        sources="S1",
    ),
    "patch_classifier": Entry(
        PatchClassifier,
        (2, 3),
        "in the manner of Ciresan et al., NIPS 2012",
        {"kernels": (2, 3), "last": 1, "width": 4, "hidden": 6},
        sources="S1",
    ),
    "mscnn": Entry(
        MSCNN,
        (3, 2),
        "in the manner of Bao and Chung, CMBBE Imaging 2018",
        {"widths": (4, 6), "hidden": 6, "kernels": (1, 3), "last": 1, "dropout": 0.0},
        sources="S1",
    ),
    "autocontext": Entry(
        build_autocontext,
        (3, 2),
        "Tu and Bai, IEEE TPAMI 2010; Chen et al., NeuroImage 2018: two stages of any other network",
        {"network": "highresnet", "options": {"width": 4, "repeats": 1}},
        counted=(3, 4),
        sources="S1",
    ),
    "vnet_monai": Entry(VNetMonai, (3, 2), "Milletari et al., 3DV 2016; MONAI's layers", {"width": 4, "dropout": 0.0}),
    "dynunet": Entry(DynUNet, (3, 2), "Isensee et al., Nature Methods 2021; MONAI's layers", {"widths": (4, 6, 8)}),
    "segresnet": Entry(SegResNet, (3, 2), "Myronenko, BrainLes 2018, arXiv 1810.11654; MONAI's layers", {"width": 8}),
    "unetr": Entry(
        UNETR,
        (3, 2),
        "Hatamizadeh et al., WACV 2022, arXiv 2103.10504; MONAI's layers",
        {"size": 32, "width": 4, "hidden": 12, "mlp": 16, "heads": 2},
    ),
    "swin_unetr": Entry(
        SwinUNETR,
        (3, 2),
        "Hatamizadeh et al., BrainLes 2021, arXiv 2201.01266; MONAI's layers",
        {"width": 12, "window": 3},
    ),
    "mednext": Entry(MedNeXt, (3, 2), "Roy et al., MICCAI 2023, arXiv 2303.09975; MONAI's layers", {"width": 4}),
    "highresnet": Entry(
        HighResNet,
        (3, 2),
        "Li et al., IPMI 2017; MONAI's layers",
        {"width": 4, "repeats": 1},
        sources="S1 (first open problem)",
    ),
}


@dataclass(frozen=True)
class FeatureEntry:
    """One feature network: its class, called as `build(spatial_dims, in_channels, **options)`; else as `Entry`."""

    build: Callable[..., FeatureNetwork]
    spatial_dims: tuple[int, ...]
    paper: str
    small: Mapping[str, Any]
    sources: str = ""


# networks that learn codes without labels; a table of their own, since nothing that segments takes one of them
FEATURE_NETWORKS: dict[str, FeatureEntry] = {
    "jule3d": FeatureEntry(
        JULE3D,
        (3, 2),
        "Moriya et al., SPIE 10578 (2018), arXiv 1804.03830",
        {"patch": 12, "kernel": 3, "width": 3, "hidden": 6, "code": 4},
        sources="S1",
    ),
    "ssae": FeatureEntry(
        SSAE, (3, 2), "in the manner of Guo et al., MICCAI 2014", {"patch": 4, "widths": (8, 6, 3)}, sources="S1"
    ),
    "csae": FeatureEntry(
        CSAE,
        (2, 3),
        "in the manner of Kallenberg et al., IEEE TMI 2016",
        {"widths": (4, 6, 5), "kernels": (3, 3, 3)},
        sources="S1",
    ),
    "conv_rbm": FeatureEntry(ConvRBM, (3, 2), "Brosch et al., IEEE TMI 2016", {"width": 4, "kernel": 3}, sources="S1"),
}


@dataclass(frozen=True)
class NetworkRow:
    """A line of `voxelwise networks`.

    Args:
        name: key of `NETWORKS` or `FEATURE_NETWORKS`.
        dims: 2, 3 or both, the default first.
        parameters: one number for each of `dims`, without options.
        counted: channels in and out that these were counted with.
        paper: one line.
        sources: which of `SOURCES` have it.
        kind: "segmentation", "two stages" or "features".
    """

    name: str
    dims: tuple[int, ...]
    parameters: tuple[int, ...]
    counted: tuple[int, ...]
    paper: str
    sources: str
    kind: str


def build_network(
    name: str, spatial_dims: int, in_channels: int, out_channels: int, **options: Any
) -> SegmentationNetwork:
    """The network called `name`, with fresh weights.

    Args:
        name: a key of `NETWORKS`, or `path/to/file.py:Class`. The file is executed: give only what the user named.
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, background included.
        options: what the class takes beyond these, such as `widths`.

    Raises:
        UsageError: no such network, option or dimension; or a class that does not keep the contract.
    """
    if is_file(name):
        return _from_file(name, spatial_dims, in_channels, out_channels, options)
    if name not in NETWORKS:
        raise unknown("network", name, NETWORKS)
    entry = NETWORKS[name]
    _check_dims(name, spatial_dims, entry.spatial_dims)
    _check_options(name, entry.build, options)
    network = entry.build(spatial_dims, in_channels, out_channels, **options)
    if any(parameter.numel() == 0 for parameter in network.parameters()):
        raise UsageError(f"network {name!r}: {options} leaves a layer without channels; give a larger width")
    return network


def build_feature_network(name: str, spatial_dims: int, in_channels: int, **options: Any) -> FeatureNetwork:
    """The feature network called `name`, a key of `FEATURE_NETWORKS`, with fresh weights.

    Raises:
        UsageError: no such network, option or dimension.
    """
    if name not in FEATURE_NETWORKS:
        raise unknown("feature network", name, FEATURE_NETWORKS)
    entry = FEATURE_NETWORKS[name]
    _check_dims(name, spatial_dims, entry.spatial_dims)
    _check_options(name, entry.build, options, positional=2)
    return entry.build(spatial_dims, in_channels, **options)


def describe_networks() -> list[NetworkRow]:
    """All networks with their numbers of parameters, counted on the meta device: no memory is used.

    This is what the verb `networks` prints; `voxelwise.networks` is the package that holds them.
    """
    rows = []
    with torch.device("meta"), _Unfilled():
        for name, entry in NETWORKS.items():
            counts = tuple(count_parameters(entry.build(dims, *entry.counted)) for dims in entry.spatial_dims)
            kind = "two stages" if entry.build is build_autocontext else "segmentation"
            rows.append(NetworkRow(name, entry.spatial_dims, counts, entry.counted, entry.paper, entry.sources, kind))
        for name, learner in FEATURE_NETWORKS.items():
            counts = tuple(count_parameters(learner.build(dims, 1)) for dims in learner.spatial_dims)
            rows.append(
                NetworkRow(name, learner.spatial_dims, counts, (1,), learner.paper, learner.sources, "features")
            )
    return rows


class _Unfilled(TorchFunctionMode):
    """While it is on, weights are not initialised, which is half the work of building a network on the meta device."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init" or func.__name__ in ("normal_", "uniform_", "fill_"):
            return args[0] if args else given["tensor"]
        return func(*args, **given)


def count_parameters(network: nn.Module) -> int:
    """Number of learned values."""
    return sum(parameter.numel() for parameter in network.parameters())


def is_file(name: str) -> bool:
    """Whether a network is named as a class in a file instead of a key of `NETWORKS`."""
    return ".py" in name or "/" in name


def network_file(name: str) -> tuple[Path, str]:
    """`path/to/file.py:Class` in its two parts."""
    path, _, class_name = name.rpartition(":")
    if not path.endswith(".py") or not class_name.isidentifier():
        raise UsageError(f"network {name!r} is no name of a class in a file; write path/to/file.py:Class")
    if not Path(path).is_file():
        raise UsageError(f"network {name!r}: {path} does not exist or is no file")
    return Path(path), class_name


def _from_file(
    name: str, spatial_dims: int, in_channels: int, out_channels: int, options: Mapping[str, Any]
) -> SegmentationNetwork:
    path, class_name = network_file(name)
    build = _load_class(path, class_name)
    _check_options(name, build, options)
    try:
        network = build(spatial_dims, in_channels, out_channels, **options)
    except TypeError as error:
        raise UsageError(
            f"{path}: class {class_name} cannot be built from (spatial_dims, in_channels, out_channels, **options): "
            f"{error}"
        ) from error
    missing = [attribute for attribute in CONTRACT if not hasattr(network, attribute)]
    if missing:
        raise UsageError(
            f"{path}: class {class_name} lacks {', '.join(missing)}; subclass "
            "voxelwise.networks.base.SegmentationNetwork"
        )
    declared = (network.spatial_dims, network.in_channels, network.out_channels)
    if declared != (spatial_dims, in_channels, out_channels):
        raise UsageError(
            f"{path}: class {class_name} was built with (spatial_dims, in_channels, out_channels) = "
            f"{(spatial_dims, in_channels, out_channels)} and declares {declared}; it must keep them"
        )
    for attribute in ("stride", "minimum_size", "receptive_field"):
        sides = getattr(network, attribute)
        if attribute == "receptive_field" and sides is None and network.window_global:
            continue
        if not (isinstance(sides, tuple) and len(sides) == spatial_dims and all(isinstance(s, int) for s in sides)):
            raise UsageError(
                f"{path}: class {class_name} declares {attribute}={sides!r}; expected a tuple of {spatial_dims} whole "
                "numbers (receptive_field may be None where window_global is True)"
            )
    return network


def _load_class(path: Path, class_name: str) -> Callable[..., SegmentationNetwork]:
    """Execute a Python file and take one class out of it."""
    spec = importlib.util.spec_from_file_location(f"voxelwise_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} cannot be read as a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"{path} fails when it is executed: {type(error).__name__}: {error}") from error
    found = getattr(module, class_name, None)
    if not inspect.isclass(found):
        classes = [
            name
            for name, value in vars(module).items()
            if inspect.isclass(value) and value.__module__ == module.__name__
        ]
        raise unknown(f"class in {path}:", class_name, classes)
    if not issubclass(found, nn.Module):
        raise UsageError(
            f"{path}: class {class_name} is no torch.nn.Module; subclass voxelwise.networks.base.SegmentationNetwork"
        )
    return cast(Callable[..., SegmentationNetwork], found)


def _check_dims(name: str, spatial_dims: int, supported: Sequence[int]) -> None:
    """Refuse dimensions that a network does not have."""
    if spatial_dims not in supported:
        there_is = " and ".join(f"{dims}D" for dims in supported)
        raise UsageError(
            f"network {name!r} is {there_is}, not {spatial_dims}D; use --dims {supported[0]} (see `voxelwise networks`)"
        )


def _check_options(name: str, build: Callable[..., nn.Module], options: Mapping[str, Any], positional: int = 3) -> None:
    """Refuse options that the class does not take behind its `positional` first arguments."""
    parameters = inspect.signature(build).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters][positional:]
    for option in options:
        if option not in known:
            raise unknown(f"option of network {name!r}:", option, known)
