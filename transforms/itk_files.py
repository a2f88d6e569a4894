"""NRRD and MetaImage (MHA, MHD) volumes, proved, repaired or refused as NIfTI is.

They are read here and not through ITK, which fills what is missing of a cut-off file with zeros and reports success,
and takes 0.3 s and more to load; the tests hold the result against it.
"""

from __future__ import annotations

import bz2
import re
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .claims import check_limits, product, stop
from .grid_header import GridHeader
from .metaimage import read_meta_header
from .nifti_voxels import not_finite_note
from .nrrd import read_nrrd_header
from .volume import Entry, Geometry, Volume

SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
CHUNK = 1 << 20


def is_itk_file(head: bytes) -> bool:
    """Whether the first bytes are those of NRRD or MetaImage."""
    return head.startswith(b"NRRD0") or bool(re.match(rb"\s*(Comment|ObjectType|NDims)\s*=", head))


def itk_name(path: Path) -> str:
    """The name without its suffix."""
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def itk_header(path: Path) -> GridHeader:
    """The header of either format, checked.

    Raises:
        CaseError: damaged, contradicting itself, of a kind that is not read.
    """
    with open(path, "rb") as file:
        nrrd = file.read(5) == b"NRRD0"
    return read_nrrd_header(path) if nrrd else read_meta_header(path)


def check_claim(path: Path) -> tuple[GridHeader, tuple[int, ...]]:
    """The header of a file whose claim was held against its size, and the shape of its grid."""
    header = itk_header(path)
    return header, header.geometry.shape


def itk_geometry(path: Path) -> tuple[Geometry, tuple[Entry, ...], tuple[Entry, ...]]:
    """Shape and affine from the header, RAS+; repairs and notes."""
    header = itk_header(path)
    return header.geometry, header.repairs, header.notes


def itk_parts(path: Path) -> tuple[Path, ...]:
    """The files that a volume consists of: its header, and the file with its voxels where that is another."""
    header = itk_header(path)
    return (path,) if header.data_path == path else (path, header.data_path)


def read_itk(path: Path, *, max_voxels: int | None = None) -> Volume:
    """Read one NRRD or MetaImage file.

    Args:
        max_voxels: a limit that the user has named.

    Raises:
        CaseError: anything that makes the voxels or their place uncertain.
    """
    header = itk_header(path)
    shape = header.geometry.shape
    packed_bytes = header.data_path.stat().st_size if header.packing else 0
    check_limits(path, shape, header.dtype, packed_bytes, max_voxels)
    claim = product(shape) * header.dtype.itemsize
    notes: tuple[Entry, ...] = ()
    with open(header.data_path, "rb") as file:
        file.seek(header.start if header.start >= 0 else header.data_path.stat().st_size - claim)
        if header.packing:
            buffer, notes = unpacked(header, file, claim)
        else:
            buffer = np.fromfile(file, dtype=np.uint8, count=claim)
    if buffer.size != claim:
        raise stop(path, "changed", "the file changed while it was read", "Run again when it is complete")
    array = buffer.view(header.dtype)
    if header.dtype.byteorder == ">":
        array = array.byteswap(inplace=True).view(header.dtype.newbyteorder("="))
    array = array.reshape(shape, order="F")[np.newaxis]
    notes = (*header.notes, *notes, *not_finite_note(array))
    return Volume(array, header.geometry, "", itk_name(path), repairs=header.repairs, notes=notes)


def unpacked(header: GridHeader, file: BinaryIO, claim: int) -> tuple[np.ndarray, tuple[Entry, ...]]:
    """Unpack to the end of the stream, so that its checksum is compared; notes."""
    packer = zlib.decompressobj(47) if header.packing == "gzip" else bz2.BZ2Decompressor()
    buffer = np.empty(claim, dtype=np.uint8)
    start, filled = file.tell(), 0
    try:
        while not packer.eof:
            chunk = getattr(packer, "unconsumed_tail", b"")
            if not chunk and getattr(packer, "needs_input", True):
                chunk = file.read(CHUNK)
            data = packer.decompress(chunk, 4 * CHUNK)
            if not chunk and not data and not packer.eof:
                raise stop(
                    header.path, "truncated", f"the packed voxels end early: {filled} of {claim} bytes are there"
                )
            if filled + len(data) > claim:
                raise stop(header.path, "data-length", f"the header claims {claim} bytes of voxels, more are there")
            buffer[filled : filled + len(data)] = np.frombuffer(data, np.uint8)
            filled += len(data)
    except (zlib.error, OSError, ValueError, EOFError) as error:
        raise stop(header.path, "damaged-gzip", f"the packed voxels are damaged ({error})") from error
    if filled < claim:
        raise stop(header.path, "truncated", f"{filled} of {claim} bytes of voxels are there")
    taken = file.tell() - start - len(packer.unused_data)
    notes = []
    behind = packer.unused_data + file.read(CHUNK)
    if any(behind):
        raise stop(header.path, "data-length", f"{len(behind)} bytes or more lie behind the packed voxels")
    if behind:
        notes.append(Entry("bytes-behind-gzip", f"{len(behind)} zero bytes behind the packed voxels were left out"))
    if header.packed_bytes is not None and header.packed_bytes != taken:
        found = f"CompressedDataSize is {header.packed_bytes}; the packed voxels took {taken} bytes and are whole"
        notes.append(Entry("compressed-size", found))
    return buffer, tuple(notes)
