"""One case of a data set to be made: what it is made of, what it is called, and what the user chose."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...errors import CaseError
from ...transforms.dicom import read_header
from ...transforms.dicom_record import Slice
from ...transforms.read_options import DEFAULT, ReadOptions
from ...transforms.readers import Source
from ...transforms.volume import Entry
from ...transforms.zip_files import archive_of, unpacked
from ..archive.naming import source_id
from ..identity import case_id, states_of
from .channels import sidecar_of
from .label_classes import Classes
from .label_items import LabelItem
from .matching import Pair

IMAGES, LABELS, ENDING = "imagesTr", "labelsTr", ".nii.gz"
NOBODY = hashlib.sha256(b"").hexdigest()  # the reader's hash of an empty PatientID begins like it


@dataclass(frozen=True)
class Choices:
    """What the user chose for all cases.

    Args:
        channels: names of the channels, where the user gave some.
        register: "rigid" or "affine" aligns each channel to the first one; None takes the headers' word.
        resample_label: a label map on another grid is put on its image's.
        options: how sources are read.
    """

    channels: tuple[str, ...] = ()
    register: str | None = None
    resample_label: bool = False
    options: ReadOptions = DEFAULT


@dataclass(frozen=True)
class Job:
    """One case to write.

    Args:
        name: of the case.
        out: the data set.
        sources: one a channel.
        series: hashed id of each.
        modalities: of each, "" where nothing says.
        label: its label map.
        classes: segment of a SEG or RTSTRUCT -> class.
        values: label values that a file may hold; None takes any.
        ordered: the user's order of classes says which one stays where two overlap.
        patient: hashed.
        space: FrameOfReferenceUID of a DICOM image; never written out.
        choices: the user's.
        root: folder of the images.
        states: of its inputs when the work was planned (`states_of`).
    """

    name: str
    out: Path
    sources: tuple[Source, ...]
    series: tuple[str, ...]
    modalities: tuple[str, ...]
    label: LabelItem
    classes: Mapping[int, int] = field(default_factory=dict)
    values: tuple[int, ...] | None = None
    ordered: bool = False
    patient: str = ""
    space: str = ""
    choices: Choices = field(default_factory=Choices)
    root: Path = Path()
    states: tuple[str, str] = ("", "")

    @property
    def images(self) -> tuple[Path, ...]:
        """All files of its channels, each once."""
        return tuple(dict.fromkeys(file for source in self.sources for file in source.files))

    @property
    def on_disk(self) -> tuple[Path, ...]:
        """What it is made of, as it lies on the disk: a zip archive in the place of its members."""
        return tuple(dict.fromkeys(archive_of(file) or file for file in (*self.images, *self.label.files)))

    def states_now(self) -> tuple[str, str]:
        """`states_of` its inputs; empty words where one cannot be looked at."""
        try:
            return states_of(self.on_disk, self.root)
        except OSError:
            return "", ""

    @property
    def targets(self) -> tuple[Path, ...]:
        """What is written: a file a channel, the label map, the sidecar."""
        images = [self.out / IMAGES / f"{self.name}_{number:04d}{ENDING}" for number in range(len(self.sources))]
        return (*images, self.out / LABELS / f"{self.name}{ENDING}", self.out / IMAGES / f"{self.name}.json")

    @property
    def choice(self) -> str:
        """What else than its inputs and the choices for all cases decides its bytes, as a short hash."""
        words = [sorted(self.classes.items()), self.values, self.patient, self.series]
        return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Made:
    """What came of one: checksums of its files, what to tell, voxels of each class, modality of each channel."""

    files: Mapping[Path, str]
    entries: tuple[Entry, ...]
    counts: Mapping[int, int]
    modalities: tuple[str, ...]
    seconds: float


def make_job(pair: Pair, out: Path, *, salt: str, root: Path, classes: Classes, choices: Choices) -> Job:
    """The job of a pair; ids are hashed with `salt`, and `root` is the folder of the images."""
    sources = pair.case.sources
    headers = _headers(sources[0])
    job = Job(
        name=pair.case.name,
        out=out,
        sources=sources,
        series=tuple(source_id(source, salt, root) for source in sources),
        modalities=tuple(_modality(source) for source in sources),
        label=pair.label,
        classes=classes.of_segments(pair.label),
        values=classes.values,
        ordered=classes.chosen,
        patient=_patient(pair, salt, headers),
        space=_space(headers),
        choices=choices,
        root=root,
    )
    return replace(job, states=job.states_now())


def _modality(source: Source) -> str:
    """What the headers say, or the sidecar of a converted volume."""
    told = source.modality or sidecar_of(source).get("Modality")
    return told if isinstance(told, str) and told.isalpha() and len(told) <= 16 else ""


def _patient(pair: Pair, salt: str, headers: Sequence[Slice]) -> str:
    """Whose case it is, hashed: by the table, the PatientID (where it is empty the study), or BIDS's sub-NAME.

    The name of the case where nothing tells.
    """
    first, word = pair.case.sources[0], pair.patient
    if not word and headers:
        word = headers[0].study if NOBODY.startswith(headers[0].patient) else headers[0].patient
    elif not word:
        if isinstance(known := sidecar_of(first).get("patient"), str):
            return known  # a converted volume: hashed already
        word = pair.case.name.partition("_")[0] if pair.case.name.startswith("sub-") else ""
    return case_id(salt, "patient", word).removeprefix("case-") if word else pair.case.name


def _headers(source: Source) -> tuple[Slice, ...]:
    """The headers of a DICOM volume, all or the first and the last; none for others, and where they cannot be read."""
    if source.kind != "dicom":
        return ()
    if source.proved is not None:
        return source.proved[0].slices
    try:
        with unpacked(source.files[:1] + source.files[-1:]) as (files, _):
            return tuple(read_header(file)[0] for file in files)
    except (CaseError, OSError):  # it is stopped with its reason when it is read
        return ()


def _space(headers: Sequence[Slice]) -> str:
    """FrameOfReferenceUID that all slices share; an anonymiser may have given each its own."""
    found = {one.frame_of_reference for one in headers}
    return found.pop() if len(found) == 1 else ""


def times(shape: Sequence[int]) -> str:
    """A shape in words."""
    return " x ".join(str(size) for size in shape)
