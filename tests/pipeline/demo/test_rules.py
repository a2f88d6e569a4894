"""The rule-based answer is a fair one: right where the muscle ring is closed, and it leaks where it is not."""

from __future__ import annotations

import numpy as np
import pytest
from voxelwise.pipeline.demo.anatomy import SAT, VAT, abdomen
from voxelwise.pipeline.demo.rules import body_mask, rule_based


def dice(prediction: np.ndarray, reference: np.ndarray, value: int) -> float:
    both = np.sum((prediction == value) & (reference == value))
    return float(2 * both / (np.sum(prediction == value) + np.sum(reference == value)))


def scores(seed: int, number: int, *, thin: bool, gaps: int) -> list[float]:
    body = abdomen(np.random.default_rng([seed, number]), thin=thin, gaps=gaps)
    found = rule_based(body.image, body.spacing_mm)
    return [dice(found, body.labels, value) for value in (SAT, VAT)]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_right_without_gaps_and_leaking_with_them(seed: int) -> None:
    closed = np.array([scores(seed, number, thin=number == 1, gaps=0) for number in range(2)])
    assert closed.min() >= 0.95
    gapped = np.array([scores(seed, number, thin=number == 1, gaps=3) for number in range(3)])
    assert (gapped.mean(axis=0) < closed.mean(axis=0) - 0.1).all()


def test_couch_and_air_are_left_out() -> None:
    body = abdomen(np.random.default_rng(0), shape=(64, 56, 4))
    found = rule_based(body.image, body.spacing_mm)
    outside = ~body_mask(body.image.astype(np.float32))
    assert not found[outside].any()
    assert not found[:, -4:].any()  # the couch
    assert not rule_based(np.full((8, 8, 2), -1000), (3.0, 3.0, 6.0)).any()
