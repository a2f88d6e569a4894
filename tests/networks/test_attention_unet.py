"""Facts: counts, sizes, and what both layouts gate."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from voxelwise.errors import UsageError
from voxelwise.networks.attention import GridGate
from voxelwise.networks.attention_unet import AttentionUNet
from voxelwise.networks.registry import count_parameters


@pytest.mark.parametrize(("channels", "count"), [(3, 34_878_573), (1, 34_877_421)])
def test_parameters_and_shapes(channels: int, count: int) -> None:
    with torch.device("meta"):
        network = AttentionUNet(2, channels, 1)
        shapes: list[tuple[int, int]] = []
        for stage in (*network.encoder, *reversed(network.decoder.stages)):
            stage.register_forward_hook(lambda module, inputs, result: shapes.append(tuple(result.shape[1:3])))
        assert network(torch.empty(2, channels, 256, 256)).shape == (2, 1, 256, 256)
    down = [(64, 256), (128, 128), (256, 64), (512, 32), (1024, 16)]
    assert shapes == [*down, *reversed(down[:-1])]
    assert count_parameters(network) == count
    assert count_parameters(network.decoder.gates) == 351_532
    assert "34,878,573" in (AttentionUNet.__doc__ or "")


@pytest.mark.parametrize("dims", [2, 3])
def test_the_grid_is_oktays(dims: int) -> None:
    """16 to 256 channels; the first skip is not gated; the class maps of all four levels go into the head."""
    with torch.device("meta"):
        network = AttentionUNet(dims, 3, 4, gate="grid")
        sizes: list[int] = []
        for gate in network.decoder.gates:
            gate.theta.register_forward_hook(lambda module, inputs, result: sizes.append(result.shape[-1]))
        assert network(torch.empty(1, 3, *(32,) * dims)).shape == (1, 4, *(32,) * dims)
    assert [stage[1].conv.out_channels for stage in network.encoder] == [16, 32, 64, 128, 256]
    assert [type(gate) for gate in network.decoder.gates] == [GridGate] * 3
    assert sizes == [2, 4, 8]  # levels 4, 3 and 2, each at the size of the level below
    assert network.decoder.signal.conv.kernel_size == (1,) * dims
    assert (network.head.in_channels, network.head.kernel_size) == (4 * 4, (1,) * dims)


def test_counts_of_the_grid() -> None:
    with torch.device("meta"):
        assert count_parameters(AttentionUNet(2, 3, 1, gate="grid")) == 2_205_932
    assert "2,205,932" in (AttentionUNet.__doc__ or "")


class _Skip(nn.Module):
    def forward(self, signal: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return skip


@torch.no_grad()
@pytest.mark.parametrize("dims", [2, 3])
def test_a_mask_of_one_is_the_plain_network(dims: int) -> None:
    network = AttentionUNet(dims, 1, 2, width=4).eval()
    image = torch.randn(1, 1, *(16,) * dims)
    gated = network(image)
    for gate in network.decoder.gates:
        nn.init.constant_(gate.psi[2].bias, 1e4)  # sigmoid(10000) is 1
    ungated = network(image)
    network.decoder.gates = nn.ModuleList(_Skip() for _ in network.decoder.gates)
    assert torch.equal(network(image), ungated)
    assert not torch.equal(gated, ungated)


def test_norm_and_activation_are_options() -> None:
    for gate in ("same", "grid"):
        network = AttentionUNet(2, 1, 2, gate=gate, width=4, norm="instance", activation="elu")
        assert network.window_global
        kinds = {type(module) for module in network.modules()}
        assert not kinds & {nn.BatchNorm2d}
        gates = {module for one in network.decoder.gates for module in one.modules()}
        assert not any(isinstance(module, nn.ReLU) for module in set(network.modules()) - gates)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate": "gird"}, "unknown gate 'gird'; did you mean 'grid'"),
        ({"gate": ["grid"]}, "unknown gate .*there are: grid, same"),
        ({"norm": 3}, "unknown norm '3'"),
        ({"activation": "reluu"}, "unknown activation 'reluu'; did you mean 'relu'"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        AttentionUNet(2, 1, 2, **options)
