"""Records of DICOM slices as the header reader makes them, without files, for tests of what a series is sorted into."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
from voxelwise.transforms.dicom_record import Slice
from voxelwise.transforms.dicom_series import Stack, sort_series
from voxelwise.transforms.read_options import DEFAULT, ReadOptions

CT, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4.1"
ULTRASOUND, ULTRASOUND_FILM = "1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.5.1.4.1.1.3.1"
CAPTURE, NUCLEAR, REPORT = "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.20", "1.2.840.10008.5.1.4.1.1.88.11"
LITTLE = "1.2.840.10008.1.2.1"


def record(name: str, **values: Any) -> Slice:
    """One record; `name` is file and SOPInstanceUID."""
    standard: dict[str, Any] = {
        "path": Path("/series", name),
        "size": 1000,
        "modified": 1,
        "sop_class": CT,
        "sop": f"1.2.{name}",
        "study": "1.2.3",
        "series": "1.2.3.4",
        "patient": "p",
        "frame_of_reference": "1.2.5",
        "transfer_syntax": LITTLE,
        "modality": "CT",
        "image_type": "ORIGINAL\\PRIMARY\\AXIAL",
        "rows": 4,
        "columns": 5,
        "slope": "1",
        "intercept": "-1024",
        "rescale_type": "HU",
        "pixels": True,
        "pixel_offset": 500,
        "pixel_length": 40,
        "series_number": "3",
    }
    return Slice(**{**standard, **values})


def stack_records(
    count: int = 8, affine: np.ndarray | None = None, places: Iterable[float] | None = None, **values: Any
) -> list[Slice]:
    """Records of one stack.

    Args:
        affine: of the voxels, RAS+; `phantoms.AXIAL` by default.
        places: of the slices, in steps of the affine.
        values: of the records; a function of the slice number gives each its own. `name` begins the names of the files.
    """
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ (phantoms.AXIAL if affine is None else affine)
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    cosines = (lps[:3, :2] / spacing[:2]).T.reshape(-1)
    shared = {"spacing": texts(spacing[1::-1]), "orientation": texts(cosines), "facts": {"SliceThickness": spacing[2]}}
    name = values.pop("name", "s")
    records = []
    for number, place in enumerate(range(count) if places is None else places):
        position = lps[:3, 3] + place * lps[:3, 2]
        own = {key: value(number) if isinstance(value, Callable) else value for key, value in values.items()}
        records.append(
            record(f"{name}{number:05d}", **{**shared, "position": texts(position), "instance": number + 1, **own})
        )
    return records


def texts(values: Iterable[float]) -> str:
    """Numbers as a DICOM header holds them."""
    return "\\".join(f"{value:.9g}"[:16] for value in values)


def only(slices: list[Slice], options: ReadOptions = DEFAULT) -> Stack:
    """The one stack of a series; its error where it stops."""
    found = sort_series(slices, options)
    if found.stopped:
        raise found.stopped[0][1]
    assert len(found.stacks) == 1
    return found.stacks[0]


def codes(stack: Stack) -> set[str]:
    """Codes of all repairs and notes."""
    return {entry.code for entry in (*stack.repairs, *stack.notes)}
