"""Training end to end on tiny volumes: what a run leaves, resume in the same bits, wrong use."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning.pytorch as lightning
import nibabel as nib
import numpy as np
import phantoms
import pytest
import torch
from safetensors.torch import load_file
from voxelwise import predict, preprocess, read_model_folder, train
from voxelwise.errors import NothingDoneError, UsageError
from voxelwise.pipeline.dataset.plan import read_plan, write_plan
from voxelwise.pipeline.training import fit as fitting
from voxelwise.pipeline.training.module import SegmentationModule


def weights(run: Path, fold: str = "0") -> dict[str, torch.Tensor]:
    return load_file(run / f"fold_{fold}" / "weights.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def straight(dataset, plan, tmp_path_factory) -> Path:
    """A run of eight steps that nobody stopped."""
    run = tmp_path_factory.mktemp("straight") / "run"
    outcome = train(dataset, out=run, plan=plan, steps=8, device="cpu")
    assert outcome.exit_code == 0
    assert len(outcome.done) == 1
    return run


def test_a_run_is_a_model_folder_and_says_what_was_done(straight) -> None:
    model = read_model_folder(straight)
    assert model.folds == ("0",)
    assert read_plan(straight / "plan.yaml").steps_per_epoch == 3
    assert (straight / "folds.json").is_file()
    assert (straight / "fold_0" / "validation.json").is_file()
    assert list((straight / "fold_0" / "curves").glob("events*"))
    assert model.preprocessing


def test_the_same_command_again_says_finished(straight, dataset, plan, caplog) -> None:
    before = weights(straight)
    with caplog.at_level("INFO"):
        outcome = train(dataset, out=straight, plan=plan, steps=8, device="cpu", resume=True)
    assert outcome.exit_code == 0
    assert outcome.skipped
    assert "finished already" in caplog.text
    assert same(before, weights(straight))


class StopAt(lightning.Callback):
    """Stands for a kill: raises at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("killed")


@pytest.mark.parametrize("step", [2, 5])
def test_a_run_that_was_cut_off_ends_in_the_same_bits(step, straight, dataset, plan, tmp_path, monkeypatch) -> None:
    """Cut off before the first checkpoint, and after it, in the middle of an epoch."""
    trainer = lightning.Trainer

    def stopping(**settings):
        return trainer(**{**settings, "callbacks": [*settings["callbacks"], StopAt(step)]})

    monkeypatch.setattr(fitting.lightning, "Trainer", stopping)
    with pytest.raises(RuntimeError, match="killed"):
        train(dataset, out=tmp_path / "run", plan=plan, steps=8, device="cpu")
    monkeypatch.undo()
    outcome = train(dataset, out=tmp_path / "run", plan=plan, steps=8, device="cpu", resume=True)
    assert outcome.exit_code == 0
    assert same(weights(straight), weights(tmp_path / "run"))


def test_other_settings_are_refused_and_overwrite_starts_anew(straight, dataset, plan, tmp_path) -> None:
    run = tmp_path / "run"
    train(dataset, out=run, plan=plan, steps=2, device="cpu")
    with pytest.raises(UsageError, match=r"other settings.*budget"):
        train(dataset, out=run, plan=plan, steps=3, device="cpu", resume=True)
    outcome = train(dataset, out=run, plan=plan, steps=3, device="cpu", overwrite=True)
    assert outcome.done


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 1, "minutes": 1}, "--epochs and --minutes exclude each other"),
        ({"steps": 0}, "--steps 0: must be above 0"),
        ({"select": "bets"}, "unknown --select 'bets'; did you mean 'best'"),
        ({"fold": "x"}, "--fold x: must be the number of a fold, or all"),
        ({"fold": "9", "steps": 1}, "--fold 9: there are"),
        ({"device": "cuda:99"}, "--device cuda:99: this machine has"),
        ({"precision": "bf61"}, "unknown --precision 'bf61'"),
        ({"network": "unett", "steps": 1}, "unknown network 'unett'; did you mean 'unet'"),
        ({"optimizer": "adamw2", "steps": 1}, "optimizer"),
    ],
)
def test_wrong_use_is_said_before_anything_is_trained(options, message, dataset, tmp_path) -> None:
    with pytest.raises(UsageError, match=message):
        train(dataset, out=tmp_path / "run", **options)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_missing_data_set_is_named(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"nothing-here.*does not exist"):
        train(tmp_path / "nothing-here", out=tmp_path / "run", steps=1)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_weights(dataset, plan, tmp_path, monkeypatch) -> None:
    real, calls = fitting.SegmentationModule.training_step, []

    def failing(self, batch, batch_idx):
        calls.append(batch["case"])
        if self.global_step >= 3:
            batch = {**batch, "image": torch.full_like(batch["image"], float("nan"))}
        return real(self, batch, batch_idx)

    monkeypatch.setattr(SegmentationModule, "training_step", failing)
    with pytest.raises(NothingDoneError, match=r"not finite in 3 steps in a row, with cases .*case"):
        train(dataset, out=tmp_path / "run", plan=plan, steps=12, device="cpu")
    assert len(calls) == 6
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "run").values())


def test_bad_cases_are_named_and_left_out(dataset, plan, tmp_path) -> None:
    """A NaN voxel and a label of another shape: the others are trained, 3 at the end."""
    copy = phantoms.blob_dataset(tmp_path / "blobs", cases=6, shape=(16, 14, 12))
    images = sorted(copy.rglob("images*/*.nii.gz"))
    labels = sorted(copy.rglob("labels*/*.nii.gz"))
    picture = nib.load(images[0])
    voxels = np.asarray(picture.dataobj).astype(np.float32)
    voxels[3, 3, 3] = np.nan
    nib.save(nib.Nifti1Image(voxels, picture.affine), images[0])
    cut = nib.load(labels[1])
    nib.save(nib.Nifti1Image(np.asarray(cut.dataobj)[:-1], cut.affine), labels[1])
    outcome = train(copy, out=tmp_path / "run", plan=plan, steps=2, device="cpu")
    assert outcome.exit_code == 3
    assert len(outcome.failures) == 2
    assert any("NaN" in failure.message for failure in outcome.failures)


def test_all_cases_without_validation(dataset, plan, tmp_path) -> None:
    outcome = train(dataset, out=tmp_path / "run", plan=plan, steps=2, fold="all", device="cpu")
    assert outcome.exit_code == 0
    assert read_model_folder(tmp_path / "run").folds == ("all",)


def test_a_store_trains_to_the_same_bits_as_its_data_set(straight, dataset, plan, tmp_path) -> None:
    preprocess(dataset, out=tmp_path / "cache", plan=plan)
    train(tmp_path / "cache", out=tmp_path / "run", steps=8, device="cpu")
    assert same(weights(straight), weights(tmp_path / "run"))
    with pytest.raises(UsageError, match="preprocessed by another plan"):
        train(tmp_path / "cache", out=tmp_path / "other", plan=other_spacing(plan, tmp_path), steps=1, device="cpu")


def other_spacing(plan: Path, folder: Path) -> Path:
    write_plan(read_plan(plan).model_copy(update={"spacing_mm": [2.0, 2.0, 2.0]}), folder / "other.yaml")
    return folder / "other.yaml"


def test_the_best_epoch_is_kept_where_it_is_asked_for(dataset, plan, tmp_path) -> None:
    run = tmp_path / "run"
    train(dataset, out=run, plan=plan, steps=8, select="best", device="cpu")
    record = json.loads((run / "fold_0" / "checkpoints" / "checkpoints.json").read_text())
    state = torch.load(run / "fold_0" / "checkpoints" / record["best"]["file"], weights_only=True)["state_dict"]
    kept = weights(run)
    assert all(torch.equal(value, state[f"averaged.module.{key}"]) for key, value in kept.items())
    assert json.loads((run / "fold_0" / "validation.json").read_text())["selected"] == "best"


def test_a_slice_network_trains_on_volumes_and_predicts_them(dataset, tmp_path) -> None:
    train(dataset, out=tmp_path / "run", network="unet", dims=2, width=4, steps=2, device="cpu")
    assert read_plan(tmp_path / "run" / "plan.yaml").patch.count(1) == 1
    outcome = predict(tmp_path / "run", dataset, tmp_path / "out", fold="0", device="cpu")
    assert outcome.exit_code == 0
    written = nib.load(next((tmp_path / "out").glob("*.nii.gz")))
    assert written.shape == (16, 14, 12)


OWN_CLASS = """
from voxelwise.networks.unet import UNet

class Mine(UNet):
    def __init__(self, spatial_dims, in_channels, out_channels):
        super().__init__(spatial_dims, in_channels, out_channels, widths=(4, 8))
"""


def test_a_users_own_class_trains_and_predicts(dataset, tmp_path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN_CLASS)
    train(dataset, out=tmp_path / "run", network=f"{file}:Mine", steps=2, device="cpu")
    with pytest.raises(UsageError, match=r"give the file again, --network"):
        predict(tmp_path / "run", dataset, tmp_path / "out", fold="0", device="cpu")
    outcome = predict(tmp_path / "run", dataset, tmp_path / "out", fold="0", device="cpu", network=f"{file}:Mine")
    assert outcome.exit_code == 0


@pytest.mark.gpu
def test_a_gpu_trains_and_its_model_predicts_the_same_on_both(dataset, plan, tmp_path) -> None:
    train(dataset, out=tmp_path / "run", plan=plan, steps=30, device="cuda:0")
    labels = {}
    for device in ("cpu", "cuda:0"):
        out = tmp_path / device.replace(":", "")
        predict(tmp_path / "run", dataset, out, fold="0", device=device, precision="float32")
        labels[device] = [np.asarray(nib.load(file).dataobj) for file in sorted(out.glob("*.nii.gz"))]
    equal = [np.mean(one == other) for one, other in zip(labels["cpu"], labels["cuda:0"], strict=True)]
    assert min(equal) >= 0.9999


def test_a_trained_run_predicts_its_validation_cases(straight, dataset, tmp_path) -> None:
    outcome = predict(straight, dataset, tmp_path / "out", fold="0", device="cpu")
    assert outcome.exit_code == 0
    assert 1 <= len(list((tmp_path / "out").glob("*.nii.gz"))) <= 2


@pytest.mark.slow
def test_ten_kills_end_in_the_same_bits(dataset, plan, tmp_path) -> None:
    """SIGKILL at seeded moments, then the same command until it is done."""
    command = [sys.executable, "-m", "voxelwise.scripts.main", "train", str(dataset), "--plan", str(plan)]
    command += ["--steps", "60", "--device", "cpu", "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--out", str(tmp_path / "straight")], check=True, env=environment)
    draw = random.Random(0)
    for _ in range(10):
        process = subprocess.Popen([*command, "--out", str(tmp_path / "killed"), "--resume"], env=environment)
        time.sleep(draw.uniform(6, 16))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*command, "--out", str(tmp_path / "killed"), "--resume"], check=True, env=environment)
    assert same(weights(tmp_path / "straight"), weights(tmp_path / "killed"))
    assert not list((tmp_path / "killed").rglob("*.part"))
