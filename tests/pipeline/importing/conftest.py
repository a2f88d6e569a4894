"""Checkpoints that tests made themselves are read in this process: a child costs seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from voxelwise.pipeline.importing.checkpoint import Checkpoint, CheckpointReader, opened, refused
from voxelwise.pipeline.importing.checkpoint_child import answer, in_words


@pytest.fixture
def no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the child would answer, without one."""

    def read(self: CheckpointReader, path: Path, keys: Sequence[str] = ("",)) -> Checkpoint:
        try:
            header, data = answer(path, keys)
        except Exception as error:
            raise refused(path, in_words(error)) from error
        return opened(path, data, header)

    monkeypatch.setattr(CheckpointReader, "read", read)
