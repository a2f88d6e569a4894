"""With MONAI's weights it gives MONAI's logits; counts are pinned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.networks.nets import SwinUNETR as MonaiSwinUNETR
from voxelwise.networks.swin_unetr import SwinUNETR

from .same_logits import SIZES, check_counts, check_same, random_norms


def test_parameters() -> None:
    check_counts(SwinUNETR, {3: 62_186_708, 2: 25_137_980})


@pytest.mark.parametrize("dims", [2, 3])
def test_logits_are_monais(dims: int) -> None:
    torch.manual_seed(0)
    theirs = MonaiSwinUNETR(**SIZES, feature_size=12, window_size=3, spatial_dims=dims)
    random_norms(theirs)
    ours = SwinUNETR(dims, 2, 3, width=12, window=3)
    ours.load_state_dict(
        {
            name.replace("out.conv.conv", "head") if name.startswith("out.") else f"net.{name}": weight
            for name, weight in theirs.state_dict().items()
        }
    )
    check_same(ours, theirs, torch.randn(1, 2, *(64, 32, 32)[:dims]), 1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 20}, "multiple of 12, got width=20"),
        ({"depths": (2, 2)}, "four stages"),
        ({"heads": (5, 6, 12, 24)}, "heads divide the channels"),
        ({"window": 1}, "a side of 2 or more"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SwinUNETR(2, 1, 2, **options)
