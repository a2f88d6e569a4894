"""Convolutional restricted Boltzmann machine, which finds filters in images without labels.

Brosch et al., IEEE TMI 35 (2016); Lee et al., ICML 2009. Trained by contrastive divergence; a stack of them becomes the
start of a convolutional encoder network.

Hidden units are binary, or rectified normal ones (h >= 0, density proportional to exp(h x - h^2 / 2)), whose most
likely value is ReLU(x); so the code is what the layer of the encoder computes. Differs from the authors' library: no
stride and no pooling inside a machine (a stack pools between two of them), visible bias per channel, no target for the
activity of the hidden units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .blocks import choose
from .cen import CEN
from .features import FeatureNetwork

CONVOLVE = {2: functional.conv2d, 3: functional.conv3d}
TRANSPOSED = {2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
LOG_ROOT_2_PI = 0.5 * math.log(2 * math.pi)


class ConvRBM(FeatureNetwork):
    """One convolutional RBM; the code is the hidden units' (mean of binary ones, most likely value of rectified ones).

    Parameters (1 channel, 3D): 23,361.

    Args:
        width: filters.
        kernel: side of the filters.
        visible: "normal" (of unit deviation, behind `standardise`) or "binary".
        hidden: "relu" or "binary".

    Attributes:
        mean, deviation: of the visible channels; 0 and 1 until `measure`.

    Shape:
        image: (N, in_channels, *S), of sides from `kernel` on.
        returns: code (N, width, *(S - kernel + 1)), reconstruction (N, in_channels, *S).
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        *,
        width: int = 32,
        kernel: int = 9,
        visible: str = "normal",
        hidden: str = "relu",
    ) -> None:
        choose("kind of visible units", visible, ("normal", "binary"))
        choose("kind of hidden units", hidden, ("relu", "binary"))
        super().__init__(spatial_dims, in_channels, code_channels=width)
        self.minimum_size = (kernel,) * spatial_dims
        self.visible, self.hidden = visible, hidden
        self.weight = nn.Parameter(torch.empty(width, in_channels, *(kernel,) * spatial_dims))
        self.hidden_bias = nn.Parameter(torch.zeros(width))
        self.visible_bias = nn.Parameter(torch.zeros(in_channels))
        self.register_buffer("mean", torch.zeros(in_channels))
        self.register_buffer("deviation", torch.ones(in_channels))
        nn.init.normal_(self.weight, std=1 / math.sqrt(in_channels * kernel**spatial_dims))

    def measure(self, images: Tensor) -> None:
        """Take mean and deviation of the channels from images; a constant channel has deviation 1."""
        if self.visible == "binary":
            raise ValueError("binary visible units are 0 or 1; they are not standardised")
        channels = images.movedim(1, 0).flatten(1)
        self.mean.copy_(channels.mean(1))
        deviation = channels.std(1)
        self.deviation.copy_(deviation.where(deviation > 1e-6, 1.0))

    def standardise(self, image: Tensor) -> Tensor:
        """The visible units of an image."""
        return (image - _spread(self.mean, image)) / _spread(self.deviation, image)

    def drive(self, visible: Tensor) -> Tensor:
        """What goes into the hidden units: the convolution and their bias."""
        return CONVOLVE[self.spatial_dims](visible, self.weight, self.hidden_bias)

    def visible_mean(self, hidden: Tensor) -> Tensor:
        """Expected visible units under hidden ones."""
        drive = TRANSPOSED[self.spatial_dims](hidden, self.weight, self.visible_bias)
        return drive.sigmoid() if self.visible == "binary" else drive

    def code_of(self, image: Tensor) -> Tensor:
        """Hidden units of an image."""
        drive = self.drive(self.standardise(image))
        return drive.sigmoid() if self.hidden == "binary" else drive.relu()

    def image_of(self, code: Tensor) -> Tensor:
        """Expected image under a code."""
        mean = self.visible_mean(code)
        return mean * _spread(self.deviation, mean) + _spread(self.mean, mean)

    def free_energy(self, visible: Tensor, keep: Tensor | None = None) -> Tensor:
        """-log of the unnormalised density of visible units, hidden ones summed out: (N,).

        Args:
            visible: as `standardise` gives them.
            keep: 1 where a hidden unit takes part, 0 where it is dropped.
        """
        drive = self.drive(visible)
        if self.hidden == "binary":
            terms = functional.softplus(drive)
        else:  # log of the integral of exp(h x - h^2 / 2) over h >= 0
            terms = drive.square() / 2 + torch.special.log_ndtr(drive) + LOG_ROOT_2_PI
        if keep is not None:
            terms = terms * keep
        bias = _spread(self.visible_bias, visible)
        own = -bias * visible if self.visible == "binary" else (visible - bias).square() / 2
        return own.flatten(1).sum(1) - terms.flatten(1).sum(1)

    @torch.no_grad()
    def sample_hidden(self, visible: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Hidden units drawn under visible ones."""
        drive = self.drive(visible)
        uniform = torch.rand(drive.shape, generator=generator, dtype=drive.dtype, device=drive.device)
        if self.hidden == "binary":
            return (uniform < drive.sigmoid()).to(drive.dtype)
        # by the inverse of the upper tail: P(h > t) = Phi(x - t) / Phi(x)
        wide = drive.double()
        tail = (uniform.double() * torch.special.ndtr(wide)).clamp_min(1e-300)
        return (wide - torch.special.ndtri(tail)).clamp_min(0).to(drive.dtype)

    @torch.no_grad()
    def sample_visible(self, hidden: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Visible units drawn under hidden ones."""
        mean = self.visible_mean(hidden)
        if self.visible == "binary":
            return (torch.rand(mean.shape, generator=generator, device=mean.device) < mean).to(mean.dtype)
        return mean + torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)

    @torch.no_grad()
    def walk(
        self, visible: Tensor, steps: int = 1, keep: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Visible units after Gibbs steps: hidden units drawn, then visible ones."""
        for _ in range(steps):
            hidden = self.sample_hidden(visible, generator)
            visible = self.sample_visible(hidden if keep is None else hidden * keep, generator)
        return visible

    def contrastive_divergence(
        self, image: Tensor, *, steps: int = 1, dropout: float = 0.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """A scalar whose gradient is that of contrastive divergence (CD-1 by default); its value is no likelihood.

        Args:
            image: (N, in_channels, *S).
            steps: Gibbs steps away from the image.
            dropout: share of hidden units left out (0.5 in the authors' library).
            generator: where random numbers come from.
        """
        self.check(image)
        visible = self.standardise(image)
        keep = None
        if dropout:
            drive = self.drive(visible)
            keep = (torch.rand(drive.shape, generator=generator, device=drive.device) >= dropout).to(drive.dtype)
        away = self.walk(visible, steps, keep, generator)
        return (self.free_energy(visible, keep) - self.free_energy(away, keep)).mean()


@torch.no_grad()
def convert_rbms(
    rbms: Sequence[ConvRBM], network: CEN, *, outputs: str = "new", generator: torch.Generator | None = None
) -> None:
    """Start an encoder network from machines trained one on the other's code (pooled in between).

    Each encoder layer takes filters and hidden bias, each decoder layer the same filters and the visible bias; mean
    and deviation of the visible units go into the weights. A shortcut keeps its own start.

    Args:
        rbms: as many as the network has encoder layers, with rectified hidden units.
        network: it is written to.
        outputs: "new": the outputs are classes that the machines know nothing of, their weights are drawn from a normal
            distribution of variance 2 / taps of the kernel; "image": the outputs are the image's channels.
        generator: where random numbers come from.
    """
    choose("kind of outputs", outputs, ("new", "image"))
    if len(rbms) != len(network.encoder):
        raise ValueError(f"{type(network).__name__} has {len(network.encoder)} encoder layers, got {len(rbms)} RBMs")
    for depth, (rbm, encoder) in enumerate(zip(rbms, network.encoder, strict=True)):
        if rbm.hidden != "relu" or rbm.visible != "normal":
            raise ValueError(
                f"an encoder layer takes normal visible and rectified hidden units, got RBM {depth + 1} with "
                f"visible={rbm.visible!r}, hidden={rbm.hidden!r}"
            )
        filters = cast(Tensor, encoder.weight)
        if rbm.weight.shape != filters.shape:
            raise ValueError(
                f"RBM {depth + 1} has filters {tuple(rbm.weight.shape)}, encoder layer {depth + 1} takes "
                f"{tuple(filters.shape)}"
            )
        decoder = network.decoder[len(rbms) - 1 - depth]
        scale = _spread(rbm.deviation, filters)
        filters.copy_(rbm.weight / scale)
        shift = (rbm.weight * _spread(rbm.mean / rbm.deviation, filters)).flatten(1).sum(1)
        cast(Tensor, encoder.bias).copy_(rbm.hidden_bias - shift)
        weight, bias = cast(Tensor, decoder.weight), cast(Tensor, decoder.bias)
        if depth == 0 and outputs == "new":
            deviation = math.sqrt(2 / math.prod(weight.shape[2:]))
            weight.copy_(torch.randn(weight.shape, generator=generator) * deviation)
            bias.zero_()
            continue
        if weight.shape != filters.shape:
            raise ValueError(f"the network has {weight.shape[1]} outputs, the image {filters.shape[1]} channels")
        weight.copy_(rbm.weight * scale)
        bias.copy_(rbm.visible_bias * rbm.deviation + rbm.mean)


def _spread(per_channel: Tensor, image: Tensor) -> Tensor:
    """(C,) as (1, C, 1, ...)."""
    return per_channel.view(1, -1, *(1,) * (image.ndim - 2))
