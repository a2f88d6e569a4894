"""Auto-context: a second network sees the image and the first network's scores of every class.

Tu and Bai, IEEE TPAMI 32 (2010); with VoxResNet: Chen et al., NeuroImage 170 (2018), arXiv 1608.05895. Both stages are
networks of the registry; the second takes m + K channels. The scores that the second stage learns from must come from
folds that the first was not trained on: `second_stage` is for such stored scores, `forward` runs one after the other.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, cat

from .base import Logits, SegmentationNetwork, memory_format_of


class AutoContext(SegmentationNetwork):
    """Two networks of one kind, the second on the image and the first one's scores.

    Parameters (3 channels to 4 classes, 3D, VoxResNet): 2,661,504, the sum of its stages.

    The receptive field is an upper bound, exact where the first stage has stride 1: both stages' together, and a stride
    of the first minus 1, since it may see farther to one side at one position and to the other side at another.

    Args:
        first: the first stage.
        second: the second stage; its image has the channels of the first one's and a score for each class.

    Raises:
        ValueError: the stages do not fit one another.

    Shape:
        image: (N, in_channels, *S).
        returns: logits of the second stage (N, out_channels, *S); in training mode a list: what the second stage
            gives, then what the first gives. No gradient goes from the second stage into the first.
    """

    def __init__(self, first: SegmentationNetwork, second: SegmentationNetwork) -> None:
        dims, channels, classes = first.spatial_dims, first.in_channels, first.out_channels
        wanted = (dims, channels + classes, classes)
        if (second.spatial_dims, second.in_channels, second.out_channels) != wanted:
            raise ValueError(f"the second stage takes the first one's image and scores: {wanted}")
        reach = None
        if first.receptive_field is not None and second.receptive_field is not None:
            seen = zip(first.receptive_field, second.receptive_field, first.stride, strict=True)
            reach = [a + b - 1 + step - 1 for a, b, step in seen]
        super().__init__(
            dims,
            channels,
            classes,
            stride=[math.lcm(a, b) for a, b in zip(first.stride, second.stride, strict=True)],
            receptive_field=reach,
        )
        self.minimum_size = tuple(max(sides) for sides in zip(first.minimum_size, second.minimum_size, strict=True))
        self.moves_with_image = first.moves_with_image and second.moves_with_image
        self.trains_on_single = first.trains_on_single and second.trains_on_single
        self.first = first
        self.second = second
        if second.head is not None:
            # not registered: its weights are the second stage's, and a state dict must hold them once
            object.__setattr__(self, "head", second.head)

    def scores(self, image: Tensor) -> Tensor:
        """The first stage's scores (N, K, *S), which sum to 1; sigmoid for one class. No gradient goes through them."""
        return scores_of(_finest(self.first(image))).detach()

    def second_stage(self, image: Tensor, scores: Tensor) -> Logits:
        """The second stage on an image and scores of the first, such as stored ones of held-out folds."""
        return self.second(self.joined(image, scores))

    def features(self, image: Tensor) -> Tensor:
        """What goes into the second stage's head."""
        self.check(image)
        return self.second.features(self.joined(image, self.scores(image)))

    def joined(self, image: Tensor, scores: Tensor) -> Tensor:
        """The second stage's input, in the memory format of its weights: an image of one channel has none."""
        layout = next(
            (
                memory_format_of(weight)
                for weight in self.second.parameters()
                if weight.ndim == image.ndim and not weight.is_contiguous()
            ),
            torch.contiguous_format,
        )
        return with_scores(image, scores).contiguous(memory_format=layout)

    def forward(self, image: Tensor) -> Logits:
        """Logits of the second stage, in training mode followed by those of the first."""
        self.check(image)
        before = self.first(image)
        result = self.second_stage(image, scores_of(_finest(before)).detach())
        if not self.training:
            return result
        several = [*_listed(result), *_listed(before)]
        return sorted(several, key=lambda logits: -logits[0, 0].numel())  # finest first; a stable order


def scores_of(logits: Tensor) -> Tensor:
    """Softmax over classes, sigmoid of one class."""
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)


def with_scores(image: Tensor, scores: Tensor) -> Tensor:
    """The second stage's input: (N, m, *S) and (N, K, *S) to (N, m + K, *S)."""
    if image.shape[2:] != scores.shape[2:] or len(image) != len(scores):
        raise ValueError(f"image and scores have one grid, got {tuple(image.shape)} and {tuple(scores.shape)}")
    return cat((image, scores.to(image.dtype)), dim=1)


@torch.no_grad()
def start_second_stage(first: SegmentationNetwork, second: SegmentationNetwork) -> None:
    """Start the second stage as the first: its weights, and zeros for what the scores go into.

    Raises:
        ValueError: the stages are not the same network up to the channels of their image.
    """
    extra = second.in_channels - first.in_channels
    weights, wanted = first.state_dict(), second.state_dict()
    if list(weights) != list(wanted) or extra < 0:
        raise ValueError("the second stage is not the first one with more channels: their weights have other names")
    started = {}
    for name, weight in weights.items():
        if weight.shape == wanted[name].shape:
            started[name] = weight
            continue
        missing = torch.zeros_like(wanted[name][:, :extra])
        if weight.ndim < 2 or (len(weight), weight.shape[1] + extra) != tuple(wanted[name].shape[:2]):
            raise ValueError(
                f"{name} has shape {tuple(weight.shape)} in the first stage and {tuple(wanted[name].shape)} in the "
                "second; only a convolution of the image may differ, by its input channels"
            )
        started[name] = cat((weight, missing), dim=1)
    second.load_state_dict(started)


def _finest(logits: Logits) -> Tensor:
    return logits if isinstance(logits, Tensor) else logits[0]


def _listed(logits: Logits) -> list[Tensor]:
    return [logits] if isinstance(logits, Tensor) else logits
