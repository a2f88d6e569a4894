"""The kernels are linear interpolation, fixed or at the start."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from voxelwise.networks.bilinear import FixedBilinearUp, LearnedBilinearUp, bilinear_kernel


@torch.no_grad()
@pytest.mark.parametrize("scale", [2, 8, 16])
def test_both_interpolate_linearly(scale: int) -> None:
    scores = torch.randn(1, 3, 6, 5)
    wanted = nn.functional.interpolate(scores, scale_factor=scale, mode="bilinear", align_corners=False)
    inside = (..., slice(scale, -scale), slice(scale, -scale))
    for up in (FixedBilinearUp(scale, padding=scale // 2), LearnedBilinearUp(3, scale)):
        result = up(scores)
        assert result.shape == wanted.shape
        torch.testing.assert_close(result[inside], wanted[inside])


def test_kernels() -> None:
    torch.testing.assert_close(bilinear_kernel(4)[0], torch.tensor([1.0, 3.0, 3.0, 1.0]) / 16)
    assert bilinear_kernel(63).shape == (63, 63)
    assert bilinear_kernel(63)[31, 31] == 1
    for side in (3, 4, 16, 63):  # of a constant map the inside stays constant
        assert float(bilinear_kernel(side).sum()) == pytest.approx(((side + 1) // 2) ** 2)


def test_what_is_learned() -> None:
    fixed, learned = FixedBilinearUp(2), LearnedBilinearUp(3, 2)
    assert not list(fixed.parameters())
    assert list(fixed.state_dict()) == ["kernel"]
    assert [tuple(parameter.shape) for parameter in learned.parameters()] == [(3, 1, 4, 4)]
