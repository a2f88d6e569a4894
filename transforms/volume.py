"""The record that every room shares: one grid of voxels with its place in the world.

Arrays are (C, X, Y, Z) in NIfTI index order, pictures (C, X, Y); world coordinates are mm, RAS+.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Entry:
    """One repair or note: a short code for tables and a sentence for people (no identifiers of the patient)."""

    code: str
    detail: str


@dataclass(frozen=True, eq=False)
class Geometry:
    """Shape and place of a grid.

    Args:
        shape: spatial shape, (X, Y, Z) or (X, Y).
        affine: (4, 4) float64, voxel index to RAS+ mm.
        nifti_fields: the geometric fields of a NIfTI header exactly as stored (srow_*, quatern_*, qoffset_*, pixdim,
            sform_code, qform_code, xyzt_units), empty for other sources; the writer copies them so that labels come
            back bit-equal.
        has_world: False for pictures, whose pixels have no place in the world (both NIfTI codes are written as 0).
        film: the third axis is time: the frames of an ultrasound or secondary capture, (X, Y, T). The third spacing is
            the time between frames in seconds (1 where the source does not say).
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    nifti_fields: Mapping[str, Any] = field(default_factory=dict)
    has_world: bool = True
    film: bool = False

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Distance between neighbouring voxels along each array axis, in mm."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        return tuple(float(value) for value in lengths[: len(self.shape)])


@dataclass(frozen=True, eq=False)
class Volume:
    """One grid of voxels, one or several channels.

    Args:
        array: (C, *geometry.shape), in the smallest dtype that holds the values exactly (HU or modality units).
        geometry: shape and place.
        modality: DICOM's word ("CT", "MR", "PT", "US", ...), "picture", or "" where the source does not say.
        name: base name of a file without its suffixes ("" for DICOM, whose name is a hashed id given later).
        series: what identifies the source in its archive (SeriesInstanceUID, split part); never written out unhashed.
        repairs: exact automatic corrections that were made.
        notes: warnings that a reader of the result should know.
        facts: acquisition facts without identifiers, BIDS names where they exist (`RepetitionTime`, `KVP`, ...).
        phi: what names the patient or is free text (`PatientName`, `SeriesDescription`, ...); empty unless the user has
            asked for it (`--phi`).
    """

    array: np.ndarray
    geometry: Geometry
    modality: str = ""
    name: str = ""
    series: str = ""
    repairs: tuple[Entry, ...] = ()
    notes: tuple[Entry, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    phi: Mapping[str, str] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        """Number of channels."""
        return int(self.array.shape[0])
