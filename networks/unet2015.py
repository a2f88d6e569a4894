"""U-Net as published: valid convolutions, max-pooling and skips that are cropped and joined.

Ronneberger, Fischer and Brox, MICCAI 2015, arXiv 1505.04597. Two convolutions a level with ReLU, no norm, five levels.
A tile of 572 x 572 gives logits of 388 x 388. An image is mirrored around and its tile cut to size, so that logits
have the image's size; `core` is the network of the paper.

Differs from the paper: padded convolutions, norm and other activations by option; any number of channels.
"""

from __future__ import annotations

from .pooled_unet import PooledUNet

LEVELS = 5


class UNet2015(PooledUNet):
    """The 2D U-Net of 2015.

    Parameters: 31,030,658 (1 channel to 2 classes), 7,759,521 (1 to 1, with width=32).

    Args:
        width: channels of the first level; the others have 2, 4, 8 and 16 times as many.
        padding: "valid" as published, or "same".
        norm: "none" as published, "batch", "instance" or "group".
        activation: a key of `ACTIVATIONS`.
        dropout: share of values zeroed behind the last two levels of the way down, in training.

    Shape:
        image: (N, in_channels, X, Y).
        returns: logits (N, out_channels, X, Y).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 64,
        padding: str = "valid",
        norm: str = "none",
        activation: str = "relu",
        dropout: float = 0.5,
    ) -> None:
        widths = [width * 2**level for level in range(LEVELS)]
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            down=[(side, side) for side in widths],
            up=widths[:-1],
            joined=[(side, side) for side in widths[:-1]],
            padding=padding,
            norm=norm,
            activation=activation,
            dilations=(1, 1),
            dropout=dropout,
        )
