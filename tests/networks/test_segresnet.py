"""With MONAI's weights it gives MONAI's logits; counts are pinned, claims hold for options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.networks.nets import SegResNet as MonaiSegResNet
from voxelwise.networks.segresnet import SegResNet

from .cases import Case
from .measured import check_receptive_field, check_stride, check_window_global
from .same_logits import SIZES, check_counts, check_same, random_norms


def test_parameters() -> None:
    check_counts(SegResNet, {3: 18_796_002, 2: 6_298_530})


@pytest.mark.parametrize("dims", [2, 3])
def test_logits_are_monais(dims: int) -> None:
    torch.manual_seed(0)
    ours, theirs = SegResNet(dims, 2, 3, width=8), MonaiSegResNet(dims, **SIZES, init_filters=8)
    random_norms(theirs)
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    check_same(ours, theirs, torch.randn(1, 2, *(32, 16, 16)[:dims]))


def test_claims_hold_for_options() -> None:
    network = Case("segresnet", 2, {"norm": "batch", "blocks": (1, 1), "activation": "elu"}).build()
    check_receptive_field(network)
    check_stride(network)
    check_window_global(network)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"width": 12}, r"multiples of 8; got width=\[12\]"), ({"blocks": (1,)}, r"two levels or more.*blocks=\[1\]")],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegResNet(2, 1, 2, **options)
