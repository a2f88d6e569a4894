"""Facts: counts, output stride, and why it wants two cases; test_smp.py holds it against the library's class."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from voxelwise.errors import UsageError
from voxelwise.networks.deeplabv3plus import DeepLabV3Plus
from voxelwise.networks.registry import count_parameters


@pytest.mark.parametrize(
    ("options", "count"),
    [({}, 26_677_585), ({"encoder": "resnet34"}, 22_437_457), ({"encoder": "resnet101"}, 45_669_713)],
)
def test_parameters(options: dict[str, str], count: int) -> None:
    with torch.device("meta"):
        assert count_parameters(DeepLabV3Plus(2, 3, 1, **options)) == count
    assert f"{count:,}" in (DeepLabV3Plus.__doc__ or "")


def test_layers_and_sizes() -> None:
    with torch.device("meta"):
        network = DeepLabV3Plus(2, 3, 1).eval()
        maps = network.encoder(torch.empty(1, 3, 256, 256))
        assert network(torch.empty(1, 3, 50, 70)).shape == (1, 1, 50, 70)
    assert [side.shape[2] for side in maps] == [128, 64, 32, 16, 16]
    assert {block.conv2.dilation for block in network.encoder.layer4} == {(2, 2)}
    assert [branch[0].dilation for branch in network.branches] == [(1, 1), (6, 6), (12, 12), (18, 18)]
    assert network.project[0].in_channels == 5 * 256
    assert (network.low_level[0].in_channels, network.low_level[0].out_channels) == (256, 48)
    assert network.refine[0].in_channels == 48 + 256


@pytest.mark.parametrize("training", [True, False])
def test_it_says_why_it_wants_two_cases(training: bool) -> None:
    network = DeepLabV3Plus(2, 1, 2, width=2, encoder="resnet18").train(training)
    if not training:
        assert network(torch.zeros(1, 1, 16, 16)).shape == (1, 2, 16, 16)
        return
    assert network(torch.randn(2, 1, 16, 16)).shape == (2, 2, 16, 16)
    with pytest.raises(ValueError, match=r"DeepLabV3Plus cannot be trained on a batch of one.*use a batch of two"):
        network(torch.zeros(1, 1, 64, 64))


@torch.no_grad()
def test_it_sees_the_whole_window() -> None:
    network = DeepLabV3Plus(2, 1, 1, width=2, encoder="resnet18").eval()
    assert any(isinstance(module, nn.AdaptiveAvgPool2d) for module in network.mean)
    image = torch.randn(1, 1, 16, 640)
    moved = image.clone()
    moved[..., -1] += 100
    assert (network(image) - network(moved))[..., 0].abs().max() > 0
    assert network.window_global


def test_wrong_options() -> None:
    with pytest.raises(UsageError, match="unknown encoder 'resnet43'"):
        DeepLabV3Plus(2, 3, 1, encoder="resnet43")
    for rates in ((), (6, 0)):
        with pytest.raises(ValueError, match=r"one dilation or more, each from 1 on; got rates=\["):
            DeepLabV3Plus(2, 3, 1, rates=rates)
