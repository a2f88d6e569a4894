"""With nnU-Net's weights our U-Net gives nnU-Net's logits, whatever its plans say and however they transpose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pydoc import locate
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn
from voxelwise.errors import UsageError
from voxelwise.networks.base import SegmentationNetwork, SliceNetwork
from voxelwise.networks.nnunet import unet_from_nnunet
from voxelwise.networks.nnunet_weights import layer_name, weights_from_nnunet

from .cases import noise
from .nnunet_reference import Reference, fill, plans

CHANNELS, CLASSES = 2, 3
THICK = {"kernels": [[1, 3, 3], [3, 3, 3], [3, 1, 3], 3], "strides": [[1, 1, 1], [1, 2, 2], [2, 1, 3], [1, 2, 1]]}
FLAT = {"kernels": [[3, 3], [1, 3], [5, 3]], "strides": [[1, 1], [2, 1], [2, 3]]}
LEVELS = {"widths": (3, 5, 7, 7), "depths": (1, 3, 2, 1), "decoder": (3, 1, 2)}
FEWER = {"widths": (3, 5, 5), "depths": (1, 2, 2), "decoder": (2, 1)}
AXIAL, OTHER = (0, 1, 2), (1, 2, 0)
OTHER_NORM = {"norm_op_kwargs": {"eps": 1e-2, "affine": True}}
NO_SCALE = {"norm_op_kwargs": {"eps": 1e-3}, "conv_bias": False}
RELU = {"nonlin": "torch.nn.ReLU", "nonlin_kwargs": None, "stem_channels": 4}

CASES = {
    "3d": (plans(3, **LEVELS, **THICK), AXIAL),
    "3d-transposed": (plans(3, **LEVELS, **THICK), OTHER),
    "3d-residual": (plans(3, **LEVELS, **THICK, residual=True), AXIAL),
    "3d-residual-transposed": (plans(3, **LEVELS, **THICK, residual=True), (2, 0, 1)),
    "2d": (plans(2, **FEWER, **FLAT), AXIAL),
    "2d-transposed": (plans(2, **FEWER, **FLAT), OTHER),
    "2d-residual": (plans(2, **FEWER, **FLAT, residual=True), (1, 0, 2)),
    "batch": (plans(2, **FEWER, **FLAT, norm="BatchNorm", more=OTHER_NORM), AXIAL),
    "batch-residual": (plans(2, **FEWER, **FLAT, residual=True, norm="BatchNorm", more=RELU), AXIAL),
    "epsilon": (plans(2, **FEWER, **FLAT, residual=True, more=OTHER_NORM), AXIAL),
    "no-scale-no-bias": (plans(2, **FEWER, **FLAT, more=NO_SCALE), AXIAL),
    "one-number-for-all": (plans(2, (4, 4), (2, 2), (2,), kernels=[3, 3], strides=[1, [2, 2]]), AXIAL),
}


def imported(configuration: Mapping[str, Any], transpose: Sequence[int], theirs: nn.Module) -> SegmentationNetwork:
    """Ours with nnU-Net's weights, on volumes."""
    described = unet_from_nnunet(configuration, transpose)
    ours = described.build(CHANNELS, CLASSES)
    ours.load_state_dict(weights_from_nnunet(theirs.state_dict(), described, CHANNELS, CLASSES))
    return ours if described.spatial_dims == 3 else SliceNetwork(ours, 2 - transpose[0])


def there(volume: Tensor, transpose: Sequence[int]) -> Tensor:
    """(N, C, X, Y, Z) as nnU-Net reads and transposes it."""
    return volume.permute(0, 1, 4, 3, 2).permute(0, 1, *(2 + axis for axis in transpose))


def back(volume: Tensor, transpose: Sequence[int]) -> Tensor:
    """And back again."""
    return volume.permute(0, 1, *(2 + transpose.index(axis) for axis in range(3))).permute(0, 1, 4, 3, 2)


def on_volume(network: Callable[[Tensor], list[Tensor]], volume: Tensor, transpose: Sequence[int], dims: int) -> Tensor:
    """Finest logits of nnU-Net's network, in our order."""
    turned = there(volume, transpose)
    if dims == 3:
        return back(network(turned)[0], transpose)
    slices = network(turned.movedim(2, 1).flatten(0, 1))[0]
    return back(slices.unflatten(0, (len(turned), -1)).movedim(1, 2), transpose)


def dims_of(configuration: Mapping[str, Any]) -> int:
    return int(configuration["architecture"]["arch_kwargs"]["conv_op"][-2])


def volume_for(configuration: Mapping[str, Any], transpose: Sequence[int]) -> Tensor:
    """Sides that nnU-Net's network can take, another one along each axis."""
    sides = (4, 8, 12) if dims_of(configuration) == 3 else (2, 8, 12)  # in nnU-Net's order
    return noise(2, CHANNELS, *(sides[transpose.index(2 - axis)] for axis in range(3)))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_are_nnunets(case: str) -> None:
    configuration, transpose = CASES[case]
    theirs = Reference(configuration, CHANNELS, CLASSES).eval()
    fill(theirs)
    ours = imported(configuration, transpose, theirs).eval()
    volume = volume_for(configuration, transpose)
    expected = on_volume(theirs, volume, transpose, dims_of(configuration))
    torch.testing.assert_close(ours(volume), expected, rtol=1e-4, atol=1e-4)
    last = ours.to(memory_format=ours.layout)(volume.contiguous(memory_format=torch.channels_last_3d))
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", ["3d", "3d-residual-transposed"])
@torch.no_grad()
def test_coarser_scales_are_nnunets(case: str) -> None:
    """All but the coarsest, which nnU-Net gives no weight in its loss."""
    configuration, transpose = CASES[case]
    theirs = Reference(configuration, CHANNELS, CLASSES)
    fill(theirs)
    volume = volume_for(configuration, transpose)
    ours = imported(configuration, transpose, theirs).train()(volume)
    scales = theirs(there(volume, transpose))
    assert len(ours) == len(scales) - 1 == 2
    for one, other in zip(ours, scales, strict=False):
        torch.testing.assert_close(one, back(other, transpose), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_nnunets_own_classes_agree(case: str) -> None:
    """With the names and the logits of the network that the tests are written against, and with ours."""
    pytest.importorskip("dynamic_network_architectures", reason="nnU-Net's network classes are not installed")
    configuration, transpose = CASES[case]
    reference = Reference(configuration, CHANNELS, CLASSES).eval()
    fill(reference)
    architecture = configuration["architecture"]
    arguments = dict(architecture["arch_kwargs"])
    for name in architecture["_kw_requires_import"]:
        arguments[name] = None if arguments[name] is None else locate(arguments[name])
    if "n_blocks_per_stage" not in arguments:
        arguments.pop("stem_channels", None)
    build: Any = locate(architecture["network_class_name"])
    theirs = build(CHANNELS, num_classes=CLASSES, deep_supervision=True, **arguments).eval()
    assert set(theirs.state_dict()) == set(reference.state_dict())
    theirs.load_state_dict(reference.state_dict())
    volume, dims = volume_for(configuration, transpose), dims_of(configuration)
    expected = on_volume(theirs, volume, transpose, dims)
    torch.testing.assert_close(on_volume(reference, volume, transpose, dims), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        imported(configuration, transpose, theirs).eval()(volume), expected, rtol=1e-4, atol=1e-4
    )


# names


@pytest.fixture
def state() -> dict[str, Tensor]:
    return Reference(CASES["2d"][0], CHANNELS, CLASSES).state_dict()


def taken(state: Mapping[str, Tensor], case: str = "2d", classes: int = CLASSES) -> dict[str, Tensor]:
    return weights_from_nnunet(state, unet_from_nnunet(*CASES[case]), CHANNELS, classes)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_what_training_puts_in_front_of_names_is_taken_off(state: dict[str, Tensor], prefix: str) -> None:
    expected = taken(state)
    found = taken({prefix + name: value for name, value in state.items()})
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_second_names_are_not_needed(state: dict[str, Tensor]) -> None:
    once = {name: value for name, value in state.items() if layer_name(name) == name}
    assert 2 * len(once) < len(state)
    assert taken(once).keys() == taken(state).keys()


def test_the_weights_are_plain_float32_of_their_own(state: dict[str, Tensor]) -> None:
    halves = {name: value.half().requires_grad_() for name, value in state.items()}
    weights = taken(halves)
    save(weights)  # refuses shared memory and gaps
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert not any(value.requires_grad for value in weights.values())
    originals = {value.data_ptr() for value in state.values()}
    assert not originals & {value.data_ptr() for value in taken(state).values()}


def test_a_trainer_with_batch_norms_is_read_as_one() -> None:
    transpose = CASES["batch"][1]
    theirs = Reference(plans(2, **FEWER, **FLAT, norm="BatchNorm"), CHANNELS, CLASSES)
    described = unet_from_nnunet(plans(2, **FEWER, **FLAT), transpose, batch_norm=True)
    weights = weights_from_nnunet(theirs.state_dict(), described, CHANNELS, CLASSES)
    described.build(CHANNELS, CLASSES).load_state_dict(weights)
    with pytest.raises(UsageError, match=r"the plans' network has no decoder.*norm\.num_batches_tracked and"):
        taken(theirs.state_dict())


def test_weights_that_do_not_fit_are_refused(state: dict[str, Tensor]) -> None:
    fewer = dict(state)
    del fewer["decoder.transpconvs.0.weight"]
    with pytest.raises(UsageError, match=r"do not fit the plans: they lack decoder\.transpconvs\.0\.weight$"):
        taken(fewer)
    with pytest.raises(UsageError, match=r"the plans' network has no encoder\.stages\.9\.0\.convs\.0\.conv\.weight$"):
        taken({**state, "encoder.stages.9.0.convs.0.conv.weight": torch.zeros(1)})
    with pytest.raises(
        UsageError, match=r"seg_layers\.1\.weight has the shape \(3, 3, 1, 1\), by the plans \(5, 3, 1, 1\)"
    ):
        taken(state, classes=5)
    with pytest.raises(
        UsageError, match=r"do not fit the plans: they lack encoder\.stem\.convs\.0\.conv\.weight and \d+ more"
    ):
        weights_from_nnunet({}, unet_from_nnunet(*CASES["2d-residual"]), CHANNELS, CLASSES)


def test_shapes_are_told_in_nnunets_order() -> None:
    configuration, _ = CASES["3d"]
    state = Reference(configuration, CHANNELS, CLASSES).state_dict()
    state["encoder.stages.0.0.convs.0.conv.weight"] = torch.zeros(3, 2, 3, 3, 1)
    with pytest.raises(UsageError, match=r"\(3, 2, 3, 3, 1\), by the plans \(3, 2, 1, 3, 3\)"):
        weights_from_nnunet(state, unet_from_nnunet(configuration, OTHER), CHANNELS, CLASSES)
