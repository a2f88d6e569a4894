"""Class probabilities in a chunked file that is written and read box by box, and never held whole.

NAME_probabilities.b2nd is a blosc2 array (classes, X, Y, Z) on the grid of the image, uint8 in steps of 1/255: an error
of at most 1/510, and packed a quarter of the size of float16. It names its classes and its affine:

    box = (slice(0, 64), slice(None), slice(9, 10))
    found = read_probabilities("NAME_probabilities.b2nd", classes=["liver"], where=box)
    found.scores, found.names, found.affine     # (1, 64, Y, 1) float32 in 0..1; ("liver",); that of the box

What lies outside of the grid that the network saw is background for certain, as it is in the label map. Where a model
has regions that may overlap, each channel is the probability of one of them, and they do not sum to 1.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch
from torch import Tensor

from ..errors import NoRoomError, UsageError, unknown
from .plain_arrays import open_array
from .writers import no_room_text

FORMAT, STEPS = 1, 255
SUFFIX = "_probabilities.b2nd"
META = "voxelwise"
BUFFER_BYTES = 64 << 20  # of chunks that are not whole yet
DEEPEST, WIDEST = 16, 128  # voxels of a chunk along the streamed axis and across
Index = tuple[int, ...]


@dataclass(frozen=True)
class Classes:
    """What the channels of a file are.

    Args:
        names: of the classes that are kept, in order.
        values: theirs in label maps; those that regions write.
        numbers: theirs among the scores.
        background: where the background is among those kept; None where it is not.
        regions: whether they may overlap, so that each has a probability of its own.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    numbers: tuple[int, ...]
    background: int | None = None
    regions: bool = False


class ProbabilityFile:
    """A receiver of scores that writes their softmax, or of regions the sigmoid of each.

    Chunks are kept open until every voxel of them has come, as far as `buffer_bytes` allow; one that must go before is
    read again when more of it comes.

    Args:
        path: of the file, which must not be there; whole once `close` was called.
        shape: (X, Y, Z) of the grid of the image.
        affine: of that grid.
        classes: what is kept.
        axis: of the source, that finished boxes advance along.
        members: whose scores come one behind the other, and are averaged.
        origin: where on the grid that what comes has its first voxel.
        buffer_bytes: of open chunks.

    Raises:
        NoRoomError: the disk is full.
    """

    def __init__(
        self,
        path: Path,
        shape: Sequence[int],
        affine: np.ndarray,
        classes: Classes,
        *,
        axis: int = 0,
        members: int = 1,
        origin: Sequence[int] = (0, 0, 0),
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        self.path, self.shape, self.classes, self.members = path, tuple(shape), classes, members
        self.origin, self.buffer_bytes = tuple(origin), buffer_bytes
        self.chunk = chunk_of(self.shape, len(classes.numbers), axis, buffer_bytes)
        self._array = _new_array(path, self.shape, affine, classes, self.chunk)
        self._open: OrderedDict[Index, np.ndarray] = OrderedDict()
        self._missing: dict[Index, int] = {}  # voxels of each chunk that was begun

    def take(self, where: tuple[slice, ...], scores: Tensor, inside: Tensor | None = None) -> None:
        """Scores (K, *box) of a box of the grid; `inside` (*box) says which voxels they are of, None for all."""
        if self.members > 1:
            scores = scores.unflatten(0, (self.members, -1)).mean(0)
        numbers = list(self.classes.numbers)
        kept = scores[numbers].sigmoid() if self.classes.regions else scores.softmax(0)[numbers]
        steps = kept.mul_(STEPS).round_().to(torch.uint8).cpu().numpy()
        mask = None if inside is None else inside.cpu().numpy()
        box = [slice(part.start + first, part.stop + first) for part, first in zip(where, self.origin, strict=True)]
        spans = [range(part.start // side, -(-part.stop // side)) for part, side in zip(box, self.chunk, strict=True)]
        for index in product(*spans):
            starts = [at * side for at, side in zip(index, self.chunk, strict=True)]
            low = [max(part.start, start) for part, start in zip(box, starts, strict=True)]
            high = [min(part.stop, start + side) for part, start, side in zip(box, starts, self.chunk, strict=True)]
            ours = tuple(slice(a - start, b - start) for a, b, start in zip(low, high, starts, strict=True))
            theirs = tuple(slice(a - part.start, b - part.start) for a, b, part in zip(low, high, box, strict=True))
            taken = (slice(None), *theirs)
            self._put(index, ours, steps[taken], None if mask is None else mask[theirs])

    def close(self) -> None:
        """Write what is still open, and the background where nothing came."""
        for index in list(self._open):
            self._write(index)
        if self.classes.background is not None:
            counts = (-(-size // side) for size, side in zip(self.shape, self.chunk, strict=True))
            for index in product(*(range(count) for count in counts)):
                if index not in self._missing:
                    self._open[index] = self._blank(index)
                    self._write(index)
        del self._array

    def _put(self, index: Index, where: tuple[slice, ...], steps: np.ndarray, mask: np.ndarray | None) -> None:
        chunk = self._opened(index)
        inside = (slice(None), *where)
        if mask is None:
            chunk[inside] = steps
        else:
            np.copyto(chunk[inside], steps, where=mask)
        self._open.move_to_end(index)
        self._missing[index] -= math.prod(steps.shape[1:]) if mask is None else int(np.count_nonzero(mask))
        if self._missing[index] <= 0:
            self._write(index)

    def _opened(self, index: Index) -> np.ndarray:
        """A chunk that may be written to: as it is, as it was written, or new."""
        if index not in self._open:
            room = max(1, self.buffer_bytes // (len(self.classes.numbers) * math.prod(self.chunk)))
            while len(self._open) >= room:
                self._write(next(iter(self._open)))
            begun = index in self._missing
            self._open[index] = self._array[self._place(index)] if begun else self._blank(index)
            if not begun:
                self._missing[index] = self._open[index][0].size
        return self._open[index]

    def _blank(self, index: Index) -> np.ndarray:
        sides = [part.stop - part.start for part in self._place(index)[1:]]
        chunk = np.zeros((len(self.classes.numbers), *sides), np.uint8)
        if self.classes.background is not None:
            chunk[self.classes.background] = STEPS
        return chunk

    def _write(self, index: Index) -> None:
        chunk = self._open.pop(index)
        try:
            self._array[self._place(index)] = chunk
        except (RuntimeError, OSError) as error:  # blosc2 does not say why it could not write
            if shutil.disk_usage(self.path.parent).free < 2 * chunk.nbytes:
                raise NoRoomError(no_room_text(self.path, None)) from error
            raise

    def _place(self, index: Index) -> tuple[slice, ...]:
        sides = zip(index, self.chunk, self.shape, strict=True)
        return (slice(None), *(slice(at * side, min((at + 1) * side, size)) for at, side, size in sides))


def chunk_of(shape: Sequence[int], classes: int, axis: int, buffer_bytes: int = BUFFER_BYTES) -> tuple[int, ...]:
    """Voxels of a chunk, of all classes: so deep along the streamed axis that a layer of them fits into a buffer."""
    layer = classes * math.prod(shape) // shape[axis]
    deep = max(1, min(DEEPEST, buffer_bytes // (2 * layer)))
    return tuple(min(size, deep if at == axis else WIDEST) for at, size in enumerate(shape))


def _new_array(
    path: Path, shape: tuple[int, ...], affine: np.ndarray, classes: Classes, chunk: Index
) -> blosc2.NDArray:
    count = len(classes.numbers)
    array = blosc2.zeros(
        (count, *shape),
        dtype=np.uint8,
        chunks=(count, *chunk),
        blocks=(1, *chunk),  # one class is read without the others
        cparams=blosc2.CParams(codec=blosc2.Codec.ZSTD, clevel=1, filters=[blosc2.Filter.NOFILTER], nthreads=1),
        urlpath=str(path),
        contiguous=True,
        mode="w",
    )
    facts = {
        "format": FORMAT,
        "classes": [
            {"name": name, "value": int(value)} for name, value in zip(classes.names, classes.values, strict=True)
        ],
        "affine": np.asarray(affine, np.float64).tolist(),
        "scale": 1 / STEPS,
        **({"regions": True} if classes.regions else {}),
    }
    array.schunk.vlmeta[META] = json.dumps(facts)
    return array


@dataclass(frozen=True, eq=False)
class Probabilities:
    """A part of a file.

    Args:
        scores: (classes, *box), float32, 0 to 1.
        names: of the classes.
        values: of the classes in label maps.
        affine: of the box, voxel to RAS+ mm.
        regions: whether the classes are regions that may overlap.
    """

    scores: np.ndarray
    names: tuple[str, ...]
    values: tuple[int, ...]
    affine: np.ndarray
    regions: bool = False


def read_probabilities(
    path: Path | str, *, classes: Sequence[str] | None = None, where: Sequence[slice] | None = None
) -> Probabilities:
    """Read classes and a box of a file that `predict --probabilities` wrote; only what is asked for is unpacked.

    Args:
        path: of the .b2nd file.
        classes: names; all when left out.
        where: voxels along each axis, without steps; the whole grid when left out.

    Raises:
        UsageError: no such file, none of ours, or a class that is not in it.
    """
    array, facts = _opened_file(Path(path))
    names = [str(one["name"]) for one in facts["classes"]]
    for name in classes or ():
        if name not in names:
            raise unknown("class", name, names)
    numbers = list(range(len(names))) if classes is None else [names.index(name) for name in classes]
    box = [slice(None)] * 3 if where is None else list(where)
    if len(box) != 3 or any(part.step not in (None, 1) for part in box):
        raise ValueError(f"`where` is one slice without a step for each of three axes, got {where}")
    ends = [part.indices(size)[:2] for part, size in zip(box, array.shape[1:], strict=True)]
    inside = tuple(slice(first, max(first, last)) for first, last in ends)
    places = [(number, *inside) for number in numbers]
    steps = np.stack([array[place] for place in places])
    affine = np.asarray(facts["affine"], np.float64)
    affine[:3, 3] += affine[:3, :3] @ [part.start for part in inside]
    return Probabilities(
        steps.astype(np.float32) / STEPS,
        tuple(names[number] for number in numbers),
        tuple(int(facts["classes"][number]["value"]) for number in numbers),
        affine,
        bool(facts.get("regions", False)),
    )


def _opened_file(path: Path) -> tuple[blosc2.NDArray, dict[str, Any]]:
    if not path.is_file():
        raise UsageError(f"{path} is not there; give a file that `voxelwise predict --probabilities` wrote")
    try:
        array = open_array(path)
        facts = json.loads(array.schunk.vlmeta[META])
        if facts["format"] != FORMAT:
            raise ValueError(f"format {facts['format']}")
        named = [(str(one["name"]), int(one["value"])) for one in facts["classes"]]
        affine = np.asarray(facts["affine"], np.float64)
        if array.dtype != np.uint8 or array.ndim != 4 or len(named) != len(array) or affine.shape != (4, 4):
            raise ValueError(f"{array.dtype} {array.shape} for {len(named)} classes")
    except (RuntimeError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path} holds no probabilities of voxelwise ({type(error).__name__}: {error}); give a file that "
            "`voxelwise predict --probabilities` wrote"
        ) from error
    return array, facts
