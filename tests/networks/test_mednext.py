"""With MONAI's weights it gives MONAI's logits at every scale; counts are pinned, claims hold for options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.networks.nets import MedNeXt as MonaiMedNeXt
from monai.networks.nets.mednext import create_mednext
from torch import nn
from voxelwise.errors import UsageError
from voxelwise.networks.mednext import MEDNEXT, MedNeXt, PointwiseUp
from voxelwise.networks.registry import count_parameters

from .cases import Case
from .measured import check_receptive_field, check_stride, check_window_global
from .same_logits import SIZES, check_counts, check_same, random_norms


def pair(dims: int, deep_supervision: int = 1) -> tuple[MedNeXt, nn.Module]:
    """Ours with MONAI's weights, and MONAI's."""
    torch.manual_seed(0)
    theirs = MonaiMedNeXt(
        dims,
        4,
        **SIZES,
        kernel_size=3,
        use_residual_connection=True,
        deep_supervision=deep_supervision > 1,
    )
    random_norms(theirs)
    ours = MedNeXt(dims, 2, 3, width=4, deep_supervision=deep_supervision)
    heads = {"out_0.conv_out.": "head.", **{f"out_blocks.{3 - k}.conv_out.": f"coarse_heads.{k}." for k in range(4)}}
    weights = {}
    for name, weight in theirs.state_dict().items():
        head = next((old for old in heads if name.startswith(old)), None)
        if head is None:
            weights[f"net.{name}"] = weight
        else:
            weights[heads[head] + name[len(head) :]] = weight.transpose(0, 1) if weight.ndim > 1 else weight
    ours.load_state_dict({name: weight for name, weight in weights.items() if name in ours.state_dict()})
    return ours, theirs


def test_parameters() -> None:
    check_counts(MedNeXt, {3: 5_550_914, 2: 5_472_002})


@pytest.mark.parametrize("variant", MEDNEXT)
def test_variants_are_monais(variant: str) -> None:
    with torch.device("meta"):
        theirs = count_parameters(create_mednext(variant, 3, 1, 2))
        assert count_parameters(MedNeXt(3, 1, 2, variant=variant)) == theirs


@pytest.mark.parametrize("dims", [2, 3])
def test_logits_are_monais(dims: int) -> None:
    ours, theirs = pair(dims)
    check_same(ours, theirs, torch.randn(1, 2, *(32, 16, 16)[:dims]))


@torch.no_grad()
def test_scales_are_monais() -> None:
    ours, theirs = pair(2, deep_supervision=5)
    image = torch.randn(1, 2, 32, 64)
    scales = ours.train()(image)
    assert [scale.shape[2] for scale in scales] == [32, 16, 8, 4, 2]
    for scale, wanted in zip(scales, theirs.train()(image), strict=True):
        torch.testing.assert_close(scale, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
@torch.no_grad()
def test_pointwise_up_is_the_strided_convolution(dims: int) -> None:
    up = (nn.ConvTranspose2d if dims == 2 else nn.ConvTranspose3d)(2, 3, 1, stride=2)
    image = torch.randn(2, 2, *(6, 4, 8)[:dims])
    torch.testing.assert_close(PointwiseUp(up)(image), up(image))


def test_claims_hold_for_options() -> None:
    network = Case("mednext", 2, {"kernel": 5, "deep_supervision": 3}).build()
    check_receptive_field(network)
    check_stride(network)
    check_window_global(network)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"variant": "XL"}, UsageError, "unknown variant of MedNeXt: 'XL'"),
        ({"kernel": 4}, ValueError, "kernels are odd"),
        ({"deep_supervision": 6}, ValueError, "1 to 5 output scales"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MedNeXt(2, 1, 2, **options)
