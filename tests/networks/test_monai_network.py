"""MONAI's networks by class and arguments: the same logits, and weights that go where they belong."""

from __future__ import annotations

from typing import Any

import pytest
import safetensors.torch
import torch
from monai.networks import nets
from voxelwise.errors import UsageError
from voxelwise.networks.monai_network import CLASSES, MonaiNetwork, build_monai, monai_weights
from voxelwise.networks.registry import build_network

SMALL: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "UNet": ({"channels": [4, 8, 8], "strides": [2, [2, 1, 2]], "num_res_units": 2, "norm": "batch"}, (8, 4, 8)),
    "BasicUNet": ({"features": [4, 4, 4, 8, 8, 4]}, (16, 16, 32)),
    "AttentionUnet": ({"channels": [4, 8], "strides": [2]}, (6, 6, 6)),
    "SegResNet": ({"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1], "act": "prelu"}, (6, 6, 6)),
    "SegResNetDS": ({"init_filters": 8, "blocks_down": [1, 1], "dsdepth": 2, "resolution": [1.0, 1.0, 3.0]}, (6, 6, 6)),
    "DynUNet": (
        {
            "kernel_size": [3, 3, 3],
            "strides": [1, 2, [2, 2, 1]],
            "upsample_kernel_size": [2, [2, 2, 1]],
            "filters": [4, 8, 8],
            "norm_name": "instance",
            "res_block": True,
            "deep_supervision": True,
        },
        (8, 8, 4),
    ),
    "VNet": ({}, (16, 16, 32)),
    "SwinUNETR": ({"feature_size": 12, "depths": [1, 1, 1, 1], "window_size": 2, "img_size": 96}, (32, 32, 64)),
    "FlexibleUNet": ({"backbone": "resnet10", "pretrained": True, "decoder_channels": [8, 8, 4, 4]}, (32, 32, 64)),
    "HighResNet": ({}, (4, 4, 4)),
}
LIGHT = ("UNet", "AttentionUnet", "SegResNet", "SegResNetDS", "DynUNet")


@pytest.mark.parametrize(
    "name", [one if one in LIGHT else pytest.param(one, marks=pytest.mark.slow) for one in CLASSES]
)
@torch.no_grad()
def test_logits_are_monais(name: str) -> None:
    arguments, size = SMALL[name]
    theirs = {key: value for key, value in arguments.items() if key not in ("img_size", "pretrained")}
    torch.manual_seed(0)
    original = getattr(nets, name)(spatial_dims=3, in_channels=2, out_channels=3, **theirs).eval()
    ours = build_network("monai", 3, 2, 3, class_name=name, arguments=arguments).eval()
    assert isinstance(ours, MonaiNetwork)
    ours.load_state_dict(monai_weights(ours, name, original.state_dict()), strict=True)
    image = torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(image), original(image), rtol=1e-5, atol=1e-5)
    assert all(side % step == 0 for side, step in zip(size, ours.stride, strict=True))
    assert safetensors.torch.save(ours.state_dict())  # no two names share memory
    if ours.head is not None:
        torch.testing.assert_close(ours.head(ours.features(image)), ours(image))


def test_trained_norms_keep_their_statistics() -> None:
    """An instance norm that remembers is not one of ours."""
    norm = ["instance", {"track_running_stats": True, "affine": True}]
    network = build_network("monai", 2, 1, 2, arguments={"channels": [4, 8], "strides": [2], "norm": norm})
    assert any(name.endswith("running_mean") for name in network.state_dict())


def test_weights_of_another_network_are_named() -> None:
    network = build_network("monai", 2, 1, 2, width=4)
    assert isinstance(network, MonaiNetwork)
    weights = {name.removeprefix("net."): value for name, value in network.state_dict().items()}
    first = next(iter(weights))
    with pytest.raises(UsageError, match=r"not those of MONAI's UNet .*: 1 are missing .*, 1 are unknown"):
        monai_weights(network, "UNet", {("x" if name == first else name): value for name, value in weights.items()})
    with pytest.raises(UsageError, match="1 have another shape"):
        monai_weights(network, "UNet", {**weights, first: weights[first][:1]})


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("Unett", {}, "unknown class of network 'monai': 'Unett'; did you mean"),
        ("UNet", {"chanels": [4]}, "unknown argument of MONAI's UNet: 'chanels'; did you mean 'channels'"),
        ("UNet", {"act": torch.nn.ReLU}, "argument act of MONAI's UNet holds .*; numbers, words and lists go"),
        ("SegResNetDS", {"preprocess": "x"}, "unknown argument of MONAI's SegResNetDS: 'preprocess'"),
    ],
)
def test_wrong_classes_and_arguments(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_monai(name, 3, 1, 2, arguments)
