"""The usual loss, and what all losses do with scales, types and layouts."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from voxelwise.networks.losses import DiceCELoss, DiceLoss, subsample


def draw(classes: int = 4, size: tuple[int, ...] = (5, 6, 7), batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(batch, classes, *size, generator=generator)
    labels = torch.randint(0, classes, (batch, *size), generator=generator)
    labels[0][labels[0] == classes - 1] = 0  # a class that one case does not have
    return logits.requires_grad_(), labels


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("include_background", [False, True])
@pytest.mark.parametrize("size", [(5, 6, 7), (9, 8)])
def test_it_is_dice_plus_cross_entropy(batch_dice: bool, include_background: bool, size: tuple[int, ...]) -> None:
    """The mean Dice of cases and classes, or of classes over the whole batch."""
    logits, labels = draw(size=size)
    first = 0 if include_background else 1
    scores = logits.softmax(1).flatten(2)[:, first:]
    truth = functional.one_hot(labels, 4).movedim(-1, 1).flatten(2)[:, first:]
    over = (0, 2) if batch_dice else (2,)
    smooth = 1e-5  # MONAI's: a class that is nowhere has no error
    dice = (2 * (scores * truth).sum(over) + smooth) / (scores.sum(over) + truth.sum(over) + smooth)
    expected = functional.cross_entropy(logits, labels) + (1 - dice).mean()
    ours = DiceCELoss(batch_dice=batch_dice, include_background=include_background)(logits, labels)
    torch.testing.assert_close(ours, expected)
    (gradient,), (wanted,) = torch.autograd.grad(ours, logits), torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient, wanted)


def test_scales_weigh_half_of_the_finer_one() -> None:
    logits, labels = draw(size=(8, 8, 4))
    coarse = functional.avg_pool3d(logits, 2)
    loss = DiceCELoss()
    expected = (2 * loss(logits, labels) + loss(coarse, labels[:, ::2, ::2, ::2])) / 3
    torch.testing.assert_close(loss([logits, coarse], labels), expected)
    torch.testing.assert_close(loss([logits], labels), loss(logits, labels))


def test_it_is_computed_in_float32() -> None:
    logits, labels = draw()
    half = logits.detach().bfloat16()
    torch.testing.assert_close(DiceCELoss()(half, labels), DiceCELoss()(half.float(), labels))
    assert DiceCELoss()(half, labels).dtype == torch.float32


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int64])
def test_any_integer_labels(kind: torch.dtype) -> None:
    logits, labels = draw()
    assert torch.equal(DiceCELoss()(logits, labels.to(kind)), DiceCELoss()(logits, labels))


def test_layout_does_not_matter() -> None:
    logits, labels = draw()
    last = logits.detach().to(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(DiceCELoss()(last, labels), DiceCELoss()(logits, labels))


def test_perfect_and_empty() -> None:
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    labels[:, :2] = 1
    perfect = 50 * functional.one_hot(labels, 2).movedim(-1, 1).float()
    assert DiceCELoss()(perfect, labels) < 1e-4
    assert DiceCELoss()(perfect, torch.zeros_like(labels)).isfinite()


def test_subsample() -> None:
    labels = torch.arange(41)[None]
    assert torch.equal(subsample(labels, (41,)), labels)
    assert torch.equal(subsample(torch.arange(12)[None], (6,)), torch.arange(0, 12, 2)[None])
    assert subsample(labels, (21,)).unique().numel() == 21
    with pytest.raises(ValueError, match=r"labels are \(N, \*S\).*got shape \(1, 1, 41\)"):
        subsample(labels[None], (41,))


def test_one_channel_is_a_foreground() -> None:
    """Sigmoid and binary cross-entropy."""
    logits, labels = draw(2)
    one = logits[:, :1]
    binary = functional.binary_cross_entropy_with_logits(one, labels[:, None].float())
    dice = DiceLoss(squared=False)(one, labels)
    torch.testing.assert_close(DiceCELoss()(one, labels), binary + dice)
