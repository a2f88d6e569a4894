"""What weights of a trained network may be: finite floating point numbers, beside counters and tables of indices."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WHOLE = ("num_batches_tracked", "relative_position_index")  # of batch norms, and of attention within windows


def check_dtypes(weights: Mapping[str, Tensor]) -> None:
    """Refuse weights of a type that no network is trained in.

    Raises:
        ValueError: with the first of them.
    """
    for name, value in weights.items():
        if value.dtype not in FLOATS and (value.dtype.is_complex or not name.endswith(WHOLE)):
            raise ValueError(f"its weights hold {value.dtype} under {name!r}, expected floating point numbers")


def not_finite(weights: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that is not finite as float32; None where all are."""
    return next((name for name, value in weights.items() if not bool(torch.isfinite(value.float()).all())), None)
