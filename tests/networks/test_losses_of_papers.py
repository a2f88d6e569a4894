"""Losses of the sources against their formulas, and against MONAI's and torch's."""

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
    build_loss,
)


def draw(classes: int = 4, size: tuple[int, ...] = (5, 6, 7)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, classes, *size, generator=generator)
    return logits.requires_grad_(), torch.randint(0, max(classes, 2), (2, *size), generator=generator)


def truth_of(labels: Tensor, classes: int) -> Tensor:
    return functional.one_hot(labels, classes).movedim(-1, 1).float()


def same(ours: Tensor, theirs: Tensor, logits: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)  # smoothed by 1e-5
    (found,) = torch.autograd.grad(ours, logits)
    (wanted,) = torch.autograd.grad(theirs, logits, retain_graph=True)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("power", [2, 1])
def test_dice_is_that_of_the_paper(power: int, background: bool) -> None:
    """1 - 2 sum(pg) / (sum(p^2) + sum(g^2)), mean over cases and classes; without the squares by option."""
    logits, labels = draw()
    scores, truth = logits.softmax(1).flatten(2), truth_of(labels, 4).flatten(2)
    if not background:
        scores, truth = scores[:, 1:], truth[:, 1:]
    dice = 2 * (scores * truth).sum(2) / ((scores**power).sum(2) + truth.sum(2))
    same(DiceLoss(squared=power == 2, include_background=background)(logits, labels), (1 - dice).mean(), logits)


def test_dice_of_one_channel() -> None:
    logits, labels = draw(1)
    scores, truth = logits.sigmoid().flatten(2), labels[:, None].flatten(2)
    dice = 2 * (scores * truth).sum(2) / (scores.square().sum(2) + truth.sum(2))
    same(DiceLoss()(logits, labels), (1 - dice).mean(), logits)


def test_dice_of_what_is_not_there() -> None:
    """A class in neither labels nor scores is no error; the sources' own layer divides 0 by 0 here."""
    sure = torch.tensor([50.0, -50.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    assert DiceLoss()(sure, torch.zeros(1, 4, 4, dtype=torch.long)) < 1e-4


@pytest.mark.parametrize("classes", [1, 3])
def test_half_the_bce_and_the_dice(classes: int) -> None:
    logits, labels = draw(classes, (6, 5))
    truth = labels[:, None].float() if classes == 1 else truth_of(labels, classes)
    bce = nn.BCEWithLogitsLoss()(logits, truth)
    same(BCELoss()(logits, labels), bce, logits)
    scores, where = logits.sigmoid().flatten(2), truth.flatten(2)
    dice = 2 * (scores * where).sum(2) / (scores + where).sum(2)
    same(DiceBCELoss()(logits, labels), 0.5 * bce + (1 - dice).mean(), logits)
    same(DiceBCELoss(bce=0, dice=2)(logits, labels), 2 * (1 - dice).mean(), logits)


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
