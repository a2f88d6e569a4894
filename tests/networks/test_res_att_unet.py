"""Facts: counts, the shapes of the paper, and that masks of one leave the arm without gates."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from voxelwise.errors import UsageError
from voxelwise.networks.registry import count_parameters
from voxelwise.networks.res_att_unet import ResAttUNet, ResUNet


@pytest.mark.parametrize(("gates", "count"), [(True, 25_399_437), (False, 25_307_521)])
def test_parameters(gates: bool, count: int) -> None:
    with torch.device("meta"):
        network = ResAttUNet(2, 3, 1, gates=gates)
    assert count_parameters(network) == count
    assert f"{count:,}" in (ResAttUNet.__doc__ or "")


def test_gates_are_all_that_is_between_the_arms() -> None:
    """Of each: two 1x1 convolutions to half of C with bias and norm, one to a single channel with bias and norm."""
    with torch.device("meta"):
        gates, arm = ResAttUNet(2, 3, 1).gates, ResUNet(2, 3, 1)
    sizes = [2 * (c * (c // 2) + 3 * (c // 2)) + c // 2 + 3 for c in (256, 128, 64, 64)]
    assert [count_parameters(gate) for gate in gates] == sizes
    assert sum(sizes) == 91_916 == 25_399_437 - count_parameters(arm)
    assert "25,307,521" in (ResUNet.__doc__ or "")


def test_shapes_of_the_paper() -> None:
    with torch.device("meta"):
        network = ResAttUNet(2, 3, 1)
        shapes: list[tuple[int, int]] = []
        for stage in network.decoder:
            stage.register_forward_hook(lambda module, inputs, result: shapes.append(tuple(result.shape[1:3])))
        assert network(torch.empty(1, 3, 256, 256)).shape == (1, 1, 256, 256)
    assert shapes == [(256, 16), (128, 32), (64, 64), (64, 128)]
    assert (network.head.in_channels, network.head.kernel_size) == (64, (1, 1))  # behind the last up-sampling


@torch.no_grad()
@pytest.mark.parametrize("dims", [2, 3])
def test_masks_of_one_give_the_arm_without_gates(dims: int) -> None:
    gated = ResAttUNet(dims, 1, 2, width=4, depth=18).eval()
    plain = ResUNet(dims, 1, 2, width=4, encoder="resnet18").eval()
    plain.load_state_dict({name: value for name, value in gated.state_dict().items() if not name.startswith("gates")})
    image = torch.randn(1, 1, *(32,) * dims)
    assert not torch.equal(gated(image), plain(image))
    for gate in gated.gates:
        nn.init.constant_(gate.psi[2].bias, 1e4)  # sigmoid(10000) is 1
    assert torch.equal(gated(image), plain(image))


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_depths(depth: int) -> None:
    with torch.device("meta"):
        network = ResAttUNet(2, 3, 1, width=8, depth=depth)
    assert network.up[0][1].conv.in_channels == 8 * (32 if depth == 50 else 8)
    blocks = sum(len(network.encoder.get_submodule(f"layer{stage}")) for stage in (1, 2, 3, 4))
    assert blocks * (3 if depth == 50 else 2) + 2 == depth


def test_options() -> None:
    with torch.device("meta"):
        network = ResAttUNet(2, 1, 2, width=8, norm="instance", activation="prelu")
    assert network.window_global
    assert nn.PReLU in {type(module) for module in network.decoder.modules()}
    assert nn.PReLU in {type(module) for module in network.up.modules()}
    for build, options, message in (
        (ResUNet, {"encoder": "resnet43"}, "unknown encoder 'resnet43'"),
        (ResAttUNet, {"norm": "bach"}, "unknown norm 'bach'; did you mean 'batch'"),
        (ResAttUNet, {"activation": "rleu"}, "unknown activation 'rleu'"),
    ):
        with pytest.raises(UsageError, match=message):
            build(2, 3, 1, **options)
    with pytest.raises(ValueError, match="got depth=33"):
        ResAttUNet(2, 3, 1, depth=33)
