"""With MONAI's weights it gives MONAI's logits at every scale; counts are pinned, claims hold for options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.networks.nets import DynUNet as MonaiDynUNet
from torch import nn
from torch.nn import functional
from voxelwise.errors import UsageError
from voxelwise.networks.dynunet import DynUNet

from .cases import Case
from .measured import check_receptive_field, check_stride, check_window_global
from .same_logits import SIZES, check_counts, check_same, random_norms

WIDTHS = (4, 6, 8)


def pair(dims: int, **options: Any) -> tuple[DynUNet, nn.Module]:
    """Ours with MONAI's weights, in the order in which both are used, and MONAI's."""
    torch.manual_seed(0)
    supervised = options.get("deep_supervision", 1)
    theirs = MonaiDynUNet(
        dims,
        **SIZES,
        kernel_size=[3, 3, 3],
        strides=[1, 2, 2],
        upsample_kernel_size=[2, 2],
        filters=WIDTHS,
        res_block=options.get("residual", False),
        deep_supervision=supervised > 1,
        deep_supr_num=max(1, supervised - 1),
    )
    random_norms(theirs)
    ours = DynUNet(dims, 2, 3, widths=WIDTHS, **options)
    weights = [weight for name, weight in theirs.state_dict().items() if not name.startswith("skip_layers.")]
    ours.load_state_dict(dict(zip(ours.state_dict(), weights, strict=True)))
    return ours, theirs


def test_parameters() -> None:
    check_counts(DynUNet, {3: 16_543_650, 2: 5_684_578})


def test_a_width_is_that_of_the_first_level() -> None:
    with torch.device("meta"):
        assert [stage.conv1.conv.out_channels for stage in DynUNet(2, 1, 2, width=4).encoder] == [4, 8, 16, 32, 40]


@pytest.mark.parametrize(("dims", "residual"), [(3, False), (2, False), (3, True), (2, True)])
def test_logits_are_monais(dims: int, residual: bool) -> None:
    ours, theirs = pair(dims, residual=residual)
    check_same(ours, theirs, torch.randn(1, 2, *(32, 16, 16)[:dims]))


@torch.no_grad()
def test_coarser_scales_are_monais_before_it_blows_them_up() -> None:
    ours, theirs = pair(2, deep_supervision=2)
    image = torch.randn(2, 2, 16, 24)
    scales, stacked = ours.train()(image), theirs.train()(image)
    assert [scale.shape[2:] for scale in scales] == [(16, 24), (8, 12)]
    for index, scale in enumerate(scales):
        larger = functional.interpolate(scale, image.shape[2:])
        torch.testing.assert_close(larger, stacked[:, index], rtol=1e-4, atol=1e-4)


def test_no_strided_pointwise_convolution_is_left() -> None:
    """The backward pass of oneDNN's writes past its memory; see `ResidualBlock`."""
    network, _ = pair(2, residual=True)
    strided = [
        name
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.stride != (1, 1)
    ]
    assert strided == []


@pytest.mark.parametrize(
    "case",
    [
        Case("dynunet", 2, {"norm": "batch", "residual": True, "kernels": [[1, 3], 3, 5], "strides": [1, [1, 2], 2]}),
        Case("dynunet", 2, {"norm": "batch", "kernels": [3, 3, 5], "strides": [1, 3, 2], "activation": "prelu"}),
    ],
    ids=str,
)
def test_claims_hold_for_options(case: Case) -> None:
    network = case.build()
    check_receptive_field(network)
    check_stride(network)
    check_window_global(network)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"norm": "none"}, UsageError, "unknown norm 'none'"),
        ({"activation": "gelu"}, UsageError, "unknown activation 'gelu'"),
        ({"widths": (4, 8)}, ValueError, r"at least three levels, got widths=\[4, 8\]"),
        ({"widths": (4, 8, 12), "norm": "group"}, ValueError, r"multiples of 8; got widths=\[4, 8, 12\]"),
        ({"widths": (4, 8, 12), "strides": (1, 2, 4)}, ValueError, "odd and no smaller than its stride"),
        ({"widths": (4, 8, 12), "strides": (2, 2, 2)}, ValueError, r"its stride is 1; got strides=\(2, 2, 2\)"),
        ({"widths": (4, 8, 12), "deep_supervision": 3}, ValueError, "3 levels have 1 to 2 output scales"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DynUNet(2, 1, 2, **options)
