"""nnU-Net's two U-Nets as its plans describe them, written for the tests: what they compute, and what names it has.

Nothing is taken from nnU-Net; where its own classes are installed, a test holds this against them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

POOL: dict[int, type[nn.Module]] = {2: nn.AvgPool2d, 3: nn.AvgPool3d}
UP: dict[int, type[nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def plans(
    dims: int,
    widths: Sequence[int],
    depths: Sequence[int],
    decoder: Sequence[int],
    *,
    kernels: Sequence[Any],
    strides: Sequence[Any],
    residual: bool = False,
    norm: str = "InstanceNorm",
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A configuration of plans.json, as far as it describes the network."""
    kind = "ResidualEncoderUNet" if residual else "PlainConvUNet"
    arguments = {
        "n_stages": len(widths),
        "features_per_stage": list(widths),
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "kernel_sizes": list(kernels),
        "strides": list(strides),
        "n_blocks_per_stage" if residual else "n_conv_per_stage": list(depths),
        "n_conv_per_stage_decoder": list(decoder),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.x.{norm}{dims}d".replace(
            ".x.", {"I": ".instancenorm.", "B": ".batchnorm."}[norm[0]]
        ),
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
        **(more or {}),
    }
    name = f"dynamic_network_architectures.architectures.unet.{kind}"
    needed = ["conv_op", "norm_op", "dropout_op", "nonlin"]
    return {"architecture": {"network_class_name": name, "arch_kwargs": arguments, "_kw_requires_import": needed}}


class Layer(nn.Module):
    """Convolution, norm, activation; each registered twice."""

    def __init__(self, given: Mapping[str, Any], before: int, width: int, kernel: Any, stride: Any = 1) -> None:
        super().__init__()
        dims, bias, last = given["dims"], given["bias"], given.get("last", False)
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        kernel = [kernel] * dims if isinstance(kernel, int) else kernel
        self.conv = conv(before, width, kernel, stride, [side // 2 for side in kernel], bias=bias)
        self.norm = getattr(nn, given["norm"])(width, **given["norm_kwargs"])
        self.all_modules = nn.Sequential(self.conv, self.norm, *([] if last else [given["act"]()]))

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.all_modules(image)
        return result


class Stack(nn.Module):
    def __init__(self, given: Mapping[str, Any], widths: Sequence[int], kernel: Any, stride: Any = 1) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *(Layer(given, *two, kernel, 1 if step else stride) for step, two in enumerate(pairwise(widths)))
        )

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.convs(image)
        return result


class Block(nn.Module):
    def __init__(self, given: Mapping[str, Any], before: int, width: int, kernel: Any, stride: Any = 1) -> None:
        super().__init__()
        self.conv1 = Layer(given, before, width, kernel, stride)
        self.conv2 = Layer({**given, "last": True}, width, width, kernel)
        self.act = given["act"]()
        skip: list[nn.Module] = []
        if stride != 1 and set(stride) != {1}:
            skip.append(POOL[given["dims"]](stride))
        if before != width:
            skip.append(Layer({**given, "last": True, "bias": False}, before, width, 1))
        self.skip = nn.Sequential(*skip)

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.act(self.conv2(self.conv1(image)) + self.skip(image))
        return result


class Blocks(nn.Module):
    def __init__(self, given: Mapping[str, Any], widths: Sequence[int], kernel: Any, stride: Any) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(Block(given, *two, kernel, 1 if step else stride) for step, two in enumerate(pairwise(widths)))
        )

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.blocks(image)
        return result


class Encoder(nn.Module):
    def __init__(self, given: Mapping[str, Any], channels: int, arch: Mapping[str, Any]) -> None:
        super().__init__()
        residual = "n_blocks_per_stage" in arch
        widths, kernels, strides = arch["features_per_stage"], arch["kernel_sizes"], arch["strides"]
        depths = arch["n_blocks_per_stage" if residual else "n_conv_per_stage"]
        if residual:
            stem = arch.get("stem_channels") or widths[0]
            self.stem = Stack(given, [channels, stem], kernels[0])
            channels = stem
        stages = []
        for level, width in enumerate(widths):
            through = [channels, *[width] * depths[level]]
            if residual:
                stages.append(Blocks(given, through, kernels[level], strides[level]))
            else:
                stages.append(nn.Sequential(Stack(given, through, kernels[level], strides[level])))
            channels = width
        self.stages = nn.Sequential(*stages)

    def forward(self, image: Tensor) -> list[Tensor]:
        maps = [self.stem(image) if hasattr(self, "stem") else image]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]


class Decoder(nn.Module):
    def __init__(self, given: Mapping[str, Any], encoder: Encoder, classes: int, arch: Mapping[str, Any]) -> None:
        super().__init__()
        self.encoder = encoder
        dims, widths, strides = given["dims"], arch["features_per_stage"][::-1], arch["strides"][::-1]
        kernels, depths = arch["kernel_sizes"][::-1], arch["n_conv_per_stage_decoder"]
        self.stages = nn.ModuleList(
            Stack(given, [2 * width, *[width] * depths[step]], kernels[step + 1])
            for step, width in enumerate(widths[1:])
        )
        self.transpconvs = nn.ModuleList(
            UP[dims](*two, stride, stride, bias=given["bias"])
            for two, stride in zip(pairwise(widths), strides, strict=False)
        )
        self.seg_layers = nn.ModuleList({2: nn.Conv2d, 3: nn.Conv3d}[dims](width, classes, 1) for width in widths[1:])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        image, scales = maps[-1], []
        for up, skip, stage, head in zip(self.transpconvs, maps[-2::-1], self.stages, self.seg_layers, strict=True):
            image = stage(torch.cat((up(image), skip), 1))
            scales.insert(0, head(image))
        return scales


class Reference(nn.Module):
    """Logits of all scales, the finest first."""

    def __init__(self, configuration: Mapping[str, Any], channels: int, classes: int) -> None:
        super().__init__()
        arch = configuration["architecture"]["arch_kwargs"]
        act, act_kwargs = arch["nonlin"].rpartition(".")[2], arch["nonlin_kwargs"] or {}
        given = {
            "dims": int(arch["conv_op"][-2]),
            "bias": arch["conv_bias"],
            "norm": arch["norm_op"].rpartition(".")[2],
            "norm_kwargs": arch["norm_op_kwargs"] or {},
            "act": lambda: getattr(nn, act)(**act_kwargs),
        }
        self.encoder = Encoder(given, channels, arch)
        self.decoder = Decoder(given, self.encoder, classes, arch)

    def forward(self, image: Tensor) -> list[Tensor]:
        result: list[Tensor] = self.decoder(self.encoder(image))
        return result


@torch.no_grad()
def fill(network: nn.Module, seed: int = 0) -> None:
    """Weights that show every mistake: no bias is zero, no norm is one."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in _tensors(network):
        if name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight")):
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.ndim > 1:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        elif value.is_floating_point():
            value.normal_(0, 0.5, generator=generator)


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Each once."""
    yield from network.named_parameters()
    yield from network.named_buffers()
