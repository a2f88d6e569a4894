"""Amounts of memory as people write them: 4GB is 4 x 10^9 bytes, 4GiB is 4 x 2^30."""

from __future__ import annotations

import re

from ..errors import UsageError

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(amount: str | int | None, option: str = "--memory") -> int | None:
    """Bytes of `4GB`, `512MiB` or a plain number; None stays None.

    Raises:
        UsageError: no amount, or not above 0.
    """
    if amount is None or isinstance(amount, int):
        return amount
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", amount.strip())
    unit = match[2].upper() if match else "?"
    if match is None or unit not in UNITS or float(match[1]) <= 0:
        raise UsageError(f"{option} {amount!r}: expected an amount such as 4GB or 512MiB")
    return int(float(match[1]) * UNITS[unit])
