"""Minutes become steps once, and folds share them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from voxelwise import train
from voxelwise.errors import UsageError
from voxelwise.pipeline.dataset.plan import read_plan
from voxelwise.pipeline.training import fit as fitting
from voxelwise.pipeline.training import supervised
from voxelwise.pipeline.training.budget import Budget, steps_of_run


@pytest.fixture
def slow(monkeypatch) -> None:
    """Every step is said to take ten seconds, and a validation nothing."""
    monkeypatch.setattr(fitting, "time_one_step", lambda *_: 10.0)
    monkeypatch.setattr(fitting, "time_one_case", lambda *_: 0.0)


def record(run: Path, fold: int) -> dict:
    return json.loads((run / f"fold_{fold}" / "budget.json").read_text())


def test_minutes_fix_the_steps_once(slow, dataset, plan, tmp_path) -> None:
    run = tmp_path / "run"
    train(dataset, out=run, plan=plan, minutes=0.75, device="cpu")
    before = record(run, 0)
    assert 1 <= before["steps"] <= 4
    assert train(dataset, out=run, plan=plan, minutes=0.75, device="cpu").skipped
    assert record(run, 0) == before


def test_folds_share_the_minutes(slow, dataset, plan, tmp_path, monkeypatch) -> None:
    """Twelve minutes for six cases in five folds: 144 s each; a fold that came late would have one step."""
    asked = []

    def short(*arguments, **more) -> int:
        asked.append(steps_of_run(*arguments, **more))
        return 1

    monkeypatch.setattr(fitting, "steps_of_run", short)
    monkeypatch.setattr(fitting, "_run_trainer", lambda *_: None)
    train(dataset, out=tmp_path / "run", plan=plan, minutes=12, device="cpu", cross_validate=True)
    assert len(asked) == 5
    assert all(10 <= steps <= 14 for steps in asked)
    assert max(asked) - min(asked) <= 1


def test_minutes_that_the_preparation_used_up_are_named(plan, tmp_path) -> None:
    with pytest.raises(UsageError, match=r"--minutes 2: preparing the data took 120 s.*give more minutes"):
        steps_of_run(Budget(minutes=2), read_plan(plan), tmp_path / "budget.json", pytest.fail, 120.0)
    assert not list(tmp_path.iterdir())


def test_a_run_cut_off_goes_on_though_its_minutes_are_over(plan, tmp_path) -> None:
    (tmp_path / "budget.json").write_text('{"steps": 7}')
    assert steps_of_run(Budget(minutes=2), read_plan(plan), tmp_path / "budget.json", pytest.fail, 999.0) == 7


def test_the_best_epoch_needs_cases_to_choose_by(dataset, plan, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(supervised, "fit", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(UsageError, match=r"--select best: --fold all has no validation cases"):
        train(dataset, out=tmp_path / "run", plan=plan, steps=1, fold="all", select="best", device="cpu")
    names = [f"blob_{number:02d}" for number in range(6)]
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps([{"train": names[1:], "val": names[:1]}, {"train": names, "val": []}]))
    with pytest.raises(UsageError, match=r"--select best: fold 1 validates no case"):
        train(dataset, out=tmp_path / "run", plan=plan, steps=1, splits=splits, fold=1, select="best", device="cpu")
