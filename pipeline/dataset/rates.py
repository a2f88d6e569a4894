"""The learning rate that a plan starts from: what a network bears depends on whether it normalises its activations.

With norms a step is as large as it looks. Without any, one that is too large doubles from layer to layer: at 0.003
V-Net's loss on the MSD hippocampus rose from 2.6 to millions within thirty steps, at 0.0003 it fell.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)  # _NormBase: batch and instance norms
RATE_WITH_NORMS, RATE_WITHOUT = 3e-3, 3e-4


def has_norms(network: nn.Module) -> bool:
    """Whether some layer of the network is a norm."""
    return any(isinstance(layer, NORMS) for layer in network.modules())


def choose_rate(normalised: bool) -> tuple[float, str]:
    """Learning rate of AdamW, with its reason."""
    if normalised:
        return RATE_WITH_NORMS, f"{RATE_WITH_NORMS:g} suits a network with norms"
    return RATE_WITHOUT, f"{RATE_WITHOUT:g}, since a network without norms breaks down at {RATE_WITH_NORMS:g}"
