"""Functions that tests send to other processes, which import them by this module's name."""

from __future__ import annotations

import os
import time
from pathlib import Path


def mortal(task: tuple[Path, int, float]) -> int:
    """Say who works on it, and take a while."""
    folder, number, seconds = task
    (folder / f"{number}-{os.getpid()}").touch()
    time.sleep(seconds)
    return number
