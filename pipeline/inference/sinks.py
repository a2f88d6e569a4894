"""Where finished planes of scores go: into the label map, and into whatever else is asked for in the same pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...transforms import dense
from ...transforms.dense import DenseRestoration, Receiver
from ...transforms.match import Convention
from ...transforms.probabilities import BUFFER_BYTES, Classes, ProbabilityFile
from ...transforms.restore import Restoration
from ...transforms.volume import Geometry
from .members import mean_of_members
from .scorer import Scorer
from .stitch import scores_of
from .uncertainty import UncertaintyMaps

Grids = tuple[Sequence[int], np.ndarray, Sequence[int], np.ndarray]  # shape and affine: the network's, the source's
LEAST = 1e-6  # probability that has a logit: far below what maps and files can hold


@dataclass(frozen=True, eq=False)
class ProbabilityTarget:
    """The file of a case's probabilities.

    Args:
        path: of the file, which is made.
        classes: what is kept.
        geometry: of the image.
        origin: where on its grid the volume that is segmented has its first voxel.
    """

    path: Path
    classes: Classes
    geometry: Geometry
    origin: tuple[int, ...] = (0, 0, 0)

    def begun(self, axis: int = 0, members: int = 1) -> ProbabilityFile:
        """The file, to be written."""
        shape = (*self.geometry.shape, 1)[:3]
        origin = (*self.origin, 0)[:3]
        return ProbabilityFile(
            self.path, shape, self.geometry.affine, self.classes, axis=axis, members=members, origin=origin
        )


@dataclass(frozen=True, eq=False)
class Made:
    """What came out of one pass.

    Args:
        labels: class numbers (*shape).
        maps: what else was mapped (*shape), by name.
    """

    labels: np.ndarray
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """What is asked for beside labels.

    Args:
        members: networks whose scores are kept apart, one behind the other.
        uncertainty: whether it is mapped.
        target: of the probabilities; None where they are not asked for.
        regions: whether scores are those of regions that may overlap.
        probable: whether all comes of interpolated probabilities instead of logits: labels of those of the mean of
            all members, maps and file of those of each member.
    """

    members: int = 1
    uncertainty: bool = False
    target: ProbabilityTarget | None = None
    regions: bool = False
    probable: bool = False


class Sinks:
    """All that takes finished planes.

    Args:
        grids: the network's, whose first axis is the streamed one, and the source's.
        scorer: that gives the planes.
        asked: what is wanted.
        chunk_numbers: scores looked at at a time.
        headed: whether planes are in front of the scorer's head, and not behind it.
        convention: what of the two grids agrees, as in `match.Match`.
        nearest: the network axis along which nothing is interpolated.
    """

    def __init__(
        self,
        grids: Grids,
        scorer: Scorer,
        asked: Asked,
        *,
        chunk_numbers: int,
        headed: bool,
        convention: Convention = "centres",
        nearest: int | None = None,
    ) -> None:
        self.asked = asked

        def apart(values: Tensor) -> Tensor:
            return scores_of(scorer, values) if headed else values

        def together(values: Tensor) -> Tensor:
            scores = mean_of_members(apart(values), asked.members)
            return probable(scores, regions=asked.regions) if asked.probable else scores

        def chances(values: Tensor) -> Tensor:
            found = apart(values).unflatten(0, (asked.members, -1))
            return torch.cat([probable(one, regions=asked.regions) for one in found])

        def likely(values: Tensor) -> Tensor:
            return logits_of(values, regions=asked.regions)

        plain = None if not headed and asked.members == 1 and not asked.probable else together
        device = scorer.device
        self.restoration = Restoration(
            *grids,
            scores_of=plain,
            device=device,
            chunk_numbers=chunk_numbers,
            convention=convention,
            nearest=nearest,
            regions=asked.regions,
        )
        receivers: list[Receiver] = []
        self.maps: UncertaintyMaps | None = None
        self.file: ProbabilityFile | None = None
        if asked.uncertainty:
            classes = scorer.classes // asked.members
            self.maps = UncertaintyMaps(grids[2], classes, asked.members, regions=asked.regions)
            receivers.append(self.maps)
        if asked.target is not None:
            along = int(np.argmax(np.abs(self.restoration.match.matrix[0, :3])))
            self.file = asked.target.begun(along, asked.members)
            receivers.append(self.file)
        self.dense: DenseRestoration | None = None
        if receivers:
            self.dense = DenseRestoration(
                *grids,
                receivers=receivers,
                scores_of=likely if asked.probable else apart,
                before=chances if asked.probable else None,
                device=device,
                convention=convention,
                nearest=nearest,
            )

    def add(self, where: slice, values: Tensor, part: Sequence[slice] | None = None) -> None:
        """Planes of a part of the cross-section, as `Restoration.add` takes them."""
        self.restoration.add(where, values, part)
        if self.dense is not None:
            self.dense.add(where, values, part)

    def made(self, shape: Sequence[int]) -> Made:
        """What came of them, once all were added, in the shape of the image."""
        if self.file is not None:
            self.file.close()
        maps = {} if self.maps is None else {name: one.reshape(shape) for name, one in self.maps.maps.items()}
        return Made(self.restoration.labels.reshape(shape), maps)


def probable(logits: Tensor, *, regions: bool) -> Tensor:
    """Probabilities (K, *S); of regions less 0.5, so that a region is where they are above 0."""
    return logits.sigmoid().sub_(0.5) if regions else logits.softmax(0)


def logits_of(chances: Tensor, *, regions: bool) -> Tensor:
    """Logits (K, *S) that have these probabilities, as `probable` gives them."""
    return (chances + 0.5).logit_(LEAST) if regions else chances.clamp(min=LEAST).log_()


def bytes_beside(scorer: Scorer, asked: Asked, plane: int) -> int:
    """What is held beside labels, maps and sums.

    Args:
        scorer: of the windows.
        asked: what is wanted.
        plane: voxels of the cross-section.
    """
    if not asked.uncertainty and asked.target is None:
        return 0
    buffers = 0 if asked.target is None else 2 * BUFFER_BYTES
    last = 2 * 4 * scorer.channels * plane  # planes that wait for the next ones
    columns = scorer.channels + (2 * scorer.classes if asked.probable else 0)
    return dense.working_bytes(scorer.classes, columns) + last + buffers


def map_bytes(asked: Asked) -> int:
    """Of a voxel of the maps."""
    return (2 if asked.members > 1 else 1) if asked.uncertainty else 0


def planes_held(patches: Sequence[Sequence[int]], axis: int) -> int:
    """Planes of sums that are open at a time, of all views; and where these are averaged, the mean."""
    deep = sum(patch[axis] for patch in patches)
    return deep if len(patches) == 1 else deep + min(patch[axis] for patch in patches)


def voxels_across(shape: Sequence[int], axis: int) -> int:
    """Of the cross-section."""
    return math.prod(shape) // shape[axis]
