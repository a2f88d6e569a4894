"""Losses of networks without labels against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from voxelwise.networks.feature_losses import TripletLoss, activity_sparsity, kl_sparsity, triplets


def same(ours: Tensor, theirs: Tensor, codes: Tensor) -> None:
    torch.testing.assert_close(ours, theirs)
    (found,) = torch.autograd.grad(ours, codes)
    (wanted,) = torch.autograd.grad(theirs, codes)
    torch.testing.assert_close(found, wanted)


def test_kl_sparsity() -> None:
    units = torch.rand(6, 3, 2, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    mean = units.detach().movedim(1, 0).flatten(1).mean(1)
    wanted = torch.distributions.Bernoulli(torch.tensor(0.15))
    expected = torch.distributions.kl_divergence(wanted, torch.distributions.Bernoulli(mean.float())).sum()
    torch.testing.assert_close(kl_sparsity(units.detach()), expected)
    assert kl_sparsity(torch.full((4, 3), 0.15)).abs() < 1e-6
    step = torch.zeros_like(units)
    step[2, 1, 0] = 1e-3
    (gradient,) = torch.autograd.grad(kl_sparsity(units), units)
    fixed = units.detach()
    slope = (kl_sparsity(fixed + step) - kl_sparsity(fixed - step)) / 2e-3
    assert float(gradient[2, 1, 0]) == pytest.approx(float(slope), rel=1e-2)
    with pytest.raises(ValueError, match="between 0 and 1, got target=1"):
        kl_sparsity(units, 1)


def test_activity_sparsity() -> None:
    units = torch.rand(5, 3, generator=torch.Generator().manual_seed(0))
    lifetime, population = units.mean(0) - 0.05, units.mean(1) - 0.05
    torch.testing.assert_close(activity_sparsity(units), lifetime.square().sum() + population.square().sum())
    maps = units.view(5, 3, 1, 1)
    torch.testing.assert_close(activity_sparsity(maps), activity_sparsity(units))
    assert activity_sparsity(torch.full((4, 3), 0.05)) == 0
    optimised = units.clone().requires_grad_()
    optimiser = torch.optim.SGD([optimised], lr=0.5)
    for _ in range(200):
        optimiser.zero_grad()
        activity_sparsity(optimised.relu()).backward()
        optimiser.step()
    assert float(optimised.detach().relu().mean()) == pytest.approx(0.05, abs=0.02)


def test_triplets() -> None:
    clusters = torch.tensor([0, 1, 0, 1, 2, 0])
    anchor, positive, negative = triplets(clusters, negatives=2, generator=torch.Generator().manual_seed(0))
    assert len(anchor) == (3 + 1) * 2  # pairs of clusters 0 and 1, two negatives each
    assert (clusters[anchor] == clusters[positive]).all()
    assert (anchor < positive).all()
    assert (clusters[anchor] != clusters[negative]).all()
    assert len({*zip(anchor.tolist(), positive.tolist(), negative.tolist(), strict=True)}) == len(anchor)
    everything = triplets(clusters)
    assert everything.shape == (3, 3 * 3 + 1 * 4)
    assert triplets(torch.zeros(3, dtype=torch.long)).shape == (3, 0)


def test_triplet_loss_is_torchs_of_squared_distances() -> None:
    codes = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    clusters = torch.tensor([0, 0, 1, 1, 1, 2, 2, 0])
    anchor, positive, negative = codes[triplets(clusters)]
    theirs = nn.TripletMarginWithDistanceLoss(
        distance_function=lambda one, other: (one - other).square().sum(1), margin=0.2
    )(anchor, positive, negative)
    same(TripletLoss()(codes, clusters), theirs, codes)
    plain = nn.TripletMarginLoss(margin=0.2)(anchor, positive, negative)
    assert not torch.allclose(TripletLoss()(codes, clusters), plain)
    assert TripletLoss()(codes, torch.arange(8)) == 0
