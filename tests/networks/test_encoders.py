"""`unet` with encoders of segmentation-models-pytorch."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch
from voxelwise.errors import UsageError
from voxelwise.networks.encoders import ENCODERS, INCEPTIONS, build_encoder, encoder_reach
from voxelwise.networks.registry import build_network, count_parameters
from voxelwise.networks.unet import UNet

from .sight import seen

COUNTS = {
    "resnet18": 16_881_570,
    "resnet34": 26_989_730,
    "inceptionv4": 51_113_410,
    "efficientnet-b0": 8_378_398,
}


@pytest.mark.parametrize("encoder", COUNTS)
def test_counts(encoder: str) -> None:
    with torch.device("meta"):
        assert count_parameters(UNet(2, 1, 2, encoder=encoder)) == COUNTS[encoder]
    assert encoder != "resnet34" or f"{COUNTS[encoder]:,}" in (UNet.__doc__ or "")


@pytest.mark.parametrize("encoder", ["resnet18", "efficientnet-b0"])
def test_sizes(encoder: str) -> None:
    with torch.device("meta"):
        network = UNet(2, 1, 2, encoder=encoder)
        levels = network.encode(torch.empty(1, 1, 64, 96))
        assert [tuple(level.shape[2:]) for level in levels] == [(64 >> n, 96 >> n) for n in range(6)]
        assert network(torch.empty(2, 1, 50, 70)).shape == (2, 2, 50, 70)


class OneMap(torch.nn.Module):
    def __init__(self, name: str, level: int) -> None:
        super().__init__()
        self.encoder, self.level = build_encoder(name, 1)[0].eval(), level

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.encoder(image)[self.level]
        return result


@pytest.mark.parametrize("name", ["resnet18", *INCEPTIONS])
def test_reach(name: str) -> None:
    level = 3
    reaches = encoder_reach(name)
    assert reaches is not None
    first, last = seen(OneMap(name, level), 1, (768, 32), 0)
    middle = len(first) // 2 // (32 >> level) * (32 >> level)
    assert int(first[middle]) - (middle << level) == reaches[level].first[0]
    assert int(last[middle]) - (middle << level) == reaches[level].last[0]


def test_squeeze_and_excitation_sees_the_whole_window() -> None:
    with torch.device("meta"):
        assert UNet(2, 1, 2, encoder="efficientnet-b0", norm="batch").window_global
        assert not UNet(2, 1, 2, encoder="inceptionv4", norm="batch").window_global


def test_every_parameter_learns() -> None:
    torch.manual_seed(0)
    network = UNet(2, 1, 2, encoder="efficientnet-b0", widths=(4, 4, 4, 4, 4))
    network(torch.randn(1, 1, 33, 40)).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("dims", "options", "message"),
    [
        (
            2,
            {"encoder": "resnet43"},
            "unknown encoder 'resnet43'; did you mean 'resnet34'.*there are: effic",
        ),
        (3, {"encoder": "resnet34"}, "encoder 'resnet34' is 2D, not 3D; use --dims 2"),
        (2, {"encoder": "resnet34", "widths": (4, 8)}, r"widths gives the 5 levels of the decoder, got \[4, 8\]"),
        (2, {"encoder": "resnet34", "blocks": "residual"}, "leave the options blocks"),
        (2, {"encoder": "resnet34", "strides": [1, 2, 2, 2, 2]}, "leave the options blocks"),
        (2, {"encoder": "resnet34", "stem": 4}, "encoder_depth and stem out"),
    ],
)
def test_wrong_use(dims: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_network("unet", dims, 1, 2, **options)


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name.startswith("segmentation_models_pytorch"):
            raise ImportError("No module named 'segmentation_models_pytorch'")
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"pip install 'voxelwise\[encoders\]'"):
        UNet(2, 1, 2, encoder="resnet34")
    assert len(ENCODERS) == 15
