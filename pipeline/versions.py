"""The versions that a manifest tells: of voxelwise and of the libraries that decide results."""

from __future__ import annotations

import platform
from contextlib import suppress
from functools import cache
from importlib import metadata

LIBRARIES = (
    "torch",
    "monai",
    "numpy",
    "scipy",
    "nibabel",
    "pydicom",
    "SimpleITK",
    "itk",
    "lightning",
    "blosc2",
    "isal",
)


@cache
def versions() -> dict[str, str]:
    """Versions of voxelwise and of what it computes with, read without importing them."""
    found = {"python": platform.python_version()}
    for name in ("voxelwise", *LIBRARIES):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
