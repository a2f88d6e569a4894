"""What stops a whole series before any slice is placed: no pixels, mixed patients or frames of reference."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from ..errors import CaseError
from .dicom_record import Slice
from .read_options import ReadOptions

SHOWN_VALUES = 6
FETCH = "Records may be merged: fetch the series again"


def check_series(slices: Sequence[Slice], options: ReadOptions) -> None:
    """Everything that stops a whole series.

    Args:
        slices: without copies.

    Raises:
        CaseError: one of the slices cannot be used, or they do not belong together.
    """
    for one in slices:
        if one.refusal is not None:
            raise CaseError(*one.refusal)
        if not one.pixels:
            raise CaseError(
                f"{one.path}: no PixelData, expected an image: one slice of the series has none. "
                "Copy the file again from its source",
                "no-pixels",
            )
        if one.frames > 1 and one.frame is None and one.tile is None:
            raise CaseError(
                f"{one.path}: NumberOfFrames is {one.frames}, and no functional groups give each frame its place. "
                "Export single-frame or enhanced DICOM, or state the geometry with --geometry FILE",
                "multi-frame",
            )
        refuse_by_choice(one, options)
    check_one_value(slices, "PatientID", [one.patient for one in slices], "mixed-patients")
    studies = [one.study for one in slices]
    if not (options.group_by and each_its_own(studies)):
        way = f"{FETCH}, or part the studies with --group-by StudyInstanceUID,SeriesInstanceUID"
        check_one_value(slices, "StudyInstanceUID", studies, "mixed-studies", way)
    if not scrambled_frames(slices):
        frames = [one.frame_of_reference for one in slices]
        check_one_value(slices, "FrameOfReferenceUID", frames, "mixed-frames-of-reference")


def refuse_by_choice(one: Slice, options: ReadOptions) -> None:
    """`--refuse-lossy` and `--refuse-burned-in`.

    Raises:
        CaseError: the user wants no such file.
    """
    if options.refuse_lossy and one.lossy:
        raise CaseError(
            f"{one.path}: LossyImageCompression: pixels were compressed with loss (ratio {one.lossy}), expected none "
            "with --refuse-lossy. Fetch the original, or leave the option out",
            "lossy",
        )
    if options.refuse_burned_in and one.burned_in:
        raise CaseError(
            f"{one.path}: BurnedInAnnotation is YES, expected NO with --refuse-burned-in. Clean the pixels, or leave "
            "the option out",
            "burned-in",
        )


def check_one_value(slices: Sequence[Slice], tag: str, values: Sequence[str], code: str, way: str = FETCH) -> None:
    """Stop where a series holds several values of a tag: each is counted and told by a file that holds it, never shown.

    Not even hashed: who knows how the numbers of patients are formed, finds the one behind a hash.
    """
    by_value: dict[str, list[str]] = defaultdict(list)
    for one, value in zip(slices, values, strict=True):
        by_value[value].append(str(one.path))
    if len(by_value) == 1:
        return
    groups = sorted((-len(files), min(files)) for files in by_value.values())
    found = ", ".join(f"{-count} slice(s) such as {file}" for count, file in groups[:SHOWN_VALUES])
    more = f" and {len(groups) - SHOWN_VALUES} more" if len(groups) > SHOWN_VALUES else ""
    raise CaseError(
        f"{slices[0].path}: one series holds {len(groups)} values of {tag} ({found}{more}), expected one. {way}",
        code,
    )


def each_its_own(values: Sequence[str]) -> bool:
    """As many values as slices, three or more."""
    return len(values) >= 3 and len(set(values)) == len(values)


def scrambled_frames(slices: Sequence[Slice]) -> bool:
    """Each slice with a FrameOfReferenceUID of its own: an anonymiser's doing."""
    return each_its_own([one.frame_of_reference for one in slices])
