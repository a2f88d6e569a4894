"""The network of nnU-Net's plans in our terms: options of our `unet`, and which of their axes is which of ours.

Isensee et al., Nature Methods 18 (2021), arXiv 1904.08128; residual encoders: MICCAI 2024, arXiv 2404.09556. Nothing of
nnU-Net is imported. What becomes of what plans.json says:

    features_per_stage                       widths
    kernel_sizes, strides                    kernels, strides, their axes in our order
    n_conv_per_stage, n_blocks_per_stage     encoder_depth, with blocks="plain" or "residual_d"
    n_conv_per_stage_decoder                 decoder_depth, turned around: theirs begins at the deepest level
    stem_channels                            stem; the first level's width without it
    conv_bias                                up_bias; in front of a norm a bias has no effect of its own
    norm_op                                  norm="instance" or "batch"; eps and affine go into the weights
    nonlin                                   activation="leaky_relu" or "relu"
    deep_supervision                         deep_supervision: all scales but the coarsest, whose loss has no weight

Plans without `architecture`, of older versions, say the same in other words: widths double from a base to a maximum,
every convolution has a bias, norms are instance norms of eps 1e-5, and activations LeakyReLU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import UsageError
from .blocks import SLOPE
from .unet import UNet

PLANS = "plans.json"
PACKAGE = "dynamic_network_architectures."
NORMS = {"InstanceNorm": "instance", "BatchNorm": "batch"}
ACTIVATIONS = {"LeakyReLU": "leaky_relu", "ReLU": "relu"}
MOST_LEVELS, MOST_BLOCKS = 16, 1000  # nnU-Net's own have up to 9 levels
LARGEST_SIDE = 64  # of kernels and strides
Numbers = int | list[int]
Sides = int | list[int | list[int]]


@dataclass(frozen=True)
class NnUNetNetwork:
    """A network of nnU-Net as one of ours.

    Args:
        spatial_dims: 2 or 3.
        options: of our `unet`, plain values that go into a YAML file.
        axes: for each spatial axis of ours, the one of nnU-Net's weights, as `network_axes` gives them.
        conv_bias: whether nnU-Net's convolutions have a bias.
        epsilon: of its norms.
        affine: whether its norms have a learned scale and shift.
    """

    spatial_dims: int
    options: Mapping[str, Any]
    axes: tuple[int, ...]
    conv_bias: bool
    epsilon: float
    affine: bool

    def build(self, in_channels: int, out_channels: int) -> UNet:
        """Our network of these options, with fresh weights."""
        return UNet(self.spatial_dims, in_channels, out_channels, **self.options)


def network_axes(transpose_forward: Sequence[int], spatial_dims: int) -> tuple[int, ...]:
    """For each spatial axis of our network, the axis of nnU-Net's.

    nnU-Net reads (Z, Y, X) and transposes by `transpose_forward`; ours are (X, Y, Z). Its 2D networks see slices along
    the first axis that this gives; ours see the other two in rising order of ours.

    Raises:
        UsageError: no permutation of three axes.
    """
    theirs = volume_axes(transpose_forward)
    return theirs if spatial_dims == 3 else tuple(axis - 1 for axis in theirs if axis > 0)


def volume_axes(transpose_forward: Sequence[int]) -> tuple[int, ...]:
    """For each of X, Y and Z, the axis of nnU-Net's volumes.

    Raises:
        UsageError: no permutation of three axes.
    """
    if sorted(transpose_forward) != [0, 1, 2]:
        raise UsageError(f"{PLANS}: transpose_forward is an order of 0, 1 and 2, found {list(transpose_forward)}")
    return tuple(list(transpose_forward).index(2 - axis) for axis in range(3))


def unet_from_nnunet(
    configuration: Mapping[str, Any],
    transpose_forward: Sequence[int],
    *,
    batch_norm: bool = False,
    deep_supervision: bool = True,
) -> NnUNetNetwork:
    """What one configuration of plans.json says of its network.

    Args:
        configuration: with what it inherits filled in; of the form of either generation of plans.
        transpose_forward: of the plans.
        batch_norm: that the network has batch norms whatever the plans say, as nnUNetTrainerBN makes it.
        deep_supervision: whether the network was trained with it; not by nnUNetTrainerNoDeepSupervision.

    Raises:
        UsageError: a network that ours is not, by the name of what stands in the way.
    """
    found = _arguments(configuration)
    dims = _dims(found.conv_op)
    norm, epsilon, affine = _norm(found, dims)
    if batch_norm and norm != "batch":
        norm, epsilon, affine = "batch", 1e-5, True
    levels = found.n_stages
    axes = network_axes(transpose_forward, dims)
    widths = _each("features_per_stage", found.features_per_stage, levels)
    options: dict[str, Any] = {
        "widths": widths,
        "blocks": "plain",
        "norm": norm,
        "activation": _activation(found),
        "kernels": _in_our_order("kernel_sizes", found.kernel_sizes, levels, axes),
        "strides": _in_our_order("strides", found.strides, levels, axes),
        "decoder_depth": _each("n_conv_per_stage_decoder", found.n_conv_per_stage_decoder, levels - 1)[::-1],
        "up_bias": found.conv_bias,
        "deep_supervision": max(1, levels - 2) if deep_supervision else 1,
    }
    if isinstance(found, _Plain):
        options["encoder_depth"] = _each("n_conv_per_stage", found.n_conv_per_stage, levels)
    elif isinstance(found, _Residual):
        options["encoder_depth"] = _each("n_blocks_per_stage", found.n_blocks_per_stage, levels)
        options |= {"blocks": "residual_d", "stem": found.stem_channels or widths[0]}
    blocks = sum(options["encoder_depth"]) + sum(options["decoder_depth"])
    if blocks > MOST_BLOCKS:
        raise UsageError(f"{PLANS}: a network of {blocks} convolutions or blocks, expected up to {MOST_BLOCKS}")
    network = NnUNetNetwork(dims, options, axes, found.conv_bias, epsilon, affine)
    try:
        with torch.device("meta"):
            network.build(1, 1)
    except ValueError as error:
        raise UsageError(f"{PLANS}: {error}") from error
    return network


class _Arguments(BaseModel):
    """What both classes of nnU-Net take; torch's classes by name."""

    model_config = ConfigDict(extra="forbid")

    n_stages: int = Field(ge=2, le=MOST_LEVELS)
    features_per_stage: Numbers
    conv_op: str
    kernel_sizes: Sides
    strides: Sides
    n_conv_per_stage_decoder: Numbers
    conv_bias: bool = False
    norm_op: str | None = None
    norm_op_kwargs: dict[str, Any] | None = None
    dropout_op: str | None = None
    dropout_op_kwargs: dict[str, Any] | None = None
    nonlin: str | None = None
    nonlin_kwargs: dict[str, Any] | None = None
    deep_supervision: bool = False


class _Plain(_Arguments):
    """Of PlainConvUNet."""

    n_conv_per_stage: Numbers
    nonlin_first: Literal[False] = False


class _Residual(_Arguments):
    """Of ResidualEncoderUNet."""

    n_blocks_per_stage: Numbers
    block: str | None = None
    bottleneck_channels: Numbers | None = None
    stem_channels: int | None = None


CLASSES: dict[str, type[_Plain] | type[_Residual]] = {"PlainConvUNet": _Plain, "ResidualEncoderUNet": _Residual}


def _arguments(configuration: Mapping[str, Any]) -> _Plain | _Residual:
    """What the network's class is given, from plans of either form."""
    if "architecture" in configuration:
        architecture = configuration["architecture"]
        if not isinstance(architecture, Mapping):
            raise UsageError(f"{PLANS}: architecture holds network_class_name and arch_kwargs, found {architecture!r}")
        path, given = str(architecture.get("network_class_name")), architecture.get("arch_kwargs")
        name = _class_name(path) if path.startswith(PACKAGE) else path
    elif "UNet_class_name" in configuration:
        name = str(configuration["UNet_class_name"])
        given = _of_old_plans(configuration, name)
    else:
        raise UsageError(
            f"{PLANS}: the configuration has neither architecture nor UNet_class_name; is it nnU-Net v2's?"
        )
    if name not in CLASSES:
        raise UsageError(f"{PLANS}: network class {name} cannot be imported, only {' and '.join(CLASSES)} can")
    try:
        found = CLASSES[name].model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where, why = next(iter(first["loc"]), "arch_kwargs"), first["msg"]
        raise UsageError(
            f"{PLANS}: {where} of {name} cannot be read: {why[0].lower()}{why[1:]}, found {first['input']!r:.80}"
        ) from error
    if found.dropout_op is not None:
        raise UsageError(f"{PLANS}: dropout ({_class_name(found.dropout_op)}) cannot be imported, our U-Net has none")
    if isinstance(found, _Residual) and found.block is not None and _class_name(found.block) != "BasicBlockD":
        raise UsageError(f"{PLANS}: block {_class_name(found.block)} cannot be imported, only BasicBlockD can")
    return found


def _of_old_plans(configuration: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The arguments that plans without `architecture` stand for."""
    try:
        dims = len(configuration["patch_size"])
        depths = configuration["n_conv_per_stage_encoder"]
        base, most = int(configuration["UNet_base_num_features"]), int(configuration["unet_max_num_features"])
        if len(depths) > MOST_LEVELS:
            raise UsageError(f"{PLANS}: a network of {len(depths)} levels, expected up to {MOST_LEVELS}")
        return {
            "n_stages": len(depths),
            "features_per_stage": [min(base * 2**level, most) for level in range(len(depths))],
            "conv_op": f"torch.nn.Conv{dims}d",
            "kernel_sizes": configuration["conv_kernel_sizes"],
            "strides": configuration["pool_op_kernel_sizes"],
            "n_blocks_per_stage" if name == "ResidualEncoderUNet" else "n_conv_per_stage": depths,
            "n_conv_per_stage_decoder": configuration["n_conv_per_stage_decoder"],
            "conv_bias": True,
            "norm_op": f"torch.nn.InstanceNorm{dims}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "nonlin": "torch.nn.LeakyReLU",
        }
    except KeyError as error:
        raise UsageError(f"{PLANS}: the configuration has UNet_class_name but no {error.args[0]}") from error
    except (TypeError, ValueError) as error:
        raise UsageError(f"{PLANS}: what the configuration says of its network is damaged: {error}") from error


def _dims(conv_op: str) -> int:
    name = _class_name(conv_op)
    if name not in ("Conv2d", "Conv3d"):
        raise UsageError(f"{PLANS}: conv_op {name} cannot be imported, only Conv2d and Conv3d can")
    return int(name[4])


def _norm(found: _Arguments, dims: int) -> tuple[str, float, bool]:
    """Our name of the norm, its epsilon, and whether it has a scale and a shift."""
    name = _class_name(found.norm_op)
    kinds = {f"{kind}{dims}d": kind for kind in NORMS}
    if name not in kinds:
        raise UsageError(f"{PLANS}: norm_op {name} cannot be imported, only {' and '.join(kinds)} can")
    kind = NORMS[kinds[name]]
    batch = kind == "batch"
    given = {
        "eps": 1e-5,
        "affine": batch,
        "momentum": 0.1,
        "track_running_stats": batch,
        **(found.norm_op_kwargs or {}),
    }
    epsilon, affine, running = given.pop("eps"), given.pop("affine"), given.pop("track_running_stats")
    given.pop("momentum")  # of training only
    if given or running is not batch or not isinstance(affine, bool) or not isinstance(epsilon, float) or epsilon <= 0:
        raise UsageError(
            f"{PLANS}: a {name} of norm_op_kwargs {found.norm_op_kwargs} cannot be imported, only one of eps > 0, "
            "affine, momentum and the usual track_running_stats can"
        )
    return kind, epsilon, affine


def _activation(found: _Arguments) -> str:
    name = _class_name(found.nonlin)
    if name not in ACTIVATIONS:
        raise UsageError(f"{PLANS}: nonlin {name} cannot be imported, only {' and '.join(ACTIVATIONS)} can")
    given = {key: value for key, value in (found.nonlin_kwargs or {}).items() if key != "inplace"}
    if given and (name != "LeakyReLU" or given != {"negative_slope": SLOPE}):
        raise UsageError(
            f"{PLANS}: a {name} of nonlin_kwargs {given} cannot be imported, only one of negative_slope {SLOPE}"
        )
    return ACTIVATIONS[name]


def _each(what: str, numbers: Numbers, count: int) -> list[int]:
    """One number for each level."""
    full = [numbers] * count if isinstance(numbers, int) else list(numbers)
    if len(full) != count or any(number < 1 for number in full):
        raise UsageError(f"{PLANS}: {what} has {count} numbers from 1 on, found {numbers!r:.80}")
    return full


def _in_our_order(what: str, sides: Sides, levels: int, axes: Sequence[int]) -> list[list[int]]:
    """One list of sides for each level, along our axes."""
    each = [sides] * levels if isinstance(sides, int) else list(sides)
    full = [[side] * len(axes) if isinstance(side, int) else side for side in each]
    if len(full) != levels or any(len(level) != len(axes) for level in full):
        raise UsageError(f"{PLANS}: {what} gives each of {levels} levels {len(axes)} numbers, found {sides!r:.80}")
    if max(map(max, full)) > LARGEST_SIDE:
        raise UsageError(f"{PLANS}: {what} are numbers up to {LARGEST_SIDE}, found {max(map(max, full))}")
    return [[level[axis] for axis in axes] for level in full]


def _class_name(path: str | None) -> str:
    return str(path).rpartition(".")[2]
