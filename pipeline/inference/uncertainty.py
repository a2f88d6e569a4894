"""How undecided a prediction is: a map on the grid of the image, and one number a case.

Uncertainty is the entropy of the class probabilities over log K, so that 0 is sure and 1 is no idea at all. Where
several networks are averaged, their disagreement is the mutual information between the label and the network (Houlsby
et al., 2011; Smith and Gal, UAI 2018): the entropy of their mean less the mean of their entropies, on the same scale.

Of regions that may overlap, each has an entropy of its own, that of yes and no over log 2, and a voxel has the largest
of them, as one undecided region leaves its label undecided; the mean would shrink with every region that is far away.
The same holds for disagreement.

The number of a case is the mean uncertainty of the voxels that are labelled as something, which goes with the Dice of
the case and tells images that the model was not made for (Mehrtash et al., IEEE TMI 2020). A case is to be looked at
where these voxels are on average more undecided than half a bit, as between two classes at 0.89 to 0.11, or where
nothing was found. The half bit is a convention: how far a model's probabilities can be trusted must be measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ...transforms.volume import Entry

STEPS = 255  # of a map, which holds 8 bits: three digits more would be noise, and a float takes four times the room
LOOK_BITS = 0.5


class UncertaintyMaps:
    """A receiver of scores that fills maps.

    Args:
        shape: (X, Y, Z) of the source grid.
        classes: of each member.
        members: networks whose scores come one behind the other.
        regions: whether classes are regions that may overlap.

    Attributes:
        maps: "uncertainty" and, with several members, "disagreement": (X, Y, Z), uint8 in steps of 1/255.
    """

    def __init__(self, shape: Sequence[int], classes: int, members: int = 1, *, regions: bool = False) -> None:
        self.classes, self.members, self.regions = classes, members, regions
        names = ("uncertainty", "disagreement") if members > 1 else ("uncertainty",)
        self.maps = {name: np.zeros(tuple(shape), np.uint8) for name in names}

    def take(self, where: tuple[slice, ...], scores: Tensor, inside: Tensor | None = None) -> None:
        """Scores (members * K, *box) of a box; `inside` (*box) says which voxels they are of, None for all."""
        found = scores.unflatten(0, (self.members, self.classes))
        if self.regions:
            # of each region the scores of yes and no: (members, R, 2, *box)
            found = torch.stack([found, -found], dim=2)
            self._put("uncertainty", where, entropy(found.mean(0).sigmoid(), 1).amax(0), inside)
            if self.members > 1:
                self._put("disagreement", where, mutual_information(found.sigmoid(), 2).amax(0), inside)
            return
        self._put("uncertainty", where, entropy(found.mean(0).softmax(0)), inside)
        if self.members > 1:
            self._put("disagreement", where, mutual_information(found.softmax(1)), inside)

    def _put(self, name: str, where: tuple[slice, ...], nats: Tensor, inside: Tensor | None) -> None:
        share = nats / math.log(2 if self.regions else max(2, self.classes))
        steps = share.clamp_(0, 1).mul_(STEPS).round_().to(torch.uint8).cpu().numpy()
        np.copyto(self.maps[name][where], steps, where=True if inside is None else inside.cpu().numpy())


def entropy(probabilities: Tensor, dim: int = 0) -> Tensor:
    """In nats."""
    return torch.special.entr(probabilities).sum(dim)


def mutual_information(probabilities: Tensor, dim: int = 1) -> Tensor:
    """Of the label and the member, in nats, of probabilities (members, ...) that sum to one along `dim`."""
    return entropy(probabilities.mean(0), dim - 1) - entropy(probabilities, dim).mean(0)


def sum_up(labels: np.ndarray, maps: Mapping[str, np.ndarray], classes: int) -> tuple[dict[str, object], list[Entry]]:
    """The numbers of a case, and the note of one that is to be looked at.

    Args:
        labels: label values, 0 for background.
        maps: of the same shape, as `UncertaintyMaps` fills them.
        classes: of the model; 2 for regions, each of which is there or not.

    Returns:
        `uncertainty` (None where nothing was found), `disagreement` where there is one, `look`; and notes.
    """
    count, totals = 0, dict.fromkeys(maps, 0.0)
    for number, plane in enumerate(labels):
        found = plane != 0
        count += int(np.count_nonzero(found))
        for name, values in maps.items():
            totals[name] += float(values[number].sum(where=found, dtype=np.int64))
    means = {name: round(total / count / STEPS, 4) if count else None for name, total in totals.items()}
    limit = LOOK_BITS * math.log(2) / math.log(max(2, classes))
    mean = means["uncertainty"]
    if mean is None:
        why = "nothing was found in it"
    elif mean > limit:
        why = f"what was found has a mean uncertainty of {mean:.3f}, above {limit:.3f} (half a bit)"
    else:
        return {**means, "look": False}, []
    return {**means, "look": True}, [Entry("look-at", f"look at this case: {why}")]
