"""Weights from elsewhere: what the rules take, drop and leave new."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from voxelwise.errors import UnsafeInputError, UsageError
from voxelwise.networks.fcn import FCN8s, FCN16s, FCN32s
from voxelwise.networks.fcrn import FCNVGG16, FCRN50
from voxelwise.networks.res_att_unet import ResAttUNet
from voxelwise.networks.resnet import ResNet
from voxelwise.networks.unet import UNet
from voxelwise.networks.unetpp import UNetPP
from voxelwise.networks.vgg import DEPTHS, WIDTHS
from voxelwise.networks.vnet import VNet
from voxelwise.networks.weights import start_from, transplant

WIDTH = 1


def small_vgg() -> nn.Module:
    """VGG-16 in torchvision's layout, of width 1 and dense layers of 64."""
    features, channels = nn.Sequential(), 3
    for depth, times in zip(DEPTHS, WIDTHS, strict=True):
        for _ in range(depth):
            features.extend([nn.Conv2d(channels, times * WIDTH, 3, padding=1), nn.ReLU()])
            channels = times * WIDTH
        features.append(nn.MaxPool2d(2))
    dense = [nn.Linear(49 * channels, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 64), nn.ReLU(), nn.Dropout()]
    whole = nn.Module()
    whole.features, whole.classifier = features, nn.Sequential(*dense, nn.Linear(64, 1000))
    return whole.eval()


@torch.no_grad()
def test_dense_layers_become_convolutions() -> None:
    """On an image of 224 pixels the convolutions compute what the dense layers did."""
    vgg, network = small_vgg(), FCN8s(2, 3, 5, width=WIDTH, padding="same").eval()
    report = transplant(network, vgg.state_dict())
    assert list(report.dropped) == ["classifier.6.weight", "classifier.6.bias"]
    assert {name.split(".")[0] for name in report.new} == {"score_fr", "score_pool4", "score_pool3"}
    assert len(report.taken) == 2 * (13 + 2)
    image = torch.randn(1, 3, 224, 224)
    pool5 = network.poolings(image)[-1]
    dense = vgg.classifier[0](vgg.features(image).flatten(1))
    torch.testing.assert_close(network.fc6(pool5)[:, :, 3, 3], dense)
    denser = vgg.classifier[:4](vgg.features(image).flatten(1))
    torch.testing.assert_close(network.fc7(network.fc6(pool5).relu())[:, :, 3, 3], denser)


def caffe_weights(classes: int) -> dict[str, Tensor]:
    """As a file of the authors' FCN-8s: their names, their fixed kernels."""
    source = FCN8s(2, 3, classes, width=WIDTH).state_dict()
    weights = {name: value for name, value in source.items() if not name.endswith("kernel")}
    weights["score-fr.weight"] = weights.pop("score_fr.weight")
    weights["upscore2.weight"] = torch.ones(classes, classes, 4, 4)
    return weights


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".npz"])
def test_a_file_of_other_classes(tmp_path: Path, suffix: str) -> None:
    path, weights = tmp_path / f"voc{suffix}", caffe_weights(21)
    if suffix == ".safetensors":
        save_file(weights, path)
    elif suffix == ".pth":
        torch.save({"state_dict": weights}, path)
    else:
        np.savez(path, **{name: value.numpy() for name, value in weights.items()})
    network = FCN8s(2, 3, 2, width=WIDTH)
    report = start_from(network, path)
    assert report.dropped["upscore2.weight"] == "bilinear kernels are fixed"
    assert report.dropped["score-fr.weight"] == "it has the shape (21, 64, 1, 1), the network's (2, 64, 1, 1)"
    assert {name.split(".")[0] for name in report.new} == {"score_fr", "score_pool4", "score_pool3"}
    assert "dropped score-fr.weight: it has the shape" in str(report)
    assert torch.equal(network.conv3_2.weight, weights["conv3_2.weight"])


def test_channels_of_the_first_layer() -> None:
    weights = caffe_weights(2)
    three, one, two = FCN8s(2, 3, 2, width=WIDTH), FCN8s(2, 1, 2, width=WIDTH), FCN8s(2, 2, 2, width=WIDTH)
    assert not transplant(three, weights, channel_order="bgr").new
    assert torch.equal(three.conv1_1.weight, weights["conv1_1.weight"].flip(1))
    transplant(one, weights)
    torch.testing.assert_close(one.conv1_1.weight, weights["conv1_1.weight"].sum(1, keepdim=True))
    assert "conv1_1.weight" in transplant(two, weights).new
    with pytest.raises(UsageError, match="unknown channel order 'gbr'"):
        transplant(three, weights, channel_order="gbr")


def test_stages_of_fcn_follow_each_other() -> None:
    one, two, three = FCN32s(2, 3, 2, width=WIDTH), FCN16s(2, 3, 2, width=WIDTH), FCN8s(2, 3, 2, width=WIDTH)
    torch.nn.init.ones_(one.score_fr.weight)
    report = transplant(two, one.state_dict())
    assert report.new == ("score_pool4.weight", "score_pool4.bias")
    assert transplant(three, two.state_dict()).new == ("score_pool3.weight", "score_pool3.bias")
    assert torch.equal(three.score_fr.weight, one.score_fr.weight)


@pytest.mark.parametrize(
    ("network", "depths", "bottleneck"),
    [(ResAttUNet(2, 3, 2, width=2), (3, 4, 6, 3), False), (FCRN50(2, 3, 2, width=2), (3, 4, 6, 3), True)],
)
def test_weights_of_a_trunk(network: Any, depths: tuple[int, ...], bottleneck: bool) -> None:
    trunk = ResNet(2, 3, depths, bottleneck=bottleneck, width=2)
    weights = {**trunk.state_dict(), "fc.weight": torch.ones(1000, 4)}
    report = transplant(network, weights)
    assert set(report.dropped) == {"fc.weight"}
    part = network.encoder if hasattr(network, "encoder") else network.trunk
    assert all(torch.equal(value, weights[name]) for name, value in part.state_dict().items())
    assert not any(name.startswith(("encoder.", "trunk.")) for name in report.new)


def test_names_that_a_file_gives_for_another_networks_layers(tmp_path: Path) -> None:
    """A bias of as many classes fits every head, and a layer or two fit by chance; neither is a start."""
    other = VNet(2, 1, 2, width=4).state_dict()
    save_file(other, tmp_path / "vnet.safetensors")
    network = UNet(2, 1, 2, widths=(4, 8))
    assert transplant(network, other).taken == ("head.bias",)
    with pytest.raises(UsageError, match=r"vnet.safetensors: nothing in it fits UNet; it holds .* and \d+ more"):
        start_from(network, tmp_path / "vnet.safetensors")
    deep = ResNet(2, 3, (3, 4, 6, 3), bottleneck=True, width=8)
    save_file(deep.state_dict(), tmp_path / "resnet50.safetensors")
    with pytest.raises(UsageError, match=r"17 of its 53 layers fit ResAttUNet; it holds \w+.* and 50 more"):
        start_from(ResAttUNet(2, 3, 2, width=8), tmp_path / "resnet50.safetensors")


def test_a_part_of_a_network_may_start_the_whole_and_the_whole_a_part(tmp_path: Path) -> None:
    whole, part = UNetPP(2, 1, 2, width=2, heads=4), UNetPP(2, 1, 2, width=2, depth=1)
    for name, network in (("whole", whole), ("part", part)):
        save_file(network.state_dict(), tmp_path / f"{name}.safetensors")
    assert start_from(part, tmp_path / "whole.safetensors").new == ()
    assert len(start_from(whole, tmp_path / "part.safetensors").dropped) == 0


def test_files_that_do_not_serve(tmp_path: Path) -> None:
    network = FCNVGG16(2, 3, 2, width=1)
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"123")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"state_dict": torch.zeros(1)}, tmp_path / "odd.pt")
    torch.save({3: torch.zeros(1)}, tmp_path / "numbered.pt")
    for name, message in [
        ("other.safetensors", "nothing in it fits FCNVGG16; it holds other"),
        ("broken.safetensors", "cannot be read as weights"),
        ("missing.pth", "cannot be read as weights"),
        ("list.pt", "holds no tensors by name"),
        ("odd.pt", "holds no tensors by name"),
        ("numbered.pt", "holds no tensors by name"),
        ("net.caffemodel", "weights are read from .safetensors"),
    ]:
        with pytest.raises(UsageError, match=message):
            start_from(network, tmp_path / name)


def test_a_pickle_of_more_than_tensors_is_not_read(tmp_path: Path) -> None:
    torch.save(nn.Linear(1, 1), tmp_path / "unsafe.pt")
    np.savez(tmp_path / "unsafe.npz", weight=np.array([{}], dtype=object))
    for name in ("unsafe.pt", "unsafe.npz"):
        with pytest.raises(UnsafeInputError, match=f"{name} holds more than tensors, or none; it was not read"):
            start_from(FCNVGG16(2, 3, 2, width=1), tmp_path / name)


def test_a_network_without_convolutions(tmp_path: Path) -> None:
    """A class of the user's may have none."""
    network: Any = nn.Linear(2, 3)
    network.spatial_dims = 2
    assert transplant(network, nn.Linear(2, 3).state_dict()).new == ()
