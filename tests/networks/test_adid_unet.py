"""Facts of the released code: count, channels, reach of the cascade, and what its gate does."""

from __future__ import annotations

import torch
from torch import nn
from voxelwise.networks.adid_unet import ADIDUNet, DilatedCascade, Gate
from voxelwise.networks.registry import count_parameters

from .sight import seen


def test_parameters_and_channels() -> None:
    with torch.device("meta"):
        network = ADIDUNet(2, 1, 1)
        shapes = {}
        stages = {f"e{level}": stage for level, stage in enumerate(network.encoder)}
        stages |= {"e4": network.fourth, "before": network.before, "cascade": network.cascade}
        stages |= {"behind": network.behind, "d4": network.up_fourth}
        stages |= {f"d{3 - level}": stage for level, stage in enumerate(network.decoder)}
        for name, stage in stages.items():
            stage.register_forward_hook(
                lambda module, inputs, result, name=name: shapes.update({name: (result.shape[1], result.shape[2])})
            )
        assert network(torch.empty(2, 1, 128, 128)).shape == (2, 1, 128, 128)
    assert count_parameters(network) == 52_132_416
    assert "52,132,416" in (ADIDUNet.__doc__ or "")
    assert shapes == {
        "e0": (32, 128), "e1": (64, 64), "e2": (128, 32), "e3": (256, 16), "e4": (640, 8),
        "before": (832, 4), "cascade": (256, 4), "behind": (1344, 4),
        "d4": (2496, 8), "d3": (256, 16), "d2": (128, 32), "d1": (64, 64), "d0": (32, 128),
    }  # fmt: skip
    assert network.behind.layers[0].num_features == 1088
    assert network.up_fourth.layers[0].num_features == 1984


def test_layers_of_the_released_code() -> None:
    network = ADIDUNet(2, 1, 1, width=8)
    assert [type(step.layers[-1]) for step in network.transitions] == [nn.MaxPool2d] * 3
    assert [type(step.layers[-1]) for step in (network.into_fourth, network.into_bottom)] == [nn.AvgPool2d] * 2
    assert [conv.dilation[0] for conv in network.cascade if isinstance(conv, nn.Conv2d)] == [1, 2, 4, 8, 16, 1, 1]
    dropouts = {module.p for module in network.modules() if isinstance(module, nn.Dropout)}
    assert dropouts == {0.2}
    # channels in which each gate adds, and those behind: the full width has 256/128, 128/64, 64/32, 32/16 and 16/8
    inner = [(gate.signal[0].out_channels, gate.psi[1][0].out_channels) for gate in network.gates]
    assert inner == [(64, 32), (32, 16), (16, 8), (8, 4), (4, 2)]


def test_the_cascade_sees_67_pixels() -> None:
    first, last = seen(DilatedCascade(1, 1).eval(), 1, (160, 4), 0)
    assert int((last - first)[80]) + 1 == 67


@torch.no_grad()
def test_on_the_papers_bottom_large_dilations_reach_only_padding() -> None:
    cascade = DilatedCascade(2, 2).eval()
    image = torch.randn(1, 2, 4, 4)
    plain = cascade(image)
    for conv in cascade:
        if isinstance(conv, nn.Conv2d) and conv.dilation[0] >= 4:
            centre = conv.weight[:, :, 1, 1].clone()
            conv.weight.zero_()
            conv.weight[:, :, 1, 1] = centre
    torch.testing.assert_close(cascade(image), plain)


def test_the_mask_is_confined_unless_it_is_faithful() -> None:
    signal, skip = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    torch.manual_seed(0)
    ours, theirs = Gate(4, 4, 4, False), Gate(4, 4, 4, True)
    assert 0 < ours.alpha(signal, skip).min() < ours.alpha(signal, skip).max() < 1
    assert theirs.alpha(signal, skip).min() < 0  # a norm has both signs
    with torch.device("meta"):
        assert count_parameters(ADIDUNet(2, 1, 1, faithful=True)) == 52_132_416
