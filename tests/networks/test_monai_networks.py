"""With MONAI's weights the wrapped networks give MONAI's logits; counts and reach are pinned at their own widths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from monai.networks import nets
from torch import Tensor, nn
from voxelwise.errors import UsageError
from voxelwise.networks.base import SegmentationNetwork
from voxelwise.networks.monai_networks import (
    DynUNet,
    HighResNet,
    MedNeXt,
    PointwiseDown,
    PointwiseUp,
    SegResNet,
    VNetMonai,
)
from voxelwise.networks.registry import count_parameters
from voxelwise.networks.vnet import VNet

from .test_contract import Case, check_receptive_field, check_stride, check_window_global

COUNTS = [
    (VNetMonai, 45_597_898, 9_358_730),
    (DynUNet, 16_543_650, 5_684_578),
    (SegResNet, 18_796_002, 6_298_530),
    (MedNeXt, 5_550_914, 5_472_002),
    (HighResNet, 808_946, 274_130),
]


@pytest.mark.parametrize(("build", "in_3d", "in_2d"), COUNTS)
def test_parameters(build: type[SegmentationNetwork], in_3d: int, in_2d: int) -> None:
    for dims, count in ((3, in_3d), (2, in_2d)):
        with torch.device("meta"):
            assert count_parameters(build(dims, 1, 2)) == count  # type: ignore[call-arg]
        assert f"{count:,}" in (build.__doc__ or "")


def test_thirty_per_cent_fewer_than_the_papers_vnet() -> None:
    with torch.device("meta"):
        assert 0.69 < count_parameters(VNetMonai(3, 1, 2)) / count_parameters(VNet(3, 1, 2)) < 0.71


def shapes(weights: Mapping[str, Tensor]) -> list[tuple[int, ...]]:
    return [tuple(weight.shape) for weight in weights.values()]


def fill(ours: SegmentationNetwork, theirs: nn.Module) -> None:
    """MONAI's weights into ours, in the order in which both are used."""
    order = [weight for name, weight in theirs.state_dict().items() if not name.startswith("skip_layers.")]
    names = list(ours.state_dict())
    assert len(names) == len(order)
    ours.load_state_dict(dict(zip(names, order, strict=True)))


def random_norms(network: nn.Module) -> None:
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5) if "weight" in name else nn.init.normal_(parameter)


PAIRS: list[tuple[str, int, Mapping[str, Any]]] = [
    ("vnet_monai", 3, {}),
    ("vnet_monai", 2, {}),
    ("dynunet", 3, {}),
    ("dynunet", 2, {"residual": True}),
    ("segresnet", 3, {}),
    ("segresnet", 2, {}),
    ("mednext", 3, {}),
    ("mednext", 2, {}),
]


def pair(name: str, dims: int, options: Mapping[str, Any]) -> tuple[SegmentationNetwork, nn.Module]:
    size = {"spatial_dims": dims, "in_channels": 2, "out_channels": 3}
    if name == "vnet_monai":
        return VNetMonai(dims, 2, 3, width=16), nets.VNet(**size, dropout_dim=dims)
    if name == "dynunet":
        kernels = {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [4, 6, 8]}
        residual = bool(options)
        return DynUNet(dims, 2, 3, widths=(4, 6, 8), **options), nets.DynUNet(**size, **kernels, res_block=residual)
    if name == "segresnet":
        return SegResNet(dims, 2, 3, width=8), nets.SegResNet(**size, init_filters=8)
    return MedNeXt(dims, 2, 3, width=4), nets.MedNeXt(
        **size, init_filters=4, kernel_size=3, use_residual_connection=True
    )


@pytest.mark.parametrize(("name", "dims", "options"), PAIRS)
@torch.no_grad()
def test_logits_are_monais(name: str, dims: int, options: Mapping[str, Any]) -> None:
    torch.manual_seed(0)
    ours, theirs = pair(name, dims, options)
    random_norms(theirs)
    weights = theirs.state_dict()
    if name == "vnet_monai":
        for end in ("weight", "bias"):
            weights[f"head.{end}"] = weights.pop(f"out_tr.conv2.{end}")
        for index, tail in enumerate((32, 64, 128, 256)):
            for key in [key for key in weights if key.startswith(f"down_tr{tail}.")]:
                weights[key.replace(f"down_tr{tail}", f"down.{index}")] = weights.pop(key)
        for index, tail in enumerate((256, 128, 64, 32)):
            for key in [key for key in weights if key.startswith(f"up_tr{tail}.")]:
                weights[key.replace(f"up_tr{tail}", f"up.{index}")] = weights.pop(key)
        ours.load_state_dict(weights)
    elif name == "mednext":
        heads = {end: weights.pop(f"out_0.conv_out.{end}") for end in ("weight", "bias")}
        weights = {f"net.{key}": weight for key, weight in weights.items()}
        weights.update({"head.weight": heads["weight"].transpose(0, 1), "head.bias": heads["bias"]})
        ours.load_state_dict(weights)
    else:
        fill(ours, theirs)
    image = torch.randn(1, 2, *(32, 16, 16)[:dims])
    torch.testing.assert_close(ours.eval()(image), theirs.eval()(image), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_highresnet_is_monais_up_to_the_last_convolution() -> None:
    torch.manual_seed(0)
    ours, theirs = HighResNet(2, 2, 3), nets.HighResNet(2, 2, 3)
    random_norms(theirs)
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if k in ours.state_dict()}, strict=False)
    image = torch.randn(1, 2, 9, 11)
    torch.testing.assert_close(ours.eval().features(image), theirs.eval().blocks[:-1](image))


def test_highresnet_gives_logits_of_both_signs() -> None:
    torch.manual_seed(0)
    logits = HighResNet(2, 1, 2, width=4)(torch.randn(2, 1, 12, 12))
    assert (logits < 0).any()
    assert (logits > 0).any()


VARIANTS = [
    Case("dynunet", 2, {"norm": "batch", "residual": True, "kernels": [[1, 3], 3, 5], "strides": [1, [1, 2], 2]}),
    Case("dynunet", 2, {"norm": "batch", "kernels": [3, 3, 5], "strides": [1, 3, 2], "activation": "prelu"}),
    Case("segresnet", 2, {"norm": "batch", "blocks": (1, 1), "activation": "elu"}),
    Case("highresnet", 2, {"norm": "instance", "repeats": 2}),
    Case("mednext", 2, {"kernel": 5, "deep_supervision": 3}),
]


@pytest.mark.parametrize("case", VARIANTS, ids=str)
def test_claims_hold_for_options(case: Case) -> None:
    network = case.build()
    check_receptive_field(network)
    check_stride(network)
    check_window_global(network)


@pytest.mark.parametrize(("dims", "channels"), [(2, 3), (3, 5)])
def test_vnet_takes_any_number_of_channels(dims: int, channels: int) -> None:
    network = VNetMonai(dims, channels, 2, width=4)
    with torch.device("meta"):
        assert network.to("meta")(torch.empty(1, channels, *(16,) * dims)).shape[1] == 2


@pytest.mark.parametrize("build", [DynUNet, MedNeXt])
def test_scales_have_their_own_sizes(build: Any) -> None:
    with torch.device("meta"):
        scales = build(2, 1, 3, deep_supervision=3)(torch.empty(1, 1, 64, 32))
        assert [tuple(scale.shape) for scale in scales] == [(1, 3, 64, 32), (1, 3, 32, 16), (1, 3, 16, 8)]


@pytest.mark.parametrize("dims", [2, 3])
@torch.no_grad()
def test_pointwise_layers_are_the_strided_ones(dims: int) -> None:
    down = (nn.Conv2d if dims == 2 else nn.Conv3d)(2, 3, 1, stride=2)
    up = (nn.ConvTranspose2d if dims == 2 else nn.ConvTranspose3d)(2, 3, 1, stride=2)
    image = torch.randn(2, 2, *(6, 4, 8)[:dims])
    torch.testing.assert_close(PointwiseDown(down)(image), down(image))
    torch.testing.assert_close(PointwiseUp(up)(image), up(image))


@pytest.mark.parametrize(
    ("build", "options", "error", "message"),
    [
        (VNetMonai, {"activation": "gelu"}, UsageError, "unknown activation 'gelu'"),
        (DynUNet, {"widths": (4, 8)}, ValueError, "at least three levels"),
        (DynUNet, {"widths": (4, 8, 12), "norm": "group"}, ValueError, r"multiples of 8; got widths=\[4, 8, 12\]"),
        (DynUNet, {"widths": (4, 8, 12), "strides": (1, 2, 4)}, ValueError, "odd and no smaller than its stride"),
        (SegResNet, {"width": 12}, ValueError, r"multiples of 8; got width=\[12\]"),
        (SegResNet, {"blocks": (1,)}, ValueError, "two levels or more"),
        (MedNeXt, {"variant": "XL"}, UsageError, "unknown variant of MedNeXt: 'XL'"),
        (MedNeXt, {"kernel": 4}, ValueError, "kernels are odd"),
        (MedNeXt, {"deep_supervision": 6}, ValueError, "1 to 5 output scales"),
        (HighResNet, {"repeats": 0}, ValueError, "at least one block"),
    ],
)
def test_wrong_options(build: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build(2, 1, 2, **options)
