"""What the contract is tested on: every network of the registry in 2D and 3D, and variants of some."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from voxelwise.networks.base import SegmentationNetwork, SliceNetwork
from voxelwise.networks.blocks import initialise
from voxelwise.networks.registry import NETWORKS, build_network

IN, OUT = 2, 3


@dataclass(frozen=True, eq=False)
class Case:
    """A small network: its name, its dims, and what its options are beyond `small` of the registry."""

    name: str
    dims: int
    options: Mapping[str, Any] = field(default_factory=dict)
    slice_axis: int | None = None

    def build(self, seed: int = 0) -> SegmentationNetwork:
        torch.manual_seed(seed)
        network = build_network(self.name, self.dims, IN, OUT, **{**NETWORKS[self.name].small, **self.options})
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d) and not layer.weight.any():  # a score layer of FCN, which starts at zero
                initialise(layer)
        return network if self.slice_axis is None else SliceNetwork(network, self.slice_axis)

    def build_flat(self) -> SegmentationNetwork | None:
        """The same network in 2D, if there is one."""
        if self.slice_axis is not None or 2 not in NETWORKS[self.name].spatial_dims:
            return None
        try:
            return Case(self.name, 2, self.options).build()
        except ValueError:  # options per axis
            return None

    def __str__(self) -> str:
        slices = [] if self.slice_axis is None else [f"slices{self.slice_axis}"]
        return "-".join([self.name, f"{self.dims}d", *slices, *(f"{key}={to}" for key, to in self.options.items())])


# where the paper's default is too heavy in 3D for a test of every minute
LIGHTER_3D: dict[str, Mapping[str, Any]] = {
    "unet3d2016": {"padding": "same"},
    "r2u_net": {"width": 2},
    "unetpp": {"width": 2},
    "resnet34_unet": {"depth": 18},
    "res_att_unet": {"depth": 18},
}
REGISTERED = {
    (name, dims): Case(name, dims, LIGHTER_3D.get(name, {}) if dims == 3 else {})
    for name, entry in NETWORKS.items()
    for dims in entry.spatial_dims
}
FLAT = [
    *(case for case in REGISTERED.values() if case.dims == 2),
    Case("unet", 2, {"norm": "batch", "blocks": "residual", "activation": "relu"}),
    Case("unet", 2, {"norm": "batch", "kernels": [[1, 3], 3, 5], "strides": [1, [1, 2], [3, 2]], "activation": "elu"}),
    Case(
        "unet", 2, {"norm": "batch", "blocks": "residual_d", "stem": 5, "kernels": [3, [1, 3], 3], "strides": [1, 3, 2]}
    ),
    Case("unet", 2, {"norm": "batch", "encoder": "resnet18", "widths": (4, 4, 4, 6, 8), "deep_supervision": 2}),
    Case("unet2015", 2, {"padding": "same", "norm": "batch"}),
    Case("dilated_unet", 2, {"rates": (1, 2, 5)}),
    Case("attention_unet", 2, {"gate": "grid"}),
    Case("unetpp", 2, {"heads": 3, "depth": 3, "norm": "batch"}),
    Case("voxresnet", 2, {"head": "deconv_full"}),
    Case("fcn8s", 2, {"padding": "same", "at_once": True}),
    Case("fcn_alexnet", 2, {"padding": "same"}),
    Case("resnet34_unet", 2, {"depth": 18, "norm": "instance"}),
    Case("res_att_unet", 2, {"depth": 50, "norm": "none", "width": 2}),
    Case("res_unet", 2, {"encoder": "resnet18"}),
    Case("vnet", 2, {"variant": "release", "head_kernel": 1}),
]
SOLID = [
    *(case for case in REGISTERED.values() if case.dims == 3),
    Case("unet", 3, {"norm": "none", "deep_supervision": 2, "activation": "prelu"}),
    Case("unet", 3, {"norm": "instance", "blocks": "residual_d", "strides": [1, [2, 2, 1], 2], "up_bias": True}),
    Case("unet", 3, {"norm": "group", "strides": [1, [2, 2, 1], 2], "kernels": [[3, 3, 1], 3, 3]}),
    Case("unet", 2, {"norm": "batch", "strides": [1, [1, 2], 2], "deep_supervision": 2}, slice_axis=1),
    Case("unet", 2, slice_axis=2),
]


def odd(network: SegmentationNetwork) -> tuple[int, ...]:
    """A size that is a multiple of the stride along no axis that has one, and another one along each axis."""
    wanted = (step + more for step, more in zip(network.stride, (1, -1, -3), strict=False))
    return tuple(max(side, least) for side, least in zip(wanted, network.minimum_size, strict=True))


def noise(*size: int, seed: int = 1) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))
