"""With MONAI's weights it gives MONAI's logits; counts are pinned; positions are interpolated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.networks.nets import UNETR as MonaiUNETR
from torch import nn
from voxelwise.networks.unetr import UNETR

from .same_logits import SIZES, check_counts, check_same, random_norms

TINY: dict[str, Any] = {"size": 32, "width": 4, "hidden": 12, "mlp": 16, "heads": 2}


def test_parameters() -> None:
    check_counts(UNETR, {3: 92_783_842, 2: 87_146_434})


@pytest.mark.parametrize("dims", [2, 3])
def test_logits_are_monais(dims: int) -> None:
    torch.manual_seed(0)
    theirs = MonaiUNETR(
        **SIZES, img_size=32, feature_size=4, hidden_size=12, mlp_dim=16, num_heads=2, spatial_dims=dims
    )
    random_norms(theirs)
    ours = UNETR(dims, 2, 3, **TINY)
    ours.load_state_dict(
        {
            name.replace("out.conv.conv", "head") if name.startswith("out.") else f"net.{name}": weight
            for name, weight in theirs.state_dict().items()
            if "norm_cross_attn" not in name
        }
    )
    check_same(ours, theirs, torch.randn(1, 2, *(32,) * dims), 1e-3)


@torch.no_grad()
def test_positions_are_interpolated() -> None:
    network = UNETR(2, 1, 2, **TINY).eval()
    embeddings = network.net.vit.patch_embedding.position_embeddings
    assert network.positions((2, 2)) is embeddings
    assert network.positions((3, 5)).shape == (1, 15, 12)
    nn.init.ones_(embeddings)
    torch.testing.assert_close(network.positions((3, 5)), torch.ones(1, 15, 12))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 40}, "a multiple of 16 along each axis, got size=40"),
        ({"size": (32, 32, 32)}, "a multiple of 16 along each axis"),
        ({"heads": 5}, "divide the length of a token"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNETR(2, 1, 2, **options)
