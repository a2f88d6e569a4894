"""Files that are there twice: dropped where they are equal, refused where one UID stands for two contents."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import CaseError
from .dicom_record import Slice
from .dicom_stack import Stack
from .volume import Entry

SAME_IN_COPIES = (
    *("position", "orientation", "spacing", "rows", "columns", "frames", "samples", "photometric", "signed"),
    *("bits_allocated", "bits_stored", "high_bit", "slope", "intercept", "padding", "padding_limit", "transfer_syntax"),
    *("patient", "frame_of_reference"),
)


def without_copies(slices: Sequence[Slice]) -> tuple[list[Slice], list[Slice]]:
    """Part off files that are there twice, in one folder or in several (one SOPInstanceUID, equal pixels).

    Raises:
        CaseError: one SOPInstanceUID, and another place, another scale or other pixels.
    """
    by_sop: dict[tuple[object, ...], list[Slice]] = defaultdict(list)
    for one in slices:
        by_sop[one.sop or str(one.path), one.frame, one.tile].append(one)
    if len(by_sop) == len(slices):
        return list(slices), []
    kept: list[Slice] = []
    dropped: list[Slice] = []
    digests: dict[Path, str] = {}
    for copies in by_sop.values():
        first = copies[0]
        kept.append(first)
        for other in copies[1:]:
            dropped.append(other)
            unlike = [name for name in SAME_IN_COPIES if getattr(other, name) != getattr(first, name)]
            if unlike or digest_of(other, digests) != digest_of(first, digests):
                raise CaseError(
                    f"{first.path} and {other.path}: one SOPInstanceUID, other content "
                    f"({', '.join(unlike) or 'PixelData'}), expected equal copies. Decide which of them holds and "
                    "remove the other",
                    "same-uid",
                )
    return kept, dropped


def digest_of(one: Slice, digests: dict[Path, str]) -> str:
    """A checksum of the file from its pixels on, or of the whole file where their place is not known.

    Args:
        digests: those of the files that were read already.
    """
    if one.path not in digests:
        try:
            with open(one.path, "rb") as file:
                file.seek(max(0, one.pixel_offset))
                found = hashlib.sha256()
                while block := file.read(1 << 20):
                    found.update(block)
                digests[one.path] = found.hexdigest()
        except OSError as error:
            raise CaseError(
                f"{one.path}: cannot be read ({error.strerror or error}). Check the disk and the rights", "unreadable"
            ) from error
    return digests[one.path]


def twins(kept: Sequence[Slice], copies: Sequence[Slice]) -> Callable[[tuple[Path, ...]], tuple[Path, ...]]:
    """A function that adds to files those that are copies of them, so that none is lost from the count."""
    by_sop: dict[str, list[Path]] = defaultdict(list)
    for one in copies:
        by_sop[one.sop].append(one.path)
    by_path = {one.path: by_sop[one.sop] for one in kept if one.sop in by_sop}
    return lambda files: tuple(dict.fromkeys([*files, *(path for file in files for path in by_path.get(file, ()))]))


def with_copies(stack: Stack, copies: Sequence[Slice]) -> Stack:
    """Count the files that are there twice to the stack that holds their twins."""
    if not copies:
        return stack
    own = {one.sop for one in stack.slices}
    files = dict.fromkeys(one.path for one in copies if one.sop in own and one.path not in stack.files)
    if not files:
        return stack
    repair = Entry("duplicate-files", f"{len(files)} file(s) that were there twice left out")
    return replace(stack, files=(*stack.files, *files), repairs=(*stack.repairs, repair))
