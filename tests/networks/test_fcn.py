"""Facts of the authors' networks: counts, sizes, reach of the layers, and crops that align."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from voxelwise.errors import UsageError
from voxelwise.networks.base import SegmentationNetwork
from voxelwise.networks.blocks import initialise
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
]


@pytest.mark.parametrize(("build", "classes", "count"), COUNTS)
def test_parameters(build: type[FCN], classes: int, count: int) -> None:
    """The bilinear kernels are fixed, and not among them."""
    with torch.device("meta"):
        assert count_parameters(build(2, 3, classes)) == count
    assert f"{count:,}" in (build.__doc__ or "") or classes != 21


@pytest.mark.parametrize("padding", ["paper", "same"])
@pytest.mark.parametrize("build", [FCN32s, FCN16s, FCN8s])
def test_sizes_come_back(build: type[FCN], padding: str) -> None:
    with torch.device("meta"):
        network = build(2, 3, 2, width=2, padding=padding)
        for size in (500, 512, 256):
            assert network(torch.empty(1, 3, size, size)).shape == (1, 2, size, size)


def test_sizes_of_the_layers() -> None:
    """Of 512 pixels and 100 around them: what Caffe's networks give."""
    with torch.device("meta"):
        network = FCN8s(2, 3, 21, width=1)
        sizes: list[int] = []
        for layer in (network.pool, network.fc6, network.upscore2, network.upscore_pool4, network.upscore):
            layer.register_forward_hook(lambda module, inputs, result: sizes.append(result.shape[-1]))
        network(torch.empty(1, 3, 512, 512))
    assert sizes == [355, 178, 89, 45, 23, 17, 36, 74, 600]


def test_layers_of_the_authors() -> None:
    network = FCN8s(2, 3, 21, width=1)
    convs = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)}
    kernels = {name: (conv.kernel_size[0], conv.padding[0]) for name, conv in convs.items()}
    assert kernels.pop("conv1_1") == (3, 100)
    assert kernels.pop("fc6") == (7, 0)
    assert {kernels.pop(name) for name in ("fc7", "score_fr", "score_pool4", "score_pool3")} == {(1, 0)}
    assert set(kernels.values()) == {(3, 1)}
    stages = enumerate((2, 2, 3, 3, 3), start=1)
    assert ["conv1_1", *kernels] == [f"conv{stage}_{step + 1}" for stage, depth in stages for step in range(depth)]
    ups = [network.upscore2, network.upscore_pool4, network.upscore]
    assert [(up.side, up.scale, up.padding) for up in ups] == [(4, 2, 0), (4, 2, 0), (16, 8, 0)]


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


def only(network: FCN, layer: str, make: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Let one score layer give what is made of its result, and the others nothing; what it gave is listed."""
    given: list[Tensor] = []

    def give(module: nn.Module, inputs: object, result: Tensor) -> Tensor:
        given.append(make(result))
        return given[-1]

    def nothing(module: nn.Module, inputs: object, result: Tensor) -> Tensor:
        return torch.zeros_like(result)

    for name in ("score_fr", "score_pool4", "score_pool3"):
        if hasattr(network, name):
            getattr(network, name).register_forward_hook(give if name == layer else nothing)
    return given


def one_place(result: Tensor) -> Tensor:
    """1 in the middle, 0 elsewhere."""
    marks = torch.zeros_like(result)
    marks[:, :, result.shape[-2] // 2, result.shape[-1] // 2] = 1
    return marks


SKIPS = [
    (FCN8s, "score_fr", 32),
    (FCN8s, "score_pool4", 16),
    (FCN8s, "score_pool3", 8),
    (FCN16s, "score_pool4", 16),
    (FCN32s, "score_fr", 32),
]


@torch.no_grad()
@pytest.mark.parametrize(("build", "layer", "stride"), SKIPS)
@pytest.mark.parametrize("padding", ["paper", "same"])
def test_the_answer_to_one_place_is_centred_on_it(build: type[FCN], layer: str, stride: int, padding: str) -> None:
    """A score that is 1 at one place gives a bilinear kernel, within a pixel of what that place looks at."""
    network, size = build(2, 1, 1, width=1, padding=padding).eval(), 16 * stride
    sees = seen(_Where(network, layer), 1, (size, 32), 0)
    given = only(network, layer, one_place)
    logits = network(torch.zeros(1, 1, size, size))[0, 0]
    line = logits.sum(dim=1)
    assert float(logits.sum()) == pytest.approx(stride**2)
    centre = float((line * torch.arange(size)).sum() / line.sum())
    place = given[0].shape[-1] // 2
    assert abs(centre - float(sees[0][place] + sees[1][place]) / 2) <= 1


class _Where(nn.Module):
    """What a score layer scores."""

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
@pytest.mark.parametrize(
    ("build", "layer", "scale", "shift"),
    [
        (FCN8s, "score_pool3", 8, 9 * 8 + 31 - 4),
        (FCN16s, "score_pool4", 16, 5 * 16 + 27 - 8),
        (FCN32s, "score_fr", 32, 19 - 16),
    ],
)
def test_one_score_alone_is_only_interpolated(build: type[FCN], layer: str, scale: int, shift: int) -> None:
    """The logits are the bilinear up-sampling of that map, from where the crops begin."""
    network = build(2, 1, 2, width=1).eval()
    given = only(network, layer, torch.randn_like)
    logits = network(torch.zeros(1, 1, 64, 96))
    larger = nn.functional.interpolate(given[0], scale_factor=scale, mode="bilinear", align_corners=False)
    wanted = larger[:, :, shift : shift + 64, shift : shift + 96]
    edge = max(scale - shift, 0)  # interpolate repeats the edge of the map, the kernel finds zeros there
    torch.testing.assert_close(logits[:, :, edge:, edge:], wanted[:, :, edge:, edge:])


@torch.no_grad()
def test_finer_scores_draw_thin_structures_better() -> None:
    """Of a line two pixels wide, each network's finest scores being its share of every cell: 32s < 16s < 8s."""
    line = torch.zeros(1, 1, 128, 128)
    line[:, :, 60:62] = 1
    errors = []
    for build, layer, stride in ((FCN32s, "score_fr", 32), (FCN16s, "score_pool4", 16), (FCN8s, "score_pool3", 8)):
        network = build(2, 1, 1, width=1, padding="same").eval()
        only(network, layer, lambda result, stride=stride: nn.functional.avg_pool2d(line, stride))
        errors.append(float((network(line) - line).square().sum()))
    assert errors[0] > errors[1] > errors[2]


@torch.no_grad()
def test_at_once_is_staged_with_scaled_scores() -> None:
    staged, at_once = FCN8s(2, 1, 2, width=2).eval(), FCN8s(2, 1, 2, width=2, at_once=True).eval()
    staged.apply(initialise)  # score layers too, which start at zero
    weights = staged.state_dict()
    weights["score_pool4.weight"] = weights["score_pool4.weight"] * 100
    weights["score_pool3.weight"] = weights["score_pool3.weight"] * 10_000
    at_once.load_state_dict(weights)
    image = torch.randn(1, 1, 64, 64)
    expected = staged(image)
    assert expected.std() > 0.1
    torch.testing.assert_close(at_once(image), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("build", [FCN32s, FCN16s, FCN8s, FCNAlexNet])
def test_it_starts_without_an_opinion(build: type[SegmentationNetwork]) -> None:
    """Scores start at zero, as the authors' do; behind the first step every layer has a gradient."""
    torch.manual_seed(0)
    network = build(2, 1, 2, width=2, dropout=0.0)
    image, labels = torch.randn(2, 1, 64, 64), torch.randint(2, (2, 64, 64))
    assert not network(image).any()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.step()
        optimizer.zero_grad()
        functional.cross_entropy(network(image), labels).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_wrong_options() -> None:
    with pytest.raises(UsageError, match="unknown padding 'papr'; did you mean 'paper'"):
        FCN8s(2, 3, 2, padding="papr")
