"""The measurement of the contract test against the plain one: which input voxels get a gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from voxelwise.networks.registry import build_network

from .sight import seen


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("unet", {"widths": (1, 1, 1), "norm": "batch"}),
        ("vnet", {"width": 1, "kernel": 3, "head_kernel": 3}),
        ("voxresnet", {"width": 1, "head": "deconv_full"}),
        ("resnet34_unet", {"width": 4, "depth": 18}),
    ],
)
def test_voxels_seen_are_those_with_a_gradient(name: str, options: dict[str, object]) -> None:
    """With positive weights and a positive image nothing cancels, and every activation is in its linear part."""
    network = build_network(name, 2, 1, 1, **options).eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.constant_(module.weight, 1 / (module.weight[0].numel()))
        if isinstance(module, nn.MaxPool2d):
            module.register_forward_hook(
                lambda module, inputs, result: nn.functional.avg_pool2d(
                    inputs[0], module.kernel_size, module.stride, module.padding
                )
            )
    assert network.receptive_field is not None
    step = network.stride[0]
    length = (network.receptive_field[0] // step + 4) * step
    first, last = seen(build_network(name, 2, 1, 1, **options).eval(), 1, (length, step), 0)
    for place in (length // 2, length // 2 + 1, length // 2 + step - 1, length - 1):
        image = torch.ones(1, 1, length, step, dtype=torch.float64, requires_grad=True)
        network.double()(image)[0, 0, place].sum().backward()
        assert image.grad is not None
        (rows,) = image.grad[0, 0].abs().amax(dim=1).nonzero(as_tuple=True)
        assert (int(rows.min()), int(rows.max())) == (int(first[place]), int(last[place]))


def test_an_operation_that_is_not_known_raises() -> None:
    with pytest.raises(NotImplementedError, match="what does softmax see"):
        seen(nn.Softmax(dim=1), 2, (8, 8), 0)
