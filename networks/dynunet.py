"""DynUNet as MONAI holds it, behind our contract: the U-Net of nnU-Net.

Isensee et al., Nature Methods 18 (2021), arXiv 1904.08128. The layers are MONAI's (monai_layers.py says what becomes of
them).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from .base import Logits, SegmentationNetwork
from .blocks import LOCAL_NORMS, choose
from .levels import Sides, sides_of
from .monai_layers import ACTIVATIONS, NORMS, check_groups, keep_layout
from .receptive_field import Reach


class DynUNet(SegmentationNetwork):
    """MONAI's DynUNet, the U-Net of nnU-Net (Isensee et al., Nature Methods 2021, arXiv 1904.08128).

    `monai.networks.nets.DynUNet`. Differs from MONAI: deep supervision is a list of the scales' own sizes instead of
    one tensor of maps blown up to the finest one.

    Parameters (1 channel to 2 classes): 16,543,650 in 3D, 5,684,578 in 2D; those of our `unet` with its defaults.

    Args:
        width: channels of the first of five levels; the next have twice as many each, up to ten times.
        widths: channels per level instead, shallow to deep.
        kernels: per level, one odd size or one per axis; default 3.
        strides: per level, one step or one per axis, that leads into the level; default 1, then 2. The first must be 1.
        residual: residual blocks in the encoder.
        norm: "instance", "batch" or "group" (of 8 groups).
        activation: "leaky_relu", "relu", "elu" or "prelu".
        deep_supervision: number of output scales in training mode; with 1 a tensor is returned instead of a list.

    Shape:
        image: (N, in_channels, *S).
        returns: logits (N, out_channels, *S); in training mode with `deep_supervision` > 1 a list, finest first.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 32,
        widths: Sequence[int] | None = None,
        kernels: Sequence[Sides] | None = None,
        strides: Sequence[Sides] | None = None,
        residual: bool = False,
        norm: str = "instance",
        activation: str = "leaky_relu",
        deep_supervision: int = 1,
    ) -> None:
        from monai.networks.nets import dynunet

        choose("norm", norm, NORMS)
        choose("activation", activation, ACTIVATIONS)
        widths = [min(width * 2**level, 10 * width) for level in range(5)] if widths is None else list(widths)
        levels = len(widths)
        if levels < 3:
            raise ValueError(f"a DynUNet has at least three levels, got {widths=}")
        if norm == "group":
            check_groups("widths", widths)
        if not 1 <= deep_supervision < levels:
            raise ValueError(f"{levels} levels have 1 to {levels - 1} output scales, got {deep_supervision=}")
        kernel, stride = sides_of(kernels, strides, levels, spatial_dims)
        for k, s in zip(kernel, stride, strict=True):
            if any(side % 2 == 0 or step > side for side, step in zip(k, s, strict=True)):
                raise ValueError(f"a kernel of DynUNet is odd and no smaller than its stride; got {k} with stride {s}")
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            stride=[prod(sides[axis] for sides in stride) for axis in range(spatial_dims)],
            receptive_field=[
                self._reach([k[axis] for k in kernel], [s[axis] for s in stride]) for axis in range(spatial_dims)
            ]
            if norm in LOCAL_NORMS
            else None,
        )
        self.at_least_two = True
        self.deep_supervision = deep_supervision
        net = dynunet.DynUNet(
            spatial_dims,
            in_channels,
            out_channels,
            kernel,
            stride,
            stride[1:],
            filters=widths,
            norm_name=NORMS[norm],
            act_name=ACTIVATIONS[activation],
            deep_supervision=deep_supervision > 1,
            deep_supr_num=max(1, deep_supervision - 1),
            res_block=residual,
        )
        keep_layout(net)
        self.encoder = nn.ModuleList([net.input_block, *net.downsamples, net.bottleneck])
        self.decoder = nn.ModuleList(net.upsamples)
        self.head = net.output_block.conv.conv
        self.coarse_heads = nn.ModuleList(
            head.conv.conv for head in (net.deep_supervision_heads if deep_supervision > 1 else ())
        )

    def decode(self, image: Tensor) -> list[Tensor]:
        """One feature map a level of the decoder, shallow to deep."""
        skips = [image]
        for stage in self.encoder:
            skips.append(stage(skips[-1]))
        decoded = [skips.pop()]
        for up in self.decoder:
            decoded.insert(0, up(decoded[0], skips.pop()))
        return decoded[:-1]

    def body(self, image: Tensor) -> Tensor:
        """Features of the finest level."""
        return self.decode(image)[0]

    def forward_aligned(self, image: Tensor) -> Logits:
        """Logits, in training mode one for each output scale."""
        assert self.head is not None
        levels = self.decode(image)
        finest: Tensor = self.head(levels[0])
        if not self.training or self.deep_supervision == 1:
            return finest
        return [finest, *(head(level) for head, level in zip(self.coarse_heads, levels[1:], strict=False))]

    @staticmethod
    def _reach(kernels: Sequence[int], strides: Sequence[int]) -> int:
        """Receptive field along one axis."""
        seen = Reach.of_input(prod(strides))
        levels: list[Reach] = []
        for kernel, stride in zip(kernels, strides, strict=True):
            seen = seen.conv(kernel, stride, padding=(kernel - stride + 1) // 2).conv(kernel)
            levels.append(seen)
        for level in reversed(range(len(levels) - 1)):
            # MONAI's decoder goes by the kernels of the level below
            seen = seen.up(strides[level + 1]).join(levels[level]).convs(kernels[level + 1], 2)
        return seen.size
