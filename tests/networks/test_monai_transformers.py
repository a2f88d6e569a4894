"""With MONAI's weights the wrapped transformers give MONAI's logits; counts are pinned; without einops they say so."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from monai.networks import nets
from torch import Tensor, nn
from voxelwise.errors import UsageError
from voxelwise.networks.base import SegmentationNetwork
from voxelwise.networks.monai_transformers import UNETR, SwinUNETR
from voxelwise.networks.registry import count_parameters

needs_einops = pytest.mark.skipif(importlib.util.find_spec("einops") is None, reason="einops is not installed")
TINY: dict[str, dict[str, Any]] = {
    "UNETR": {"size": 32, "width": 4, "hidden": 12, "mlp": 16, "heads": 2},
    "SwinUNETR": {"width": 12, "window": 2},
}


@needs_einops
@pytest.mark.parametrize(
    ("build", "in_3d", "in_2d"), [(UNETR, 92_783_842, 87_146_434), (SwinUNETR, 62_186_708, 25_137_980)]
)
def test_parameters(build: type[SegmentationNetwork], in_3d: int, in_2d: int) -> None:
    for dims, count in ((3, in_3d), (2, in_2d)):
        with torch.device("meta"):
            assert count_parameters(build(dims, 1, 2)) == count  # type: ignore[call-arg]
        assert f"{count:,}" in (build.__doc__ or "")


def load(ours: SegmentationNetwork, theirs: nn.Module) -> None:
    for name, parameter in theirs.named_parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5) if "weight" in name else nn.init.normal_(parameter)
    weights = {
        key.replace("out.conv.conv", "head") if key.startswith("out.") else f"net.{key}": weight
        for key, weight in theirs.state_dict().items()
        if "norm_cross_attn" not in key
    }
    ours.load_state_dict(weights)


@needs_einops
@pytest.mark.parametrize("dims", [2, 3])
@torch.no_grad()
def test_logits_are_monais(dims: int) -> None:
    torch.manual_seed(0)
    size = {"spatial_dims": dims, "in_channels": 2, "out_channels": 3}
    unetr = nets.UNETR(**size, img_size=32, feature_size=4, hidden_size=12, mlp_dim=16, num_heads=2)
    swin = nets.SwinUNETR(**size, feature_size=12, window_size=3)
    image = torch.randn(1, 2, *(32,) * dims)
    pairs: list[tuple[SegmentationNetwork, nn.Module, Tensor]] = [
        (UNETR(dims, 2, 3, **TINY["UNETR"]), unetr, image),
        (SwinUNETR(dims, 2, 3, width=12, window=3), swin, image.repeat(1, 1, *(2, 1, 1)[:dims])),
    ]
    for ours, theirs, one in pairs:
        load(ours, theirs)
        torch.testing.assert_close(ours.eval()(one), theirs.eval()(one), rtol=1e-3, atol=1e-3)


@needs_einops
@torch.no_grad()
def test_positions_are_interpolated() -> None:
    network = UNETR(2, 1, 2, **TINY["UNETR"]).eval()
    embeddings = network.net.vit.patch_embedding.position_embeddings
    assert network.positions((2, 2)) is embeddings
    assert network.positions((3, 5)).shape == (1, 15, 12)
    nn.init.ones_(embeddings)
    torch.testing.assert_close(network.positions((3, 5)), torch.ones(1, 15, 12))


@needs_einops
@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (UNETR, {"size": 40}, "a multiple of 16 along each axis, got size=40"),
        (UNETR, {"heads": 5}, "divide the length of a token"),
        (SwinUNETR, {"width": 20}, "multiple of 12, got width=20"),
        (SwinUNETR, {"depths": (2, 2)}, "four stages"),
        (SwinUNETR, {"heads": (5, 6, 12, 24)}, "heads divide the channels"),
        (SwinUNETR, {"window": 1}, "a side of 2 or more"),
    ],
)
def test_wrong_options(build: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(2, 1, 2, **options)


@pytest.mark.parametrize("build", [UNETR, SwinUNETR])
def test_without_einops(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install einops"):
        build(2, 1, 2)
