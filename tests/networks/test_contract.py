"""The contract that every network of the registry keeps; a new network is held to it by its registry line alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from voxelwise.networks.base import SegmentationNetwork, SliceNetwork
from voxelwise.networks.registry import NETWORKS, build_network

from .sight import seen

IN, OUT = 2, 3
GLOBAL_NORMS = (nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm)
CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Case:
    name: str
    dims: int
    options: Mapping[str, Any] = field(default_factory=dict)
    slice_axis: int | None = None

    def build(self, seed: int = 0) -> SegmentationNetwork:
        torch.manual_seed(seed)
        network = build_network(self.name, self.dims, IN, OUT, **{**NETWORKS[self.name].small, **self.options})
        return network if self.slice_axis is None else SliceNetwork(network, self.slice_axis)

    def __str__(self) -> str:
        slices = [] if self.slice_axis is None else [f"slices{self.slice_axis}"]
        return "-".join([self.name, f"{self.dims}d", *slices, *(f"{key}={to}" for key, to in self.options.items())])


# where the paper's default is too heavy in 3D for a test of every minute
LIGHTER_3D: dict[str, Mapping[str, Any]] = {
    "unet3d2016": {"padding": "same"},
    "r2u_net": {"width": 2},
    "unetpp": {"width": 2},
}
EXPORTED = ("unet", "vnet", "voxresnet", "fcn8s", "resnet34_unet", "res_att_unet")
REGISTERED = [
    Case(name, dims, LIGHTER_3D.get(name, {}) if dims == 3 else {})
    for name, entry in NETWORKS.items()
    for dims in entry.spatial_dims
]
VARIANTS = [
    Case("unet", 2, {"norm": "batch", "blocks": "residual", "activation": "relu"}),
    Case("unet", 3, {"norm": "none", "deep_supervision": 2, "activation": "prelu"}),
    Case("unet", 2, {"norm": "batch", "kernels": [[1, 3], 3, 5], "strides": [1, [1, 2], [3, 2]], "activation": "elu"}),
    Case("unet", 3, {"norm": "group", "strides": [1, [2, 2, 1], 2], "kernels": [[3, 3, 1], 3, 3]}),
    Case("unet", 2, {"norm": "batch", "encoder": "resnet18", "widths": (4, 4, 4, 6, 8), "deep_supervision": 2}),
    Case("unet2015", 2, {"padding": "same", "norm": "batch"}),
    Case("dilated_unet", 2, {"rates": (1, 2, 5)}),
    Case("attention_unet", 2, {"gate": "grid"}),
    Case("unetpp", 2, {"heads": 3, "depth": 3, "norm": "batch"}),
    Case("voxresnet", 2, {"head": "deconv_full"}),
    Case("fcn8s", 2, {"padding": "same", "at_once": True}),
    Case("fcn_alexnet", 2, {"padding": "same"}),
    Case("resnet34_unet", 2, {"depth": 18, "norm": "instance"}),
    Case("res_att_unet", 2, {"depth": 50, "norm": "none", "width": 2}),
    Case("res_unet", 2, {"encoder": "resnet18"}),
    Case("vnet", 2, {"variant": "release", "head_kernel": 1}),
    Case("unet", 2, {"norm": "batch", "strides": [1, [1, 2], 2], "deep_supervision": 2}, slice_axis=1),
    Case("unet", 2, slice_axis=2),
]
CASES = [*REGISTERED, *VARIANTS]


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    chosen: Case = request.param
    return chosen


@pytest.fixture
def network(case: Case) -> SegmentationNetwork:
    return case.build()


def image(network: SegmentationNetwork, size: Sequence[int], batch: int = 1) -> Tensor:
    return torch.randn(batch, IN, *size, generator=torch.Generator().manual_seed(1))


def odd(network: SegmentationNetwork) -> tuple[int, ...]:
    """A size that is a multiple of the stride along no axis that has one, and another one along each axis."""
    wanted = (step + more for step, more in zip(network.stride, (1, -1, -3), strict=False))
    return tuple(max(side, least) for side, least in zip(wanted, network.minimum_size, strict=True))


def as_list(logits: Tensor | list[Tensor]) -> list[Tensor]:
    return [logits] if isinstance(logits, Tensor) else logits


# sizes, modes and weights


@torch.no_grad()
def test_logits_have_the_size_of_any_input(network: SegmentationNetwork) -> None:
    network.eval()
    for size in (odd(network), network.minimum_size):
        logits = network(image(network, size))
        assert logits.shape == (1, OUT, *size)
        assert logits.isfinite().all()


def test_smaller_inputs_and_other_channels_are_refused(network: SegmentationNetwork) -> None:
    with pytest.raises(ValueError, match=rf"takes images \(N, {IN}, X, Y.*got shape"):
        network(torch.zeros(1, IN + 1, *odd(network)))
    with pytest.raises(ValueError, match=rf"takes images \(N, {IN}, X, Y.*got shape"):
        network(torch.zeros(IN, *odd(network)))


@pytest.mark.parametrize("batch", [1, 2])
def test_backward_reaches_every_parameter(network: SegmentationNetwork, batch: int) -> None:
    """A batch of one included, at a size that has to be padded; several outputs go from fine to coarse."""
    network.train()
    size = odd(network)
    if batch == 1 and not network.trains_on_single:
        with pytest.raises(ValueError, match=r"cannot be trained on a batch of one.*use a batch of two"):
            network(image(network, odd(network)))
        return
    scales = as_list(network(image(network, size, batch)))
    assert scales[0].shape == (batch, OUT, *size)
    assert all(scale.shape[:2] == (batch, OUT) for scale in scales)
    assert all(prod(finer.shape[2:]) >= prod(coarser.shape[2:]) for finer, coarser in pairwise(scales))
    torch.stack([scale.square().mean() for scale in scales]).sum().backward()
    if any(parameter.grad is not None and not parameter.grad.any() for parameter in network.parameters()):
        network.eval()  # a bias in front of a norm has no effect in training
        network(image(network, odd(network), batch)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, f"{name} is not used"
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, f"{name} gets no gradient"


@torch.no_grad()
def test_eval_is_deterministic_and_leaves_no_trace(network: SegmentationNetwork) -> None:
    network.eval()
    one = image(network, odd(network))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first = network(one)
    assert torch.equal(first, network(one))
    for name, value in network.state_dict().items():
        assert torch.equal(before[name], value), f"{name} changes in eval mode"


@torch.no_grad()
def test_cases_of_a_batch_do_not_meet_in_eval_mode(network: SegmentationNetwork) -> None:
    network.eval()
    two = image(network, odd(network), batch=2)
    together, alone = network(two)[1:], network(two[1:])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4 * float(alone.abs().max()))


@torch.no_grad()
def test_forward_is_head_of_features(network: SegmentationNetwork) -> None:
    network.eval()
    one = image(network, odd(network))
    if network.head is None:
        with pytest.raises(ValueError, match="no head"):
            network.features(one)
        return
    features, logits = network.features(one), network(one)
    assert features.shape[2:] == one.shape[2:]
    torch.testing.assert_close(logits, network.head(features), rtol=0, atol=1e-6)  # threads sum in any order
    # pointwise: one voxel of the features alone gives the logits of that voxel
    corner = features[(..., *(slice(1),) * (features.ndim - 2))]
    torch.testing.assert_close(network.head(corner).flatten(), logits[(0, slice(None), *(0,) * (features.ndim - 2))])


@torch.no_grad()
def test_weights_survive_safetensors(case: Case, network: SegmentationNetwork, tmp_path: Path) -> None:
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    other = case.build(seed=7).eval()
    assert not all(torch.equal(one, two) for one, two in zip(network.parameters(), other.parameters(), strict=True))
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    one = image(network, odd(network))
    assert torch.equal(network.eval()(one), other(one))


@torch.no_grad()
def test_channels_last_changes_nothing_and_is_kept(network: SegmentationNetwork) -> None:
    """Also where the input is padded and maps are joined: every convolution gets the layout that it is fast in."""
    network.eval()
    one = image(network, odd(network), batch=2)
    plain = network(one)
    heads = [] if network.head is None else list(network.head.modules())  # they get a view of the features
    network.to(memory_format=network.layout)
    lost = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not inputs[0].is_contiguous(memory_format=network.layout):
            lost.append(tuple(inputs[0].shape))

    for module in network.modules():
        if isinstance(module, CONVOLUTIONS) and module not in heads:
            module.register_forward_pre_hook(look)
    laid_out = network(one.to(memory_format=torch.channels_last if one.ndim == 4 else torch.channels_last_3d))
    assert lost == []
    torch.testing.assert_close(laid_out, plain, rtol=0, atol=1e-4 * float(plain.abs().max()))


@pytest.mark.parametrize("name", NETWORKS)
def test_activation_bytes_grow_with_the_window(name: str) -> None:
    network = Case(name, NETWORKS[name].spatial_dims[0]).build()
    size = [64 * step for step in network.stride]  # so large that what a paper pads does not count
    weights = [parameter.clone() for parameter in network.parameters()]
    predicting, training = network.activation_bytes(size), network.activation_bytes(size, training=True)
    assert 4 * (IN + OUT) * prod(size) <= predicting < training
    # a window twice as long, two cases, half as many bytes each
    more = network.activation_bytes([2 * size[0], *size[1:]], batch=2, dtype=torch.bfloat16)
    if network.moves_with_image:
        assert more == pytest.approx(2 * predicting, rel=0.25)
    else:  # attention may take the square
        assert more > 1.5 * predicting
    assert network.training
    assert all(torch.equal(now, then) for now, then in zip(network.parameters(), weights, strict=True))


# what a network declares, measured


def local(network: SegmentationNetwork) -> SegmentationNetwork:
    """A copy without what sees the whole window, in eval mode."""
    network = deepcopy(network).eval()
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, (*GLOBAL_NORMS, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)):
                setattr(module, name, nn.Identity())
    return network


def long_window(network: SegmentationNetwork, axis: int, length: int) -> tuple[int, ...]:
    """As thin as the stride allows, along every axis but one."""
    return tuple(length if index == axis else step for index, step in enumerate(network.stride))


def reach_of(network: SegmentationNetwork, axis: int) -> int:
    """The largest number of input voxels that one logit sees along an axis, over its positions within the stride."""
    measured = local(network)
    step = network.stride[axis]
    length = (64 if network.receptive_field is None else 2 * network.receptive_field[axis]) // step * step
    while True:
        length += 4 * step
        first, last = seen(measured, IN, long_window(network, axis, length), axis)
        middle = slice(length // step // 2 * step, (length // step // 2 + 1) * step)
        if first[middle].min() > step and last[middle].max() < length - step - 1:
            return int((last - first)[middle].max()) + 1
        length *= 2


@torch.no_grad()
def moves_along(network: SegmentationNetwork, axis: int, shift: int, reach: int) -> bool:
    """Whether the logits of an image moved by `shift` voxels are the logits, moved, as far as borders do not reach."""
    step = network.stride[axis]
    margin = (reach // 2 // step + 2) * step  # it sees as far to both sides, up to a stride
    size = 2 * margin + 4 * step
    long = long_window(network, axis, size + step)
    one = torch.randn(1, IN, *long, generator=torch.Generator().manual_seed(5))
    here = network(one.narrow(2 + axis, 0, size)).narrow(2 + axis, margin + shift, 3 * step - shift)
    moved = network(one.narrow(2 + axis, shift, size)).narrow(2 + axis, margin, 3 * step - shift)
    return bool((here - moved).abs().max() < 1e-4 * here.abs().max())


def check_stride(network: SegmentationNetwork) -> None:
    without_norms = local(network)
    if not network.moves_with_image:  # that is a claim too
        assert not moves_along(without_norms, 0, network.stride[0], network.stride[0])
        return
    for axis in range(network.spatial_dims):
        step, reach = network.stride[axis], reach_of(network, axis)
        assert moves_along(without_norms, axis, step, reach), f"axis {axis}: logits do not move with {step} voxels"
        for prime in (2, 3, 5, 7):  # if a divisor were enough, so would be its multiples
            enough = step % prime == 0 and moves_along(without_norms, axis, step // prime, reach)
            assert not enough, f"axis {axis}: a stride of {step // prime} is enough"


def check_receptive_field(network: SegmentationNetwork) -> None:
    assert network.window_global == (network.receptive_field is None)
    if network.receptive_field is not None:
        for axis in range(network.spatial_dims):
            assert network.receptive_field[axis] == reach_of(network, axis), f"axis {axis}"


def check_window_global(network: SegmentationNetwork) -> None:
    """The first logit feels the far end of a window that is longer than any receptive field, or it does not."""
    axis = max(range(network.spatial_dims), key=lambda index: network.stride[index])
    step = network.stride[axis]
    reach = reach_of(network, axis) if network.moves_with_image else 5 * step  # of attention there is no reach
    size = long_window(network, axis, (reach // step + 3) * step)
    network = deepcopy(network).eval()
    one = torch.randn(1, IN, *size, generator=torch.Generator().manual_seed(3))
    moved = one.clone()
    moved.select(2 + axis, -1).add_(1000)
    with torch.no_grad():
        change = (network(one) - network(moved)).select(2 + axis, 0).abs().max()
    assert bool(change > 0) == network.window_global


def claims_more(case: Case, network: SegmentationNetwork) -> bool:
    """Whether a network in 3D claims something that the same one does not in 2D, where it is measured in no time."""
    if network.spatial_dims == 2 or case.slice_axis is not None or 2 not in NETWORKS[case.name].spatial_dims:
        return True
    try:
        flat = Case(case.name, 2, case.options).build()
    except ValueError:  # options per axis
        return True
    reach = network.receptive_field, flat.receptive_field
    return {network.stride[:1] * 3, flat.stride[:1] * 3} != {network.stride} or (
        reach != (None, None) and (None in reach or set(reach[0] or ()) != set(reach[1] or ()))
    )


def test_stride_is_the_declared_one(case: Case, network: SegmentationNetwork) -> None:
    """Moving the image by the stride moves the logits with it; moving it by a proper divisor of the stride does not."""
    if claims_more(case, network):
        check_stride(network)


def test_receptive_field_is_the_declared_one(case: Case, network: SegmentationNetwork) -> None:
    if claims_more(case, network):
        check_receptive_field(network)


def test_window_global_is_true_where_it_is_declared(case: Case, network: SegmentationNetwork) -> None:
    if claims_more(case, network):
        check_window_global(network)


@pytest.mark.parametrize("name", [name for name in EXPORTED if name in NETWORKS])
@torch.no_grad()
def test_forward_can_be_exported(name: str) -> None:
    network = Case(name, NETWORKS[name].spatial_dims[0]).build().eval()
    one = image(network, odd(network))
    exported = torch.export.export(network, (one,))
    torch.testing.assert_close(exported.module()(one), network(one))


# the measurements themselves: they must be able to fail

CLAIMS: list[tuple[str, Any, Callable[[SegmentationNetwork], None]]] = [
    ("stride", (2, 4), check_stride),
    ("stride", (8, 4), check_stride),
    ("receptive_field", (34, 35), check_receptive_field),
    ("receptive_field", (35, 36), check_receptive_field),
    ("receptive_field", None, check_receptive_field),
    ("window_global", True, check_receptive_field),
    ("window_global", True, check_window_global),
]


@pytest.mark.parametrize(("attribute", "claim", "check"), CLAIMS)
def test_a_wrong_claim_is_found(attribute: str, claim: Any, check: Callable[[SegmentationNetwork], None]) -> None:
    network = Case("unet", 2, {"norm": "batch"}).build()
    check(network)
    setattr(network, attribute, claim)
    with pytest.raises((AssertionError, RuntimeError)):  # too small a stride does not even run
        check(network)


def test_a_hidden_instance_norm_is_found() -> None:
    network = Case("unet", 2).build()
    check_window_global(network)
    network.window_global = False
    with pytest.raises(AssertionError):
        check_window_global(network)
