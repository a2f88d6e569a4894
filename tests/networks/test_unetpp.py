"""Facts: the count that the authors print, and that shallower networks are parts of the whole one."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from voxelwise.networks.blocks import ConvNormAct
from voxelwise.networks.registry import count_parameters
from voxelwise.networks.unetpp import UNetPP


@pytest.mark.parametrize(("heads", "count"), [(1, 9_041_601), (4, 9_041_700)])
def test_parameters_and_shape(heads: int, count: int) -> None:
    with torch.device("meta"):
        network = UNetPP(2, 1, 1, heads=heads)
        result = network(torch.empty(1, 1, 96, 96))
    assert count_parameters(network) == count
    assert f"{count:,}" in (UNetPP.__doc__ or "")
    assert [tuple(logits.shape) for logits in ([result] if heads == 1 else result)] == [(1, 1, 96, 96)] * heads


def test_layers_of_the_authors() -> None:
    """Two convolutions with ReLU and dropout of one half a node; transposed ones of side 2 lead up."""
    network = UNetPP(2, 1, 1, width=2)
    for node in network.nodes.values():
        assert [type(layer) for layer in node] == [ConvNormAct, nn.Dropout] * 2
        assert {layer.p for layer in node[1::2]} == {0.5}
        assert {type(layer.activation) for layer in node[::2]} == {nn.ReLU}
    assert {(up.kernel_size, up.stride) for up in network.up.values()} == {((2, 2), (2, 2))}
    widths = {level: network.nodes[f"{level}_0"][0].conv.out_channels for level in range(5)}
    assert widths == {0: 2, 1: 4, 2: 8, 3: 16, 4: 32}


def test_what_nodes_take() -> None:
    network = UNetPP(2, 1, 1, width=2)
    assert len(network.nodes) == 15
    for level, column in network.order():
        if column:
            assert network.nodes[f"{level}_{column}"][0].conv.in_channels == 2 * 2**level * (column + 1)


@torch.no_grad()
@pytest.mark.parametrize("dims", [2, 3])
def test_a_pruned_network_gives_the_head_of_the_whole_one(dims: int) -> None:
    whole = UNetPP(dims, 1, 2, width=2, heads=4).eval()
    image = torch.randn(1, 1, *(16,) * dims)
    each = whole.head.each(whole.features(image))
    torch.testing.assert_close(whole(image), torch.stack(each).mean(0))
    for depth in range(1, 5):
        pruned = UNetPP(dims, 1, 2, width=2, depth=depth).eval()
        kept = {name: value for name, value in whole.state_dict().items() if name in pruned.state_dict()}
        pruned.load_state_dict(kept)
        torch.testing.assert_close(pruned(image), each[depth - 1])


@torch.no_grad()
def test_deeper_nodes_do_not_change_shallower_heads() -> None:
    network = UNetPP(2, 1, 2, width=2, heads=4).eval()
    image = torch.randn(1, 1, 32, 32)
    before = network.head.each(network.features(image))
    for name, node in network.nodes.items():
        level, column = (int(number) for number in name.split("_"))
        if level + column > 2:
            for parameter in node.parameters():
                parameter.add_(1)
    after = network.head.each(network.features(image))
    assert [torch.equal(one, other) for one, other in zip(before, after, strict=True)] == [True, True, False, False]


def test_training_gives_the_deepest_head_first() -> None:
    network = UNetPP(2, 1, 2, width=2, heads=4, dropout=0.0)
    image = torch.randn(1, 1, 16, 16)
    each = network.head.each(network.features(image))
    assert all(torch.equal(one, other) for one, other in zip(network(image), each[::-1], strict=True))


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="depth of 1 to 4, got depth=5"):
        UNetPP(2, 1, 2, depth=5)
    with pytest.raises(ValueError, match="of depth 3 has 1 or 3 heads, got heads=2"):
        UNetPP(2, 1, 2, depth=3, heads=2)
