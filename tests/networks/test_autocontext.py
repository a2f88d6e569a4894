"""Two stages: what the second one sees, how it starts, and that it wraps any network of the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from voxelwise.errors import UsageError
from voxelwise.networks.autocontext import AutoContext, scores_of, start_second_stage, with_scores
from voxelwise.networks.losses import DiceCELoss
from voxelwise.networks.registry import NETWORKS, build_autocontext, build_network, count_parameters

from .measured import reach_of

SMALL = {"width": 4}


def test_parameters_are_those_of_the_stages() -> None:
    with torch.device("meta"):
        network = build_autocontext(3, 3, 4)
    assert count_parameters(network) == 1_329_024 + 1_332_480
    assert f"{1_329_024 + 1_332_480:,}" in (AutoContext.__doc__ or "")
    assert network.second.in_channels == 3 + 4


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "autocontext"])
def test_it_wraps_any_network(name: str) -> None:
    dims = min(NETWORKS[name].spatial_dims)
    network = build_autocontext(dims, 1, 3, network=name, options=NETWORKS[name].small)
    assert (network.first.in_channels, network.second.in_channels) == (1, 1 + 3)
    assert network.stride == network.first.stride == network.second.stride


@pytest.mark.parametrize("name", ["unet", "unet2015", "fcn8s", "mscnn", "cen_s"])
def test_stages_that_pad_and_crop_fit_one_another(name: str) -> None:
    with torch.device("meta"):
        network = build_autocontext(2, 1, 3, network=name, options=NETWORKS[name].small).eval()
        size = [max(least, step + 1) for least, step in zip(network.minimum_size, network.stride, strict=True)]
        assert network(torch.empty(2, 1, *size)).shape == (2, 3, *size)


def random_norms(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)


@pytest.mark.parametrize("name", ["voxresnet", "unet", "dynunet", "segresnet"])
@torch.no_grad()
def test_without_weights_for_the_scores_it_is_the_first_stage(name: str) -> None:
    torch.manual_seed(0)
    network = build_autocontext(2, 2, 3, network=name, options=NETWORKS[name].small).eval()
    random_norms(network.first)
    start_second_stage(network.first, network.second)
    image = torch.randn(1, 2, 19, 16)
    torch.testing.assert_close(network(image), network.first(image))


def test_a_started_second_stage_learns_from_the_scores() -> None:
    torch.manual_seed(0)
    network = build_autocontext(2, 1, 2, options=SMALL)
    start_second_stage(network.first, network.second)
    network(torch.randn(2, 1, 16, 16))[0].square().mean().backward()
    assert network.second.conv1a.weight.grad[:, 1:].abs().max() > 0  # type: ignore[union-attr]


def discs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy images of one disc each, and where it is."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.stack(torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij"))
    centre = 6 + 12 * torch.rand(count, 2, 1, 1, generator=generator)
    labels = ((grid - centre).square().sum(1) < 25).long()
    return labels[:, None] + torch.randn(count, 1, 24, 24, generator=generator), labels


def learn(stage: nn.Module, image: Tensor, labels: Tensor) -> None:
    optimiser = torch.optim.Adam(stage.parameters(), lr=2e-2)
    for _ in range(30):
        optimiser.zero_grad()
        DiceCELoss()(stage(image), labels).backward()
        optimiser.step()


@torch.no_grad()
def dice(logits: Tensor, labels: Tensor) -> float:
    found, wanted = logits.argmax(1) == 1, labels == 1
    return float(2 * (found & wanted).sum() / (found.sum() + wanted.sum()))


def test_a_second_stage_is_better_than_the_first() -> None:
    """It learns from scores of images that the first has not seen, and sees twice as far."""
    torch.manual_seed(0)
    narrow = {"kernels": (3,), "last": 1, "hidden": 8}
    network = build_autocontext(2, 1, 2, network="patch_classifier", width=6, options=narrow)
    learn(network.first, *discs(8, seed=1))
    start_second_stage(network.first, network.second)
    held_out, labels = discs(8, seed=2)
    learn(network.second, network.joined(held_out, network.scores(held_out)), labels)
    image, truth = discs(16, seed=3)
    network.eval()
    assert dice(network(image), truth) > dice(network.first(image), truth) + 0.03


@pytest.mark.parametrize("classes", [1, 3])
@torch.no_grad()
def test_forward_is_the_second_stage_on_the_scores(classes: int) -> None:
    torch.manual_seed(0)
    network = build_autocontext(2, 2, classes, options=SMALL).eval()
    image = torch.randn(1, 2, 16, 9)
    scores = network.scores(image)
    assert scores.shape == (1, classes, 16, 9)
    if classes > 1:
        torch.testing.assert_close(scores.sum(1), torch.ones(1, 16, 9))
    torch.testing.assert_close(network(image), network.second_stage(image, scores))
    torch.testing.assert_close(scores, scores_of(network.first(image)))
    other = network.second_stage(image, scores.roll(5, dims=2))
    assert not torch.allclose(other, network(image))


def test_no_gradient_reaches_the_first_stage_through_its_scores() -> None:
    torch.manual_seed(0)
    network = build_autocontext(2, 1, 2, options=SMALL)
    image = torch.randn(2, 1, 16, 16)
    assert not network.scores(image).requires_grad
    second, *_ = network(image)
    second.square().mean().backward()
    assert all(parameter.grad is None for parameter in network.first.parameters())
    assert any(parameter.grad is not None for parameter in network.second.parameters())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("highresnet", {"width": 1}),
        ("unet", {"widths": (4, 6), "norm": "batch"}),
        ("unet", {"widths": (4, 6, 8), "norm": "batch"}),
        ("voxresnet", {"width": 1}),
        ("unet2015", {"width": 1}),
    ],
)
def test_no_voxel_sees_farther_than_the_receptive_field(name: str, options: dict[str, Any]) -> None:
    """An upper bound; the sum of the stages' own, minus 1, would be too small for U-Net and VoxResNet."""
    network = build_autocontext(2, 2, 2, network=name, options=options)
    assert network.receptive_field is not None
    measured = reach_of(network, 0)
    assert measured <= network.receptive_field[0]
    if network.first.stride == (1, 1):
        assert measured == network.receptive_field[0]


def test_it_moves_with_the_image_if_both_stages_do() -> None:
    with torch.device("meta"):
        small = NETWORKS["unetr"].small
        assert not build_autocontext(2, 1, 2, network="unetr", options=small).moves_with_image
        assert not build_autocontext(2, 1, 2, width=4, second="unetr", second_options=small).moves_with_image
        assert build_autocontext(2, 1, 2, width=4).moves_with_image


def test_a_width_is_that_of_both_stages() -> None:
    with torch.device("meta"):
        narrow, wide = (build_autocontext(2, 1, 2, width=4, options=options) for options in ({}, {"width": 8}))
    assert [narrow.first.conv1a.out_channels, narrow.second.conv1a.out_channels] == [4, 4]
    assert [wide.first.conv1a.out_channels, wide.second.conv1a.out_channels] == [8, 8]


def test_a_file_is_no_stage(tmp_path: Path) -> None:
    """Options stand in model folders too, whose code is never run."""
    trace = tmp_path / "trace"
    (tmp_path / "own.py").write_text(f"open({str(trace)!r}, 'w').close()\n")
    for options in ({"network": f"{tmp_path}/own.py:Net"}, {"second": f"{tmp_path}/own.py:Net"}):
        with pytest.raises(UsageError, match=r"another network of the registry, not '.*own.py:Net'"):
            build_network("autocontext", 2, 1, 2, **options)
    assert not trace.exists()


def test_another_second_stage() -> None:
    small = NETWORKS["unet"].small
    network = build_autocontext(2, 1, 2, options=SMALL, second="unet", second_options=small)
    assert type(network.second).__name__ == "UNet"
    assert network.window_global
    assert network.receptive_field is None
    assert network.stride == (8, 8)
    with pytest.raises(ValueError, match="their weights have other names"):
        start_second_stage(network.first, network.second)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"network": "autocontext"}, UsageError, "another network of the registry, not 'autocontext'"),
        ({"network": "voxresnett"}, UsageError, "unknown network 'voxresnett'; did you mean 'voxresnet'"),
        ({"options": {"wdith": 3}}, UsageError, "unknown option of network 'voxresnet': 'wdith'"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build_autocontext(3, 1, 2, **options)


def test_scores_of_another_grid() -> None:
    with pytest.raises(ValueError, match=r"one grid, got \(1, 1, 8, 8\) and \(1, 2, 4, 4\)"):
        with_scores(torch.zeros(1, 1, 8, 8), torch.zeros(1, 2, 4, 4))
