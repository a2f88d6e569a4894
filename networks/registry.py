"""Which networks there are, and how one is built from its name.

A new one is a file with its class, an entry of `NETWORKS`, and a test of its facts; the contract test, `voxelwise
networks` and every stage find it here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..errors import UsageError, unknown
from .adid_unet import ADIDUNet
from .attention_unet import AttentionUNet
from .autocontext import AutoContext
from .base import SegmentationNetwork
from .building import build_checked, check_dims
from .cen import CEN, CENS
from .deeplabv3plus import DeepLabV3Plus
from .dilated_unet import DilatedUNet
from .dynunet import DynUNet
from .fcn import FCN8s, FCN16s, FCN32s
from .fcn_alexnet import FCNAlexNet
from .fcrn import FCNVGG16, FCRN38, FCRN50, FCRN101, FCNGoogLeNet
from .feature_registry import FEATURE_NETWORKS
from .highresnet import HighResNet
from .mednext import MedNeXt
from .monai_network import MonaiNetwork
from .mscnn import MSCNN
from .own_class import build_own
from .patch_classifier import PatchClassifier
from .r2u_net import R2UNet
from .res_att_unet import ResAttUNet
from .res_unet import build_res_unet
from .resnet34_unet import ResNet34UNet
from .segresnet import SegResNet
from .swin_unetr import SwinUNETR
from .unet import UNet
from .unet3d2016 import UNet3D2016
from .unet2015 import UNet2015
from .unetpp import UNetPP
from .unetr import UNETR
from .vnet import VNet
from .vnet_monai import VNetMonai
from .voxresnet import VoxResNet

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
    width: int | None = None,
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
        width: the option `width` of both stages; each has its own default without one.
        network: a key of `NETWORKS` for both stages.
        options: of the network.
        second: a key of `NETWORKS` for the second stage, if it is another one.
        second_options: of the second stage; by default those of the first where it is the same network.

    Raises:
        UsageError: as `build_network`; or a stage of two stages; or one from a file, since options are read from model
            folders, whose code is never run.
    """
    after = network if second is None else second
    for stage in (network, after):
        if stage == "autocontext" or is_file(stage):
            raise UsageError(f"a stage of network 'autocontext' is another network of the registry, not {stage!r}")
    narrow = {} if width is None else {"width": width}
    further = options if second_options is None and after == network else second_options
    return AutoContext(
        build_network(network, spatial_dims, in_channels, out_channels, **{**narrow, **(options or {})}),
        build_network(after, spatial_dims, in_channels + out_channels, out_channels, **{**narrow, **(further or {})}),
    )


# papers that several of them come from
BROSCH = "Brosch et al., IEEE TMI 2016"
CHEN = "Chen et al., NeuroImage 2018, arXiv 1608.05895"
LONG = "Long et al., CVPR 2015, arXiv 1411.4038"
YU = "Yu et al., IEEE TMI 2017"

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
    "voxresnet": Entry(VoxResNet, (3, 2), CHEN, {"width": 4}, counted=(3, 4), sources="S1"),
    "fcn32s": Entry(FCN32s, (2,), LONG, {"width": 2}, counted=(3, 21), sources="S1, S2, S4"),
    "fcn16s": Entry(FCN16s, (2,), LONG, {"width": 2}, counted=(3, 21), sources="S1, S2, S4"),
    "fcn8s": Entry(FCN8s, (2,), LONG, {"width": 2}, counted=(3, 21), sources="S1, S2, S4"),
    "fcn_alexnet": Entry(
        FCNAlexNet, (2,), f"{LONG}; NVIDIA DIGITS", {"width": 2}, counted=(3, 21), sources="S4 (what it links)"
    ),
    "r2u_net": Entry(
        R2UNet, (2, 3), "Alom et al., arXiv 1802.06955", {"width": 4}, counted=(3, 1), sources="S2 (named)"
    ),
    "adid_unet": Entry(ADIDUNet, (2,), "Joseph Raj et al., PeerJ CS 2021", {"width": 4}, counted=(1, 1), sources="S3"),
    "fcrn38": Entry(FCRN38, (2,), YU, {"width": 4}, counted=(3, 2), sources="S1"),
    "fcrn50": Entry(FCRN50, (2,), YU, {"width": 4, "blocks": (1, 2, 1, 1)}, counted=(3, 2), sources="S1"),
    "fcrn101": Entry(FCRN101, (2,), YU, {"width": 4, "blocks": (1, 1, 2, 1)}, counted=(3, 2), sources="S1"),
    "fcn_vgg16": Entry(FCNVGG16, (2,), f"baseline of {YU}", {"width": 4}, counted=(3, 2), sources="S1 (baseline)"),
    "fcn_googlenet": Entry(
        FCNGoogLeNet, (2,), f"baseline of {YU}", {"width": 8}, counted=(3, 2), sources="S1 (baseline)"
    ),
    "resnet34_unet": Entry(
        ResNet34UNet, (2, 3), "Qin et al. 2021; He et al., CVPR 2016", {"width": 4}, counted=(3, 1), sources="S2"
    ),
    "res_att_unet": Entry(ResAttUNet, (2, 3), "Ye and Hua 2022", {"width": 4}, counted=(3, 1), sources="S3"),
    "res_unet": Entry(
        build_res_unet, (2, 3), "ablation arm of Ye and Hua 2022", {"width": 4}, counted=(3, 1), sources="S3 (ablation)"
    ),
    "deeplabv3plus": Entry(
        DeepLabV3Plus,
        (2,),
        "Chen et al., ECCV 2018, arXiv 1802.02611",
        {"width": 4, "encoder": "resnet18"},
        counted=(3, 1),
        sources="S2 (baseline)",
    ),
    "cen": Entry(CEN, (3, 2), f"in the manner of {BROSCH}", {"width": 8, "kernel": 3}, counted=(3, 1), sources="S1"),
    "cen_s": Entry(CENS, (3, 2), f"in the manner of {BROSCH}", {"width": 8, "kernel": 3}, counted=(3, 1), sources="S1"),
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
    "monai": Entry(
        MonaiNetwork,
        (3, 2),
        "Kerfoot et al., STACOM 2018; any of MONAI's networks by its class and arguments, as bundles hold them",
        {"width": 4},
    ),
    "highresnet": Entry(
        HighResNet,
        (3, 2),
        "Li et al., IPMI 2017; MONAI's layers",
        {"width": 4, "repeats": 1},
        sources="S1 (first open problem)",
    ),
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
    sizes = (spatial_dims, in_channels, out_channels)
    if is_file(name):
        return build_own(*network_file(name), sizes, options)
    if name not in NETWORKS:
        raise unknown("network", name, NETWORKS)
    entry = NETWORKS[name]
    check_dims(name, spatial_dims, entry.spatial_dims)
    return build_checked(name, entry.build, sizes, options)


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
            counts = tuple(count_parameters(learner.build(dims, *learner.counted)) for dims in learner.spatial_dims)
            rows.append(
                NetworkRow(
                    name, learner.spatial_dims, counts, learner.counted, learner.paper, learner.sources, "features"
                )
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
    """Whether a network is named as a class in a file instead of a key of the registry."""
    return ".py" in name or "/" in name


def network_file(name: str) -> tuple[Path, str]:
    """`path/to/file.py:Class` in its two parts."""
    path, _, class_name = name.rpartition(":")
    if not path.endswith(".py") or not class_name.isidentifier():
        raise UsageError(f"network {name!r} is no name of a class in a file; write path/to/file.py:Class")
    if not Path(path).is_file():
        raise UsageError(f"network {name!r}: {path} does not exist or is no file")
    return Path(path), class_name
