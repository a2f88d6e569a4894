"""What may end a run early, and what it then leaves: signals, a full disk, dropout drawn again alike."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import lightning.pytorch as lightning
import pytest
import torch
from safetensors.torch import load_file
from voxelwise import train
from voxelwise.errors import InterruptedRunError, NoRoomError
from voxelwise.pipeline.dataset.plan import read_plan, write_plan
from voxelwise.pipeline.training import fit as fitting
from voxelwise.scripts.main import main

DROPPING = """
from torch.nn import functional
from voxelwise.networks.unet import UNet

class Dropping(UNet):
    def __init__(self, spatial_dims, in_channels, out_channels):
        super().__init__(spatial_dims, in_channels, out_channels, widths=(4, 8))

    def forward_aligned(self, image):
        return super().forward_aligned(functional.dropout(image, 0.3, self.training))
"""


class At(lightning.Callback):
    """Calls something when a step is done."""

    def __init__(self, step: int, do) -> None:
        self.step, self.do = step, do

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            self.do()


@pytest.fixture
def at(monkeypatch):
    """`at(step, do)`: do something in the middle of the next run."""
    trainer = lightning.Trainer

    def arrange(step: int, do) -> None:
        def arranged(**settings):
            return trainer(**{**settings, "callbacks": [*settings["callbacks"], At(step, do)]})

        monkeypatch.setattr(fitting.lightning, "Trainer", arranged)

    return arrange


def words(dataset, plan, run, steps: int) -> list[str]:
    given = ["train", str(dataset), "--out", str(run), "--plan", str(plan), "--steps", str(steps), "--device", "cpu"]
    return [*given, "--quiet", "--resume"]


def test_sigterm_ends_with_130_and_the_same_command_finishes(at, dataset, plan, tmp_path, monkeypatch) -> None:
    command = words(dataset, plan, tmp_path / "run", 7)
    at(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert main(command) == 130
    assert not (tmp_path / "run" / "fold_0" / "validation.json").exists()
    monkeypatch.undo()
    assert main(command) == 0
    assert (tmp_path / "run" / "fold_0" / "validation.json").is_file()


@pytest.mark.slow
def test_sigterm_from_outside(dataset, plan, tmp_path) -> None:
    """The same with a process of its own, which takes as long as its imports do."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "voxelwise.scripts.main", *words(dataset, plan, run, 60)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        until = time.monotonic() + 120
        while not (run / "fold_0" / "checkpoints" / "checkpoints.json").is_file() and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
    assert not (run / "fold_0" / "validation.json").exists()
    assert main(command[3:]) == 0
    assert (run / "fold_0" / "validation.json").is_file()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_an_error_of_ours_and_the_handlers_stay(number, at, dataset, plan, tmp_path) -> None:
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    at(2, lambda: signal.raise_signal(number))
    with pytest.raises(InterruptedRunError, match=r"stopped at step 2 of 4; the same command begins anew"):
        train(dataset, out=tmp_path / "run", plan=plan, steps=4, device="cpu")
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


def test_dropout_draws_alike_after_a_resume(at, dataset, plan, tmp_path, monkeypatch) -> None:
    file = tmp_path / "dropping.py"
    file.write_text(DROPPING)
    network = {"name": f"{file}:Dropping", "options": {}}
    made = read_plan(plan)
    write_plan(made.model_copy(update={"network": type(made.network)(**network)}), tmp_path / "plan.yaml")
    settings = {"plan": tmp_path / "plan.yaml", "steps": 6, "device": "cpu"}
    train(dataset, out=tmp_path / "straight", **settings)
    with monkeypatch.context():
        at(5, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(InterruptedRunError, match="stopped at step 5 of 6; the same command goes on from step"):
            train(dataset, out=tmp_path / "cut", **settings)
    monkeypatch.undo()
    torch.rand(7)
    train(dataset, out=tmp_path / "cut", resume=True, **settings)
    one, other = (load_file(tmp_path / run / "fold_0" / "weights.safetensors") for run in ("straight", "cut"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_full_disk_ends_the_run_and_room_lets_it_finish(dataset, plan, tmp_path, monkeypatch) -> None:
    def full(checkpoint, file) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full)
        with pytest.raises(NoRoomError, match=r"step-00000003.ckpt: no space left"):
            train(dataset, out=run, plan=plan, steps=4, device="cpu")
    assert not list(run.rglob("*.part"))
    assert train(dataset, out=run, plan=plan, steps=4, device="cpu").exit_code == 0
