"""Networks that MONAI holds, behind our contract: V-Net, DynUNet, SegResNet, MedNeXt and HighResNet.

The layers are MONAI's own, with its names for the weights; the last 1x1x1 convolution is taken off and becomes `head`.
Differs from MONAI: inputs of any size are padded and cropped, heads of coarser scales are returned at their own size,
norms and interpolations keep the channels-last layout, and a strided 1x1x1 convolution is one of every n-th voxel
(see `ResidualBlock` in blocks.py). Each class says what else differs. MONAI is imported where a network is built: it
takes seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, cat, nn
from torch.nn import functional

from .base import Logits, SegmentationNetwork, memory_format_of
from .blocks import CONV, LOCAL_NORMS, POINTWISE, Upsample, choose, subsample
from .norms import InstanceNorm2d, InstanceNorm3d
from .receptive_field import Reach
from .unet import Sides, _per_level

# our names in MONAI's words
ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "leaky_relu": ("leakyrelu", {"inplace": True, "negative_slope": 0.01}),
    "relu": ("relu", {"inplace": True}),
    "elu": ("elu", {"inplace": True}),
    "prelu": ("prelu", {}),
}
NORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "batch": ("batch", {"affine": True}),
    "instance": ("instance", {"affine": True}),
    "group": ("group", {"num_groups": 8}),
}


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
            levels.append(_convolved(levels[-1].conv(2, stride=2), 5, convs))
        seen = levels.pop()
        for convs in cls.UP:
            seen = _convolved(seen.up(2).join(levels.pop()), 5, convs)
        return seen.conv(5).size


class DynUNet(SegmentationNetwork):
    """MONAI's DynUNet, the U-Net of nnU-Net (Isensee et al., Nature Methods 2021, arXiv 1904.08128).

    `monai.networks.nets.DynUNet`. Differs from MONAI: deep supervision is a list of the scales' own sizes instead of
    one tensor of maps blown up to the finest one.

    Parameters (1 channel to 2 classes): 16,543,650 in 3D, 5,684,578 in 2D; those of our `unet` with its defaults.

    Args:
        widths: channels per level, shallow to deep.
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
        widths: Sequence[int] = (32, 64, 128, 256, 320),
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
        levels = len(widths)
        if levels < 3:
            raise ValueError(f"a DynUNet has at least three levels, got widths={list(widths)}")
        if norm == "group":
            _check_groups("widths", widths)
        if not 1 <= deep_supervision < levels:
            raise ValueError(f"{levels} levels have 1 to {levels - 1} output scales, got {deep_supervision=}")
        kernel = _per_level("kernels", [3] * levels if kernels is None else kernels, levels, spatial_dims)
        stride = _per_level("strides", [1] + [2] * (levels - 1) if strides is None else strides, levels, spatial_dims)
        for k, s in zip(kernel, stride, strict=True):
            if any(side % 2 == 0 or step > side for side, step in zip(k, s, strict=True)):
                raise ValueError(f"a kernel of DynUNet is odd and no smaller than its stride; got {k} with stride {s}")
        if any(side != 1 for side in stride[0]):
            raise ValueError(f"the first level has the image's size, its stride is 1; got strides={strides}")
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
            seen = _convolved(seen.up(strides[level + 1]).join(levels[level]), kernels[level + 1], 2)
        return seen.size


class SegResNet(SegmentationNetwork):
    """SegResNet: a residual encoder, wide, and a thin decoder that adds its skips (Myronenko, arXiv 1810.11654).

    `monai.networks.nets.SegResNet`, without the auto-encoder branch. The width is the paper's 32, MONAI's default is 8.

    Parameters (1 channel to 2 classes): 18,796,002 in 3D, 6,298,530 in 2D.

    Args:
        width: channels at the image's resolution; each level has twice as many. Group norm wants a multiple of 8.
        blocks: residual blocks per level of the encoder; each level of the decoder has one.
        norm: "group" (of 8 groups), "instance" or "batch".
        activation: "relu", "leaky_relu", "elu" or "prelu".
        dropout: share of channels dropped behind the first convolution (0.2 in the paper).

    Shape:
        image: (N, in_channels, *S), padded to multiples of 8 with four levels.
        returns: logits (N, out_channels, *S).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 32,
        blocks: Sequence[int] = (1, 2, 2, 4),
        norm: str = "group",
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        from monai.networks.nets import segresnet

        choose("norm", norm, NORMS)
        choose("activation", activation, ACTIVATIONS)
        if len(blocks) < 2 or min(blocks) < 1:
            raise ValueError(f"SegResNet has two levels or more of at least one block each, got blocks={list(blocks)}")
        if norm == "group":
            _check_groups("width", [width])
        depth = len(blocks) - 1
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            stride=(2**depth,) * spatial_dims,
            receptive_field=(self._reach(blocks),) * spatial_dims if norm in LOCAL_NORMS else None,
        )
        self.at_least_two = True
        net = segresnet.SegResNet(
            spatial_dims,
            width,
            in_channels,
            out_channels,
            dropout_prob=dropout or None,
            act=ACTIVATIONS[activation],
            norm=NORMS[norm],
            blocks_down=tuple(blocks),
            blocks_up=(1,) * depth,
        )
        keep_layout(net)
        self.net = net
        for up in net.up_samples:
            up[1] = Upsample(2, "linear")
        *before, head = net.conv_final
        net.conv_final = nn.Sequential(*before)
        if activation != "prelu":  # no weights of its own: MONAI keeps one for all
            net.act_mod = nn.Identity()
        self.head = head

    def body(self, image: Tensor) -> Tensor:
        """What goes into the last 1x1x1 convolution."""
        result: Tensor = self.net(image)
        return result

    @staticmethod
    def _reach(blocks: Sequence[int]) -> int:
        """Receptive field along one axis."""
        seen = Reach.of_input(2 ** (len(blocks) - 1)).conv(3)
        levels: list[Reach] = []
        for level, count in enumerate(blocks):
            seen = _convolved(seen.conv(3, stride=2) if level else seen, 3, 2 * count)
            levels.append(seen)
        levels.pop()
        while levels:
            seen = _convolved(seen.linear(2).join(levels.pop()), 3, 2)
        return seen.size


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
        for block in self.net.down_blocks:
            block.res_conv = PointwiseDown(cast(nn.Module, block.res_conv))
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


class HighResNet(SegmentationNetwork):
    """HighRes3DNet: residual blocks of dilated convolutions at the image's own resolution, never down-sampled.

    Li et al., IPMI 2017; `monai.networks.nets.HighResNet`. Differs from MONAI: the last convolution gives the logits
    and has a bias, where MONAI puts a norm and a ReLU behind it, so that no logit could be negative.

    Parameters (1 channel to 2 classes): 808,946 in 3D, 274,130 in 2D.

    Args:
        width: channels of the first of three groups of blocks; the others have twice and four times as many, the
            layer in front of the head five times.
        repeats: blocks per group.
        norm: "batch" or "instance".
        activation: "relu", "leaky_relu", "elu" or "prelu".
        dropout: share of features dropped in front of the head.

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
        width: int = 16,
        repeats: int = 3,
        norm: str = "batch",
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        from monai.networks.nets import highresnet

        choose("norm", norm, ("batch", "instance"))
        choose("activation", activation, ACTIVATIONS)
        if repeats < 1:
            raise ValueError(f"a group has at least one block, got {repeats=}")
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            stride=(1,) * spatial_dims,
            # two convolutions a block, of dilation 1, 2 and 4
            receptive_field=(3 + repeats * 2 * 2 * (1 + 2 + 4),) * spatial_dims if norm in LOCAL_NORMS else None,
        )
        self.at_least_two = True
        net = highresnet.HighResNet(
            spatial_dims,
            in_channels,
            out_channels,
            norm_type=NORMS[norm],
            acti_type=ACTIVATIONS[activation],
            dropout_prob=dropout,
            layer_params=[
                {"name": "conv_0", "n_features": width, "kernel_size": 3},
                *(
                    {"name": f"res_{2**level}", "n_features": width * 2**level, "kernels": (3, 3), "repeat": repeats}
                    for level in range(3)
                ),
                {"name": "conv_1", "n_features": 5 * width, "kernel_size": 1},
                {"name": "conv_2", "kernel_size": 1},
            ],
        )
        keep_layout(net)
        self.blocks = nn.ModuleList(list(net.blocks)[:-1])
        self.head = CONV[spatial_dims](5 * width, out_channels, 1)

    def body(self, image: Tensor) -> Tensor:
        """What goes into the last 1x1x1 convolution."""
        for block in self.blocks:
            if hasattr(block, "chn_pad"):
                result: Tensor = cast(nn.Module, block.layers)(image)
                image = result + with_empty_channels(image, result.shape[1])
            else:
                image = block(image)
        return image


# what MONAI's layers become


def take_off(module: nn.Module, name: str) -> nn.Module:
    """A layer of a module, which passes on what it got from now on."""
    layer = getattr(module, name)
    setattr(module, name, nn.Identity())
    return cast(nn.Module, layer)


def keep_layout(module: nn.Module) -> None:
    """Put layers that keep the channels-last layout in the place of those that do not, in a fresh network."""
    for part in list(module.modules()):
        for name, child in list(part.named_children()):
            if type(child) is nn.Conv3d and child.kernel_size == child.stride == (1, 1, 1):
                ours: Any = POINTWISE[3](child.in_channels, child.out_channels, bias=child.bias is not None)
                ours.weight, ours.bias = child.weight, child.bias
                setattr(part, name, ours)
            elif isinstance(child, nn.InstanceNorm2d | nn.InstanceNorm3d):
                flat = isinstance(child, nn.InstanceNorm2d)
                if child.affine:
                    ours = (InstanceNorm2d if flat else InstanceNorm3d)(child.num_features)
                else:
                    ours = (PlainNorm2d if flat else PlainNorm3d)(child.num_features)
                setattr(part, name, ours)


def with_empty_channels(image: Tensor, channels: int) -> Tensor:
    """As many channels as asked for: zeros in front and behind, half of them each; memory format kept."""
    missing = channels - image.shape[1]
    if missing == 0:
        return image
    layout = memory_format_of(image)

    def zeros(count: int) -> Tensor:
        size = (len(image), count, *image.shape[2:])
        return torch.zeros(size, dtype=image.dtype, device=image.device).contiguous(memory_format=layout)

    return cat((zeros(missing // 2), image, zeros(missing - missing // 2)), dim=1)


class PlainNorm2d(nn.InstanceNorm2d):
    """Without scale and shift, memory format kept."""

    def forward(self, image: Tensor) -> Tensor:
        """(N, width, X, Y), each channel of each sample normalised over its voxels."""
        return super().forward(image).contiguous(memory_format=memory_format_of(image))


class PlainNorm3d(nn.InstanceNorm3d):
    """Without scale and shift, memory format kept."""

    def forward(self, image: Tensor) -> Tensor:
        """(N, width, X, Y, Z), each channel of each sample normalised over its voxels."""
        return super().forward(image).contiguous(memory_format=memory_format_of(image))


class PointwiseDown(nn.Module):
    """A 1x1x1 convolution of stride 2, as one of every second voxel; it takes the weights of `conv`."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.weight = conv.weight
        self.bias = conv.bias
        self.stride: tuple[int, ...] = tuple(cast(Sequence[int], conv.stride))

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, *S) to (N, K, *S / 2)."""
        fewer = subsample(image, self.stride)
        apply = functional.conv2d if image.ndim == 4 else functional.conv3d
        result: Tensor = apply(fewer, cast(Tensor, self.weight), cast(Tensor, self.bias))
        return result.contiguous(memory_format=memory_format_of(image))


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


def _convolved(seen: Reach, kernel: int, times: int) -> Reach:
    for _ in range(times):
        seen = seen.conv(kernel)
    return seen


def _check_groups(what: str, widths: Sequence[int]) -> None:
    if any(width % 8 for width in widths):
        raise ValueError(f"group norm has 8 groups, so channels are multiples of 8; got {what}={list(widths)}")
