"""How an output folder is arranged: flat, as in BIDS, or as in the Medical Segmentation Decathlon.

flat   NAME.nii.gz and NAME.json in one folder
bids   sub-PATIENT/ses-STUDY/KIND/sub-PATIENT_ses-STUDY_acq-SERIES_SUFFIX.nii.gz, with dataset_description.json and
       participants.tsv; all three are salted ids. BIDS-like: the contrast of an MR is not guessed from its
       parameters, its suffix is `MR`, and the folders `ct`, `us` and `other` are no BIDS yet
msd    imagesTr/NAME.nii.gz and dataset.json, which names labelsTr/NAME.nii.gz as the place of each label map:
       put them there, and `plan` and `train` take the folder
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import __version__
from ...errors import CaseError, UsageError, unknown
from ...transforms.readers import Source
from ...transforms.writers import write_json, write_text
from .naming import Origin, ids_of, origin_of, without_clashes

LAYOUTS = ("flat", "bids", "msd")
FORMATS = ("nii.gz", "nii")
KINDS = {  # DICOM's modality -> folder and suffix
    "CT": ("ct", "ct"),
    "MR": ("anat", "MR"),
    "PT": ("pet", "pet"),
    "US": ("us", "us"),
}
DIFFUSION = ("DiffusionBValue", "DiffusionGradientOrientation")


@dataclass(frozen=True)
class Place:
    """Where one volume goes, relative to the output folder: its name, and its file without a suffix."""

    name: str
    base: str


def check_layout(layout: str, form: str, *, single: bool, template: str | None) -> None:
    """Refuse what does not go together before anything is written.

    Raises:
        UsageError: an unknown layout or format, a layout for one file, a template where the layout makes the names.
    """
    if layout not in LAYOUTS:
        raise unknown("--layout", layout, LAYOUTS)
    if form not in FORMATS:
        raise unknown("--format", form, FORMATS)
    if single and layout != "flat":
        raise UsageError(f"--layout {layout} makes a folder, and OUT is one file; give a folder as OUT")
    if template is not None and layout == "bids":
        raise UsageError(f"--name {template!r}: the names of --layout bids are fixed; leave --name out")


def bids_places(sources: Sequence[Source], salt: str, root: Path) -> list[Place | CaseError]:
    """Where each volume goes; the refusal of those that would go to one place."""
    ids = ids_of(sources, root, salt)
    places = [bids_place(source, one.removeprefix("case-"), salt) for source, one in zip(sources, ids, strict=True)]
    names = without_clashes([place.name for place in places], sources, root, "use --layout flat or msd")
    return [name if isinstance(name, CaseError) else place for name, place in zip(names, places, strict=True)]


def bids_place(source: Source, series: str, salt: str) -> Place:
    """Subject, session and acquisition as salted ids; a file of no DICOM is a subject by itself."""
    origin = origin_of(source, salt)
    session = f"ses-{origin.study}" if origin.study else ""
    subject = f"sub-{origin.patient or origin.study or series}"
    kind, suffix = _kind(source, origin)
    name = "_".join(part for part in (subject, session, f"acq-{series}", suffix) if part)
    return Place(name, "/".join(part for part in (subject, session, kind, name) if part))


def file_place(name: str, layout: str) -> Place:
    """A volume under its name: in the folder itself, or among the images of an MSD folder."""
    return Place(name, f"imagesTr/{name}" if layout == "msd" else name)


def _kind(source: Source, origin: Origin) -> tuple[str, str]:
    if source.modality == "MR" and any(origin.facts.get(name) not in (None, "") for name in DIFFUSION):
        return "dwi", "dwi"
    word = re.sub(r"[^A-Za-z0-9]", "", source.modality)
    return KINDS.get(source.modality, ("other", word or "image"))


def describe(layout: str, folder: Path, records: Mapping[str, Mapping[str, Any]], modalities: Iterable[str]) -> None:
    """Write the files that the layout has beside the volumes.

    Args:
        layout: one of `LAYOUTS`.
        folder: the output folder.
        records: of the cases in it, with the names of their files.
        modalities: of the volumes.
    """
    files = (file for record in records.values() for file in record["files"])
    volumes = sorted(file for file in files if file.endswith((".nii", ".nii.gz")))
    if layout == "bids":
        generated = [{"Name": "voxelwise", "Version": __version__}]
        description = {"Name": "Images of an archive", "BIDSVersion": "1.10.0", "DatasetType": "raw"}
        write_json(folder / "dataset_description.json", {**description, "GeneratedBy": generated})
        subjects = sorted({file.split("/")[0] for file in volumes})
        write_text(folder / "participants.tsv", "".join(f"{line}\n" for line in ("participant_id", *subjects)))
    elif layout == "msd":
        names = [file.removeprefix("imagesTr/") for file in volumes]
        common = Counter(modality for modality in modalities if modality).most_common()
        word = "+".join(sorted(modality for modality, _ in common)) or "unknown"
        contents = {
            "name": "images",
            "description": "Images of an archive; label maps belong into labelsTr under the same names",
            "tensorImageSize": "3D",
            "modality": {"0": word},
            "numTraining": len(names),
            "numTest": 0,
            "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names],
            "test": [],
        }
        write_json(folder / "dataset.json", contents)
