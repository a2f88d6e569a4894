"""Dilated U-Net (DC-U-Net): a U-Net whose convolutions are dilated by rates without holes, for lungs in CT.

In the manner of Yan, MSc thesis, Dalian University of Technology 2019, whose rates and widths could not be read: ours
are a U-Net of 64 to 1024 channels with padded convolutions, each level's convolutions dilated by `rates`, and one more
1x1 convolution in front of the output. Rates follow Wang et al., WACV 2018 (HDC): the taps of a level's convolutions
together reach every voxel around, which is checked for the rates that are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

from .pooled_unet import PooledUNet

LEVELS = 5


class DilatedUNet(PooledUNet):
    """U-Net with dilated convolutions.

    Parameters (1 channel to 1 class, 2D): 31,034,753, as many as without dilation.

    Args:
        width: channels of the first level; the others have 2, 4, 8 and 16 times as many.
        rates: dilation of each convolution of a level; two as in a U-Net, or three such as (1, 2, 5).
        norm: "none", "batch", "instance" or "group".
        activation: a key of `ACTIVATIONS`.

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
        rates: Sequence[int] = (1, 2),
        norm: str = "none",
        activation: str = "relu",
    ) -> None:
        offsets = reached(rates)
        if not rates or min(rates) < 1 or offsets != list(range(offsets[0], offsets[-1] + 1)):
            raise ValueError(
                f"rates={tuple(rates)} leave holes between the voxels that they reach ({len(offsets)} of "
                f"{offsets[-1] - offsets[0] + 1}); take such as (1, 2) or (1, 2, 5)"
            )
        widths = [width * 2**level for level in range(LEVELS)]
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            down=[(side,) * len(rates) for side in widths],
            up=widths[:-1],
            joined=[(side,) * len(rates) for side in widths[:-1]],
            padding="same",
            norm=norm,
            activation=activation,
            dilations=rates,
            last=True,
        )


def reached(rates: Sequence[int]) -> list[int]:
    """Offsets that a chain of convolutions of side 3 with these dilations reaches along one axis."""
    offsets = {0}
    for rate in rates:
        offsets = {offset + step for offset in offsets for step in (-rate, 0, rate)}
    return sorted(offsets)
