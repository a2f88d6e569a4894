"""Losses of networks without labels: sparsity of codes, and triplets of clusters.

The contrastive divergence of a restricted Boltzmann machine is a method of `ConvRBM`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def kl_sparsity(units: Tensor, target: float = 0.15) -> Tensor:
    """sum over units of KL(target || mean activity): few units of a sparse auto-encoder are active.

    Args:
        units: (N, F) or (N, F, *S) between 0 and 1, such as sigmoids; the mean is over cases and voxels.
        target: wanted mean activity.
    """
    if not 0 < target < 1:
        raise ValueError(f"the wanted mean activity is between 0 and 1, got {target=:g}")
    mean = units.movedim(1, 0).flatten(1).float().mean(1).clamp(1e-6, 1 - 1e-6)
    return (target * (target / mean).log() + (1 - target) * ((1 - target) / (1 - mean)).log()).sum()


def activity_sparsity(units: Tensor, target: float = 0.05) -> Tensor:
    """Lifetime and population sparsity (in the manner of Kallenberg et al., TMI 2016).

    sum over units of (mean activity over samples - target)^2, plus sum over samples of (mean activity over units -
    target)^2; each voxel of each case is a sample.

    Args:
        units: (N, F) or (N, F, *S), not negative, such as ReLUs.
        target: wanted mean activity.
    """
    table = units.movedim(1, 0).flatten(1).float()  # (F, samples)
    return (table.mean(1) - target).square().sum() + (table.mean(0) - target).square().sum()


def triplets(clusters: Tensor, *, negatives: int = 20, generator: torch.Generator | None = None) -> Tensor:
    """Anchor, positive and negative (3, T) in a batch: all pairs of one cluster, each with some of the others.

    Args:
        clusters: (N,) which cluster each case is in.
        negatives: how many cases of other clusters each pair meets at most.
        generator: where random numbers come from.
    """
    same = clusters[:, None] == clusters[None, :]
    anchor, positive = same.triu(1).nonzero(as_tuple=True)
    order = torch.rand(len(anchor), len(clusters), generator=generator).to(clusters.device)
    order = order.masked_fill(same[anchor], -1)
    drawn, negative = order.topk(min(negatives, len(clusters)), dim=1)
    pair, column = (drawn >= 0).nonzero(as_tuple=True)
    return torch.stack((anchor[pair], positive[pair], negative[pair, column]))


class TripletLoss(nn.Module):
    """mean(max(0, gamma |a - p|^2 - |a - n|^2 + margin)): the loss of JULE (Yang et al., CVPR 2016).

    With gamma 1 torch's `TripletMarginWithDistanceLoss` of squared distances. 0 where a batch has no triplet.

    Args:
        margin: 0.2 in the authors' code.
        gamma: weight of the distance inside a cluster.
        negatives: as in `triplets`.

    Shape:
        codes: (N, F).
        clusters: (N,) integers.
    """

    def __init__(self, *, margin: float = 0.2, gamma: float = 1.0, negatives: int = 20) -> None:
        super().__init__()
        self.margin, self.gamma, self.negatives = margin, gamma, negatives

    def forward(self, codes: Tensor, clusters: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A scalar in float32."""
        anchor, positive, negative = codes.float()[triplets(clusters, negatives=self.negatives, generator=generator)]
        if len(anchor) == 0:
            return 0 * codes.float().sum()
        near, far = (anchor - positive).square().sum(1), (anchor - negative).square().sum(1)
        return (self.gamma * near - far + self.margin).relu().mean()
