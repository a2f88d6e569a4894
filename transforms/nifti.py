"""NIfTI-1 and NIfTI-2 files as volumes: one time point, declared channels, a 2D picture or a film."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from .claims import stop
from .nifti_header import (
    GZIP_MAGIC,
    NiftiHeader,
    base_name,
    is_nifti,
    read_header,
    unpacked_head,
)
from .nifti_voxels import not_finite_note, scaled, smallest_integer, stored_voxels, whole
from .volume import Volume

__all__ = [
    "GZIP_MAGIC",
    "NiftiHeader",
    "base_name",
    "is_nifti",
    "read_header",
    "read_nifti",
    "smallest_integer",
    "unpacked_head",
    "whole",
]


def read_nifti(
    path: Path,
    part: int | None = None,
    *,
    affine: str | None = None,
    channels: bool = False,
    max_voxels: int | None = None,
) -> Volume:
    """Read one volume.

    Args:
        part: which volume of a 4D file, from 0; None where the file must hold exactly one.
        affine: "sform" or "qform" where the user has said which one holds.
        channels: the fourth dimension is declared to be channels.
        max_voxels: a limit that the user has named.

    Raises:
        CaseError: anything that makes the voxels or their place uncertain.
    """
    header = read_header(path, affine=affine)
    if header.volumes > 1 and part is None and not channels:
        found = f"4D, {header.volumes} volumes where one is expected"
        raise stop(path, "several-volumes", found, "Cut out the volume that is meant, as convert --time N does")
    if part is not None and not 0 <= part < header.volumes:
        found = f"volume {part} was asked for, the file holds 0 to {header.volumes - 1}"
        raise stop(path, "no-such-part", found, "Choose another")
    array, read_notes = stored_voxels(header, max_voxels)
    if array.dtype.fields is not None:
        return in_colour(header, array)
    array = array.reshape((*header.geometry.shape, header.volumes * header.channels), order="F")
    if part is not None:
        array = array[..., part : part + 1]
    array = np.moveaxis(scaled(header, array), -1, 0)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    notes = (*header.notes, *read_notes, *not_finite_note(array))
    name = base_name(path) + ("" if part is None or header.volumes == 1 else f"_t{part:03d}")
    return Volume(array, header.geometry, name=name, repairs=header.repairs, notes=notes)


def in_colour(header: NiftiHeader, array: np.ndarray) -> Volume:
    """RGB24 without world coordinates: a picture or a film of three channels.

    Raises:
        CaseError: a volume of colours.
    """
    geometry = header.geometry
    shape = geometry.shape if geometry.film else geometry.shape[:2]
    if array.size != np.prod(shape, dtype=np.int64):
        found = f"RGB24 voxels in a volume {header.shape}; expected a picture or a film"
        raise stop(header.path, "bad-datatype", found, "Export the grey values as NIfTI")
    flat = array.reshape(shape, order="F")
    stacked = np.stack([flat[name] for name in ("R", "G", "B")])
    place = replace(geometry, shape=shape)
    return Volume(stacked, place, "picture", base_name(header.path), "", header.repairs, header.notes)
