"""The contract that every network of the registry keeps; a new network is held to it by its registry line alone.

A case is built once, and run once in eval mode, for all tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from voxelwise.networks.base import SegmentationNetwork
from voxelwise.networks.registry import NETWORKS

from .cases import FLAT, IN, OUT, REGISTERED, SOLID, Case, noise, odd
from .measured import check_receptive_field, check_stride, check_window_global

HEAVY = {REGISTERED["swin_unetr", 3]}  # a second for each forward pass, and all but its shape is the same in 2D
SHALLOW = {"depth": 18}  # its blocks are those of the default
EXPORTED = {"unet": {}, "vnet": {}, "voxresnet": {}, "fcn8s": {}, "resnet34_unet": SHALLOW, "res_att_unet": SHALLOW}
CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def slow_if(slow: bool, value: Any) -> Any:
    return pytest.param(value, marks=[pytest.mark.slow] if slow else [])


TRACED = [slow_if(name not in EXPORTED, REGISTERED[name, min(NETWORKS[name].spatial_dims)]) for name in NETWORKS]


@pytest.fixture(scope="module", params=[slow_if(case in HEAVY, case) for case in (*FLAT, *SOLID)], ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    chosen: Case = request.param
    return chosen


@pytest.fixture(scope="module")
def network(case: Case) -> SegmentationNetwork:
    """In eval mode, and to be left as it is."""
    return case.build().eval()


@pytest.fixture
def on_loan(network: SegmentationNetwork) -> Iterator[SegmentationNetwork]:
    """To be trained or laid out in another way; it is put back as it was."""
    state = {name: value.clone() for name, value in network.state_dict().items()}
    yield network
    network.eval().zero_grad()
    network.to(memory_format=torch.contiguous_format)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            value.copy_(state[name])


@pytest.fixture(scope="module")
def image(network: SegmentationNetwork) -> Tensor:
    """A batch of one, of odd size."""
    return noise(1, IN, *odd(network))


@pytest.fixture(scope="module")
def pair(image: Tensor) -> Tensor:
    """The image behind another one."""
    return torch.cat((noise(*image.shape, seed=2), image))


@pytest.fixture(scope="module")
def logits(network: SegmentationNetwork, image: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = network(image)
    return result


def check_close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Equal but for the order of sums, which kernels choose by shapes, addresses and threads."""
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def as_list(logits: Tensor | list[Tensor]) -> list[Tensor]:
    return [logits] if isinstance(logits, Tensor) else logits


# sizes, modes and weights


@torch.no_grad()
def test_logits_have_the_size_of_any_input(network: SegmentationNetwork, image: Tensor, logits: Tensor) -> None:
    assert logits.shape == (1, OUT, *image.shape[2:])
    assert logits.isfinite().all()
    assert logits.any()
    least = network(noise(1, IN, *network.minimum_size))
    assert least.shape == (1, OUT, *network.minimum_size)
    assert least.isfinite().all()


def test_other_images_are_refused(network: SegmentationNetwork, image: Tensor) -> None:
    with pytest.raises(ValueError, match=rf"takes images \(N, {IN}, X, Y.*got shape"):
        network(image[:, :1])
    with pytest.raises(ValueError, match=rf"takes images \(N, {IN}, X, Y.*got shape"):
        network(image[0])
    with pytest.raises(ValueError, match=r"needs at least .* voxels.*use a larger window"):
        network(image[..., : network.minimum_size[-1] - 1])


def test_backward_reaches_every_parameter(
    on_loan: SegmentationNetwork, image: Tensor, pair: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a batch of one, at a size that has to be padded; several outputs go from fine to coarse.

    Where a batch of one cannot be trained on, the network says so and why, and is right; it learns from two.
    """
    network = on_loan.train()
    images = image
    if not network.trains_on_single:
        images = pair
        with pytest.raises(ValueError, match=r"cannot be trained on a batch of one.*use a batch of two"):
            network(image)
        monkeypatch.setattr(network, "trains_on_single", True)
        with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
            network(image)
    scales = as_list(network(images))
    assert scales[0].shape == (len(images), OUT, *image.shape[2:])
    assert all(scale.shape[:2] == scales[0].shape[:2] for scale in scales)
    assert all(prod(finer.shape[2:]) >= prod(coarser.shape[2:]) for finer, coarser in pairwise(scales))
    torch.stack([scale.square().mean() for scale in scales]).sum().backward()
    if any(parameter.grad is not None and not parameter.grad.any() for parameter in network.parameters()):
        network.eval()  # a bias in front of a norm has no effect in training
        network(images).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, f"{name} is not used"
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), f"{name} gets no gradient"


@torch.no_grad()
def test_eval_is_deterministic_and_leaves_no_trace(network: SegmentationNetwork, image: Tensor, logits: Tensor) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    check_close(network(image), logits)
    for name, value in network.state_dict().items():
        assert torch.equal(before[name], value), f"{name} changes in eval mode"


@torch.no_grad()
def test_forward_is_head_of_features(network: SegmentationNetwork, image: Tensor, logits: Tensor) -> None:
    if network.head is None:
        with pytest.raises(ValueError, match="no head"):
            network.features(image)
        return
    features = network.features(image)
    assert features.shape[2:] == image.shape[2:]
    check_close(network.head(features), logits)
    # pointwise: one voxel of the features alone gives the logits of that voxel
    corner = (..., *(slice(1),) * (features.ndim - 2))
    check_close(network.head(features[corner]), logits[corner])


@torch.no_grad()
def test_weights_survive_safetensors(
    case: Case, network: SegmentationNetwork, image: Tensor, logits: Tensor, tmp_path: Path
) -> None:
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    other = case.build(seed=7).eval()
    assert not all(torch.equal(one, two) for one, two in zip(network.parameters(), other.parameters(), strict=True))
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    check_close(other(image), logits)


@torch.no_grad()
def test_neither_channels_last_nor_another_case_changes_anything(
    on_loan: SegmentationNetwork, pair: Tensor, logits: Tensor
) -> None:
    """And every convolution gets the layout that it is fast in, also where the input is padded and maps are joined.

    On two cases, since torch has another kernel for a single small volume, which loses the layout.
    """
    network = on_loan.to(memory_format=on_loan.layout)
    heads = [] if network.head is None else list(network.head.modules())  # they get a view of the features
    lost = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not inputs[0].is_contiguous(memory_format=network.layout):
            lost.append(tuple(inputs[0].shape))

    convolutions = [one for one in network.modules() if isinstance(one, CONVOLUTIONS) and one not in heads]
    hooks = [module.register_forward_pre_hook(look) for module in convolutions]
    last = torch.channels_last if pair.ndim == 4 else torch.channels_last_3d
    check_close(network(pair.to(memory_format=last))[1:], logits, tolerance=1e-4)
    for hook in hooks:
        hook.remove()
    assert lost == []


@pytest.mark.parametrize("case", TRACED, indirect=True, ids=str)
def test_activation_bytes_are_traced(network: SegmentationNetwork) -> None:
    size = [64 * step for step in network.stride]  # so large that what a paper pads does not count
    weights = [parameter.clone() for parameter in network.parameters()]
    training = network.activation_bytes(size, training=True)
    # of a window twice as long, two cases, half as many bytes each
    predicting = network.activation_bytes([2 * size[0], *size[1:]], batch=2, dtype=torch.bfloat16)
    assert 2 * 4 * (IN + OUT) * prod(size) <= predicting
    if network.moves_with_image:  # else attention may take the square
        assert predicting < 2 * training
    assert not network.training
    assert all(torch.equal(now, then) for now, then in zip(network.parameters(), weights, strict=True))


@pytest.mark.parametrize("name", [slow_if(name not in EXPORTED, name) for name in NETWORKS])
@torch.no_grad()
def test_forward_can_be_exported(name: str) -> None:
    """For images of one size."""
    network = Case(name, NETWORKS[name].spatial_dims[0], EXPORTED.get(name, {})).build().eval()
    image = noise(1, IN, *odd(network))
    check_close(torch.export.export(network, (image,)).module()(image), network(image))


# what a network declares, measured


@pytest.mark.parametrize("case", FLAT, indirect=True, ids=str)
def test_stride_is_the_declared_one(network: SegmentationNetwork) -> None:
    check_stride(network)


@pytest.mark.parametrize("case", FLAT, indirect=True, ids=str)
def test_receptive_field_is_the_declared_one(network: SegmentationNetwork) -> None:
    check_receptive_field(network)


@pytest.mark.parametrize("case", FLAT, indirect=True, ids=str)
def test_window_global_is_true_where_it_is_declared(network: SegmentationNetwork) -> None:
    check_window_global(network)


def claims(network: SegmentationNetwork) -> tuple[Any, ...]:
    """What it declares along its axes, where that is one number along all of them."""
    reach = network.receptive_field or [None]
    return set(network.stride), set(reach), network.window_global, network.moves_with_image


@pytest.mark.parametrize("case", [slow_if(case in HEAVY, case) for case in SOLID], indirect=True, ids=str)
def test_in_3d_the_claims_are_those_of_2d_or_measured(case: Case, network: SegmentationNetwork) -> None:
    """In 2D the same claims are measured in no time."""
    flat = case.build_flat()
    if flat is None or claims(flat) != claims(network) or len(set(network.stride)) > 1:
        flat = network
    if flat is network or case.options:  # else it is one of those above
        check_stride(flat)
        check_receptive_field(flat)
        check_window_global(flat)


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
