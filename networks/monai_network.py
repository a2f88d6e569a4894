"""A network of MONAI's by its class and its arguments, behind our contract: what was trained elsewhere goes on here.

The class is one of `CLASSES` and the arguments are plain values, so that nothing of a stranger's is executed. Weights
keep MONAI's names below `net.`; the last 1x1x1 convolution is taken off and becomes `head` where a class ends with one.
`monai_weights` turns the names of a MONAI checkpoint into these. Differs from MONAI: inputs of any size are padded and
cropped; deep supervision is left out; norms and interpolations keep the channels-last layout.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, nn

from ..errors import UsageError, unknown
from .base import SegmentationNetwork
from .blocks import Upsample
from .monai_layers import keep_layout
from .swin_unetr import NumbersOnCPU

Arguments = Mapping[str, Any]
SIZES = ("spatial_dims", "in_channels", "out_channels")
# of no matter to what a trained network gives, or code
LEFT_OUT = ("pretrained", "use_checkpoint", "img_size", "deep_supervision", "deep_supr_num")
CODE = ("preprocess", "norm_layer")


@dataclass(frozen=True)
class Kind:
    """What MONAI does not say of a class.

    Args:
        stride: of a network that was built, along each axis.
        head: name of its last 1x1x1 convolution; "" where there is none.
        unused: modules that forward does not go through by this name.
        moves: whether the logits move with the image.
    """

    stride: Callable[[Any, Arguments, int], Sequence[int]]
    head: str = ""
    unused: tuple[str, ...] = ()
    moves: bool = True


def _of_strides(net: Any, arguments: Arguments, dims: int) -> list[int]:
    """Strides that are arguments, one number or one for each axis."""
    steps = [[step] * dims if isinstance(step, int) else list(step) for step in arguments["strides"]]
    if "channels" in arguments:
        steps = steps[: len(arguments["channels"]) - 1]
    return [prod(step[axis] for step in steps) for axis in range(dims)]


def _same(step: int) -> Callable[[Any, Arguments, int], Sequence[int]]:
    return lambda net, arguments, dims: [step] * dims


CLASSES: dict[str, Kind] = {
    "UNet": Kind(_of_strides),
    "BasicUNet": Kind(_same(16), "final_conv"),
    "AttentionUnet": Kind(_of_strides, "model.2.conv"),
    "SegResNet": Kind(
        lambda net, arguments, dims: [2 ** (len(net.blocks_down) - 1)] * dims, "conv_final.2.conv", ("act_mod",)
    ),
    "SegResNetDS": Kind(lambda net, arguments, dims: [int(step) for step in net.shape_factor()]),
    "DynUNet": Kind(
        _of_strides,
        "output_block.conv.conv",
        ("input_block", "downsamples", "bottleneck", "upsamples", "deep_supervision_heads"),
    ),
    "VNet": Kind(_same(16), "out_tr.conv2"),
    "SwinUNETR": Kind(lambda net, arguments, dims: [int(net.patch_size) ** 5] * dims, "out.conv.conv", moves=False),
    "FlexibleUNet": Kind(_same(32)),
    "HighResNet": Kind(_same(1)),
}


class MonaiNetwork(SegmentationNetwork):
    """One of MONAI's networks, with MONAI's arguments.

    Parameters (1 channel to 2 classes): 4,808,917 in 3D, 1,627,597 in 2D, with MONAI's residual U-Net of five levels.

    Args:
        class_name: a key of `CLASSES`.
        arguments: of the class beyond spatial_dims, in_channels and out_channels; plain values.
        width: channels of the first level of a residual U-Net of five levels, where there are no arguments.

    Shape:
        image: (N, in_channels, *S), padded to multiples of the class's stride.
        returns: logits (N, out_channels, *S).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        class_name: str = "UNet",
        arguments: dict[str, Any] | None = None,
        width: int = 16,
    ) -> None:
        if arguments is None:
            arguments = residual_unet(width)
        net = build_monai(class_name, spatial_dims, in_channels, out_channels, arguments)
        kind = CLASSES[class_name]
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            stride=kind.stride(net, arguments, spatial_dims),
            receptive_field=None,
        )
        self.at_least_two = True
        self.moves_with_image = kind.moves
        for name in kind.unused:
            if hasattr(net, name):
                delattr(net, name)
        keep_layout(net)
        keep_layout_of_interpolations(net)
        head = net.get_submodule(kind.head) if kind.head else None
        if head is not None:
            parent, _, name = kind.head.rpartition(".")
            setattr(net.get_submodule(parent), name, nn.Identity())
        self.net = net
        self.head = head

    def forward_aligned(self, image: Tensor) -> Tensor:
        """Logits of the finest scale."""
        logits = self.body(image)
        return logits if self.head is None else self.head(logits)

    def body(self, image: Tensor) -> Tensor:
        """What goes into the last 1x1x1 convolution; the logits where there is none."""
        result = self.net(image)
        finest: Tensor = result if isinstance(result, Tensor) else result[0]
        return finest


def residual_unet(width: int) -> dict[str, Any]:
    """Arguments of the U-Net that most bundles hold, with trained norms."""
    return {
        "channels": [width * 2**level for level in range(5)],
        "strides": [2, 2, 2, 2],
        "num_res_units": 2,
        "norm": ["instance", {"affine": True}],
    }


def build_monai(class_name: str, spatial_dims: int, in_channels: int, out_channels: int, arguments: Arguments) -> Any:
    """A network as MONAI builds it, with fresh weights; deep supervision and checkpointing are off.

    Raises:
        UsageError: no such class, an argument that it has not, or one that is no plain value.
    """
    from monai.networks import nets

    if class_name not in CLASSES:
        raise unknown("class of network 'monai':", class_name, CLASSES)
    made = getattr(nets, class_name)
    known = [name for name in inspect.signature(made).parameters if name not in (*SIZES, *CODE)]
    given = {name: value for name, value in arguments.items() if name not in LEFT_OUT}
    for name, value in given.items():
        if name not in known:
            raise unknown(f"argument of MONAI's {class_name}:", name, known)
        if not is_plain(value):
            raise UsageError(f"argument {name} of MONAI's {class_name} holds {value!r}; numbers, words and lists go")
    with NumbersOnCPU():
        return made(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            out_channels=out_channels,
            **copy.deepcopy(given),
        )


def monai_weights(network: MonaiNetwork, class_name: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under MONAI's names as those of the network.

    `X` is `net.X`, and below the class's last 1x1x1 convolution `head.X`. Modules that MONAI holds twice are taken
    once, under the name that forward goes through; heads of deep supervision are left out.

    Raises:
        UsageError: names that the network has not, or shapes of another one.
    """
    kind = CLASSES[class_name]
    own = network.state_dict()
    found: dict[str, Tensor] = {}
    strange = []
    for name, value in weights.items():
        ours = f"net.{name}"
        if kind.head and name.rpartition(".")[0] == kind.head:
            ours = f"head.{name.rpartition('.')[2]}"
        if ours in own:
            found[ours] = value
        elif name.partition(".")[0] not in kind.unused and ".super_head." not in name:
            strange.append(name)
    missing = [name for name in own if name not in found]
    wrong = [name for name, value in found.items() if value.shape != own[name].shape]
    if strange or missing or wrong:
        parts = [
            f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for names, what in (
                (missing, "are missing"),
                (strange, "are unknown"),
                (wrong, "have another shape"),
            )
            if names
        ]
        raise UsageError(f"the weights are not those of MONAI's {class_name} with these arguments: {', '.join(parts)}")
    return {name: value.to(own[name].dtype) for name, value in found.items()}


def usual_sizes(class_name: str) -> dict[str, int]:
    """Spatial dims and channels that a class has where its arguments do not say; none for one that must be told."""
    from monai.networks import nets

    parameters = inspect.signature(getattr(nets, class_name)).parameters
    return {name: parameters[name].default for name in SIZES if isinstance(parameters[name].default, int)}


def is_plain(value: Any) -> bool:
    """Whether a value is made of numbers, words, lists and dictionaries alone."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def keep_layout_of_interpolations(module: nn.Module) -> None:
    """Put interpolations that keep the channels-last layout in the place of MONAI's linear ones."""
    for part in list(module.modules()):
        for name, child in list(part.named_children()):
            if (
                isinstance(child, nn.Upsample)
                and child.mode in ("bilinear", "trilinear")
                and not child.align_corners
                and isinstance(child.scale_factor, (tuple, float))
            ):
                factors = {child.scale_factor} if isinstance(child.scale_factor, float) else set(child.scale_factor)
                scale = factors.pop()
                if not factors and scale == int(scale):
                    setattr(part, name, Upsample(int(scale), "linear"))
