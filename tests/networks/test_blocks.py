"""The blocks that networks share, each for what it says of itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from voxelwise.errors import UsageError
from voxelwise.networks.blocks import (
    ACTIVATIONS,
    NORMS,
    POINTWISE,
    SLOPE,
    ConvNormAct,
    PointwiseHeads,
    ResidualBlock,
    UpConv,
    Upsample,
    choose,
    conv_stage,
    initialise,
    subsample,
)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("norm", NORMS)
def test_a_convolution_is_followed_by_norm_and_activation(norm: str, dims: int) -> None:
    block = ConvNormAct(dims, 2, 8, kernel=(3,) * dims, norm=norm, activation="relu")
    image = torch.randn(2, 2, *(6,) * dims)
    torch.testing.assert_close(block(image), block.norm(block.conv(image)).relu())
    assert (block.conv.bias is None) == (norm != "none")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_activation_comes_last(activation: str) -> None:
    block = ConvNormAct(2, 1, 4, kernel=(3, 3), norm="none", activation=activation)
    assert type(list(block.children())[-1]) is type(ACTIVATIONS[activation](4))
    plain = ConvNormAct(2, 1, 4, kernel=(3, 3), activation="none")
    assert isinstance(plain.activation, nn.Identity)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (9, 8)),
        ({"stride": (2, 1)}, (5, 8)),
        ({"dilation": 3}, (9, 8)),
        ({"padding": 0}, (7, 6)),
        ({"padding": 0, "dilation": 2}, (5, 4)),
    ],
)
def test_sizes(options: dict[str, object], size: tuple[int, int]) -> None:
    assert ConvNormAct(2, 1, 2, kernel=(3, 3), **options)(torch.zeros(1, 1, 9, 8)).shape == (1, 2, *size)


@torch.no_grad()
@pytest.mark.parametrize("dims", [2, 3])
def test_a_strided_pointwise_convolution_keeps_the_layout(dims: int) -> None:
    """And computes what torch's does, which loses the layout in 3D and writes past its memory in 2D."""
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    image = torch.randn(1, 3, *(7, 6, 4)[:dims]).to(memory_format=layout)
    block = ConvNormAct(dims, 3, 4, kernel=(1,) * dims, stride=(2,) * dims, norm="none", activation="none")
    conv = nn.functional.conv2d if dims == 2 else nn.functional.conv3d
    result = block(image)
    torch.testing.assert_close(result, conv(image, block.conv.weight, block.conv.bias, stride=2))
    assert result.is_contiguous(memory_format=layout)


def test_a_stage_is_a_chain() -> None:
    stage = conv_stage(3, 1, (4, 6, 8), norm="batch", activation="elu", kernel=(3, 3, 1), bias=True)
    assert [(one.conv.in_channels, one.conv.out_channels) for one in stage] == [(1, 4), (4, 6), (6, 8)]
    assert {one.conv.kernel_size for one in stage} == {(3, 3, 1)}
    assert all(one.conv.bias is not None for one in stage)
    assert conv_stage(2, 1, (2,), norm="none", activation="relu")[0].conv.kernel_size == (3, 3)


@torch.no_grad()
@pytest.mark.parametrize("dims", [2, 3])
def test_a_silent_residual_branch_leaves_the_shortcut(dims: int) -> None:
    image = torch.rand(1, 4, *(6,) * dims)
    block = ResidualBlock(dims, 4, 4, kernel=(3,) * dims, norm="none", activation="relu")
    nn.init.zeros_(block.second.conv.weight)
    nn.init.zeros_(block.second.conv.bias)
    torch.testing.assert_close(block(image), image)
    block = ResidualBlock(dims, 4, 6, kernel=(3,) * dims, stride=(2,) * dims, norm="none", activation="relu")
    nn.init.zeros_(block.second.conv.weight)
    nn.init.zeros_(block.second.conv.bias)
    conv = nn.functional.conv2d if dims == 2 else nn.functional.conv3d
    torch.testing.assert_close(block(image), conv(image, block.shortcut.weight, stride=2).relu())


@torch.no_grad()
def test_every_second_voxel_keeps_the_layout() -> None:
    image = torch.randn(1, 3, 5, 4, 6).to(memory_format=torch.channels_last_3d)
    fewer = subsample(image, (2, 1, 2))
    assert torch.equal(fewer, image[:, :, ::2, :, ::2])
    assert fewer.is_contiguous(memory_format=torch.channels_last_3d)
    assert subsample(image, (1, 1, 1)) is image


@torch.no_grad()
@pytest.mark.parametrize("dims", [2, 3])
def test_interpolation_keeps_voxel_centres(dims: int) -> None:
    ramp = torch.arange(8.0)
    image = ramp.view(1, 1, *(1,) * (dims - 1), 8).expand(1, 1, *(4,) * (dims - 1), 8)
    linear, nearest = (Upsample(2, mode)(image).flatten(0, -2) for mode in ("linear", "nearest"))
    assert len(linear) == 8 ** (dims - 1)
    for line in linear:
        torch.testing.assert_close(line[1:-1], (torch.arange(1, 15) - 0.5) / 2)
    assert all(torch.equal(line, ramp.repeat_interleave(2)) for line in nearest)


def test_up_is_interpolation_and_a_convolution() -> None:
    up = UpConv(2, 4, 2, norm="batch", activation="elu").eval()
    image = torch.randn(1, 4, 3, 5)
    torch.testing.assert_close(up(image), up[1](image.repeat_interleave(2, 2).repeat_interleave(2, 3)))
    assert isinstance(up[1].activation, nn.ELU)


@torch.no_grad()
@pytest.mark.parametrize("average", [True, False])
def test_heads_on_parts_are_one_convolution(average: bool) -> None:
    heads = PointwiseHeads(2, {"a": 2, "b": 3}, 4, average=average)
    image = torch.randn(1, 5, 3, 3)
    one, other = heads.convs["a"](image[:, :2]), heads.convs["b"](image[:, 2:])
    assert all(torch.equal(*pair) for pair in zip(heads.each(image), (one, other), strict=True))
    torch.testing.assert_close(heads(image), (one + other) / (2 if average else 1))


@torch.no_grad()
def test_pointwise_keeps_the_layout_in_3d() -> None:
    image = torch.randn(1, 3, 4, 4, 4).to(memory_format=torch.channels_last_3d)
    conv = POINTWISE[3](3, 2)
    assert conv(image).is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(conv(image), nn.functional.conv3d(image, conv.weight, conv.bias))


@pytest.mark.parametrize("conv", [nn.Conv2d(16, 64, 3), nn.Conv3d(8, 64, 3)])
def test_convolutions_start_as_he_has_it(conv: nn.Module) -> None:
    torch.manual_seed(0)
    initialise(conv)
    values = conv.weight[0].numel()
    assert float(conv.weight.detach().std()) == pytest.approx((2 / (1 + SLOPE**2) / values) ** 0.5, rel=0.05)
    assert not conv.bias.any()


@pytest.mark.parametrize("name", ["instnce", 3, ["batch"], None])
def test_what_is_no_choice_is_refused(name: object) -> None:
    with pytest.raises(UsageError, match=r"unknown norm .*there are: batch, group, instance, none"):
        choose("norm", name, NORMS)
