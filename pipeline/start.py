"""A lean start: large libraries that others load by the way, and that nothing here uses, are left out.

MONAI tries to import torchvision for networks that it wraps; torchvision loads torch's compiler, and the compiler half
of the scientific Python world: 160 MB and half of the time that a command takes to start.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

NOT_NEEDED = "torchvision"


@contextmanager
def left_out(name: str) -> Iterator[None]:
    """Inside the block a library that is not loaded yet cannot be found; behind it, it can."""
    absent = name not in sys.modules
    if absent:
        sys.modules[name] = None  # type: ignore[assignment]  # how Python marks a module that is not to be found
    try:
        yield
    finally:
        if absent:
            del sys.modules[name]


def idle_bytes() -> int | None:
    """Memory of a prediction process that has read nothing: the interpreter, the libraries and a small network.

    Measured in a process of its own; None where it does not start.
    """
    room = __package__
    lines = (
        f"from {room}.start import NOT_NEEDED, left_out",
        f"with left_out(NOT_NEEDED): import {room}.inference.predict",
        f"from {room}.inference.footprint import print_idle",
        "print_idle()",
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None
