"""The label maps behind a path: files of one label map each, and the DICOM SEG and RTSTRUCT objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydicom import dcmread

from ...errors import CaseError
from ...transforms.dicom import is_dicom
from ...transforms.dicom_rtstruct import rtstruct_header
from ...transforms.dicom_seg import seg_header
from ...transforms.label_objects import PARSING, RTSTRUCT_CLASS, SEG_CLASSES, LabelObject
from ...transforms.readers import Found, NotAVolume, Source
from ...transforms.zip_files import unpacked
from ..archive.naming import relative
from .channels import NUMBERED, Problem


@dataclass(frozen=True)
class LabelItem:
    """One label map that can be read: a file, or a DICOM object that draws it.

    Args:
        path: the file that names it.
        source: a NIfTI, NRRD, MHA or picture file.
        drawn: the header of a SEG or RTSTRUCT.
    """

    path: Path
    source: Source | None = None
    drawn: LabelObject | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of it."""
        return self.source.files if self.source else (self.path,)

    @property
    def keys(self) -> tuple[str, ...]:
        """Names by which it may mean an image; nnU-Net's channel number is taken off."""
        name = self.source.name if self.source else self.path.stem
        match = NUMBERED.fullmatch(name)
        return (name, match[1]) if match and match[2] == "0000" else (name,)


def find_labels(
    found: Found, root: Path, *, objects_only: bool = False
) -> tuple[list[LabelItem], list[Problem], list[NotAVolume]]:
    """What was found below `root`, as label maps.

    Args:
        found: by `find_sources`.
        root: paths of problems are relative to it.
        objects_only: images lie in the same folder, so that a file may as well be an image; SEG and RTSTRUCT are taken.

    Returns:
        Label maps, those that cannot be used, and what is none.
    """
    items: list[LabelItem] = []
    problems = [] if objects_only else [_problem(one.files, one.code, one.message, root) for one in found.stopped]
    listed: list[NotAVolume] = []
    parts: dict[Path, int] = {}
    for source in () if objects_only else found.sources:
        if source.kind == "dicom":
            listed.append(NotAVolume(source.files, "a DICOM series of images, no label map"))
        elif source.part is not None:
            parts[source.files[0]] = parts.get(source.files[0], 0) + 1
        else:
            items.append(LabelItem(source.files[0], source))
    for file, count in parts.items():
        text = f"{file}: holds {count} volumes, a label map is one volume with one value a voxel; split it"
        problems.append(_problem((file,), "label-4d", text, root))
    for entry in found.listed:
        for file in entry.files:
            try:
                drawn = _object(file)
            except CaseError as error:
                problems.append(_problem((file,), error.code, str(error), root))
                continue
            if drawn is not None:
                items.append(LabelItem(file, drawn=drawn))
            elif not objects_only:
                listed.append(NotAVolume((file,), entry.reason))
    return items, problems, listed


def _object(file: Path) -> LabelObject | None:
    """The header of a SEG or RTSTRUCT; None for anything else."""
    with unpacked((file,)) as (files, _):
        drawn = _header(files[0])
        return replace(drawn, path=file) if drawn is not None else None


def _header(file: Path) -> LabelObject | None:
    try:
        with open(file, "rb") as opened:
            if not is_dicom(opened.read(1024)):
                return None
        word = str(dcmread(file, force=True, specific_tags=["SOPClassUID"], stop_before_pixels=True).get("SOPClassUID"))
    except OSError as error:
        raise CaseError(f"{file}: cannot be read ({error.strerror}). Check the disk and the rights") from error
    except PARSING:
        return None
    if word in SEG_CLASSES:
        return seg_header(file)
    return rtstruct_header(file) if word == RTSTRUCT_CLASS else None


def _problem(files: Sequence[Path], code: str, message: str, root: Path) -> Problem:
    names = tuple(relative(file, root) for file in files)
    return Problem(names[0] if names else root.name, names, CaseError(message, code))
