from __future__ import annotations

import torch
from torch import nn
from voxelwise.networks.memory import live_bytes, saved_bytes
from voxelwise.networks.unet import UNet

SIZE = (1, 1, 8, 8)
PLANE = 8 * 8 * 4  # bytes of one channel


def test_peak_of_a_chain_counts_two_neighbours_at_a_time() -> None:
    """The input stays; of the rest a layer's input and output are alive at once."""
    chain = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 8, 1), nn.ReLU(inplace=True), nn.Conv2d(8, 2, 1))
    assert live_bytes(chain, SIZE) == (1 + 4 + 8) * PLANE


def test_saved_counts_what_backward_needs_once() -> None:
    """A convolution keeps its input, a ReLU in place its output, which is the next input: one map each."""
    chain = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 8, 1))
    assert saved_bytes(chain, SIZE) == (1 + 4) * PLANE


def test_saved_agrees_with_a_real_training_step() -> None:
    network = UNet(2, 1, 2, widths=(4, 8), norm="batch")
    kept: dict[int, torch.Tensor] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    image = torch.randn(2, 1, 16, 16)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = network(image)
    real = sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in weights)
    assert result.requires_grad
    assert abs(network.activation_bytes((16, 16), training=True, batch=2) - real) < 0.05 * real
