"""Losses of the sources against MONAI's and torch's, and those without labels against their definitions."""

from __future__ import annotations

import pytest
import torch
from monai import losses as monai
from torch import Tensor, nn
from torch.nn import functional
from voxelwise.errors import UsageError
from voxelwise.networks.losses import (
    LOSSES,
    BCELoss,
    CrossEntropyLoss,
    DeepSupervisionLoss,
    DiceBCELoss,
    DiceCELoss,
    DiceLoss,
    SenSpeLoss,
    TripletLoss,
    activity_sparsity,
    build_loss,
    kl_sparsity,
    triplets,
)


def draw(classes: int = 4, size: tuple[int, ...] = (5, 6, 7)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, classes, *size, generator=generator)
    return logits.requires_grad_(), torch.randint(0, max(classes, 2), (2, *size), generator=generator)


def same(ours: Tensor, theirs: Tensor, logits: Tensor) -> None:
    torch.testing.assert_close(ours, theirs)
    (found,) = torch.autograd.grad(ours, logits)
    (wanted,) = torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("background", [True, False])
def test_dice_is_monais(squared: bool, background: bool) -> None:
    logits, labels = draw()
    theirs = monai.DiceLoss(to_onehot_y=True, softmax=True, squared_pred=squared, include_background=background)
    ours = DiceLoss(squared=squared, include_background=background)
    same(ours(logits, labels), theirs(logits, labels[:, None]), logits)


def test_dice_of_one_channel_is_monais() -> None:
    logits, labels = draw(1)
    theirs = monai.DiceLoss(sigmoid=True, squared_pred=True)
    same(DiceLoss()(logits, labels), theirs(logits, labels[:, None].float()), logits)


@pytest.mark.parametrize("classes", [1, 3])
def test_dice_and_bce_are_monais(classes: int) -> None:
    logits, labels = draw(classes, (6, 5))
    truth = labels[:, None].float() if classes == 1 else functional.one_hot(labels, classes).movedim(-1, 1).float()
    same(BCELoss()(logits, labels), nn.BCEWithLogitsLoss()(logits, truth), logits)
    dice = monai.DiceLoss(sigmoid=True)(logits, truth)
    same(DiceBCELoss()(logits, labels), dice + 0.5 * nn.BCEWithLogitsLoss()(logits, truth), logits)
    if classes == 1:
        theirs = monai.DiceCELoss(sigmoid=True, lambda_ce=0.5)(logits, truth)
        same(DiceBCELoss()(logits, labels), theirs, logits)


def test_cross_entropy_is_torchs() -> None:
    logits, labels = draw(3)
    labels[0, :2] = 255
    weights = [0.2, 1.0, 3.0]
    theirs = nn.CrossEntropyLoss(torch.tensor(weights), ignore_index=255)(logits, labels)
    same(CrossEntropyLoss(weights=weights)(logits, labels.to(torch.uint8)), theirs, logits)
    kept = labels != 255
    (gradient,) = torch.autograd.grad(CrossEntropyLoss()(logits, labels), logits)
    assert gradient.movedim(1, -1)[~kept].abs().max() == 0
    assert CrossEntropyLoss()(logits, torch.full_like(labels, 255)) == 0
    with pytest.raises(ValueError, match="3 weights for logits of 2 classes"):
        CrossEntropyLoss(weights=weights)(logits[:, :2], labels)


def test_sen_spe() -> None:
    """The mean squared error where classes are balanced; else each side has its own weight."""
    logits = torch.randn(1, 1, 4, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([1, 1, 0, 0]).view(1, 4, 1).expand(1, 4, 6)
    error = functional.mse_loss(logits.sigmoid()[:, 0], labels.float())
    torch.testing.assert_close(SenSpeLoss()(logits, labels), error)
    two = torch.cat((torch.zeros_like(logits), logits), dim=1)
    torch.testing.assert_close(SenSpeLoss()(two, labels), error)
    few = torch.zeros(1, 4, 6, dtype=torch.long)
    few[0, 0, :2] = 1
    scores = logits.sigmoid()[0, 0]
    lesion, rest = (1 - scores[few[0] == 1]).square().mean(), scores[few[0] == 0].square().mean()
    torch.testing.assert_close(SenSpeLoss(ratio=0.02)(logits, few), 0.02 * lesion + 0.98 * rest)
    assert SenSpeLoss()(logits, torch.zeros_like(few)).isfinite()
    with pytest.raises(ValueError, match="between 0 and 1, got ratio=2"):
        SenSpeLoss(ratio=2)


def test_deep_supervision_is_monais() -> None:
    logits, _ = draw(3, (8, 8))
    coarse = torch.randint(0, 3, (2, 4, 4), generator=torch.Generator().manual_seed(1))
    labels = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)  # so that both ways to subsample agree
    scales = [logits, logits[..., ::2, ::2]]
    theirs = monai.DeepSupervisionLoss(monai.DiceLoss(to_onehot_y=True, softmax=True), weights=[1.0, 0.3])
    ours = DeepSupervisionLoss(DiceLoss(squared=False, include_background=True), [1.0, 0.3])
    torch.testing.assert_close(ours(scales, labels), theirs(scales, labels[:, None].float()))
    torch.testing.assert_close(ours(logits, labels), ours.loss(logits, labels))
    with pytest.raises(ValueError, match="2 weights for 1 outputs"):
        ours([logits], labels)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_takes_scales_and_half_precision(name: str) -> None:
    logits, labels = draw(3, (8, 8))
    loss = build_loss(name)
    scales = [logits, functional.avg_pool2d(logits, 2)]
    expected = (2 * loss(logits, labels) + loss(scales[1], labels[:, ::2, ::2])) / 3
    torch.testing.assert_close(loss(scales, labels), expected)
    half = logits.detach().bfloat16()
    assert loss(half, labels).dtype == torch.float32
    torch.testing.assert_close(loss(half, labels), loss(half.float(), labels))
    perfect = 50 * functional.one_hot(labels, 3).movedim(-1, 1).float() - 25
    assert loss(perfect, labels) < 1e-3


def test_loss_by_name() -> None:
    assert isinstance(build_loss("dice_ce", batch_dice=True), DiceCELoss)
    assert isinstance(build_loss("dice", scale_weights=[1, 0.5]), DeepSupervisionLoss)
    with pytest.raises(UsageError, match="unknown loss 'dise'; did you mean 'dice'"):
        build_loss("dise")


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
