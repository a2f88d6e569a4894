"""blosc2 arrays from files that anybody may have written: plain ones alone, never an expression that a file names."""

from __future__ import annotations

from inspect import signature
from pathlib import Path

import blosc2


def open_array(path: Path, offset: int = 0, end: int | None = None) -> blosc2.NDArray:
    """An array in a file, from byte `offset` to `end`, read slice by slice.

    Raises:
        OSError, RuntimeError, ValueError: it cannot be read, or is no plain array.
    """
    if "deserialize" in signature(blosc2.open).parameters:
        settings = {"deserialize": "safe", "dparams": blosc2.DParams(nthreads=1)}
        array = blosc2.open(str(path), mode="r", offset=offset, **settings)
    else:  # older versions, such as Python 3.10 gets, would evaluate what a file names: the frame is read whole
        array = blosc2.ndarray_from_cframe(path.read_bytes()[offset:end], copy=False)
    if not isinstance(array, blosc2.NDArray):
        raise ValueError("it is no plain array")
    return array
