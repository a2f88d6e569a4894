"""Res-UNet, the name of two builds: a ResNet encoder with a U-Net decoder, or a U-Net of residual units.

The first is the ablation arm of Ye and Hua 2022 (`res_att_unet.py`), `res_unet` without options. The second, with
`units`, is MONAI's: every level is a residual unit (He et al., CVPR 2016), strided convolutions lead down and
transposed ones up. The name is also that of Lian et al., IEEE/ACM TCBB 18 (2021), for vessels of the retina, whose
layers could not be read: both are in the manner of theirs.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import UsageError
from .base import SegmentationNetwork
from .blocks import LOCAL_NORMS, choose
from .monai_layers import ACTIVATIONS, NORMS, keep_layout
from .receptive_field import Reach
from .res_att_unet import ResUNet

LEVELS = 5
UNIT_NORMS: dict[str, Any] = {
    **NORMS,
    "instance": ("instance", {}),
    "group": ("group", {"num_groups": 1}),  # the last levels have as many channels as there are classes
    "none": None,
}


class ResidualUNet(SegmentationNetwork):
    """U-Net of residual units, `monai.networks.nets.UNet`.

    Differs from MONAI: inputs of any size are padded and cropped; norms keep the channels-last layout.

    Parameters: 25,969,628 (1 channel to 1 class, 2D); 4,806,481 (1 to 2, 3D, with width=16).

    Args:
        width: channels of the first level; the others have 2, 4, 8 and 16 times as many.
        units: convolutions of each residual unit on the way down.
        norm: "instance" (without scale and shift) as MONAI has it, "batch", "group" (a single one) or "none".
        activation: "prelu" as MONAI has it, "relu", "leaky_relu" or "elu".

    Shape:
        image: (N, in_channels, *S), padded to multiples of 16.
        returns: logits (N, out_channels, *S).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 64,
        units: int = 2,
        norm: str = "instance",
        activation: str = "prelu",
    ) -> None:
        from monai.networks.nets.unet import UNet

        choose("norm", norm, UNIT_NORMS)
        choose("activation", activation, ACTIVATIONS)
        if units < 1:
            raise ValueError(f"a residual unit has one convolution or more, got {units=}")
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            stride=(2 ** (LEVELS - 1),) * spatial_dims,
            receptive_field=(_reach(units),) * spatial_dims if norm in LOCAL_NORMS else None,
        )
        self.at_least_two = norm != "none"
        self.layers = UNet(
            spatial_dims,
            in_channels,
            out_channels,
            channels=[width * 2**level for level in range(LEVELS)],
            strides=[2] * (LEVELS - 1),
            num_res_units=units,
            act=ACTIVATIONS[activation],
            norm=UNIT_NORMS[norm],
        )
        keep_layout(self.layers)

    def forward_aligned(self, image: Tensor) -> Tensor:
        """Logits of an aligned image."""
        logits: Tensor = self.layers(image)
        return logits


def build_res_unet(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    *,
    encoder: str | None = None,
    units: int | None = None,
    width: int | None = None,
    norm: str | None = None,
    activation: str | None = None,
) -> SegmentationNetwork:
    """`ResidualUNet` where `units` are given, otherwise `ResUNet`; what is left out has that class's default.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the image.
        out_channels: classes, background included.
        encoder: of `ResUNet`, such as resnet34.
        units: of `ResidualUNet`.
        width: channels of the first level.
        norm: of all layers.
        activation: of `ResUNet`'s decoder, or of all layers.

    Raises:
        UsageError: an encoder and units.
    """
    given = {"width": width, "norm": norm, "activation": activation}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if units is None:
        options |= {} if encoder is None else {"encoder": encoder}
        return ResUNet(spatial_dims, in_channels, out_channels, **options)
    if encoder is not None:
        raise UsageError(f"{encoder=} and {units=} are two builds of res_unet; give one of them")
    return ResidualUNet(spatial_dims, in_channels, out_channels, units=units, **options)


def _reach(units: int) -> int:
    """Receptive field of the logits along one axis."""
    seen = Reach.of_input(2 ** (LEVELS - 1))
    skips: list[Reach] = []
    for level in range(LEVELS):
        seen = seen.conv(3, stride=2 if level < LEVELS - 1 else 1).convs(3, units - 1)
        skips.append(seen)
    skips.pop()
    for skip in reversed(skips):
        seen = seen.join(skip).up(2, 3, 1).conv(3)
    return seen.size
