"""Counts at the stated default, and the identity of the dense and the sliding form."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from voxelwise.networks.base import pad_mirror
from voxelwise.networks.mscnn import MSCNN
from voxelwise.networks.registry import count_parameters


@pytest.mark.parametrize(("dims", "count"), [(3, 4_385_954), (2, 956_706)])
def test_parameters(dims: int, count: int) -> None:
    with torch.device("meta"):
        network = MSCNN(dims, 1, 2)
    assert count_parameters(network) == count
    assert f"{count:,}" in (MSCNN.__doc__ or "")
    assert network.receptive_field == (66,) * dims


@pytest.mark.parametrize(("dims", "kernels"), [(2, (3, 5, 7)), (3, (1, 3))])
@torch.no_grad()
def test_dense_form_is_the_sliding_form(dims: int, kernels: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = MSCNN(dims, 2, 3, widths=(2, 3, 3), hidden=4, kernels=kernels)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    network.eval()
    image = torch.randn(1, 2, *(3, 4, 2)[:dims])
    before = (network.seen - 1) // 2
    around = pad_mirror(image, (before,) * dims, (network.seen - 1 - before,) * dims)
    logits = network(image)
    for place in torch.cartesian_prod(*(torch.arange(side) for side in image.shape[2:])).tolist():
        inside = tuple(slice(start, start + network.seen) for start in place)
        patch = around[(slice(None), slice(None), *inside)]
        voxel = logits[(slice(None), slice(None), *place)]
        torch.testing.assert_close(network.classify(patch), voxel, rtol=1e-5, atol=1e-5)


def test_options() -> None:
    network = MSCNN(2, 1, 2, width=3, activation="prelu")
    assert [layer.conv.out_channels for layer in network.branches[0]] == [3, 6, 6]
    assert network.full.out_channels == 24
    assert MSCNN(2, 1, 2, width=3, hidden=4).full.out_channels == 4
    assert sum(isinstance(module, nn.PReLU) for module in network.modules()) == 3 * 3 + 1


def test_a_branch_sees_its_own_patch() -> None:
    for kernel, side in ((3, 38), (5, 52), (7, 66)):
        assert MSCNN(2, 1, 2, widths=(1, 1, 1), kernels=(kernel,)).receptive_field == (side, side)


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match=r"kernels are odd.*\[3, 4\]"):
        MSCNN(3, 1, 2, kernels=(3, 4))
    with pytest.raises(ValueError, match=r"patches have 66 voxels a side, got \(27, 27\)"):
        MSCNN(2, 1, 2, widths=(1, 1, 1)).classify(torch.zeros(1, 1, 27, 27))
