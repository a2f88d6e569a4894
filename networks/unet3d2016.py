"""3D U-Net as published: valid convolutions, batch norm, channels doubled in front of each pooling.

Çiçek, Abdulkadir, Lienkamp, Brox and Ronneberger, MICCAI 2016, arXiv 1606.06650. Four levels; the transposed
convolutions keep their channels. A tile of 132 x 132 x 116 gives logits of 44 x 44 x 28. An image is mirrored around
and its tile cut to size, so that logits have the image's size; `core` is the network of the paper.

Differs from the paper: the batch norm is affine and the transposed convolutions have a bias (the paper's printed
19,069,955 parameters have neither); padded convolutions and other norms by option; two dimensions by option; any number
of channels.
"""

from __future__ import annotations

from .pooled_unet import PooledUNet

LEVELS = 4


class UNet3D2016(PooledUNet):
    """The 3D U-Net of 2016.

    Parameters (3 channels to 3 classes, 3D): 19,075,523.

    Args:
        width: channels of the first convolution; each level ends with twice what it starts with.
        padding: "valid" as published, or "same".
        norm: "batch" as published, "instance", "group" or "none".
        activation: a key of `ACTIVATIONS`.

    Shape:
        image: (N, in_channels, *S).
        returns: logits (N, out_channels, *S).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 32,
        padding: str = "valid",
        norm: str = "batch",
        activation: str = "relu",
    ) -> None:
        widths = [width * 2 ** (level + 1) for level in range(LEVELS)]
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            down=[(side // 2, side) for side in widths],
            up=widths[1:],
            joined=[(side, side) for side in widths[:-1]],
            padding=padding,
            norm=norm,
            activation=activation,
            dilations=(1, 1),
        )
