"""Exact tiling beside one forward of the whole volume and MONAI's blended windows: time, voxels computed, equality.

    python scripts/benchmarks/exact.py                            256 x 128 x 128, the goal (G8)
    python scripts/benchmarks/exact.py --network ours             our U-Net of the same layers instead of nnU-Net's
    python scripts/benchmarks/exact.py --keep-heap                the same allocator setting for all

A U-Net of three levels with batch norm (widths 8, 16, 32, two classes, untrained, its running statistics moved from
where they start). nnU-Net's own class (package dynamic-network-architectures) stands behind a wrapper of a few lines.
All ways run in turn, round after round, and the order turns with the round; the first round is not counted. Ours is
timed from the image to labels and plans its tiles anew in every round; the other ways end with labels too. The limit is
such that there are three tiles at least. Windows of MONAI are 96^3 with overlap 0.5. Goal: at most 0.3 of MONAI's time
and 1.25 of the whole forward; logits within 1e-4 of the whole forward's, labels equal except ties.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn
from voxelwise.networks.base import SegmentationNetwork
from voxelwise.networks.registry import build_network
from voxelwise.pipeline.devices import keep_heap
from voxelwise.pipeline.inference.exact import exact_planes
from voxelwise.pipeline.inference.halo import measure_halo
from voxelwise.pipeline.inference.scorer import NetworkScorer
from voxelwise.pipeline.inference.tiles import Tiling, plan_tiles
from voxelwise.transforms.cells import top_class

WIDTHS = (8, 16, 32)
PATCH, OVERLAP = (96, 96, 96), 0.5


class Foreign(SegmentationNetwork):
    """Any module that takes sides that are multiples of a stride, behind our contract; its halo is measured.

    Args:
        module: (N, C, *S) to logits (N, K, *S).
        stride: of its deepest level.
        seen: voxels along one axis that a logit sees.
    """

    def __init__(self, module: nn.Module, *, spatial_dims: int, classes: int, stride: int, seen: int) -> None:
        super().__init__(
            spatial_dims, 1, classes, stride=(stride,) * spatial_dims, receptive_field=(seen,) * spatial_dims
        )
        self.module = module

    def forward_aligned(self, image: Tensor) -> Tensor:
        """The module's logits."""
        logits: Tensor = self.module(image)
        return logits

    def activation_bytes(self, shape: Sequence[int], **options: Any) -> int:
        """Of a copy: nnU-Net registers its layers twice, which torch's exchange of weights does not undo."""
        return SegmentationNetwork.activation_bytes(deepcopy(self), shape, **options)


def nnunet(classes: int) -> SegmentationNetwork:
    """nnU-Net's plain U-Net of three levels with batch norm."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    module = PlainConvUNet(
        1,
        len(WIDTHS),
        list(WIDTHS),
        nn.Conv3d,
        3,
        [1, 2, 2],
        2,
        classes,
        2,
        conv_bias=True,
        norm_op=nn.BatchNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=False,
    )
    return Foreign(module, spatial_dims=3, classes=classes, stride=4, seen=35)


def build(kind: str, classes: int) -> SegmentationNetwork:
    """In eval mode, its running statistics as if it had been trained."""
    torch.manual_seed(0)
    network = nnunet(classes) if kind == "nnunet" else build_network("unet", 3, 1, classes, widths=WIDTHS, norm="batch")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2)
    return network.eval()


def tiled(network: SegmentationNetwork, image: Tensor, limit_bytes: int) -> tuple[Tiling, Tensor]:
    """Labels by exact tiling, and the tiles."""
    halo = measure_halo([network])
    scorer = NetworkScorer([network])
    tiling = plan_tiles([network], halo, image.shape[1:], channels=scorer.channels, limit_bytes=limit_bytes)
    labels = torch.empty(tiling.shape, dtype=torch.uint8)
    streamed = labels.movedim(tiling.axis, 0)
    for where, scores in exact_planes(scorer, image, tiling):
        streamed[where] = top_class(scores).to(torch.uint8)
    return tiling, labels


def largest_limit(network: SegmentationNetwork, shape: Sequence[int], tiles: int) -> int:
    """The largest limit under which a volume takes so many tiles."""
    halo = measure_halo([network])
    limit = network.activation_bytes(shape)
    while True:
        tiling = plan_tiles([network], halo, shape, channels=network.out_channels, limit_bytes=limit)
        if math.prod(tiling.counts) >= tiles:
            return limit
        limit = int(limit * 0.97)


def logits_of(network: SegmentationNetwork, image: Tensor, tiling: Tiling) -> Tensor:
    """Logits by exact tiling, put together."""
    planes = [scores.clone() for _, scores in exact_planes(NetworkScorer([network]), image, tiling)]
    return torch.cat(planes, dim=1).movedim(1, tiling.axis + 1)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(256, 128, 128))
    parser.add_argument("--network", choices=("nnunet", "ours"), default="nnunet")
    parser.add_argument("--tiles", type=int, default=3, help="at least so many")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep-heap", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.keep_heap:
        keep_heap()
    network = build(options.network, 2)
    laid_out = build(options.network, 2).to(memory_format=network.layout)  # type: ignore[call-overload]
    image = torch.randn(1, *options.shape, generator=torch.Generator().manual_seed(0))
    limit = largest_limit(network, options.shape, options.tiles)

    def whole() -> Tensor:
        logits: Tensor = network(image[None])
        return logits[0].argmax(0)

    def whole_laid_out() -> Tensor:
        logits: Tensor = laid_out(image[None].contiguous(memory_format=network.layout))
        return top_class(logits[0])

    def monai() -> Tensor:
        logits = sliding_window_inference(image[None], PATCH, 1, network, overlap=OVERLAP)
        assert isinstance(logits, Tensor)
        return logits[0].argmax(0)

    ways: dict[str, Callable[[], Tensor]] = {
        "whole forward": whole,
        "whole forward, channels last, max": whole_laid_out,
        "exact tiling": lambda: tiled(laid_out, image, limit)[1],
        "MONAI, overlap 0.5": monai,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    labels: dict[str, Tensor] = {}
    with torch.inference_mode():
        for turn in range(options.rounds + 1):
            names = list(ways)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                started = time.perf_counter()
                labels[name] = ways[name]()
                if turn:
                    seconds[name].append(time.perf_counter() - started)
        tiling, _ = tiled(laid_out, image, limit)
        expected, found = network(image[None])[0], logits_of(laid_out, image, tiling)
    print(f"{tiling}; limit {limit / 1e6:.0f} MB; halo {tiling.halo.before} before, {tiling.halo.after} after")
    for name, measured in seconds.items():
        middle = statistics.median(measured)
        ratios = [mine / one for mine, one in zip(seconds["exact tiling"], measured, strict=True)]
        print(
            f"{name:36} {middle:7.2f} s ({min(measured):.2f} to {max(measured):.2f})   exact / this "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    differ = labels["exact tiling"].long() != labels["whole forward"]
    top = expected.topk(2, dim=0).values
    margin = float((top[0] - top[1])[differ].max()) if bool(differ.any()) else 0.0
    print(
        f"logits: largest difference {float((expected - found).abs().max()):.1e}; labels that differ "
        f"{int(differ.sum())} of {differ.numel()}, the largest margin among them {margin:.1e}"
    )


if __name__ == "__main__":
    main()
