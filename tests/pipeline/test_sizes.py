"""Amounts of memory."""

from __future__ import annotations

import pytest
from voxelwise.errors import UsageError
from voxelwise.pipeline.sizes import parse_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [("4GB", 4 * 10**9), ("4 GiB", 4 * 2**30), ("1.5gb", 1_500_000_000), ("700", 700), (None, None), (5, 5)],
)
def test_amounts(text, count) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["four", "4XB", "-1GB", "0GB", ""])
def test_what_is_no_amount_is_said(text) -> None:
    with pytest.raises(UsageError, match=r"--gpu-memory .*expected an amount such as 4GB"):
        parse_bytes(text, "--gpu-memory")
