"""The ways out that a user has when a source is refused or holds several volumes: chosen by hand, recorded where used.

Nothing here is on by default. Each choice stands in the notes of the volumes that it touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import UsageError

GAPS = ("stop", "resample")
AFFINES = ("sform", "qform")


@dataclass(frozen=True)
class ReadOptions:
    """How sources are read where the default would stop, or take everything.

    Args:
        strict: notes on slices that may be missing stop the series.
        gaps: "stop" where slices are missing or unevenly spaced; "resample" puts them on an even grid.
        time: which time points of a 4D source are taken: "all", "first" or the number of one, from 0.
        geometry: JSON file in which the user states what the headers lack (position, orientation, pixel spacing).
        affine: "sform" or "qform" of NIfTI, where the two contradict each other.
        group_by: DICOM keywords that tell series apart in the place of StudyInstanceUID and SeriesInstanceUID.
        max_voxels: the largest number of voxels that a file may claim, where it is not the default.
        refuse_lossy: pixels that were compressed with loss stop their series.
        refuse_burned_in: BurnedInAnnotation YES stops the series.
        phi: names, dates and descriptions of the headers are kept for the index and the sidecars.

    Raises:
        UsageError: a value that none of these words has.
    """

    strict: bool = False
    gaps: str = "stop"
    time: str = "all"
    geometry: Path | None = None
    affine: str | None = None
    group_by: tuple[str, ...] = ()
    max_voxels: int | None = None
    refuse_lossy: bool = False
    refuse_burned_in: bool = False
    phi: bool = False

    def __post_init__(self) -> None:
        if self.gaps not in GAPS:
            raise UsageError(f"--gaps {self.gaps!r}: expected one of {', '.join(GAPS)}")
        if self.affine is not None and self.affine not in AFFINES:
            raise UsageError(f"--affine {self.affine!r}: expected one of {', '.join(AFFINES)}")
        if self.time not in ("all", "first") and not self.time.isdecimal():
            raise UsageError(f"--time {self.time!r}: expected all, first, or the number of a time point from 0")
        if self.max_voxels is not None and self.max_voxels < 1:
            raise UsageError(f"--max-voxels {self.max_voxels}: expected a number above 0")

    def chosen(self) -> Mapping[str, Any]:
        """The options that are not at their default, as JSON-able values for a manifest."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) != one.default}
        return {
            name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
        }


DEFAULT = ReadOptions()
