"""What the tests of training share: a tiny data set and a plan for it."""

from __future__ import annotations

from pathlib import Path

import phantoms
import pytest
from voxelwise.pipeline.dataset.plan import plan as make_plan
from voxelwise.pipeline.dataset.plan import write_plan


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    return phantoms.blob_dataset(tmp_path_factory.mktemp("blobs"), cases=6, shape=(16, 14, 12))


@pytest.fixture(scope="session")
def plan(dataset, tmp_path_factory) -> Path:
    """A plan of three steps an epoch, so that a run has several checkpoints."""
    path = tmp_path_factory.mktemp("plan") / "plan.yaml"
    made = make_plan(dataset, width=4, seed=3)
    write_plan(made.model_copy(update={"steps_per_epoch": 3, "validation_cases": 2, "patch": [16, 16, 8]}), path)
    return path
