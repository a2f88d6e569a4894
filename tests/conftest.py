"""Fixtures that all tests share."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest

DATA = Path(os.environ.get("VOXELWISE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))

# imports make millions of objects that stay: the collector looks at them neither while they are made nor ever again
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()


@pytest.fixture
def shared_data() -> Callable[[str], Path]:
    """A function from the name of a public set to its folder or file; the test is skipped where it is not there."""

    def locate(name: str) -> Path:
        path = DATA / name
        if not path.exists():
            pytest.skip(f"{name} is not there; VOXELWISE_DATA names the folder of the shared sets")
        return path

    return locate
