"""Random draws that depend on (seed, step, slot in the batch) and on nothing else.

Neither the number of workers nor a restart changes them.
"""

from __future__ import annotations

import numpy as np


def draw_seed(seed: int, *place: int) -> int:
    """A 31-bit seed for one place, well mixed (numpy's SeedSequence)."""
    return int(np.random.SeedSequence([seed, *place]).generate_state(1)[0] & 0x7FFFFFFF)
