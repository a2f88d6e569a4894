from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from voxelwise.networks.norms import InstanceNorm2d, InstanceNorm3d

SIZES = [((3, 2), torch.channels_last), ((2, 3, 2), torch.channels_last_3d)]


def norm_and_image(
    size: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype
) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    norm = (InstanceNorm2d if len(size) == 2 else InstanceNorm3d)(4).to(dtype)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    image = (5 + torch.randn(2, 4, *size, dtype=dtype)).to(memory_format=layout)
    return norm, image.requires_grad_()


@pytest.mark.parametrize(("size", "layout"), SIZES)
def test_it_is_torchs_and_keeps_the_layout(size: tuple[int, ...], layout: torch.memory_format) -> None:
    norm, image = norm_and_image(size, layout, torch.float32)
    result = norm(image)
    expected = functional.instance_norm(image.detach().contiguous(), weight=norm.weight, bias=norm.bias)
    torch.testing.assert_close(result, expected)
    assert result.is_contiguous(memory_format=layout)
    functional.leaky_relu_(result)  # not a view: what follows may work in place


@pytest.mark.parametrize(("size", "layout"), SIZES)
def test_gradients(size: tuple[int, ...], layout: torch.memory_format) -> None:
    norm, image = norm_and_image(size, layout, torch.float64)

    def run(image: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (image,))
        return result

    assert torch.autograd.gradcheck(run, (image, norm.weight, norm.bias))


def test_half_precision_is_computed_in_float32() -> None:
    norm, image = norm_and_image((5, 4, 6), torch.channels_last_3d, torch.float32)
    half = (100 + image.detach()).bfloat16().requires_grad_()
    result = norm(half)
    result.float().square().mean().backward()
    assert result.dtype == torch.bfloat16
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), norm(half.detach().float()), rtol=1e-2, atol=1e-2)
