"""Planes of scores as they come, box by box: what every restoration does before it looks at a box."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .match import Box, Convention, cuts, match_grids


class Streamed:
    """Planes on a network's grid, handed on in boxes of a bounded size, each cell between two planes once.

    Args:
        shape: of the network's grid.
        affine: of the network's grid.
        source_shape: (X, Y, Z); a picture has Z = 1.
        source_affine: of the source grid.
        scores_of: what is added (F, *S) to scores (K, *S), linear; what is added are scores where it is left out.
        device: where boxes are looked at; where planes lie when left out.
        convention: what of the two grids agrees, as in `match.Match`.
        nearest: the network axis along which nothing is interpolated.
    """

    def __init__(
        self,
        shape: Sequence[int],
        affine: np.ndarray,
        source_shape: Sequence[int],
        source_affine: np.ndarray,
        *,
        scores_of: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | None = None,
        convention: Convention = "centres",
        nearest: int | None = None,
    ) -> None:
        self.shape, self.source_shape = tuple(shape), tuple(source_shape)
        self.match = match_grids(shape, affine, source_shape, source_affine, convention=convention, nearest=nearest)
        self.scores_of = (lambda values: values) if scores_of is None else scores_of
        self.device = device
        self.classes = 0
        self._last: tuple[int, list[slice], Tensor] | None = None  # the last plane, its number, its cross-section

    @property
    def neighbours(self) -> int:
        """Voxels that boxes must share with the next one: 1 where scores are interpolated."""
        return 0 if self.match.axes is not None else 1

    @property
    def voxels(self) -> int:
        """Of a box, at most."""
        raise NotImplementedError(f"{type(self).__name__} has no size of a box")

    def count(self, values: Tensor) -> int:
        """Classes of what is added (F, *S)."""
        return len(self.scores_of(values))

    def begin(self) -> None:
        """Is called once, when the number of classes is known."""

    def take(self, box: Box, values: Tensor) -> None:
        """Look at a box (F, *box) of the network's grid."""
        raise NotImplementedError(f"{type(self).__name__} takes no boxes")

    @torch.inference_mode()
    def add(self, where: slice, values: Tensor, part: Sequence[slice] | None = None) -> None:
        """Hand on what lies between these planes, and between them and the planes that came before.

        Args:
            where: which planes of the first axis; those of one part come from the first to the last.
            values: (F, planes, *cross-section).
            part: of the cross-section, that the values cover; the whole one when left out.
        """
        rest = [slice(0, side) for side in self.shape[1:]] if part is None else list(part)
        if not self.classes:
            self.classes = self.count(self._moved(values[:, :1, :1, :1]))
            self.begin()
        if self.neighbours and self._last is not None and self._last[:2] == (where.start - 1, rest):
            both = torch.cat([self._last[2], values[:, :1]], dim=1)
            self._boxes([slice(where.start - 1, where.start + 1), *rest], both)
        self._boxes([where, *rest], values)
        if self.neighbours:
            self._last = (where.stop - 1, rest, values[:, -1:].clone())

    def cells(self, box: Box) -> list[slice] | None:
        """The cells that have their corners in a box; None where there are none.

        Cell i of an axis reaches from centre i to centre i + 1; an axis of one voxel has one cell.
        """
        found = [
            slice(side.start, side.stop if size == 1 else side.stop - 1)
            for side, size in zip(box, self.shape, strict=True)
        ]
        return None if any(side.stop <= side.start for side in found) else found

    def _boxes(self, whole: Box, values: Tensor) -> None:
        for cut in cuts([side.stop - side.start for side in whole], self.voxels, self.neighbours):
            taken = (slice(None), *cut)
            box = [slice(side.start + one.start, side.start + one.stop) for side, one in zip(whole, cut, strict=True)]
            self.take(box, self._moved(values[taken]))

    def _moved(self, values: Tensor) -> Tensor:
        return values if self.device is None else values.to(self.device)
