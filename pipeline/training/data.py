"""Patches for training, drawn from a store of preprocessed cases.

Sample i of a run depends on (seed, step, slot in the batch) alone, so neither workers nor a restart change it. The
store is
read without itk or SimpleITK; cases that fit into `cache_bytes` are kept in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ...errors import CaseError
from ...transforms.augment import build_augmentation
from ...transforms.context import neighbours
from ..dataset.store import Store
from ..seeds import draw_seed


class Patches(Dataset):
    """Map from a sample's number in the run to a training patch.

    Args:
        store: preprocessed cases.
        names: the cases to draw from.
        steps: augmentation chain as names and arguments.
        batch: samples of one optimiser step.
        seed: of the run.
        oversample_foreground: share of each batch that must hold a foreground voxel (the last slots of the batch).
        cache_bytes: memory that decoded cases may take; what does not fit is read from the store each time.
        slices: axis of a slice model, and how many slices it sees at a time.
    """

    def __init__(
        self,
        store: Store,
        names: Sequence[str],
        *,
        steps: Sequence[Mapping[str, Any]],
        batch: int,
        seed: int,
        oversample_foreground: float,
        cache_bytes: int = 0,
        slices: tuple[int, int] = (0, 1),
    ) -> None:
        self.store, self.names, self.batch, self.seed = store, tuple(names), batch, seed
        self.chain = build_augmentation(steps)
        self.oversample_foreground = oversample_foreground
        self.room, self.slices = cache_bytes, slices
        self.kept: dict[str, tuple[Any, Any, dict[int, np.ndarray]]] = {}
        self.order = lru_cache(maxsize=4)(self._order)

    def __getstate__(self) -> dict[str, Any]:
        """Workers started by spawn get the settings, not the caches."""
        return {key: value for key, value in self.__dict__.items() if key not in ("order", "kept")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.kept, self.order = {}, lru_cache(maxsize=4)(self._order)

    def _order(self, turn: int) -> np.ndarray:
        return np.random.default_rng([self.seed, 1, turn]).permutation(len(self.names))

    def case_of(self, sample: int) -> str:
        """The case that a sample is drawn from: every case once before any case again."""
        turn, place = divmod(sample, len(self.names))
        return self.names[int(self.order(turn)[place])]

    def arrays(self, name: str) -> tuple[Any, Any, dict[int, np.ndarray]]:
        """Image (C, X, Y, Z) and labels (X, Y, Z) of a case, sliceable, and voxels of its classes."""
        if name in self.kept:
            return self.kept[name]
        image, labels, voxels = self.store.image(name), self.store.labels(name), self.store.foreground(name)
        size = int(np.prod(image.shape)) * 4 + int(np.prod(labels.shape)) * np.dtype(labels.dtype).itemsize
        if size > self.room:
            return image, labels, voxels
        self.room -= size
        self.kept[name] = (np.ascontiguousarray(image[...]), np.ascontiguousarray(labels[...]), voxels)
        return self.kept[name]

    def must_hold_foreground(self, slot: int) -> bool:
        """Whether this slot of a batch is one of the oversampled ones (at least one of a batch, as nnU-Net does)."""
        if self.oversample_foreground <= 0:
            return False
        forced = max(1, round(self.batch * self.oversample_foreground))
        return slot >= self.batch - forced

    def __getitem__(self, sample: int) -> dict[str, Any]:
        """A patch: `image` (C, *patch) float32, `labels` (*patch) int64, `case` (its name)."""
        step, slot = divmod(sample, self.batch)
        name = self.case_of(sample)
        try:
            image, labels, voxels = self.arrays(name)
            self.chain.set_random_state(seed=draw_seed(self.seed, 2, step, slot))
            drawn = self.chain(
                {
                    "image": neighbours(image, *self.slices),
                    "labels": labels,
                    "foreground": voxels,
                    "force_foreground": self.must_hold_foreground(slot),
                }
            )
        except Exception as error:
            raise CaseError(f"{name}: no patch could be drawn from this case: {error}", code="patch") from error
        return {"image": drawn["image"], "labels": drawn["labels"], "case": name}


class StepSampler(Sampler[int]):
    """Numbers of the samples of one epoch, from the run's step on, so that a resumed run goes on where it stood.

    Args:
        samples_per_epoch: steps of an epoch x batch.
        batch: samples of a step.
        step: the step that the run stands at, asked when an epoch begins.
    """

    def __init__(self, samples_per_epoch: int, batch: int, step: Callable[[], int]) -> None:
        self.samples_per_epoch, self.batch, self.step = samples_per_epoch, batch, step

    def __len__(self) -> int:
        return self.samples_per_epoch

    def __iter__(self) -> Iterator[int]:
        first = self.step() * self.batch
        return iter(range(first, first + self.samples_per_epoch))


def training_loader(
    patches: Patches, *, steps_per_epoch: int, step: Callable[[], int], workers: int, pin_memory: bool
) -> DataLoader:
    """Batches in the order of the run, made ahead by `workers` processes (0: in this one)."""
    return DataLoader(
        patches,
        batch_size=patches.batch,
        sampler=StepSampler(steps_per_epoch * patches.batch, patches.batch, step),
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=_one_thread,
        prefetch_factor=4 if workers > 0 else None,
    )


def validation_loader(names: Sequence[str]) -> DataLoader:
    """One case name a batch; the module reads the case itself."""
    return DataLoader(list(names), batch_size=1, collate_fn=_first)  # type: ignore[arg-type]


def _first(batch: Sequence[str]) -> str:
    return batch[0]


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
