"""What nnU-Net's plans become, in both of their forms; networks that ours is not are refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from voxelwise.errors import UsageError
from voxelwise.networks.nnunet import network_axes, unet_from_nnunet
from voxelwise.networks.registry import build_network, count_parameters

from .nnunet_reference import Reference, plans

AXIAL = (0, 1, 2)
FULL = {"kernels": [[1, 3, 3], *[[3, 3, 3]] * 5], "strides": [[1, 1, 1], [1, 2, 2], *[[2, 2, 2]] * 3, [1, 2, 2]]}
WIDTHS = (32, 64, 128, 256, 320, 320)
OLD_PLANS = {
    "UNet_class_name": "PlainConvUNet",
    "UNet_base_num_features": 32,
    "unet_max_num_features": 320,
    "n_conv_per_stage_encoder": [2, 2, 2, 2, 2, 2],
    "n_conv_per_stage_decoder": [2, 2, 2, 2, 2],
    "num_pool_per_axis": [3, 5, 5],
    "pool_op_kernel_sizes": FULL["strides"],
    "conv_kernel_sizes": FULL["kernels"],
    "patch_size": [64, 192, 160],
}


def described(transpose: tuple[int, ...] = AXIAL, **more: Any) -> dict[str, Any]:
    """Options of a small plain network in 2D, with some of nnU-Net's arguments replaced."""
    return dict(unet_from_nnunet(small(**more), transpose).options)


def small(**more: Any) -> dict[str, Any]:
    return plans(2, (4, 6, 8), (1, 2, 3), (3, 1), kernels=[3, [1, 3], 3], strides=[1, 2, [1, 2]], more=more)


def test_options() -> None:
    assert described((1, 0, 2)) == {
        "widths": [4, 6, 8],
        "blocks": "plain",
        "norm": "instance",
        "activation": "leaky_relu",
        "kernels": [[3, 3], [3, 1], [3, 3]],
        "strides": [[1, 1], [2, 2], [2, 1]],
        "encoder_depth": [1, 2, 3],
        "decoder_depth": [1, 3],
        "up_bias": True,
        "deep_supervision": 1,
    }
    assert build_network("unet", 2, 1, 2, **described()).head is not None


def test_numbers_stand_for_all_levels_and_the_stem_is_as_wide_as_the_first() -> None:
    arguments = {"n_blocks_per_stage": 2, "n_conv_per_stage_decoder": 1, "features_per_stage": 5, "kernel_sizes": 3}
    configuration = plans(3, WIDTHS, (), (), kernels=(), strides=FULL["strides"], residual=True, more=arguments)
    options = unet_from_nnunet(configuration, AXIAL).options
    assert options["widths"] == [5] * 6
    assert options["kernels"] == [[3, 3, 3]] * 6
    assert options["strides"][1] == [2, 2, 1]
    assert options["encoder_depth"] == [2] * 6
    assert options["decoder_depth"] == [1] * 5
    assert options["stem"] == 5
    assert options["deep_supervision"] == 4
    assert unet_from_nnunet(configuration, AXIAL, deep_supervision=False).options["deep_supervision"] == 1


@pytest.mark.parametrize(
    ("transpose", "dims", "axes"),
    [
        ((0, 1, 2), 3, (2, 1, 0)),
        ((2, 1, 0), 3, (0, 1, 2)),
        ((1, 2, 0), 3, (1, 0, 2)),
        ((0, 1, 2), 2, (1, 0)),
        ((2, 1, 0), 2, (0, 1)),
        ((1, 2, 0), 2, (0, 1)),
        ((1, 0, 2), 2, (1, 0)),
    ],
)
def test_axes(transpose: tuple[int, ...], dims: int, axes: tuple[int, ...]) -> None:
    """nnU-Net's axis j is our axis 2 - transpose[j]; in 2D its first one is the slices'."""
    assert network_axes(transpose, dims) == axes
    shift = 3 - dims
    ours = sorted(2 - axis for axis in transpose[shift:])
    assert [2 - transpose[axis + shift] for axis in axes] == ours


@pytest.mark.parametrize("name", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_old_plans_say_the_same(name: str) -> None:
    residual = name == "ResidualEncoderUNet"
    new = plans(3, WIDTHS, [2] * 6, [2] * 5, **FULL, residual=residual)
    old = {**OLD_PLANS, "UNet_class_name": name}
    assert unet_from_nnunet(old, (1, 0, 2)) == unet_from_nnunet(new, (1, 0, 2))


@pytest.mark.parametrize(
    ("residual", "dims", "theirs"),
    [(False, 3, 31_195_594), (False, 2, 46_324_558), (True, 3, 102_349_770), (True, 2, 140_017_038)],
)
def test_counts_of_its_standard_networks(residual: bool, dims: int, theirs: int) -> None:
    """Counted with nnU-Net's own classes; ours lack the biases in front of norms and the coarsest head."""
    widths = WIDTHS if dims == 3 else (32, 64, 128, 256, 512, 512, 512, 512)
    levels = len(widths)
    depths = ([1, 3, 4, 6, 6, 6, 6, 6] if residual else [2] * 8)[:levels]
    decoder = [1 if residual else 2] * (levels - 1)
    strides = [[1] * dims, *[[2] * dims] * (levels - 1)]
    configuration = plans(dims, widths, depths, decoder, kernels=[3] * levels, strides=strides, residual=residual)
    with torch.device("meta"):
        reference = Reference(configuration, 1, 2)
        network = unet_from_nnunet(configuration, AXIAL).build(1, 2)
    assert count_parameters(reference) == theirs
    unused = [
        value.numel()
        for name, value in reference.named_parameters()
        if name.endswith(".conv.bias") or name.startswith("decoder.seg_layers.0.")
    ]
    assert count_parameters(network) == theirs - sum(unused)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"dropout_op": "torch.nn.Dropout2d"}, r"dropout \(Dropout2d\) cannot be imported"),
        ({"norm_op": None}, "norm_op None cannot be imported, only InstanceNorm2d and BatchNorm2d can"),
        ({"norm_op": "torch.nn.GroupNorm"}, "norm_op GroupNorm cannot be imported"),
        ({"norm_op": "torch.nn.InstanceNorm3d"}, "norm_op InstanceNorm3d cannot be imported, only InstanceNorm2d"),
        ({"norm_op_kwargs": {"track_running_stats": True}}, "InstanceNorm2d of norm_op_kwargs .* the usual track"),
        ({"norm_op_kwargs": {"eps": 0.0}}, "only one of eps > 0"),
        ({"nonlin": "torch.nn.SiLU"}, "nonlin SiLU cannot be imported, only LeakyReLU and ReLU can"),
        ({"nonlin_kwargs": {"negative_slope": 0.2}}, "only one of negative_slope 0.01"),
        ({"nonlin_first": True}, "nonlin_first of PlainConvUNet cannot be read"),
        ({"conv_op": "torch.nn.Conv1d"}, "conv_op Conv1d cannot be imported, only Conv2d and Conv3d can"),
        ({"squeeze": 1}, "squeeze of PlainConvUNet cannot be read: extra inputs are not permitted, found 1"),
        ({"n_stages": "many"}, "n_stages of PlainConvUNet cannot be read: .*, found 'many'"),
        ({"n_stages": 4}, r"features_per_stage has 4 numbers from 1 on, found \[4, 6, 8\]"),
        ({"strides": [1, 2]}, r"strides gives each of 3 levels 2 numbers, found \[1, 2\]"),
        ({"strides": [2, 2, 2]}, "plans.json: the first level has the image's size, its stride is 1"),
        ({"kernel_sizes": 2}, "plans.json: kernels are odd"),
        ({"kernel_sizes": [[3, 3, 3]] * 3}, "kernel_sizes gives each of 3 levels 2 numbers"),
        ({"n_conv_per_stage_decoder": [1, 0]}, r"n_conv_per_stage_decoder has 2 numbers from 1 on, found \[1, 0\]"),
    ],
)
def test_networks_that_ours_is_not_are_refused(more: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        described(**more)


def test_other_blocks_are_refused() -> None:
    more = {"block": "dynamic_network_architectures.building_blocks.residual.BottleneckD", "bottleneck_channels": 4}
    configuration = plans(2, (4, 6), (1, 1), (1,), kernels=[3, 3], strides=[1, 2], residual=True, more=more)
    with pytest.raises(UsageError, match="block BottleneckD cannot be imported, only BasicBlockD can"):
        unet_from_nnunet(configuration, AXIAL)


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        ({}, "has neither architecture nor UNet_class_name; is it nnU-Net v2's"),
        ({"architecture": "PlainConvUNet"}, "architecture holds network_class_name and arch_kwargs, found 'Plain"),
        ({"architecture": {"network_class_name": "mine.PlainConvUNet"}}, "network class mine.PlainConvUNet cannot be"),
        (
            {"architecture": {"network_class_name": "dynamic_network_architectures.architectures.unet.ResidualUNet"}},
            "network class ResidualUNet cannot be imported, only PlainConvUNet and ResidualEncoderUNet can",
        ),
        (
            {"architecture": {"network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet"}},
            "arch_kwargs of PlainConvUNet cannot be read: .*, found None",
        ),
        ({**OLD_PLANS, "UNet_class_name": "Primus"}, "network class Primus cannot be imported"),
        ({"UNet_class_name": "PlainConvUNet"}, "has UNet_class_name but no patch_size"),
        ({**OLD_PLANS, "patch_size": 3}, "what the configuration says of its network is damaged"),
    ],
)
def test_plans_that_do_not_tell_are_refused(configuration: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        unet_from_nnunet(configuration, AXIAL)


def test_other_transpositions_are_refused() -> None:
    with pytest.raises(UsageError, match=r"transpose_forward is an order of 0, 1 and 2, found \[0, 0, 2\]"):
        unet_from_nnunet(small(), (0, 0, 2))
