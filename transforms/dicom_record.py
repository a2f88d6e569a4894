"""What one DICOM file, or one frame of it, says of itself: the record that volumes are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom.uid import UID, UID_dictionary

from ..errors import CaseError

UNDEFINED = 0xFFFFFFFF
IMPLICIT, EXPLICIT, BIG_ENDIAN = NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
DEFLATED = "1.2.840.10008.1.2.1.99"
GE_BIG_ENDIAN_PIXELS = "1.2.840.113619.5.2"  # implicit VR little endian, the words of PixelData big endian
DICOMDIR = "1.2.840.10008.1.3.10"
CLASSES = "1.2.840.10008.5.1.4.1.1."
# CT, MR, PET: classic, enhanced, and enhanced converted from classic.
VOLUME_CLASSES = frozenset(CLASSES + end for end in ["2", "2.1", "2.2", "4", "4.1", "4.4", "128", "130", "128.1"])
# CR, DX, MG and intra-oral; ultrasound with its retired classes; secondary capture; NM, XA and RF as pictures or films;
# endoscopy, microscopy, photography and ophthalmic photography with their films.
PICTURE_CLASSES = frozenset(
    CLASSES + end
    for group in (
        "1 1.1 1.1.1 1.2 1.2.1 1.3 1.3.1",
        "3 3.1 6 6.1 6.2",
        "7 7.1 7.2 7.3 7.4",
        "5 20 12.1 12.1.1 12.2 12.2.1 12.3",
        "77.1.1 77.1.1.1 77.1.2 77.1.2.1 77.1.3 77.1.4 77.1.4.1 77.1.5.1 77.1.5.2",
    )
    for end in group.split()
)


class DirectoryFileError(CaseError):
    """A DICOMDIR: DICOM, and no image."""


class SliceError(CaseError):
    """A file that cannot be read although its header says which series it belongs to, and maybe what it is.

    Args:
        message, code: as of a `CaseError`; this one too comes back whole from another process.
        series: StudyInstanceUID and SeriesInstanceUID.
        sop_class: SOPClassUID.
    """

    def __init__(
        self, message: str, code: str = "unreadable", series: tuple[str, str] = ("", ""), sop_class: str = ""
    ) -> None:
        super().__init__(message, code)
        self.series, self.sop_class = series, sop_class


@dataclass(frozen=True, eq=False)
class Slice:
    """What one file, one frame or one tile of it says of itself.

    Numbers of the geometry are kept as text until they are proved. `patient` is hashed; nothing but `phi` and `group`,
    which are empty unless the user asks for them, names a person.

    Args:
        position, orientation, spacing: ImagePositionPatient, ImageOrientationPatient, PixelSpacing; `spacing`
            (rows, columns; mm) of a picture may come from ImagerPixelSpacing or the region of an ultrasound image.
        lossy: ratio of a compression with loss, or "unknown"; empty where there was none.
        pixel_offset: where the pixels begin in the file; -1 where they are deflated or absent.
        frame: number of the frame in an enhanced multi-frame object; None where the file is one slice, picture or film.
        tile: place of the slice in a mosaic: first row, first column, rows and columns of the whole stored image.
        refusal: message and code for which the whole series must stop.
        splits: tags that part slices at one place, by name.
        stated_counts: how many images or slices the file says that there are, by keyword.
        frame_seconds: time from frame to frame of a film.
        burned_in: BurnedInAnnotation is YES.
        executable_preamble: the 128 bytes before the data are the head of a program.
        group: values of `--group-by`, joined by a backslash.
    """

    path: Path
    size: int
    modified: int
    sop_class: str
    sop: str
    study: str
    series: str
    patient: str
    frame_of_reference: str
    transfer_syntax: str
    modality: str
    image_type: str
    rows: int = 0
    columns: int = 0
    samples: int = 1
    photometric: str = ""
    frames: int = 1
    bits_allocated: int = 16
    bits_stored: int = 16
    high_bit: int = 15
    signed: bool = False
    padding: int | None = None
    padding_limit: int | None = None
    position: str | None = None
    orientation: str | None = None
    spacing: str | None = None
    slope: str | None = None
    intercept: str | None = None
    rescale_type: str = ""
    instance: int | None = None
    series_number: str = ""
    lossy: str = ""
    pixels: bool = False
    float_pixels: bool = False
    pixel_offset: int = -1
    pixel_length: int = UNDEFINED
    big_endian: bool = False
    bare: bool = False
    frame: int | None = None
    tile: tuple[int, int, int, int] | None = None
    splits: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    phi: Mapping[str, str] = field(default_factory=dict)
    group: str = ""
    refusal: tuple[str, str] | None = None
    stated_counts: Mapping[str, int] = field(default_factory=dict)
    frame_seconds: float | None = None
    burned_in: bool = False
    executable_preamble: bool = False

    @property
    def native(self) -> bool:
        """Whether the pixels stand uncompressed in the file or, deflated, in its data set."""
        return self.transfer_syntax in NATIVE or self.transfer_syntax == DEFLATED

    @property
    def class_name(self) -> str:
        """The SOP class in words."""
        if not self.sop_class:
            return "no SOP class"
        return UID(self.sop_class).name if self.sop_class in UID_dictionary else "a private SOP class"
