from __future__ import annotations

import pytest
import torch
from monai.networks.nets import BasicUNet
from voxelwise.errors import UsageError
from voxelwise.networks.registry import count_parameters
from voxelwise.networks.unet import UNet


def test_docstring_counts() -> None:
    with torch.device("meta"):
        counts = [count_parameters(UNet(dims, 1, 2)) for dims in (2, 3)]
    assert counts == [5_684_578, 16_543_650]
    for count in counts:
        assert f"{count:,}" in (UNet.__doc__ or "")


def test_it_is_as_large_as_monais_at_equal_widths() -> None:
    """BasicUNet pools between levels and has biases; the convolutions are the same."""
    widths = (8, 16, 32, 64, 128)
    ours = count_parameters(UNet(3, 1, 2, widths=widths))
    theirs = count_parameters(BasicUNet(3, 1, 2, features=(*widths, widths[0])))
    assert ours == pytest.approx(theirs, rel=0.05)


def test_anisotropic_strides_and_kernels() -> None:
    network = UNet(
        3, 1, 2, widths=(4, 4, 4), strides=[[1, 1, 1], [2, 2, 1], [2, 2, 2]], kernels=[[3, 3, 1], [3, 3, 1], 3]
    )
    assert network.stride == (4, 4, 2)
    levels = network.encode(torch.zeros(1, 1, 8, 8, 6))
    assert [tuple(level.shape[2:]) for level in levels] == [(8, 8, 6), (4, 4, 6), (2, 2, 3)]


def test_deep_supervision_scales() -> None:
    network = UNet(2, 1, 3, widths=(4, 4, 4, 4), deep_supervision=3)
    scales = network(torch.zeros(1, 1, 16, 24))
    assert [tuple(scale.shape) for scale in scales] == [(1, 3, 16, 24), (1, 3, 8, 12), (1, 3, 4, 6)]
    assert [tuple(scale.shape[2:]) for scale in network(torch.zeros(1, 1, 13, 21))] == [(13, 21), (7, 11), (4, 6)]
    assert isinstance(network.eval()(torch.zeros(1, 1, 16, 24)), torch.Tensor)


@torch.no_grad()
def test_each_scale_is_a_head_on_its_own_level() -> None:
    network = UNet(2, 1, 3, widths=(4, 6, 8), deep_supervision=2, norm="none")
    image = torch.randn(1, 1, 8, 8)
    finest, coarse = network(image)
    levels = network.decode(network.encode(image))
    assert torch.equal(finest, network.head(levels[0]))
    assert torch.equal(coarse, network.coarse_heads[0](levels[1]))


@pytest.mark.parametrize("blocks", ["plain", "residual", "residual_d"])
def test_depths(blocks: str) -> None:
    shallow = UNet(2, 1, 2, widths=(4, 4), blocks=blocks, encoder_depth=1, decoder_depth=1)
    deep = UNet(2, 1, 2, widths=(4, 4), blocks=blocks, encoder_depth=[1, 3], decoder_depth=[2])
    assert len(shallow.encoder[1]) == 1
    assert len(deep.encoder[1]) == 3
    assert count_parameters(deep) > count_parameters(shallow)


def test_a_stem_and_biases_upwards_are_options() -> None:
    plain = UNet(2, 1, 2, widths=(4, 4))
    stem = UNet(2, 1, 2, widths=(4, 4), stem=6)
    assert len(stem.encoder[0]) == len(plain.encoder[0]) + 1
    assert stem.encoder[0][0].conv.out_channels == stem.encoder[0][1].conv.in_channels == 6
    biased = UNet(2, 1, 2, widths=(4, 4), up_bias=True)
    assert set(biased.state_dict()) - set(plain.state_dict()) == {"up.0.bias"}
    assert "up.0.bias" not in UNet(2, 1, 2, widths=(4, 4), norm="none", up_bias=False).state_dict()


def test_old_networks_keep_their_names_and_fresh_weights() -> None:
    """A folder of a model holds the names; a run of a seed starts from the same weights."""
    torch.manual_seed(0)
    network = UNet(2, 1, 2, widths=(4, 6), blocks="residual")
    assert list(network.state_dict())[:6] == [
        "encoder.0.0.first.conv.weight",
        "encoder.0.0.first.norm.weight",
        "encoder.0.0.first.norm.bias",
        "encoder.0.0.second.conv.weight",
        "encoder.0.0.second.norm.weight",
        "encoder.0.0.second.norm.bias",
    ]
    assert [name for name in network.state_dict() if name.startswith("up.")] == ["up.0.weight"]
    assert float(network.head.weight.detach().sum()) == pytest.approx(-1.65484, abs=1e-4)


def test_a_window_of_one_stride_keeps_a_bottleneck_that_a_norm_can_use() -> None:
    network = UNet(2, 1, 2, widths=(4, 4, 4))
    assert network.aligned_size((4, 4)) == (4, 8)
    assert network.aligned_size((5, 4)) == (8, 4)
    assert UNet(2, 1, 2, widths=(4, 4, 4), norm="none").aligned_size((4, 4)) == (4, 4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"widths": [8]}, ValueError, r"at least two levels, got widths=\[8\]"),
        ({"norm": "instnce"}, UsageError, "unknown norm 'instnce'; did you mean 'instance'"),
        ({"blocks": "dense"}, UsageError, r"unknown blocks 'dense' \(there are: plain, residual, residual_d\)"),
        ({"stem": 0}, ValueError, "a stem has channels, got stem=0"),
        ({"activation": "tanh"}, UsageError, "unknown activation 'tanh'"),
        ({"deep_supervision": 3}, ValueError, "3 levels have 1 to 2 output scales, got deep_supervision=3"),
        ({"kernels": [2, 3, 3]}, ValueError, r"kernels are odd.*got \[2, 3, 3\]"),
        ({"kernels": [3, 3]}, ValueError, "kernels gives each of 3 levels a number"),
        ({"strides": [1, [2, 2, 2], 2]}, ValueError, "strides gives each of 3 levels a number from 1 on, or 2 of them"),
        ({"strides": [2, 2, 2]}, ValueError, "the first level has the image's size"),
        ({"encoder_depth": [1, 0, 1]}, ValueError, r"encoder_depth is one number.*got \[1, 0, 1\]"),
        (
            {"decoder_depth": [1, 1, 1]},
            ValueError,
            "decoder_depth is one number from 1 on, or one for each of 2",
        ),
    ],
)
def test_wrong_options(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        UNet(2, 1, 2, **{"widths": (4, 4, 4), **options})


@pytest.mark.parametrize("width", [4, 6, 12])
def test_narrow_slice_networks_survive_their_backward_pass(width: int) -> None:
    """oneDNN's strided 1x1 convolution wrote past its memory here; see `ResidualBlock`."""
    network = UNet(2, 1, 2, widths=[width, 2 * width, 4 * width], blocks="residual")
    network = network.to(memory_format=network.layout)
    for _ in range(3):
        image = torch.randn(2, 1, 64, 64).contiguous(memory_format=torch.channels_last)
        network(image).square().mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())
