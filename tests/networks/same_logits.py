"""What the tests of MONAI's networks share: its weights under our names, and a look at both networks' results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from voxelwise.networks.base import SegmentationNetwork
from voxelwise.networks.registry import count_parameters

SIZES = {"in_channels": 2, "out_channels": 3}  # of the pairs


def check_counts(build: Callable[..., SegmentationNetwork], counts: Mapping[int, int], **options: Any) -> None:
    """Parameters of 1 channel to 2 classes, by spatial dims; the class says them too."""
    for dims, count in counts.items():
        with torch.device("meta"):
            assert count_parameters(build(dims, 1, 2, **options)) == count
        assert f"{count:,}" in (build.__doc__ or "")


def random_norms(network: nn.Module) -> None:
    """Scales and shifts that a network without norms would not get away with."""
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5) if "weight" in name else nn.init.normal_(parameter)


def give(weights: Mapping[str, Tensor], ours: SegmentationNetwork, renamed: Mapping[str, str]) -> None:
    """Load MONAI's weights into ours, beginnings of names changed; a weight of its own name stays where it is."""
    for old, new in renamed.items():
        weights = {new + name[len(old) :] if name.startswith(old) else name: one for name, one in weights.items()}
    ours.load_state_dict(weights)


@torch.no_grad()
def check_same(ours: nn.Module, theirs: nn.Module, image: Tensor, tolerance: float = 1e-4) -> None:
    """Equal logits in eval mode."""
    torch.testing.assert_close(ours.eval()(image), theirs.eval()(image), rtol=tolerance, atol=tolerance)
