"""With MONAI's weights its features are MONAI's; the head gives logits; counts are pinned, claims hold for options."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import HighResNet as MonaiHighResNet
from voxelwise.errors import UsageError
from voxelwise.networks.highresnet import HighResNet

from .cases import Case
from .measured import check_receptive_field, check_stride, check_window_global
from .same_logits import SIZES, check_counts, random_norms


def test_parameters() -> None:
    check_counts(HighResNet, {3: 808_946, 2: 274_130})


@pytest.mark.parametrize("dims", [2, 3])
@torch.no_grad()
def test_it_is_monais_up_to_the_last_convolution(dims: int) -> None:
    torch.manual_seed(0)
    ours, theirs = HighResNet(dims, 2, 3), MonaiHighResNet(dims, **SIZES)
    random_norms(theirs)
    weights = {name: one for name, one in theirs.state_dict().items() if name in ours.state_dict()}
    assert set(ours.state_dict()) - set(weights) == {"head.weight", "head.bias"}
    ours.load_state_dict(weights, strict=False)
    image = torch.randn(1, 2, *(9, 11, 4)[:dims])
    torch.testing.assert_close(ours.eval().features(image), theirs.eval().blocks[:-1](image))


def test_logits_have_both_signs() -> None:
    torch.manual_seed(0)
    logits = HighResNet(2, 1, 2, width=4)(torch.randn(2, 1, 12, 12))
    assert (logits < 0).any()
    assert (logits > 0).any()


def test_it_never_down_samples() -> None:
    with torch.device("meta"):
        network = HighResNet(2, 1, 2, width=2)
        sizes = []
        for block in network.blocks:
            block.register_forward_hook(lambda *given: sizes.append(tuple(given[2].shape[2:])))
        network(torch.empty(2, 1, 7, 9))
    assert set(sizes) == {(7, 9)}


def test_claims_hold_for_options() -> None:
    network = Case("highresnet", 2, {"norm": "instance", "repeats": 2}).build()
    check_receptive_field(network)
    check_stride(network)
    check_window_global(network)


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="at least one block, got repeats=0"):
        HighResNet(2, 1, 2, repeats=0)
    with pytest.raises(UsageError, match="unknown norm 'group'"):
        HighResNet(2, 1, 2, norm="group")
