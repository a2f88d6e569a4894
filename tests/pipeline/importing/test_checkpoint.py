"""Foreign checkpoints: what a child process gives of them, what it refuses, and what becomes of it when it dies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunet_folders import checkpoint_of
from voxelwise.errors import UnsafeInputError, UsageError
from voxelwise.pipeline.importing import checkpoint
from voxelwise.pipeline.importing.checkpoint import CheckpointReader, opened
from voxelwise.pipeline.importing.checkpoint_child import answer, in_words

KEYS = ("network_weights",)


class Payload:
    """Runs a command where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def read_here(path: Path) -> checkpoint.Checkpoint:
    """What the child would answer, without one."""
    header, data = answer(path, KEYS)
    return opened(path, data, header)


def refusal(path: Path) -> str:
    try:
        answer(path, KEYS)
    except Exception as error:
        reply = in_words(error)
    return f"{reply['kind']}: {reply['error']}"


def test_a_child_reads_one_file_after_the_other(tmp_path: Path) -> None:
    """Weights with their second names, plain values beside them; a payload is named and never run."""
    kernel = torch.arange(6.0).reshape(1, 2, 3)
    torch.save(checkpoint_of({"a.conv": kernel, "b": kernel.half(), "decoder.a.conv": kernel}), tmp_path / "good.pth")
    torch.save(checkpoint_of({"a": kernel}, extra=Payload(tmp_path / "run")), tmp_path / "bad.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "good.pth").read_bytes()[:-2000])
    with CheckpointReader() as reader:
        with pytest.raises(UnsafeInputError, match=r"bad\.pth holds \w+\.mkdir, which is neither a tensor nor a plain"):
            reader.read(tmp_path / "bad.pth", KEYS)
        found = reader.read(tmp_path / "good.pth", KEYS)
        with pytest.raises(UsageError, match=r"cut\.pth cannot be read as a checkpoint: it is no whole zip archive"):
            reader.read(tmp_path / "cut.pth", KEYS)
    assert not (tmp_path / "run").exists()
    assert sorted(found.weights) == ["a.conv", "b", "decoder.a.conv"]
    assert found.weights["decoder.a.conv"] is found.weights["a.conv"]
    torch.testing.assert_close(found.weights["a.conv"], kernel)
    assert found.facts["trainer_name"] == "nnUNetTrainer"
    assert found.facts["logging"]["mean_fg_dice"] == [0.5, 0.25]
    assert found.facts["init_args"]["configuration"] == "3d_fullres"
    assert found.facts["init_args"]["device"] == "device"


def test_names_of_numpy_1_are_known(tmp_path: Path) -> None:
    torch.save(checkpoint_of({"a": torch.ones(2)}), tmp_path / "new.pth")
    data = (tmp_path / "new.pth").read_bytes()
    assert b"numpy._core.multiarray" in data or b"numpy.core.multiarray" in data
    torch.save({"network_weights": {"a": torch.ones(2)}, "x": np.int64(3)}, tmp_path / "old.pth")
    assert read_here(tmp_path / "old.pth").facts == {"x": 3}


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": {}}, "content: it has no 'network_weights'; it holds weights"),
        ([torch.ones(1)], "content: it holds list, expected a dictionary"),
        ({"network_weights": {}}, "content: its weights are no dictionary of tensors"),
        ({"network_weights": {"a": 1}}, "content: its weights hold int under 'a', expected tensors"),
        (
            {"network_weights": {"a": torch.ones(1).expand(10**9)}},
            "content: its weights claim more bytes than",
        ),
        ({"network_weights": {"a": torch.ones(1).to_sparse()}}, "content: its weights are no plain tensors"),
        ({"network_weights": {"a": torch.ones(1)}, "b": np.ones(3)}, "type: numpy._core.multiarray._reconstruct"),
        ({"network_weights": {"a": torch.ones(1)}, "b": Path("x")}, "type: pathlib."),
    ],
)
def test_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "x.pth")
    assert refusal(tmp_path / "x.pth").startswith(message)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    """A flipped bit is seen, which torch alone would not."""
    path = tmp_path / "x.pth"
    torch.save(checkpoint_of({"a": torch.full((64,), 1.25)}), path)
    data = bytearray(path.read_bytes())
    data[data.index(np.full(4, 1.25, np.float32).tobytes()) + 3] ^= 1
    path.write_bytes(data)
    assert refusal(path) == "content: a checksum in it is wrong"
    path.write_bytes(b"\x80\x02}.")
    assert refusal(path) == "damaged: it is no whole zip archive, as torch writes it"


@pytest.mark.parametrize(
    ("boot", "message"),
    [
        ("raise SystemExit(3)", r"the process that read it died \(exit [31]\); get the file again"),
        ("import time; time.sleep(60)", "was not read in time, and its reader was stopped"),
    ],
)
def test_a_child_that_dies_or_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boot: str, message: str) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pth")
    monkeypatch.setattr(checkpoint, "BOOT", boot)
    if "sleep" in boot:
        monkeypatch.setattr(checkpoint, "START_SECONDS", -checkpoint.SECONDS)
    with CheckpointReader() as reader, pytest.raises(UnsafeInputError, match=message):
        reader.read(tmp_path / "x.pth")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with CheckpointReader() as reader, pytest.raises(UsageError, match=r"x\.pth cannot be read \(No such file"):
        reader.read(tmp_path / "x.pth")
