"""2.5D: a slice model that sees the neighbours of its slice is trained and predicts, by the plan's `slices` alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from voxelwise.errors import UsageError
from voxelwise.pipeline.dataset.plan import plan as make_plan
from voxelwise.pipeline.dataset.plan import write_plan
from voxelwise.pipeline.dataset.plan_record import read_plan
from voxelwise.pipeline.inference.predict import predict
from voxelwise.pipeline.model_folder import read_model_folder
from voxelwise.scripts.main import main
from voxelwise.transforms.context import WithNeighbours, neighbours


def test_a_slice_is_given_with_its_neighbours() -> None:
    image = np.arange(2 * 3 * 2 * 5).reshape(2, 3, 2, 5)
    seen = WithNeighbours(image, 2, 3)
    assert seen.shape == (6, 3, 2, 5)
    padded = np.pad(image, [(0, 0)] * 3 + [(1, 1)], mode="edge")
    wanted = np.stack([padded[..., :-2], padded[..., 1:-1], padded[..., 2:]], axis=1).reshape(6, 3, 2, 5)
    whole = slice(None), slice(None), slice(None)
    np.testing.assert_array_equal(seen[(slice(None), *whole)], wanted)
    for part in (slice(0, 1), slice(4, 5), slice(1, 3)):
        box = (slice(None), slice(1, 3), slice(None), part)
        np.testing.assert_array_equal(seen[box], wanted[box])
        np.testing.assert_array_equal(WithNeighbours(torch.from_numpy(image), 2, 3)[box], wanted[box])
    assert neighbours(image, 2, 1) is image
    with pytest.raises(ValueError, match="an odd number"):
        WithNeighbours(image, 2, 4)


def test_a_plan_with_slices_is_trained_and_predicts(dataset: Path, tmp_path: Path) -> None:
    made = make_plan(dataset, dims=2, width=4, slices=3, seed=3)
    changes = {"steps_per_epoch": 2, "validation_cases": 1, "patch": [16, 14, 1]}
    write_plan(made.model_copy(update=changes), tmp_path / "plan.yaml")
    assert read_plan(tmp_path / "plan.yaml").slices == 3
    run = tmp_path / "run"
    words = ["train", str(dataset), "--out", str(run), "--plan", str(tmp_path / "plan.yaml"), "--steps", "4"]
    assert main([*words, "--device", "cpu", "--quiet"]) == 0
    model = read_model_folder(run)
    assert (model.network.in_channels, model.channels) == (3, 1)
    outcome = predict(run, dataset / "images", tmp_path / "out")
    assert len(outcome.done) == 6
    text = (tmp_path / "plan.yaml").read_text()
    (tmp_path / "even.yaml").write_text(text.replace("slices: 3", "slices: 2"))
    with pytest.raises(UsageError, match="slices must be odd, and 1 unless dims is 2, found 2"):
        read_plan(tmp_path / "even.yaml")
