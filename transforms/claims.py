"""What a header claims, held against the size of its file and against limits, before any memory is taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import CaseError

MAX_VOXELS = 2**31
LARGEST_RATIO = {"gzip": 1040, "bzip2": 50_000_000}  # deflate cannot pack better than 1032 : 1
BOMB_RATIO = 200
BOMB_BYTES = 10**9
COPY_AGAIN = "Copy the file again from its source"


def stop(path: Path, code: str, found: str, way_out: str = COPY_AGAIN) -> CaseError:
    """A refusal that names the file, what was found, and the way on."""
    return CaseError(f"{path}: {found}. {way_out}", code)


def product(sizes: tuple[int, ...]) -> int:
    """Of numbers that may be as large as a damaged header likes."""
    return int(np.prod(sizes, dtype=object))


def check_size(path: Path, claim: int, there: int, packed: str = "") -> None:
    """Hold a header's claim against the size of its file.

    Args:
        claim: bytes that the header says there are, before packing.
        there: bytes on the disk.
        packed: "gzip", "bzip2" or "".

    Raises:
        CaseError: fewer or more bytes than the header claims, or more than this many packed bytes can hold.
    """
    if not packed and there != claim:
        code = "truncated" if there < claim else "data-length"
        raise stop(path, code, f"the header claims {claim} bytes, the file has {there}")
    if packed and claim > there * LARGEST_RATIO[packed]:
        raise stop(path, "truncated", f"the header claims {claim} bytes, more than {there} bytes of {packed} can hold")


def check_limits(
    path: Path, shape: tuple[int, ...], dtype: np.dtype, packed_bytes: int, max_voxels: int | None
) -> None:
    """Hold a header's claim against the limits.

    Args:
        packed_bytes: bytes on the disk; 0 where they are not packed.
        max_voxels: the user's own limit, which also takes away that on how far packed bytes may unpack.

    Raises:
        CaseError: too many voxels; much more than honest packing gives.
    """
    voxels = product(shape)
    claim, limit = voxels * dtype.itemsize, max_voxels or MAX_VOXELS
    if voxels > limit:
        found = f"{voxels} voxels of {dtype}, {claim / 1e9:.1f} GB; limit {limit} voxels"
        raise stop(path, "too-large", found, f"If you trust it, give --max-voxels {voxels}")
    if packed_bytes and not max_voxels and claim > BOMB_BYTES and claim > BOMB_RATIO * packed_bytes:
        sizes = f"{claim / 1e9:.1f} GB unpacked from {packed_bytes / 1e6:.1f} MB"
        found = f"needs {sizes}, limit 1.0 GB at a ratio above {BOMB_RATIO}"
        raise stop(path, "gzip-bomb", found, f"If you trust it, unpack it, or give --max-voxels {voxels}")
