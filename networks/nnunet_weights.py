"""The weights of nnU-Net's U-Nets under the names of our `unet`: the same network, layer by layer.

    encoder.stages.L.0.convs.I               encoder.L.I                plain
    encoder.stem.convs.0                     encoder.0.0                residual; blocks of level 0 follow from 1 on
    encoder.stages.L.blocks.B.conv1, conv2   encoder.L.B.first, .second
    encoder.stages.L.blocks.B.skip.0 or .1   encoder.L.B.shortcut       behind a pooling it is 1
    decoder.transpconvs.S                    up.L                       theirs are counted from the deepest level
    decoder.stages.S.convs.I                 decoder.L.I
    decoder.seg_layers.S                     head for the last S, coarse_heads.0 for the one before, ...

A layer is `.conv` and `.norm`. `.all_modules.` and `decoder.encoder.` hold the same tensors once more. Spatial axes are
put into our order. A bias in front of an instance norm cancels and is dropped; in front of a batch norm it goes into
the running mean. A norm of another epsilon than ours is our norm of a convolution that is scaled:
(c x - c m) / sqrt(c² v + ours) = (x - m) / sqrt(v + theirs), where c² = ours / theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import sqrt

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .blocks import ConvNormAct
from .nnunet import NnUNetNetwork
from .resnet_d import ResidualBlockD
from .unet import UNet

PREFIXES = ("module.", "_orig_mod.")  # of training on several GPUs, and of compiled networks
EPSILON = 1e-5  # of our norms


def layer_name(name: str) -> str | None:
    """A name of nnU-Net's state dict without what training put in front of it; None for a second name of a tensor."""
    while name.startswith(PREFIXES):
        name = name.removeprefix("module.").removeprefix("_orig_mod.")
    return None if name.startswith("decoder.encoder.") or ".all_modules." in name else name


def weights_from_nnunet(
    state: Mapping[str, Tensor], network: NnUNetNetwork, in_channels: int, out_channels: int
) -> dict[str, Tensor]:
    """The state dict of `network.build(in_channels, out_channels)` that computes what nnU-Net's network computes.

    Args:
        state: of nnU-Net's checkpoint (`network_weights`).
        network: what the plans say of it.
        in_channels: of the image.
        out_channels: of nnU-Net's network: classes with background, or regions.

    Raises:
        UsageError: weights that do not fit the plans, by their names or shapes.
    """
    with torch.device("meta"):
        ours = network.build(in_channels, out_channels)
        _taken(ours, {name: value.to("meta") for name, value in state.items()}, network)  # before anything is copied
    return _taken(ours, state, network)


def _taken(ours: UNet, state: Mapping[str, Tensor], network: NnUNetNetwork) -> dict[str, Tensor]:
    """Our state dict out of nnU-Net's; on the meta device it is held against the plans alone."""
    given = _Given(state, network.axes)
    weights: dict[str, Tensor] = {}
    for name, layer in ours.named_modules():
        if isinstance(layer, ConvNormAct):
            found = _conv_norm(given, nnunet_name(name, ours), layer, network)
        elif _stands_alone(name, layer):
            found = _conv(given, nnunet_name(name, ours), layer)
        else:
            continue
        weights.update({f"{name}.{kind}": value for kind, value in found.items()})
    given.finish(f"decoder.seg_layers.{index}" for index in range(len(ours.up)))
    return weights


def nnunet_name(name: str, network: UNet) -> str:
    """nnU-Net's name of a layer of ours."""
    part, *rest = name.split(".")
    last = len(network.up) - 1  # of nnU-Net's decoder, the finest
    if part == "head":
        return f"decoder.seg_layers.{last}"
    level = int(rest[0])
    if part == "coarse_heads":
        return f"decoder.seg_layers.{last - 1 - level}"
    if part == "up":
        return f"decoder.transpconvs.{last - level}"
    if part == "decoder":
        return f"decoder.stages.{last - level}.convs.{rest[1]}"
    block = network.encoder.get_submodule(f"{level}.{rest[1]}")
    if not isinstance(block, ResidualBlockD):
        plain = isinstance(network.encoder.get_submodule("1.0"), ConvNormAct)
        return f"encoder.stages.{level}.0.convs.{rest[1]}" if plain else "encoder.stem.convs.0"
    pools = any(side != 1 for side in block.step)
    part = {"first": "conv1", "second": "conv2", "shortcut": f"skip.{int(pools)}"}[rest[2]]
    return f"encoder.stages.{level}.blocks.{int(rest[1]) - (level == 0)}.{part}"


class _Given:
    """nnU-Net's tensors, of which each is taken once; what is missing or left over ends in one line.

    Args:
        state: under nnU-Net's names.
        axes: for each spatial axis of ours, theirs.
    """

    def __init__(self, state: Mapping[str, Tensor], axes: Sequence[int]) -> None:
        names = {name: layer_name(name) for name in state}
        self.left = {short: state[name] for name, short in names.items() if short is not None}
        self.axes = axes
        self.missing: list[str] = []

    def take(self, name: str, shape: Sequence[int]) -> Tensor:
        """A tensor of this shape, spatial axes in our order; where there is none, something to go on with."""
        wanted = list(shape)
        if len(shape) > 1:
            for ours, theirs in enumerate(self.axes):
                wanted[2 + theirs] = shape[2 + ours]
        if name not in self.left:
            self.missing.append(name)
            return torch.zeros(tuple(shape))
        found = self.left.pop(name)
        if list(found.shape) != wanted:
            raise UsageError(
                f"weights do not fit the plans: {name} has the shape {tuple(found.shape)}, by the plans {tuple(wanted)}"
            )
        found = found.detach()
        if found.is_floating_point():
            found = found.float()
        if len(shape) > 1:
            found = found.permute(0, 1, *(2 + axis for axis in self.axes))
        return found.contiguous().clone()

    def finish(self, unused: Iterable[str]) -> None:
        """Refuse what is missing and what is left over, but for layers that may stay unused."""
        left = set(self.left) - {f"{name}.{kind}" for name in unused for kind in ("weight", "bias")}
        for what, names in (("they lack", self.missing), ("the plans' network has no", sorted(left))):
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                raise UsageError(f"weights do not fit the plans: {what} {names[0]}{more}")


def _conv_norm(given: _Given, name: str, layer: ConvNormAct, network: NnUNetNetwork) -> dict[str, Tensor]:
    """A convolution and its norm; a shortcut never has a bias."""
    scale = sqrt(EPSILON / network.epsilon)
    own = layer.state_dict()
    width = own["conv.weight"].shape[0]
    found = {"conv.weight": given.take(f"{name}.conv.weight", own["conv.weight"].shape)}
    bias = torch.zeros(width)
    if network.conv_bias and ".skip." not in name:
        bias = given.take(f"{name}.conv.bias", (width,))
    if network.affine:
        found["norm.weight"] = given.take(f"{name}.norm.weight", (width,))
        found["norm.bias"] = given.take(f"{name}.norm.bias", (width,))
    else:
        found |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    if "norm.running_mean" in own:
        found["norm.running_mean"] = (given.take(f"{name}.norm.running_mean", (width,)) - bias) * scale
        found["norm.running_var"] = given.take(f"{name}.norm.running_var", (width,)) * scale**2
        found["norm.num_batches_tracked"] = given.take(f"{name}.norm.num_batches_tracked", ())
    found["conv.weight"] *= scale
    return found


def _conv(given: _Given, name: str, layer: nn.Module) -> dict[str, Tensor]:
    """A transposed convolution or a head."""
    return {kind: given.take(f"{name}.{kind}", own.shape) for kind, own in layer.state_dict().items()}


def _stands_alone(name: str, layer: nn.Module) -> bool:
    """Whether it is a layer that no `ConvNormAct` holds."""
    return name.partition(".")[0] in ("up", "head", "coarse_heads") and bool(layer._parameters)
