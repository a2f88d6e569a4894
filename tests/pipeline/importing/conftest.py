"""Checkpoints that tests made themselves are read in this process: a child costs seconds."""

from __future__ import annotations

import pytest
from nnunet_folders import read_here
from voxelwise.pipeline.importing.checkpoint import CheckpointReader


@pytest.fixture
def no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the child would answer, without one."""
    monkeypatch.setattr(CheckpointReader, "read", read_here)
