"""Label maps: from the values that a file holds to class numbers 0..K-1."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import MapTransform

from ..errors import CaseError
from .label_values import class_numbers, label_counts, whole_labels
from .located import affine_of, located, plain

__all__ = ["ToClasses", "class_numbers", "label_counts", "whole_labels"]


class ToClasses(MapTransform):
    """Label maps (1, X, Y, Z) as class numbers; floats that are whole within 1e-3 are rounded.

    Args:
        keys: of label maps.
        values: the value of each class in the files.
    """

    def __init__(self, keys: Sequence[str], values: Sequence[int]) -> None:
        super().__init__(keys)
        self.values = [int(value) for value in values]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with class numbers."""
        sample = dict(data)
        for key in self.keys:
            voxels = plain(data[key])
            if any(not torch.equal(voxels[0], channel) for channel in voxels[1:]):
                raise CaseError(
                    f"{key} has {len(voxels)} channels that differ, expected one value a voxel", "label-channels"
                )
            whole, _ = whole_labels(voxels[:1].numpy())
            classes = class_numbers(whole, self.values)
            sample[key] = located(torch.from_numpy(classes), affine_of(data[key]), data[key])
        return sample
