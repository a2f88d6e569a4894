"""Dice plus cross-entropy, at one scale or at several (deep supervision).

The Dice term is MONAI's `DiceLoss(include_background=False, softmax=True)`: mean over cases and foreground classes.
Differs from it: no one-hot tensor is made, and everything is computed in float32 from one log-softmax.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

SMOOTH = 1e-5  # MONAI's, in numerator and denominator


class DiceCELoss(nn.Module):
    """Soft Dice loss of the foreground classes plus cross-entropy.

    Args:
        batch_dice: one Dice over the whole batch instead of the mean over its cases.
        include_background: whether class 0 has a Dice term too; a network of one foreground class needs no background.

    Shape:
        logits: (N, K, *S), or a list of them, finest first: scale i weighs 2 ** -i, the weights sum to 1.
        labels: (N, *S) integers in 0..K-1; coarser scales take every n-th voxel.
    """

    def __init__(self, *, batch_dice: bool = False, include_background: bool = False) -> None:
        super().__init__()
        self.batch_dice = batch_dice
        self.include_background = include_background

    def forward(self, logits: Tensor | Sequence[Tensor], labels: Tensor) -> Tensor:
        """The weighted mean over scales, a scalar in float32."""
        scales = [logits] if isinstance(logits, Tensor) else list(logits)
        weights = [0.5**level for level in range(len(scales))]
        losses = [self.one_scale(scale, subsample(labels, scale.shape[2:])) for scale in scales]
        return torch.stack([loss * (weight / sum(weights)) for loss, weight in zip(losses, weights, strict=True)]).sum()

    def one_scale(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Dice plus cross-entropy of logits (N, K, *S) against labels (N, *S)."""
        log_scores = functional.log_softmax(logits.float().flatten(2), dim=1)
        truth = labels.flatten(1).long()
        cross_entropy = functional.nll_loss(log_scores, truth)
        return cross_entropy + self.dice(log_scores.exp(), truth)

    def dice(self, scores: Tensor, truth: Tensor) -> Tensor:
        """Soft Dice loss of scores (N, K, voxels) against classes (N, voxels)."""
        classes = range(0 if self.include_background else 1, scores.shape[1])
        if not classes:
            raise ValueError("a Dice loss without background needs at least two classes, got logits with one channel")
        hits, sizes = [], []
        for index in classes:
            where = (truth == index).to(scores.dtype)
            hits.append((scores[:, index] * where).sum(dim=1))
            sizes.append(scores[:, index].sum(dim=1) + where.sum(dim=1))
        overlap, total = torch.stack(hits, dim=1), torch.stack(sizes, dim=1)  # (N, classes)
        if self.batch_dice:
            overlap, total = overlap.sum(dim=0), total.sum(dim=0)
        return (1 - (2 * overlap + SMOOTH) / (total + SMOOTH)).mean()


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
