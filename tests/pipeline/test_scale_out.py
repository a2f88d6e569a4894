"""Cases over processes: every case comes back, with its result or with what went wrong."""

from __future__ import annotations

import os

import pytest
from voxelwise.errors import CaseError
from voxelwise.pipeline.scale_out import each


@pytest.mark.parametrize("workers", [None, 1])
def test_results_and_errors_come_back(workers: int | None) -> None:
    results = dict(each(int, ["1", "x", "3"], workers))
    assert (results["1"], results["3"]) == (1, 3)
    assert isinstance(results["x"], ValueError)


def test_a_worker_that_dies_costs_its_own_case_alone() -> None:
    results = dict(each(os._exit, [3, "no number"], workers=2))
    assert isinstance(results["no number"], TypeError)
    assert isinstance(results[3], CaseError)
    assert results[3].code == "worker-died"
    assert "the process that worked on it died" in str(results[3])
