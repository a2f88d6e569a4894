"""Losses of segmentation, at one scale or at several (deep supervision).

Each takes logits (N, K, *S), or a list of them, finest first, and labels (N, *S): integers in 0..K-1, or 0 and 1 where
K is 1. They are MONAI's and torch's where those have them, computed in float32. At coarser scales every n-th label is
taken, where MONAI's `DeepSupervisionLoss` interpolates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai import losses as monai
from torch import Tensor, nn
from torch.nn import functional

from ..errors import unknown


class SegmentationLoss(nn.Module):
    """Base of the losses; a subclass writes `one_scale`.

    Shape:
        logits: (N, K, *S), or a list of them, finest first: scale i weighs 2 ** -i, the weights sum to 1.
            `DeepSupervisionLoss` has other weights.
        labels: (N, *S) integers; coarser scales take every n-th voxel.
    """

    def forward(self, logits: Tensor | Sequence[Tensor], labels: Tensor) -> Tensor:
        """The weighted mean over scales, a scalar in float32."""
        scales = [logits] if isinstance(logits, Tensor) else list(logits)
        weights = [0.5**level for level in range(len(scales))]
        return weighted(self.one_scale, scales, labels, [weight / sum(weights) for weight in weights])

    def one_scale(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of logits (N, K, *S) against labels (N, *S)."""
        raise NotImplementedError(f"{type(self).__name__} has no one_scale")


class MonaiLoss(SegmentationLoss):
    """A loss of MONAI's: softmax over classes, or sigmoid of one channel.

    Args:
        kind: `DiceLoss`, or what is made like it.
        include_background: whether class 0 has a Dice term; one channel is a foreground.
        options: of the kind.
    """

    def __init__(self, kind: Callable[..., nn.Module], *, include_background: bool, **options: Any) -> None:
        super().__init__()
        self.of_classes = kind(include_background=include_background, to_onehot_y=True, softmax=True, **options)
        self.of_one = kind(sigmoid=True, **options)

    def one_scale(self, logits: Tensor, labels: Tensor) -> Tensor:
        """MONAI's value."""
        if logits.shape[1] == 1:
            loss: Tensor = self.of_one(logits.float(), one_hot(labels, 1))
        else:
            loss = self.of_classes(logits.float(), labels[:, None])
        return loss


class DiceCELoss(MonaiLoss):
    """Soft Dice loss of the foreground classes plus cross-entropy: MONAI's `DiceCELoss`.

    Args:
        batch_dice: one Dice over the whole batch instead of the mean over its cases.
        include_background: whether class 0 has a Dice term too.
    """

    def __init__(self, *, batch_dice: bool = False, include_background: bool = False) -> None:
        super().__init__(monai.DiceCELoss, include_background=include_background, batch=batch_dice)


class DiceLoss(MonaiLoss):
    """1 - 2 sum(pg) / (sum(p^2) + sum(g^2)): the loss of V-Net (Milletari et al., 3DV 2016), MONAI's `DiceLoss`.

    Mean over cases and classes.

    Args:
        squared: squares in the denominator; without them it is the Dice loss of most others.
        include_background: whether class 0 counts.
    """

    def __init__(self, *, squared: bool = True, include_background: bool = False) -> None:
        super().__init__(monai.DiceLoss, include_background=include_background, squared_pred=squared)


class BCELoss(SegmentationLoss):
    """Binary cross-entropy, each channel by itself: torch's `BCEWithLogitsLoss` against one channel a class."""

    def one_scale(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over cases, channels and voxels."""
        return functional.binary_cross_entropy_with_logits(logits.float(), one_hot(labels, logits.shape[1]))


class DiceBCELoss(SegmentationLoss):
    """Half the binary cross-entropy plus the Dice loss: UNet++ (Zhou et al., DLMIA 2018) up to the constant 1.

    Args:
        bce: weight of the binary cross-entropy.
        dice: weight of the Dice loss, with plain denominator, of sigmoid scores and all channels.
    """

    def __init__(self, *, bce: float = 0.5, dice: float = 1.0) -> None:
        super().__init__()
        self.bce, self.dice = bce, dice
        self.dice_loss = monai.DiceLoss(sigmoid=True)

    def one_scale(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The weighted sum."""
        wide, truth = logits.float(), one_hot(labels, logits.shape[1])
        cross_entropy = functional.binary_cross_entropy_with_logits(wide, truth)
        return self.bce * cross_entropy + self.dice * self.dice_loss(wide, truth)


class CrossEntropyLoss(SegmentationLoss):
    """Cross-entropy with weights of the classes and a label that counts for nothing: torch's `CrossEntropyLoss`.

    Differs from it: 0 instead of NaN where every voxel is ignored.

    Args:
        weights: one a class; all the same by default.
        ignore: the label of voxels that are left out (255 in FCN and FCRN).
    """

    weights: Tensor | None

    def __init__(self, *, weights: Sequence[float] | None = None, ignore: int = 255) -> None:
        super().__init__()
        self.register_buffer("weights", None if weights is None else torch.tensor([float(one) for one in weights]))
        self.ignore = ignore

    def one_scale(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Weighted mean over the voxels that are not ignored."""
        if self.weights is not None and len(self.weights) != logits.shape[1]:
            raise ValueError(f"{len(self.weights)} weights for logits of {logits.shape[1]} classes")
        truth = labels.long()
        if bool((truth == self.ignore).all()):
            return 0 * logits.float().sum()
        return functional.cross_entropy(logits.float(), truth, self.weights, ignore_index=self.ignore)


class SenSpeLoss(SegmentationLoss):
    """Squared error of the lesion's voxels and of the background's, each a mean of its own (Brosch et al., TMI 2016).

    Each foreground class against the rest, mean over them. With as many lesion as background voxels and a ratio of 0.5
    it is the mean squared error.

    Args:
        ratio: weight of the lesion's error; 0.5 in the authors' library.
    """

    def __init__(self, *, ratio: float = 0.5) -> None:
        super().__init__()
        if not 0 <= ratio <= 1:
            raise ValueError(f"the lesion's share of the loss is between 0 and 1, got {ratio=:g}")
        self.ratio = ratio

    def one_scale(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Weighted sum of the two errors."""
        scores, truth = scores_and_truth(logits, labels)
        first = min(1, scores.shape[1] - 1)
        losses = []
        for index in range(first, scores.shape[1]):
            where = truth[:, index]
            errors = (where - scores[:, index]).square()
            lesion = (errors * where).sum() / where.sum().clamp_min(1)
            rest = (errors * (1 - where)).sum() / (1 - where).sum().clamp_min(1)
            losses.append(self.ratio * lesion + (1 - self.ratio) * rest)
        return torch.stack(losses).mean()


class RegionLoss(SegmentationLoss):
    """Of regions that may overlap: each channel's sigmoid against its own region, binary cross-entropy plus Dice loss.

    Args:
        members: for each region the classes that it is made of.
        bce: weight of the binary cross-entropy.
        dice: weight of the Dice loss, mean over cases and regions.
        squared: squares in its denominator.
        batch_dice: one Dice over the whole batch instead of the mean over its cases.
    """

    members: Tensor

    def __init__(
        self,
        members: Sequence[Sequence[int]],
        *,
        bce: float = 1.0,
        dice: float = 1.0,
        squared: bool = False,
        batch_dice: bool = False,
    ) -> None:
        super().__init__()
        table = torch.zeros(len(members), 1 + max(max(classes) for classes in members), dtype=torch.bool)
        for row, classes in zip(table, members, strict=True):
            row[list(classes)] = True
        self.register_buffer("members", table, persistent=False)
        self.bce, self.dice = bce, dice
        self.dice_loss = monai.DiceLoss(sigmoid=True, squared_pred=squared, batch=batch_dice)

    def one_scale(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The weighted sum, of logits (N, R, *S)."""
        wide, truth = logits.float(), region_masks(labels, self.members)
        loss = wide.new_zeros(())
        if self.bce:
            loss = loss + self.bce * functional.binary_cross_entropy_with_logits(wide, truth)
        if self.dice:
            loss = loss + self.dice * self.dice_loss(wide, truth)
        return loss


class DeepSupervisionLoss(nn.Module):
    """sum of w_k L(output k), as MONAI's; labels of coarser outputs are every n-th one of their grid.

    Args:
        loss: of one scale.
        weights: one an output, finest first.
    """

    def __init__(self, loss: nn.Module, weights: Sequence[float]) -> None:
        super().__init__()
        self.loss = loss
        self.weights = tuple(float(weight) for weight in weights)

    def forward(self, logits: Tensor | Sequence[Tensor], labels: Tensor) -> Tensor:
        """The weighted sum; a single tensor (eval mode) has the weight 1."""
        if isinstance(logits, Tensor):
            loss: Tensor = self.loss(logits, labels)
            return loss
        if len(logits) != len(self.weights):
            raise ValueError(f"{len(self.weights)} weights for {len(logits)} outputs")
        return weighted(self.loss, list(logits), labels, self.weights)


LOSSES: dict[str, Callable[..., nn.Module]] = {
    "dice_ce": DiceCELoss,
    "dice": DiceLoss,
    "bce": BCELoss,
    "dice_bce": DiceBCELoss,
    "cross_entropy": CrossEntropyLoss,
    "sen_spe": SenSpeLoss,
}


# what the losses of classes become where each region has a channel of its own
REGION_LOSSES: dict[str, dict[str, Any]] = {
    "dice_ce": {},
    "dice": {"bce": 0.0, "squared": True},
    "bce": {"dice": 0.0},
    "dice_bce": {"bce": 0.5},
}


def build_region_loss(name: str, members: Sequence[Sequence[int]]) -> RegionLoss:
    """The loss called `name`, a key of `REGION_LOSSES`, of regions that are made of these classes."""
    if name not in REGION_LOSSES:
        raise unknown("loss of regions", name, REGION_LOSSES)
    return RegionLoss(members, **REGION_LOSSES[name])


def build_loss(name: str, *, scale_weights: Sequence[float] | None = None, **options: object) -> nn.Module:
    """The loss called `name`, a key of `LOSSES`; with `scale_weights` for networks of deep supervision."""
    if name not in LOSSES:
        raise unknown("loss", name, LOSSES)
    loss = LOSSES[name](**options)
    return loss if scale_weights is None else DeepSupervisionLoss(loss, scale_weights)


def weighted(
    loss: Callable[[Tensor, Tensor], Tensor], scales: Sequence[Tensor], labels: Tensor, weights: Sequence[float]
) -> Tensor:
    """Weighted sum of a loss over scales, each against labels of its own size."""
    losses = [loss(scale, subsample(labels, scale.shape[2:])) for scale in scales]
    return torch.stack([one * weight for one, weight in zip(losses, weights, strict=True)]).sum()


def one_hot(labels: Tensor, channels: int) -> Tensor:
    """(N, *S) to (N, channels, *S) of 0 and 1; with one channel, where a label is not 0."""
    if channels == 1:
        return (labels != 0).float()[:, None]
    return torch.stack([labels == index for index in range(channels)], dim=1).float()


def region_masks(labels: Tensor, members: Tensor) -> Tensor:
    """(N, *S) to (N, R, *S) of 0 and 1: whether a voxel's class is one of a region's.

    Args:
        labels: integers.
        members: (R, K), whether a region is made of a class; a class beyond the last one is in none.
    """
    known = labels.long().clamp(max=members.shape[1] - 1)
    return (members[:, known] & (labels < members.shape[1])).movedim(0, 1).float()


def scores_and_truth(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax scores (sigmoid of one channel) and 0 or 1, both (N, K, *S)."""
    wide = logits.float()
    scores = wide.sigmoid() if wide.shape[1] == 1 else wide.softmax(1)
    return scores, one_hot(labels, wide.shape[1])


def subsample(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Labels (N, *S) at a coarser size, nearest voxel; never mixes classes."""
    if labels.ndim != len(size) + 1:
        raise ValueError(f"labels are (N, *S) beside logits of {len(size)} dims, got shape {tuple(labels.shape)}")
    whole = labels.shape[1:]
    if tuple(whole) == tuple(size):
        return labels
    if all(side % coarse == 0 for side, coarse in zip(whole, size, strict=True)):
        steps = (slice(None), *(slice(None, None, side // coarse) for side, coarse in zip(whole, size, strict=True)))
        return labels[steps]
    for axis, coarse in enumerate(size, start=1):
        side = labels.shape[axis]
        nearest = torch.arange(coarse, device=labels.device) * side // coarse
        labels = labels.index_select(axis, nearest)
    return labels
