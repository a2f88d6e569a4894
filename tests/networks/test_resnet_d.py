from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from voxelwise.networks.resnet_d import ResidualBlockD, mean_of_blocks

from .cases import noise

LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
POOL = {2: functional.avg_pool2d, 3: functional.avg_pool3d}


@pytest.mark.parametrize("step", [(2, 2), (1, 3), (2, 2, 2), (1, 2, 3)])
def test_it_is_average_pooling_that_keeps_the_layout(step: tuple[int, ...]) -> None:
    image = noise(2, 4, *(6,) * len(step)).requires_grad_()
    expected = POOL[len(step)](image, step)
    torch.testing.assert_close(mean_of_blocks(image, step), expected)
    last = mean_of_blocks(image.contiguous(memory_format=LAST[len(step)]), step)
    assert last.is_contiguous(memory_format=LAST[len(step)])
    torch.testing.assert_close(last, expected)
    (wanted,) = torch.autograd.grad(expected.square().sum(), image)
    (found,) = torch.autograd.grad(mean_of_blocks(image, step).square().sum(), image)
    torch.testing.assert_close(found, wanted)


def test_without_a_step_it_is_the_image_itself() -> None:
    image = noise(1, 2, 4, 4)
    assert mean_of_blocks(image, (1, 1)) is image


@torch.no_grad()
def test_a_block_is_two_convolutions_and_a_pooled_shortcut() -> None:
    block = ResidualBlockD(2, 2, 3, kernel=(3, 3), stride=(2, 1), norm="none", activation="relu")
    image = noise(1, 2, 6, 5)
    inside = block.second.conv(functional.relu(block.first.conv(image)))
    around = block.shortcut.conv(functional.avg_pool2d(image, (2, 1)))
    torch.testing.assert_close(block(image), functional.relu(inside + around))


def test_the_shortcut_has_weights_only_where_the_width_changes() -> None:
    assert isinstance(ResidualBlockD(2, 3, 3, kernel=(3, 3), stride=(2, 2)).shortcut, nn.Identity)
    wider = ResidualBlockD(2, 3, 4, kernel=(3, 3))
    assert wider.shortcut.conv.bias is None
    assert isinstance(wider.shortcut.norm, nn.InstanceNorm2d)
