"""V-Net as MONAI holds it, behind our contract: `vnet` is the paper's.

Milletari et al., 3DV 2016. The layers are MONAI's (monai_layers.py says what becomes of them).
"""

from __future__ import annotations

from torch import Tensor, nn

from .base import SegmentationNetwork
from .blocks import POINTWISE, choose
from .monai_layers import ACTIVATIONS, take_off
from .receptive_field import Reach


class VNetMonai(SegmentationNetwork):
    """MONAI's V-Net: 1, 1, 2, 3, 2 convolutions per stage, batch norm, ELU and dropout; `vnet` is the paper's.

    Milletari et al., 3DV 2016, as `monai.networks.nets.VNet` has it: 30 % fewer parameters than the paper's.
    Differs from MONAI: dropout takes whole channels in two dimensions too; an image of channels that do not divide the
    width is projected to it by a 1x1x1 convolution, where MONAI raises.

    Parameters (1 channel to 2 classes): 45,597,898 in 3D, 9,358,730 in 2D.

    Args:
        width: channels of the first stage; the others have 2, 4, 8 and 16 times as many.
        activation: "elu", "relu", "leaky_relu" or "prelu".
        dropout: share of channels dropped in front of and behind the deepest stages, and in skips.

    Shape:
        image: (N, in_channels, *S), padded to multiples of 16.
        returns: logits (N, out_channels, *S).
    """

    DOWN = (1, 2, 3, 2)  # convolutions per stage behind the first
    UP = (2, 2, 1, 1)

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 16,
        activation: str = "elu",
        dropout: float = 0.5,
    ) -> None:
        from monai.networks.nets import vnet

        choose("activation", activation, ACTIVATIONS)
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            stride=(16,) * spatial_dims,
            receptive_field=(self._reach(),) * spatial_dims,
        )
        self.at_least_two = True
        act = ACTIVATIONS[activation]
        fits = width % in_channels == 0
        self.project = nn.Identity() if fits else POINTWISE[spatial_dims](in_channels, width)
        self.in_tr = vnet.InputTransition(spatial_dims, in_channels if fits else width, width, act)
        self.down = nn.ModuleList(
            vnet.DownTransition(
                spatial_dims, width * 2**level, convs, act, dropout if level > 1 else None, dropout_dim=spatial_dims
            )
            for level, convs in enumerate(self.DOWN)
        )
        below = [width * times for times in (16, 16, 8, 4)]
        sides = [width * times for times in (16, 8, 4, 2)]
        self.up = nn.ModuleList(
            vnet.UpTransition(
                spatial_dims,
                coarse,
                side,
                convs,
                act,
                (dropout if level < 2 else None, dropout),
                dropout_dim=spatial_dims,
            )
            for level, (coarse, side, convs) in enumerate(zip(below, sides, self.UP, strict=True))
        )
        self.out_tr = vnet.OutputTransition(spatial_dims, 2 * width, out_channels, act)
        self.head = take_off(self.out_tr, "conv2")

    def body(self, image: Tensor) -> Tensor:
        """What goes into the last 1x1x1 convolution."""
        skips = [self.in_tr(self.project(image))]
        for down in self.down:
            skips.append(down(skips[-1]))
        decoded = skips.pop()
        for up in self.up:
            decoded = up(decoded, skips.pop())
        result: Tensor = self.out_tr(decoded)
        return result

    @classmethod
    def _reach(cls) -> int:
        """Receptive field along one axis."""
        levels = [Reach.of_input(16).conv(5)]
        for convs in cls.DOWN:
            levels.append(levels[-1].conv(2, stride=2).convs(5, convs))
        seen = levels.pop()
        for convs in cls.UP:
            seen = seen.up(2).join(levels.pop()).convs(5, convs)
        return seen.conv(5).size
