"""Patches of a run: fixed by (seed, step, slot), whoever draws them."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from voxelwise.errors import CaseError
from voxelwise.pipeline.training.data import Patches, StepSampler, training_loader
from voxelwise.transforms.augment import augmentation_steps


class MemoryStore:
    """Three cases in memory, with the interface of a store."""

    def __init__(self) -> None:
        state = np.random.RandomState(0)
        self.arrays = {name: state.rand(1, 14, 12, 10).astype(np.float32) for name in "abc"}
        self.truth = {name: (array[0] > 0.97).astype(np.uint8) for name, array in self.arrays.items()}

    def image(self, name):
        return self.arrays[name]

    def labels(self, name):
        return self.truth[name]

    def foreground(self, name):
        return {1: np.argwhere(self.truth[name] == 1)}


def patches(**changes) -> Patches:
    steps = augmentation_steps(
        (6, 6, 6),
        spacing_mm=None,
        mirror_axes=[0, 1],
        strength={"rotation_degrees": 10, "rotation_probability": 0.5, "noise": 0.1, "noise_probability": 0.5},
    )
    settings = {"steps": steps, "batch": 2, "seed": 5, "oversample_foreground": 0.33, **changes}
    return Patches(MemoryStore(), ("a", "b", "c"), **settings)


def test_every_case_is_drawn_once_before_any_is_drawn_again() -> None:
    drawn = patches()
    for turn in range(4):
        assert {drawn.case_of(3 * turn + place) for place in range(3)} == {"a", "b", "c"}
    orders = {tuple(drawn.case_of(3 * turn + place) for place in range(3)) for turn in range(20)}
    assert len(orders) > 2


def test_a_sample_depends_on_its_number_alone() -> None:
    """Not on what was drawn before, on the cache, or on a trip through another process."""
    first, second = patches(), pickle.loads(pickle.dumps(patches(cache_bytes=10**6)))
    for number in range(5):
        second[number]
    for number in (7, 3):
        one, other = first[number], second[number]
        assert one["case"] == other["case"]
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["labels"], other["labels"])
    assert not torch.equal(first[3]["image"], patches(seed=6)[3]["image"])


def test_the_last_slots_of_a_batch_hold_foreground() -> None:
    drawn = patches(steps=augmentation_steps((4, 4, 4), spacing_mm=None, mirror_axes=[], strength={}))
    assert [drawn.must_hold_foreground(slot) for slot in range(2)] == [False, True]
    assert all(int(drawn[2 * step + 1]["labels"].sum()) > 0 for step in range(20))


def test_an_epoch_begins_at_the_step_that_the_run_stands_at() -> None:
    sampler = StepSampler(4, 2, lambda: 7)
    assert list(sampler) == [14, 15, 16, 17]
    assert len(sampler) == 4


def test_workers_change_nothing() -> None:
    batches = []
    for workers in (0, 2):
        loader = training_loader(patches(), steps_per_epoch=3, step=lambda: 0, workers=workers, pin_memory=False)
        batches.append([batch["image"] for batch in loader])
    assert all(torch.equal(one, other) for one, other in zip(*batches, strict=True))


def test_an_error_in_a_case_names_the_case() -> None:
    drawn = patches()
    name = drawn.case_of(0)
    del drawn.store.arrays[name]
    with pytest.raises(CaseError, match=rf"{name}: no patch could be drawn"):
        drawn[0]
