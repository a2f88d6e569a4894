"""Facts: recurrence uses its weights again."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from voxelwise.networks.r2u_net import R2UNet, RecurrentResidual
from voxelwise.networks.registry import count_parameters


@pytest.mark.parametrize(
    ("channels", "steps", "count"), [(3, 2, 39_091_393), (1, 2, 39_091_265), (3, 0, 39_091_393), (3, 5, 39_091_393)]
)
def test_parameters_do_not_depend_on_the_steps(channels: int, steps: int, count: int) -> None:
    with torch.device("meta"):
        assert count_parameters(R2UNet(2, channels, 1, steps=steps)) == count
    assert f"{count:,}" in (R2UNet.__doc__ or "")


@torch.no_grad()
def test_a_layer_goes_back_to_its_input() -> None:
    unit = RecurrentResidual(2, 3, 4, 2, "none")
    image = torch.randn(1, 3, 8, 8)
    start = unit.project(image)
    features = start
    for layer in unit.layers:
        once = layer(features)
        twice = layer(features + once)
        features = layer(features + twice)
    torch.testing.assert_close(unit(image), start + features)


@torch.no_grad()
def test_silent_layers_leave_the_projection() -> None:
    unit = RecurrentResidual(3, 2, 4, 2, "none")
    for parameter in unit.layers.parameters():
        nn.init.zeros_(parameter)
    image = torch.randn(1, 2, 4, 4, 4)
    torch.testing.assert_close(unit(image), unit.project(image))


def test_shapes_and_options() -> None:
    with torch.device("meta"):
        network = R2UNet(3, 1, 2, width=8, norm="group", activation="elu")
        shapes: list[tuple[int, int]] = []
        for unit in (*network.encoder, *reversed(network.decoder)):
            unit.register_forward_hook(lambda module, inputs, result: shapes.append(tuple(result.shape[1:3])))
        network(torch.empty(1, 1, 32, 16, 16))
    assert shapes == [(8, 32), (16, 16), (32, 8), (64, 4), (128, 2), (64, 4), (32, 8), (16, 16), (8, 32)]
    kinds = {type(module) for module in network.modules()}
    assert {nn.ELU, nn.GroupNorm} <= kinds
    assert not kinds & {nn.ReLU, nn.BatchNorm3d}


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="goes back 0 times or more, got steps=-1"):
        R2UNet(2, 1, 2, steps=-1)
