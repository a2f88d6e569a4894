"""Training on regions that may overlap: loss, validation, and a model folder that predicts them."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from voxelwise import predict, train
from voxelwise.errors import UsageError
from voxelwise.networks.losses import REGION_LOSSES, build_region_loss, region_masks
from voxelwise.pipeline.dataset import plan_parts
from voxelwise.pipeline.dataset.plan import Plan, plan_from, read_plan, write_plan
from voxelwise.pipeline.model_folder import read_model_folder

REGIONS = [{"name": "both", "values": [1, 2], "writes": 1}, {"name": "inner", "values": [2], "writes": 2}]
MEMBERS = [(1, 2), (2,)]


@pytest.fixture(scope="session")
def with_regions(plan: Path) -> Plan:
    """The plan of the tiny data set, on regions of its labels."""
    made = read_plan(plan).model_dump()
    values = [label["value"] for label in made["labels"]]
    regions = [{"name": "all", "values": values[1:], "writes": values[1]}]
    regions += [{"name": f"only {value}", "values": [value], "writes": value} for value in values[2:]]
    return plan_from({**made, "regions": regions})


def test_a_run_on_regions_ends_in_a_model_that_writes_them(dataset: Path, with_regions: Plan, tmp_path: Path) -> None:
    write_plan(with_regions, tmp_path / "plan.yaml")
    assert read_plan(tmp_path / "plan.yaml") == with_regions
    run = tmp_path / "run"
    train(dataset, out=run, plan=tmp_path / "plan.yaml", steps=6, device="cpu", precision="float32")
    names = [region.name for region in with_regions.regions]
    scores = json.loads((run / "fold_0" / "validation.json").read_text())
    assert list(scores["mean_per_class"]) == names
    assert all(list(case) == names for case in scores["cases"].values())
    model = read_model_folder(run)
    assert [region.name for region in model.regions] == names
    assert model.network.out_channels == len(names)
    assert [label.value for label in model.labels] == [label.value for label in with_regions.labels]
    image = next((dataset / "images").glob("*.nii.gz"))
    predict(run, image, tmp_path / "out", device="cpu")
    found = np.asanyarray(nib.load(next((tmp_path / "out").glob("*.nii.gz"))).dataobj)
    assert set(np.unique(found)) <= {0, *(region.writes for region in with_regions.regions)}
    again = train(dataset, out=run, plan=tmp_path / "plan.yaml", steps=6, device="cpu", precision="float32")
    assert again.skipped


def test_a_plan_without_regions_is_written_as_before(plan: Path) -> None:
    made = read_plan(plan)
    assert "regions" not in made.model_dump()
    assert "regions" not in plan.read_text()
    assert made.outputs == len(made.labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"regions": [{"name": "a", "values": [9], "writes": 9}]},
            "region a has the label value 9, expected values of",
        ),
        ({"regions": [{"name": "a", "values": [1], "writes": 0}]}, "region a has the label value 0"),
        ({"regions": [{"name": "a", "values": [], "writes": 1}]}, r"regions\[0\].values"),
        ({"regions": [{"name": "a", "values": [1], "writes": 1}] * 2}, "regions must have different names, found a, a"),
        (
            {"regions": [{"name": "a", "values": [1], "writes": 1}], "loss": "cross_entropy"},
            "loss of regions must be one of dice_ce, dice, bce, dice_bce, found cross_entropy",
        ),
    ],
)
def test_wrong_regions_are_named(plan: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_from({**read_plan(plan).model_dump(), **changes})


@pytest.mark.parametrize("name", REGION_LOSSES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), dims=st.sampled_from([2, 3]))
def test_each_region_is_a_problem_of_its_own(name: str, seed: int, dims: int) -> None:
    """The loss is the mean over regions of that of each one alone, and least where the logits are right."""
    generator = torch.Generator().manual_seed(seed)
    sides = (4, 6, 8)[:dims]
    labels = torch.randint(0, 3, (2, *sides), generator=generator)
    logits = torch.randn(2, 2, *sides, generator=generator)
    whole = build_region_loss(name, MEMBERS)(logits, labels)
    each = [build_region_loss(name, [members])(logits[:, at : at + 1], labels) for at, members in enumerate(MEMBERS)]
    torch.testing.assert_close(whole, torch.stack(each).mean())
    right = torch.stack([torch.isin(labels, torch.tensor(members)) for members in MEMBERS], dim=1) * 40.0 - 20
    assert build_region_loss(name, MEMBERS)(right, labels) < 0.01 < whole
    scales = [logits, functional.avg_pool2d(logits, 2) if dims == 2 else functional.avg_pool3d(logits, 2)]
    coarse = labels[(slice(None), *[slice(None, None, 2)] * dims)]
    wanted = (2 * whole + build_region_loss(name, MEMBERS)(scales[1], coarse)) / 3
    torch.testing.assert_close(build_region_loss(name, MEMBERS)(scales, labels), wanted)


def test_losses_that_plans_of_regions_may_name_are_there() -> None:
    assert tuple(REGION_LOSSES) == plan_parts.REGION_LOSSES
    with pytest.raises(UsageError, match="unknown loss of regions 'sen_spe'"):
        build_region_loss("sen_spe", MEMBERS)


def test_classes_that_no_region_has_are_outside_of_all() -> None:
    table = torch.tensor([[False, True, True], [False, False, True]])
    masks = region_masks(torch.tensor([[0, 1, 2, 3]]), table)
    assert masks.tolist() == [[[0, 1, 1, 0], [0, 0, 1, 0]]]
