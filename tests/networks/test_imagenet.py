"""Weights of the libraries: which trunk has which, what is checked before, and what is said when they do not come."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from voxelwise.errors import UnsafeInputError, UsageError
from voxelwise.networks import imagenet
from voxelwise.networks.base import SegmentationNetwork
from voxelwise.networks.fcrn import FCNVGG16
from voxelwise.networks.imagenet import check_imagenet, imagenet_source, start_from_imagenet
from voxelwise.networks.registry import build_network
from voxelwise.networks.unet import UNet

TORCHVISIONS = "torchvision.models._api.WeightsEnum.get_state_dict"
SOURCES = {
    "fcn8s": "vgg16 of torchvision",
    "fcn_vgg16": "vgg16 of torchvision",
    "fcn_googlenet": "googlenet of torchvision",
    "resnet34_unet": "resnet34 of torchvision",
    "res_att_unet": "resnet34 of torchvision",
    "deeplabv3plus": "resnet50 of torchvision",
    "fcrn101": "resnet101 of torchvision",
}


def empty(name: str, *sizes: int, **options: Any) -> SegmentationNetwork:
    """A network on the meta device."""
    with torch.device("meta"):
        return build_network(name, *sizes, **options)


@pytest.mark.parametrize("name", SOURCES)
def test_trunks_that_a_library_has(name: str) -> None:
    assert str(imagenet_source(empty(name, 2, 3, 2, width=8))) == SOURCES[name]


@pytest.mark.parametrize("name", ["fcn8s", "fcn_vgg16", "fcn_googlenet", "res_att_unet"])
def test_at_their_own_width_they_fit(name: str) -> None:
    check_imagenet(empty(name, 2, 3, 2))


@pytest.mark.parametrize("encoder", ["resnet18", "inceptionv4", "efficientnet-b0"])
def test_encoders_of_unet(encoder: str) -> None:
    network = empty("unet", 2, 1, 2, encoder=encoder)
    library = "torchvision" if encoder.startswith("resnet") else "segmentation-models-pytorch"
    assert str(imagenet_source(network)) == f"{encoder} of {library}"
    check_imagenet(network)


@pytest.mark.parametrize(("name", "dims"), [("fcrn38", 2), ("unet", 2), ("vnet", 3), ("res_att_unet", 3)])
def test_trunks_that_no_library_has(name: str, dims: int) -> None:
    with pytest.raises(UsageError, match="has no trunk that ImageNet weights are known for"):
        imagenet_source(empty(name, dims, 3, 2))


@pytest.mark.parametrize("name", ["fcn8s", "fcn_vgg16", "res_att_unet"])
def test_other_widths_are_refused_before_anything_is_fetched(name: str) -> None:
    with pytest.raises(
        UsageError, match=r"ImageNet weights of \w+ of torchvision \(of its full width\): nothing in it fits"
    ):
        check_imagenet(empty(name, 2, 3, 2, width=8))


def given(monkeypatch: pytest.MonkeyPatch, give: Callable[[], dict[str, Tensor]]) -> None:
    """Let torchvision's loader give something without a network."""
    monkeypatch.setattr(TORCHVISIONS, lambda *args, **options: give())


def test_torchvisions_weights_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = models.resnet18(weights=None).state_dict()
    given(monkeypatch, lambda: weights)
    network = UNet(2, 1, 2, encoder="resnet18", widths=(4, 4, 4, 4, 4))
    report = start_from_imagenet(network)
    assert set(report.dropped) == {"fc.weight", "fc.bias"}
    assert not any(name.startswith("encoder.") for name in report.new)
    assert torch.equal(network.encoder.layer3[0].conv1.weight, weights["layer3.0.conv1.weight"])
    torch.testing.assert_close(network.encoder.conv1.weight, weights["conv1.weight"].sum(1, keepdim=True))


def test_the_other_librarys_weights_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    with torch.device("meta"):
        network = UNet(2, 3, 2, encoder="efficientnet-b0")
    encoder = network.encoder

    def build(name: str, in_channels: int, weights: str | None = None) -> tuple[nn.Module, list[int]]:
        asked.append((name, in_channels, weights))
        return encoder, []

    monkeypatch.setattr(imagenet, "build_encoder", build)
    report = start_from_imagenet(network)
    assert asked == [("efficientnet-b0", 3, "imagenet")]
    assert not report.dropped
    assert {name.split(".")[0] for name in report.new} == {"up", "decoder", "head"}


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (URLError("no route"), UsageError, "cannot be fetched .*no route.*bring a file of them and name it"),
        (FileNotFoundError("offline"), UsageError, "cannot be fetched .*offline"),
        (
            RuntimeError('invalid hash value (expected "397923af", got "0")'),
            UnsafeInputError,
            "the hash is wrong .*nothing was taken",
        ),
        (RuntimeError("PytorchStreamReader failed"), UsageError, "cannot be read .*delete the library's copy"),
        (ValueError("invalid load key"), UsageError, "cannot be read .*invalid load key"),
    ],
)
def test_what_does_not_come(
    error: Exception, kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> dict[str, Tensor]:
        raise error

    given(monkeypatch, fail)
    with pytest.raises(kind, match=f"^ImageNet weights of vgg16 of torchvision:? {message}"):
        start_from_imagenet(FCNVGG16(2, 3, 2, width=1))


def test_what_comes_of_other_widths_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, lambda: {"features.0.weight": torch.zeros(64, 3, 3, 3)})
    with pytest.raises(UsageError, match=r"nothing in it fits FCNVGG16; it holds features\.0\.weight"):
        start_from_imagenet(FCNVGG16(2, 3, 2, width=1))


def test_without_torchvision_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(UsageError, match=r"come from torchvision, .*pip install 'voxelwise\[encoders\]'"):
        check_imagenet(empty("fcn8s", 2, 3, 2))
