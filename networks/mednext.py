"""MedNeXt as MONAI holds it, behind our contract: a U-Net of ConvNeXt blocks, residual where it changes its size too.

Roy et al., MICCAI 2023, arXiv 2303.09975. The layers are MONAI's (monai_layers.py says what becomes of them).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from .base import Logits, SegmentationNetwork, memory_format_of
from .blocks import CONV, choose
from .monai_layers import keep_layout

# expansion of encoder, bottleneck and decoder; blocks of encoder, bottleneck and decoder
MEDNEXT: Mapping[str, tuple[Sequence[int], int, Sequence[int], Sequence[int], int, Sequence[int]]] = {
    "S": ((2, 2, 2, 2), 2, (2, 2, 2, 2), (2, 2, 2, 2), 2, (2, 2, 2, 2)),
    "B": ((2, 3, 4, 4), 4, (4, 4, 3, 2), (2, 2, 2, 2), 2, (2, 2, 2, 2)),
    "M": ((2, 3, 4, 4), 4, (4, 4, 3, 2), (3, 4, 4, 4), 4, (4, 4, 4, 3)),
    "L": ((3, 4, 8, 8), 8, (8, 8, 4, 3), (3, 4, 8, 8), 8, (8, 8, 4, 3)),
}


class MedNeXt(SegmentationNetwork):
    """MedNeXt: a U-Net of ConvNeXt blocks, residual where it changes its size too (Roy et al., MICCAI 2023).

    `monai.networks.nets.MedNeXt`, arXiv 2303.09975. Differs from MONAI: the heads are convolutions, where MONAI has
    transposed ones of side 1 (the same function, the weight transposed).

    Parameters (1 channel to 2 classes, variant S): 5,550,914 in 3D, 5,472,002 in 2D.

    Args:
        variant: "S", "B", "M" or "L".
        width: channels at the image's resolution; each of the five levels has twice as many.
        kernel: side of the depthwise convolutions; 3 or 5 in the paper.
        deep_supervision: number of output scales in training mode; with 1 a tensor is returned instead of a list.

    Shape:
        image: (N, in_channels, *S), padded to multiples of 16.
        returns: logits (N, out_channels, *S); in training mode with `deep_supervision` > 1 a list, finest first.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        variant: str = "S",
        width: int = 32,
        kernel: int = 3,
        deep_supervision: int = 1,
    ) -> None:
        from monai.networks.nets import mednext

        choose("variant of MedNeXt:", variant, MEDNEXT)
        if kernel % 2 == 0:
            raise ValueError(f"kernels are odd, so that sizes are kept; got {kernel=}")
        if not 1 <= deep_supervision <= 5:
            raise ValueError(f"MedNeXt has 1 to 5 output scales, got {deep_supervision=}")
        super().__init__(spatial_dims, in_channels, out_channels, stride=(16,) * spatial_dims, receptive_field=None)
        self.at_least_two = True
        self.deep_supervision = deep_supervision
        encoder, bottleneck, decoder, down, deep, up = MEDNEXT[variant]
        self.net = mednext.MedNeXt(
            spatial_dims,
            width,
            in_channels,
            out_channels,
            encoder_expansion_ratio=encoder,
            decoder_expansion_ratio=decoder,
            bottleneck_expansion_ratio=bottleneck,
            kernel_size=kernel,
            use_residual_connection=True,
            blocks_down=down,
            blocks_bottleneck=deep,
            blocks_up=up,
        )
        del self.net.out_0
        keep_layout(self.net)
        for block in self.net.up_blocks:
            block.res_conv = PointwiseUp(cast(nn.Module, block.res_conv))
        conv = CONV[spatial_dims]
        self.head = conv(width, out_channels, 1)
        self.coarse_heads = nn.ModuleList(
            conv(width * 2**level, out_channels, 1) for level in range(1, deep_supervision)
        )

    def decode(self, image: Tensor) -> list[Tensor]:
        """One feature map a level, shallow to deep."""
        skips = [self.net.stem(image)]
        for stage, down in zip(self.net.enc_stages, self.net.down_blocks, strict=True):
            skips[-1] = stage(skips[-1])
            skips.append(down(skips[-1]))
        decoded = [self.net.bottleneck(skips.pop())]
        for up, stage in zip(self.net.up_blocks, self.net.dec_stages, strict=True):
            decoded.insert(0, stage(up(decoded[0]) + skips.pop()))
        return decoded

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


class PointwiseUp(nn.Module):
    """A transposed 1x1x1 convolution of stride 2, as one of stride 1 whose voxels are set apart.

    It takes the weights of `conv`; the voxels between hold the bias alone.
    """

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.weight = conv.weight
        self.bias = conv.bias

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, *S) to (N, K, *(2 * S - 1))."""
        dims, layout = image.ndim - 2, memory_format_of(image)
        apply = functional.conv_transpose2d if dims == 2 else functional.conv_transpose3d
        dense = apply(image, cast(Tensor, self.weight))
        apart = dense.reshape(*dense.shape[:2], *(side for size in dense.shape[2:] for side in (size, 1)))
        apart = functional.pad(apart, (1, 0, 0, 0) * dims)
        apart = apart.reshape(*dense.shape[:2], *(2 * size for size in dense.shape[2:]))
        for axis in range(2, image.ndim):
            apart = apart.narrow(axis, 1, apart.shape[axis] - 1)
        result: Tensor = apart + cast(Tensor, self.bias).view(-1, *(1,) * dims)
        return result.contiguous(memory_format=layout)
