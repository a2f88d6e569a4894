"""What a reader of a DICOM volume should know: slices that may be missing, values that may mean something else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from .dicom_checks import scrambled_frames
from .dicom_geometry import Placed, thickness_of
from .dicom_parts import TIMES, Part
from .dicom_record import Slice
from .dicom_text import first_number
from .volume import Entry

MISSING = "slices-missing"
SERIES_COUNTS = ("ImagesInAcquisition", "NumberOfSeriesRelatedInstances")
STACK_COUNTS = ("NumberOfSlices", "NumberOfSlicesMR", "LocationsInAcquisition")
TIME_COUNTS = ("NumberOfTemporalPositions", "NumberOfTimeSlices")
RESCALE_TYPES = ("OD", "US", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT")


def series_notes(slices: Sequence[Slice], total: int) -> list[Entry]:
    """What holds for a whole series and all volumes in it.

    Args:
        slices: those that make up volumes, without copies.
        total: number of all images of the series.
    """
    notes = []
    if slices[0].frame is None:
        instances = [one.instance for one in slices if one.instance is not None]
        if len(instances) == len(slices) and len(set(instances)) == len(slices) and slices[0].tile is None:
            claim = max(instances) - min(instances) + 1
            if claim > total:
                detail = f"{total} of {claim}: InstanceNumber runs over {claim}, slices may be missing"
                notes.append(Entry(MISSING, detail))
        notes += stated_notes(slices, SERIES_COUNTS, total, "slices may be missing at an end")
    if scrambled_frames(slices):
        detail = "each slice has a FrameOfReferenceUID of its own; geometry is from positions"
        notes.append(Entry("frames-of-reference", detail))
    return notes


def times_notes(parts: Sequence[Part], slices: Sequence[Placed], times: int) -> list[Entry]:
    """Time points that may be missing.

    Args:
        parts: those of one group; empty where it is one stack.
        times: how many time points were found.
    """
    if not parts or not TIMES.intersection(parts[0].names):
        return []
    return stated_notes([one.slice for one in slices], TIME_COUNTS, times, "time points may be missing")


def stated_notes(slices: Sequence[Slice], names: Sequence[str], found: int, what: str) -> list[Entry]:
    """The first of the counts that the files state, and that is larger than what was found."""
    for name in names:
        stated = max(one.stated_counts.get(name, 0) for one in slices)
        if stated > found:
            return [Entry(MISSING, f"{found} of {stated}: {name} says {stated}, {what}")]
    return []


def count_notes(slices: Sequence[Slice]) -> list[Entry]:
    """Slices that may be missing in the only stack of its kind in a series.

    Vendors' own counts are those of the scan: what was made of it later may have fewer slices.
    """
    names = [name for name in STACK_COUNTS if name == "NumberOfSlices" or "ORIGINAL" in slices[0].image_type]
    return stated_notes(slices, names, len(slices), "slices may be missing at an end")


def stack_notes(ordered: Sequence[Placed], wanted: int) -> list[Entry]:
    """What holds for one volume.

    Args:
        ordered: its slices by their place.
        wanted: number of slices that the largest part of the same series has, where it was parted.
    """
    slices = [one.slice for one in ordered]
    notes = []
    if len(slices) < wanted:
        detail = f"{len(slices)} of {wanted}: other parts of the series have {wanted}, slices may be missing at an end"
        notes.append(Entry(MISSING, detail))
    if len(slices) == 1:
        known = "1 mm" if thickness_of(slices[0]) is None else "its thickness"
        detail = f"one slice: the distance to the next is unknown; {known} stands in for it"
        notes.append(Entry("single-slice", detail))
    elif slices[0].frame is None and slices[0].tile is None:
        instances = [one.instance for one in slices if one.instance is not None]
        runs = {after > before for before, after in pairwise(instances)}
        if len(instances) < len(slices) or len(set(instances)) < len(slices) or len(runs) > 1:
            detail = "InstanceNumber is absent, repeats or does not follow the position; it was not used"
            notes.append(Entry("instance-numbers", detail))
    return [*notes, *value_notes(slices), *file_notes(slices)]


def value_notes(slices: Sequence[Slice]) -> list[Entry]:
    """Values that may mean something else than a reader expects."""
    notes = []
    if any(one.photometric == "MONOCHROME1" for one in slices):
        notes.append(Entry("monochrome1", "MONOCHROME1: shown inverted; the values are kept as they are"))
    if slices[0].modality == "MR" and any(first_number(one.slope) not in (None, 1.0) for one in slices):
        detail = "RescaleSlope was applied; the scanner may mean another scale, which stands in private tags"
        notes.append(Entry("rescaled-mr", detail))
    if slices[0].modality == "CT":
        types = {one.rescale_type for one in slices} - {"", "HU"}
        if all(one.slope is None and one.intercept is None for one in slices):
            notes.append(Entry("not-hu", "CT without rescale tags: the values may not be HU"))
        elif types:
            known = " or ".join(sorted(types & set(RESCALE_TYPES))) or "another word"
            notes.append(Entry("not-hu", f"RescaleType is {known}, not HU"))
        usual = Counter((one.slope, one.intercept) for one in slices).most_common(1)[0][1]
        if len(slices) / 2 < usual < len(slices):  # legal, and what a damaged header looks like
            detail = f"{len(slices) - usual} of {len(slices)} slices have another RescaleSlope or RescaleIntercept"
            notes.append(Entry("rescale-differs", detail))
    return notes


def file_notes(slices: Sequence[Slice]) -> list[Entry]:
    """What the files went through: loss, text burned into the pixels, a program in the place of the preamble."""
    notes = []
    ratios = sorted({one.lossy for one in slices} - {""})
    if ratios:
        shown = f"ratio {ratios[0]}" if len(ratios) == 1 else f"ratios {ratios[0]} to {ratios[-1]}"
        notes.append(Entry("lossy", f"pixels were compressed with loss ({shown})"))
    if any(one.burned_in for one in slices):
        notes.append(Entry("burned-in", "BurnedInAnnotation is YES: text may stand in the pixels"))
    if any(one.executable_preamble for one in slices):
        detail = "the preamble of a file is the head of a program; it is never copied"
        notes.append(Entry("executable-preamble", detail))
    return notes


def file_repairs(slices: Sequence[Slice]) -> list[Entry]:
    """What was put right while the files were read."""
    if not any(one.bare for one in slices):
        return []
    return [Entry("no-preamble", "files without DICOM preamble or file meta were read as data sets")]
