"""Checkpoints: damaged ones are passed over, foreign ones run nothing, a full disk leaves the old one."""

from __future__ import annotations

import errno
import logging
import os
from types import SimpleNamespace

import pytest
import torch
from voxelwise.errors import NoRoomError
from voxelwise.pipeline.training.checkpoints import AtomicCheckpoints, KeepCheckpoints, newest_whole, read_record


class FakeTrainer:
    """Saves what Lightning would."""

    def __init__(self, step: int) -> None:
        self.global_step = step

    def save_checkpoint(self, path) -> None:
        AtomicCheckpoints().save_checkpoint({"global_step": self.global_step, "weights": torch.ones(3)}, path)


@pytest.fixture
def folder(tmp_path):
    keep = KeepCheckpoints(tmp_path)
    for step, dice in ((10, 0.5), (20, 0.9), (30, 0.7), (40, 0.8)):
        keep.on_train_epoch_end(FakeTrainer(step), SimpleNamespace(dice={"mean": dice}))
    return tmp_path


def test_the_newest_two_and_the_best_stay(folder) -> None:
    assert sorted(path.name for path in folder.glob("*.ckpt")) == [
        "step-00000020.ckpt", "step-00000030.ckpt", "step-00000040.ckpt",
    ]  # fmt: skip
    assert read_record(folder)["best"]["step"] == 20
    assert newest_whole(folder) == (folder / "step-00000040.ckpt", 40)


@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(folder, damage, caplog) -> None:
    last = folder / "step-00000040.ckpt"
    data = bytearray(last.read_bytes())
    if damage == "gone":
        last.unlink()
    else:
        data[len(data) // 2] ^= 1
        last.write_bytes(data[: len(data) // 2] if damage == "cut" else data)
    with caplog.at_level(logging.WARNING):
        assert newest_whole(folder) == (folder / "step-00000030.ckpt", 30)
    assert "step-00000040.ckpt is damaged or missing" in caplog.text


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path) -> None:
    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"state_dict": Payload()}, tmp_path / "bad.ckpt")
    with pytest.raises(Exception, match=r"(?i)weights.only|unsupported"):
        AtomicCheckpoints().load_checkpoint(tmp_path / "bad.ckpt", weights_only=False)
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_leaves_the_old_checkpoint(folder, monkeypatch) -> None:
    def full(checkpoint, file) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = read_record(folder)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(NoRoomError, match="no space left"):
        KeepCheckpoints(folder).on_train_epoch_end(FakeTrainer(50), SimpleNamespace(dice={}))
    assert read_record(folder) == before
    assert newest_whole(folder) == (folder / "step-00000040.ckpt", 40)
    assert not list(folder.glob("*.part")) + list(folder.glob(".*.part"))
