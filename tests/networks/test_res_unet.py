"""Facts of both builds under the name: counts, reach, and that a silent unit passes on what it gets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from voxelwise.errors import UsageError
from voxelwise.networks.registry import count_parameters
from voxelwise.networks.res_att_unet import ResUNet
from voxelwise.networks.res_unet import ResidualUNet, build_res_unet
from voxelwise.networks.unet import UNet

from .sight import seen


@pytest.mark.parametrize(("dims", "classes", "width", "count"), [(2, 1, 64, 25_969_628), (3, 2, 16, 4_806_481)])
def test_parameters(dims: int, classes: int, width: int, count: int) -> None:
    with torch.device("meta"):
        assert count_parameters(ResidualUNet(dims, 1, classes, width=width)) == count
    assert f"{count:,}" in (ResidualUNet.__doc__ or "")


def test_the_name_without_options_is_the_arm_of_the_paper() -> None:
    with torch.device("meta"):
        network = build_res_unet(2, 3, 1)
        assert isinstance(network, ResUNet)
        assert count_parameters(network) == 25_307_521
        narrow = build_res_unet(3, 1, 2, encoder="resnet18", width=8, norm="group", activation="elu")
        assert isinstance(narrow, ResUNet)
        assert count_parameters(build_res_unet(2, 1, 1, units=2)) == 25_969_628
        assert isinstance(build_res_unet(2, 1, 1, units=1, width=4), ResidualUNet)


def test_an_encoder_and_units_are_two_builds() -> None:
    with pytest.raises(UsageError, match="encoder='resnet34' and units=2 are two builds of res_unet; give one"):
        build_res_unet(2, 1, 1, encoder="resnet34", units=2)


@torch.no_grad()
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("norm", ["instance", "batch", "group", "none"])
def test_any_size(norm: str, dims: int) -> None:
    network = ResidualUNet(dims, 2, 3, width=2, norm=norm, activation="relu").eval()
    size = (17, 5, 1)[:dims]
    assert network(torch.randn(1, 2, *size)).shape == (1, 3, *size)
    assert network.window_global == (norm in ("instance", "group"))


@pytest.mark.parametrize("units", [1, 2, 3])
def test_reach(units: int) -> None:
    network = ResidualUNet(2, 1, 2, width=1, units=units, norm="batch").eval()
    first, last = seen(network, 1, (640, 16), 0)
    assert network.receptive_field == (int((last - first)[320:336].max()) + 1,) * 2


@torch.no_grad()
def test_channels_last_changes_nothing() -> None:
    network, image = ResidualUNet(3, 1, 2, width=4).eval(), torch.randn(1, 1, 16, 16, 32)
    plain = network(image)
    laid_out = network.to(memory_format=torch.channels_last_3d)(image.to(memory_format=torch.channels_last_3d))
    torch.testing.assert_close(laid_out, plain, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_silent_branch_makes_a_unit_the_identity() -> None:
    """Those on the way up, which change neither size nor channels."""
    network = ResidualUNet(2, 1, 2, width=2).eval()
    units = [part for part in network.modules() if isinstance(getattr(part, "residual", None), nn.Identity)]
    assert len(units) == 4
    for unit in units:
        for name, parameter in unit.conv.named_parameters():
            if ".adn." not in name:
                nn.init.zeros_(parameter)
        image = torch.randn(1, unit.conv.unit0.conv.in_channels, 8, 8)
        assert torch.equal(unit(image), image)


def loss_after(network: nn.Module, image: Tensor, truth: Tensor, steps: int) -> float:
    """Plain descent: torch's optimizers take seconds to import what they do not need here."""
    parameters = list(network.parameters())
    for _ in range(steps):
        loss = nn.functional.cross_entropy(network(image), truth)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(0.3 * gradient)
    return loss.item()


def test_twice_as_deep_it_trains_better_than_a_plain_network() -> None:
    """The degradation that residual blocks are against, with sixteen convolutions a level."""
    torch.manual_seed(0)
    image = torch.randn(1, 1, 16, 16)
    truth = (nn.functional.avg_pool2d(image, 3, stride=1, padding=1)[:, 0] > 0).long()
    losses = {}
    for blocks, depth in (("plain", 16), ("residual", 8)):
        torch.manual_seed(0)
        options: dict[str, Any] = {"widths": (4, 4), "blocks": blocks, "encoder_depth": depth, "norm": "batch"}
        losses[blocks] = loss_after(UNet(2, 1, 2, **options), image, truth, 15)
    assert losses["residual"] < losses["plain"]


def test_wrong_options() -> None:
    with pytest.raises(UsageError, match="unknown norm 'bach'; did you mean 'batch'"):
        ResidualUNet(2, 1, 2, norm="bach")
    with pytest.raises(UsageError, match="unknown activation 'gelu'"):
        ResidualUNet(2, 1, 2, activation="gelu")
    with pytest.raises(ValueError, match="one convolution or more, got units=0"):
        ResidualUNet(2, 1, 2, units=0)
