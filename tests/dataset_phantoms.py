"""What the tests of `dataset` share: two drawn organs, pairs of files that hold them, and what was written."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import label_phantoms as draw
import numpy as np
import phantoms

SHAPE = (12, 10, 8)
LIVER = draw.box(SHAPE, (1, 6), (2, 9), (2, 5))
SPLEEN = draw.box(SHAPE, (7, 11), (1, 4), (4, 8))
WANTED = (LIVER + 2 * SPLEEN).astype(np.uint8)


def failures(out: Path) -> dict[str, str]:
    """code -> message of failures.csv."""
    with (out / "failures.csv").open(newline="") as file:
        return {row["code"]: row["message"] for row in csv.DictReader(file)}


def only(out: Path) -> tuple[str, dict[str, Any]]:
    """Name and sidecar of the only case."""
    (path,) = (out / "imagesTr").glob("*.json")
    return path.stem, json.loads(path.read_text())


def nifti_pair(root: Path, name: str = "a", **fields: Any) -> None:
    """An image and its label map as NIfTI files."""
    phantoms.nifti_file(root / "images" / f"{name}.nii.gz", phantoms.ramp(SHAPE))
    phantoms.nifti_file(root / "labels" / f"{name}.nii.gz", WANTED, **fields)
