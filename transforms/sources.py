"""The records of a search: volumes that can be read, what was found and cannot be, what is no volume."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .dicom_series import Stack
from .read_options import ReadOptions
from .volume import Entry
from .zip_files import archive_of


@dataclass(frozen=True)
class Source:
    """One volume that can be read.

    Args:
        kind: "dicom", "nifti", "itk" or "picture".
        files: all files that belong to it; those in a zip archive lie below the archive's own path.
        name: base name of a file ("" for DICOM).
        series: SeriesInstanceUID and split part ("" unless DICOM); never written out unhashed.
        modality: DICOM's word, "picture", or "".
        shape: spatial shape, from the headers.
        part: which volume of a 4D file.
        repairs, notes: what the headers of a whole DICOM series tell; None where they are to be found while reading.
        proved: the stack of a DICOM series as this process proved it, and with which options; is left behind when a
            source is sent to another process.
    """

    kind: str
    files: tuple[Path, ...]
    name: str = ""
    series: str = ""
    modality: str = ""
    shape: tuple[int, ...] | None = None
    part: int | None = None
    repairs: tuple[Entry, ...] | None = None
    notes: tuple[Entry, ...] | None = None
    proved: tuple[Stack, ReadOptions] | None = field(default=None, compare=False, repr=False)

    @property
    def on_disk(self) -> tuple[Path, ...]:
        """The files as they lie on the disk: a zip archive in the place of its members."""
        return tuple(dict.fromkeys(archive_of(file) or file for file in self.files))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "proved": None}


@dataclass(frozen=True)
class Stopped:
    """Found, and cannot be read."""

    files: tuple[Path, ...]
    code: str
    message: str


@dataclass(frozen=True)
class NotAVolume:
    """Found, and no volume: a localizer, a report."""

    files: tuple[Path, ...]
    reason: str


@dataclass(frozen=True)
class Found:
    """All that lies behind a path; `rubbish` counts files that nobody expects to be images."""

    sources: tuple[Source, ...]
    stopped: tuple[Stopped, ...] = ()
    listed: tuple[NotAVolume, ...] = ()
    rubbish: int = 0
