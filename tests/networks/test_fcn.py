"""Facts of the authors' networks: counts, sizes, reach of the layers, crops that align, and bilinear kernels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from voxelwise.errors import UsageError
from voxelwise.networks.bilinear import FixedBilinearUp, LearnedBilinearUp, bilinear_kernel
from voxelwise.networks.fcn import FCN, FCN8s, FCN16s, FCN32s
from voxelwise.networks.fcn_alexnet import FCNAlexNet
from voxelwise.networks.registry import count_parameters

from .sight import seen

COUNTS = [
    (FCN32s, 21, 134_346_581),
    (FCN16s, 21, 134_357_354),
    (FCN8s, 21, 134_362_751),
    (FCN8s, 2, 134_270_278),
    (FCN8s, 60, 134_552_564),
    (FCNAlexNet, 21, 56_954_261),
    (FCNAlexNet, 2, 56_876_418),
]


@pytest.mark.parametrize(("build", "classes", "count"), COUNTS)
def test_parameters(build: type[FCN], classes: int, count: int) -> None:
    with torch.device("meta"):
        assert count_parameters(build(2, 3, classes)) == count
    assert f"{count:,}" in (build.__doc__ or "") or build is FCN8s


@pytest.mark.parametrize("padding", ["paper", "same"])
@pytest.mark.parametrize("build", [FCN32s, FCN16s, FCN8s, FCNAlexNet])
def test_sizes_come_back(build: type[FCN], padding: str) -> None:
    with torch.device("meta"):
        network = build(2, 3, 2, width=2, padding=padding)
        for size in (500, 512, 256):
            assert network(torch.empty(1, 3, size, size)).shape == (1, 2, size, size)


class _Part(nn.Module):
    """The first poolings, or everything up to fc7."""

    def __init__(self, network: FCN, pool: int | None) -> None:
        super().__init__()
        self.network = network
        self.pool = pool

    def forward(self, image: Tensor) -> Tensor:
        pools = self.network.poolings(image)
        return self.network.fc7(self.network.fc6(pools[4])) if self.pool is None else pools[self.pool]


@pytest.mark.parametrize(("pool", "reach"), [(2, 44), (3, 100), (4, 212), (None, 404)])
def test_what_the_layers_see(pool: int | None, reach: int) -> None:
    first, last = seen(_Part(FCN8s(2, 1, 2, width=1).eval(), pool), 1, (1024, 64), 0)
    middle = len(first) // 2
    assert int(last[middle] - first[middle]) + 1 == reach


@torch.no_grad()
@pytest.mark.parametrize(
    ("build", "layer", "stride", "ups"),
    [
        (FCN8s, "score_fr", 32, (2, 2, 8)),
        (FCN8s, "score_pool4", 16, (2, 8)),
        (FCN8s, "score_pool3", 8, (8,)),
        (FCN16s, "score_pool4", 16, (16,)),
        (FCN32s, "score_fr", 32, (32,)),
    ],
)
@pytest.mark.parametrize("padding", ["paper", "same"])
def test_one_score_alone_is_only_interpolated(
    build: type[FCN], layer: str, stride: int, ups: tuple[int, ...], padding: str
) -> None:
    """With one score map that is 1 at one place, the logits are the bilinear kernel, centred where that place is."""
    network = build(2, 1, 1, width=1, padding=padding).eval()
    for name in ("score_fr", "score_pool4", "score_pool3"):
        if hasattr(network, name):
            getattr(network, name).register_forward_hook(lambda module, inputs, result: torch.zeros_like(result))
    places = []

    def one(module: nn.Module, inputs: object, result: Tensor) -> Tensor:
        marks = torch.zeros_like(result)
        places.append(result.shape[-1] // 2)
        marks[:, :, places[0], places[0]] = 1
        return marks

    getattr(network, layer).register_forward_hook(one)
    logits = network(torch.randn(1, 1, 512, 512))[0, 0]
    line = logits.sum(dim=1)
    assert float(logits.sum()) == pytest.approx(stride**2)
    centre = float((line * torch.arange(512)).sum() / line.sum())
    # the pixels that the layer's voxel is centred on
    first, last = seen(_Where(network, layer), 1, (512, 512), 0)
    looked_at = float(first[places[0]] + last[places[0]]) / 2
    assert abs(centre - looked_at) <= 1


class _Where(nn.Module):
    """A score layer, without the hooks that the network got."""

    def __init__(self, network: FCN, layer: str) -> None:
        super().__init__()
        self.network = network
        self.layer = layer

    def forward(self, image: Tensor) -> Tensor:
        pools = self.network.poolings(image)
        if self.layer == "score_fr":
            return self.network.fc6(pools[4])
        return pools[3 if self.layer == "score_pool4" else 2]


@torch.no_grad()
def test_at_once_is_staged_with_scaled_scores() -> None:
    staged, at_once = FCN8s(2, 1, 2, width=2).eval(), FCN8s(2, 1, 2, width=2, at_once=True).eval()
    weights = staged.state_dict()
    weights["score_pool4.weight"] = weights["score_pool4.weight"] * 100
    weights["score_pool3.weight"] = weights["score_pool3.weight"] * 10_000
    at_once.load_state_dict(weights)
    image = torch.randn(1, 1, 64, 64)
    torch.testing.assert_close(at_once(image), staged(image), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_kernel_is_linear_interpolation() -> None:
    scores = torch.randn(1, 3, 6, 5)
    for scale in (2, 8, 16):
        wanted = nn.functional.interpolate(scores, scale_factor=scale, mode="bilinear", align_corners=False)
        inside = (..., slice(scale, -scale), slice(scale, -scale))
        for up in (FixedBilinearUp(scale, padding=scale // 2), LearnedBilinearUp(3, scale)):
            torch.testing.assert_close(up(scores)[inside], wanted[inside])
    assert bilinear_kernel(63).shape == (63, 63)
    assert bilinear_kernel(63)[31, 31] == 1
    assert not list(FixedBilinearUp(2).parameters())


def test_wrong_options() -> None:
    for build in (FCN8s, FCNAlexNet):
        with pytest.raises(UsageError, match="unknown padding 'papr'; did you mean 'paper'"):
            build(2, 3, 2, padding="papr")
    with pytest.raises(ValueError, match="its width is even; got width=3"):
        FCNAlexNet(2, 3, 2, width=3)
