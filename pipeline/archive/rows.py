"""Volumes as rows of an index: what a source, or what was found in its place, comes to in `COLUMNS`.

`use` is what a volume could be used for, one of `USES`: "3D" (slices with a place in the world), "2D" (a picture, or
one slice), "film" (frames over time), "label map?" (a segmentation, or a file whose name, folder or header calls it
one); empty where nothing is known. It comes from headers and names and is a hint, no verdict.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ...errors import CaseError
from ...transforms.dicom_series import Stack
from ...transforms.geometry import axis_codes
from ...transforms.grouping import Grouped
from ...transforms.look import Look
from ...transforms.read_options import ReadOptions
from ...transforms.readers import source_geometry
from ...transforms.sources import Source
from ...transforms.volume import Entry, Geometry
from .naming import files_id, ids_of, source_id
from .records import joined, place_of, readable

Row = dict[str, Any]
CODE = re.compile(r"[A-Z0-9][A-Z0-9 _]{0,15}")
LABEL_NAME = re.compile(
    r"(?i)(^|[^a-z])(labels?|labelsTr|labelsTs|seg|segmentation|masks?|gt|annotations?|aseg|dseg|roi)([^a-z]|$)"
)
LABEL_CLASSES = ("Segmentation Storage", "RT Structure Set Storage")


def rows_of_look(look: Look, path: str, root: str, salt: str, options: ReadOptions) -> list[Row]:
    """The rows of a file that is no DICOM slice."""
    if look.error is not None:
        return [stopped_row([path], look.error.code, str(look.error), root, salt)]
    if look.kind == "listed":
        return [listed_row([path], look.reason, root, salt)]
    rows = []
    for source in look.sources:
        try:
            geometry = look.geometry or source_geometry(source, options)[0]
        except CaseError as error:
            rows.append(stopped_row([str(file) for file in source.files], error.code, str(error), root, salt))
            continue
        rows.append(
            {
                **_files([str(file) for file in source.files], root),
                **_shape(geometry),
                "id": source_id(source, salt, Path(root)),
                "verdict": "usable",
                "repairs": entries(look.repairs),
                "notes": entries(look.notes),
                "kind": source.kind,
                "modality": source.modality or None,
                "use": use_of(geometry, look.labels or is_called_label_map(source.files[0])),
                "part": source.part,
            }
        )
    return rows


def rows_of_series(grouped: Grouped, root: str, salt: str, modality: str) -> list[Row]:
    """The rows of a DICOM series: volumes, then what was stopped, then what is no volume."""
    ids = ids_of(grouped.sources, Path(root), salt)
    rows = [
        {**stack_row(source, stack, root), "id": one}
        for one, source, stack in zip(ids, grouped.sources, grouped.stacks, strict=True)
    ]
    for stop in grouped.stopped:
        row = stopped_row([str(file) for file in stop.files], stop.code, stop.message, root, salt)
        rows.append({**row, "kind": "dicom", "modality": code_word(modality)})
    for entry in grouped.listed:
        row = listed_row([str(file) for file in entry.files], entry.reason, root, salt)
        use = "label map?" if entry.reason.endswith(LABEL_CLASSES) else None
        rows.append({**row, "kind": "dicom", "modality": code_word(modality), "use": use})
    return rows


def stack_row(source: Source, stack: Stack, root: str) -> Row:
    """The row of a volume that was proved, without its id."""
    geometry = Geometry(stack.shape, stack.affine, has_world=not stack.picture, film=stack.film)
    files = [str(file) for file in source.files]
    return {
        **_files(files, root),
        **_shape(geometry),
        "verdict": "usable",
        "repairs": entries(stack.repairs),
        "notes": entries(stack.notes),
        "kind": "dicom",
        "modality": code_word(source.modality),
        "body_part": code_word(str(stack.slices[0].facts.get("BodyPartExamined", ""))),
        "use": use_of(geometry, False),
        "series": source.series,
    }


def stopped_row(files: Sequence[str], code: str, message: str, root: str, salt: str) -> Row:
    """The row of what cannot be read."""
    own = {"id": files_id([Path(file) for file in files], salt, Path(root)), "verdict": "stopped", "code": code}
    return {**_files(files, root), **own, "reason": readable(message)}


def listed_row(files: Sequence[str], reason: str, root: str, salt: str) -> Row:
    """The row of what is no volume."""
    own = {"id": files_id([Path(file) for file in files], salt, Path(root)), "verdict": "listed"}
    return {**_files(files, root), **own, "reason": readable(reason)}


def use_of(geometry: Geometry, labels: bool) -> str:
    """What a volume could be used for."""
    if labels:
        return "label map?"
    if geometry.film:
        return "film"
    return "3D" if len(geometry.shape) == 3 and geometry.shape[2] > 1 else "2D"


def is_called_label_map(file: Path) -> bool:
    """Whether a file, or the folder that it lies in, has a name that label maps have."""
    return any(LABEL_NAME.search(name) for name in (file.name, file.parent.name))


def entries(found: Iterable[Entry]) -> str | None:
    """Repairs or notes as JSON; None where there are none."""
    listed = [{"code": entry.code, "detail": entry.detail} for entry in found]
    return json.dumps(listed, ensure_ascii=False) if listed else None


def code_word(text: str) -> str | None:
    """A coded string of a header; None where it is anything else."""
    return text if CODE.fullmatch(text) else None


def members_of(text: str, root: Path, named: Any) -> tuple[Path, ...]:
    """The files of a row again."""
    return tuple(root / named(folder) / named(name) for folder, names in json.loads(text) for name in names)


def _files(files: Sequence[str], root: str) -> Row:
    """Number, common place, and the files themselves."""
    places = [place_of(file, root) for file in files]
    members: list[tuple[str, list[str]]] = []
    for folder, name in places:
        if not members or members[-1][0] != folder:
            members.append((folder, []))
        members[-1][1].append(name)
    whole = [joined(*place) for place in places]
    return {
        "files": len(files),
        "place": os.path.commonpath(whole) if whole else "",
        "members": json.dumps(members, separators=(",", ":"), ensure_ascii=False),
    }


def _shape(geometry: Geometry) -> Row:
    steps = [f"{step:.4g}" for step in geometry.spacing_mm]
    return {
        "shape": "x".join(str(side) for side in geometry.shape),
        "slices": geometry.shape[2] if len(geometry.shape) > 2 else 1,
        "spacing_mm": "x".join(steps) if geometry.has_world else None,
        "orientation": axis_codes(geometry.affine) if geometry.has_world else None,
    }
