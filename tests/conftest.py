"""Fixtures that all tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

DATA = Path(os.environ.get("VOXELWISE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture
def shared_data() -> Callable[[str], Path]:
    """A function from the name of a public set to its folder or file; the test is skipped where it is not there."""

    def locate(name: str) -> Path:
        path = DATA / name
        if not path.exists():
            pytest.skip(f"{name} is not there; VOXELWISE_DATA names the folder of the shared sets")
        return path

    return locate
