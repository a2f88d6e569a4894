"""A made-up archive of abdominal CT, as it might come out of a PACS, with the truth kept aside.

Each subject is a study with three series: a localizer, the abdomen, and a thicker reconstruction of it. Files have
names that say nothing and stand in no order. Names, ids and dates are invented; UIDs follow from the seed.

    FOLDER/archive/labelled/ST...   studies whose label map is known
    FOLDER/archive/new/ST...        studies to be predicted
    FOLDER/truth/subject-01.nii.gz  the true label map of the abdomen series of every subject
    FOLDER/truth/truth.json         which series that is, the gaps of the muscle ring
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from ...transforms.volume import Geometry
from ...transforms.writers import write_json, write_label_map
from .anatomy import CLASSES, Abdomen, Gap, abdomen

INTERCEPT = -1024
SURNAMES = ("Alder", "Birch", "Cedar", "Elm", "Fir", "Hazel", "Juniper", "Larch", "Maple", "Oak", "Pine", "Rowan")


@dataclass(frozen=True)
class Subject:
    """One made-up person.

    Args:
        name: subject-01, subject-02, ...
        folder: the study.
        series_uid: the series of the abdomen, which the label map belongs to.
        label: its true label map.
        new: whether it is one of those to be predicted.
        thin: hardly any fat under the skin.
        gaps: holes in the muscle ring.
    """

    name: str
    folder: Path
    series_uid: str
    label: Path
    new: bool
    thin: bool
    gaps: tuple[Gap, ...]


@dataclass(frozen=True)
class Truth:
    """What was made.

    Args:
        archive: the folder with the studies.
        labelled: its part with known label maps.
        new: its part to be predicted.
        subjects: in the order of their names.
    """

    archive: Path
    labelled: Path
    new: Path
    subjects: tuple[Subject, ...]


@dataclass(frozen=True, eq=False)
class Series:
    """The images of one series, and what its tags say.

    Args:
        number: SeriesNumber.
        uid: SeriesInstanceUID.
        description: SeriesDescription.
        image_type: ImageType.
        kernel: ConvolutionKernel.
        orientation: direction cosines along a row and along a column (LPS).
        pixel_spacing_mm: between rows, between columns.
        thickness_mm: SliceThickness.
        slices: HU (columns, rows) and position of the first pixel (LPS).
    """

    number: int
    uid: str
    description: str
    image_type: tuple[str, str, str]
    kernel: str
    orientation: tuple[int, ...]
    pixel_spacing_mm: tuple[float, float]
    thickness_mm: float
    slices: list[tuple[np.ndarray, list[float]]]


def make_archive(
    folder: Path,
    *,
    subjects: int = 20,
    new: int = 6,
    seed: int = 0,
    shape: tuple[int, int, int] = (128, 112, 32),
) -> Truth:
    """Make the studies and their truth.

    Args:
        folder: new or empty; `archive` and `truth` are made in it.
        subjects: how many. At least half of them have one to three gaps in the muscle ring, some are very thin.
        new: how many of them are to be predicted; the last ones.
        seed: everything follows from it.
        shape: columns, rows and slices of the abdomen series.
    """
    if not 0 <= new <= subjects or subjects < 1:
        raise ValueError(f"{new} of {subjects} subjects cannot be new ones")
    folder = Path(folder)
    parts = {True: folder / "archive" / "new", False: folder / "archive" / "labelled"}
    (folder / "truth").mkdir(parents=True, exist_ok=True)
    made = []
    for number in range(subjects):
        rng = np.random.default_rng([seed, number])
        thin, gaps = _kind(number)
        body = abdomen(rng, shape=shape, thin=thin, gaps=gaps)
        is_new = number >= subjects - new
        study = parts[is_new] / f"ST{int(rng.integers(16**8)):08X}"
        uids = [generate_uid(entropy_srcs=["voxelwise demo", str(seed), str(number), word]) for word in "0123"]
        affine = _write_study(rng, study, body, number, uids)
        label = folder / "truth" / f"subject-{number + 1:02d}.nii.gz"
        write_label_map(label, body.labels, Geometry(body.labels.shape, affine))
        made.append(Subject(label.name.split(".")[0], study, uids[2], label, is_new, thin, body.gaps))
    _write_truth(folder / "truth" / "truth.json", made, folder)
    return Truth(folder / "archive", parts[False], parts[True], tuple(made))


def read_truth(folder: Path) -> Truth:
    """The record of `make_archive`, from the folder that it was given."""
    folder = Path(folder)
    content = json.loads((folder / "truth" / "truth.json").read_text(encoding="utf-8"))
    subjects = tuple(
        Subject(
            **{
                **subject,
                "folder": folder / subject["folder"],
                "label": folder / subject["label"],
                "gaps": tuple(Gap(**gap) for gap in subject["gaps"]),
            }
        )
        for subject in content["subjects"]
    )
    return Truth(folder / "archive", folder / "archive" / "labelled", folder / "archive" / "new", subjects)


def _kind(number: int) -> tuple[bool, int]:
    """Thin or not, and the number of gaps: a fixed pattern, so that every part of the archive has some of each."""
    thin = number % 4 == 1
    gaps = 1 + number % 3 if number % 5 in (0, 2, 4) else 0
    return thin, gaps


def _write_truth(path: Path, subjects: list[Subject], folder: Path) -> None:
    records = [
        {
            **asdict(subject),
            "folder": subject.folder.relative_to(folder).as_posix(),
            "label": subject.label.relative_to(folder).as_posix(),
        }
        for subject in subjects
    ]
    write_json(path, {"labels": {str(value): name for value, name in CLASSES.items()}, "subjects": records})


def _write_study(rng: np.random.Generator, folder: Path, body: Abdomen, number: int, uids: Sequence[str]) -> np.ndarray:
    """Write three series into one folder; return the affine (RAS+) of the abdomen series."""
    folder.mkdir(parents=True, exist_ok=True)
    patient = _patient(rng, number, uids[0])
    spacing, shape = body.spacing_mm, body.image.shape
    corner = np.round([-(shape[0] - 1) / 2 * spacing[0], -(shape[1] - 1) / 2 * spacing[1], rng.uniform(-900, -600)], 3)
    every = _series(body, corner, uids)
    names = rng.choice(16**8, size=sum(len(series.slices) for series in every), replace=False)
    unused = iter(names.tolist())
    for series in every:
        for index in range(len(series.slices)):
            _write_slice(folder / f"{next(unused):08X}", patient, series, index)
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    affine[:3, 3] = -corner[0], -corner[1], corner[2]
    return affine


def _series(body: Abdomen, corner: np.ndarray, uids: Sequence[str]) -> list[Series]:
    """Localizer, abdomen, and a reconstruction twice as thick."""
    image, (across, down, up) = body.image, body.spacing_mm
    pairs = image.shape[2] // 2
    thick = image[:, :, : 2 * pairs].reshape(*image.shape[:2], pairs, 2).mean(axis=3).round().astype(np.int16)
    scout = np.repeat(image.mean(axis=1)[:, ::-1], 2, axis=1).round().astype(np.int16)  # seen from the front, head up
    top = float(corner[2] + (image.shape[2] - 1) * up)
    left, front = float(corner[0]), float(corner[1])

    def heights(first: float, step: float, number: int) -> list[list[float]]:
        return [[left, front, round(float(corner[2]) + first + step * index, 4)] for index in range(number)]

    axial, coronal = (1, 0, 0, 0, 1, 0), (1, 0, 0, 0, 0, -1)
    planes = list(zip(np.moveaxis(image, 2, 0), heights(0.0, up, image.shape[2]), strict=True))
    thick_planes = list(zip(np.moveaxis(thick, 2, 0), heights(up / 2, 2 * up, pairs), strict=True))
    localizer, original, derived = (("ORIGINAL", "PRIMARY", word) for word in ("LOCALIZER", "AXIAL", "AXIAL"))
    return [
        Series(1, uids[1], "Topogram", localizer, "T20s", coronal, (up / 2, across), 0.6, [(scout, [left, 0.0, top])]),
        Series(2, uids[2], f"Abdomen {up:.1f} B30f", original, "B30f", axial, (down, across), up, planes),
        Series(3, uids[3], f"Abdomen {2 * up:.1f} B20f", derived, "B20f", axial, (down, across), 2 * up, thick_planes),
    ]


def _patient(rng: np.random.Generator, number: int, study_uid: str) -> Dataset:
    """Tags that all images of a study share."""
    patient = Dataset()
    patient.PatientName = f"Demo^{SURNAMES[number % len(SURNAMES)]}"
    patient.PatientID = f"DEMO-{int(rng.integers(10**6)):06d}"
    patient.PatientBirthDate = f"{int(rng.integers(1940, 1990))}0101"
    patient.PatientSex = "O"
    patient.StudyInstanceUID = study_uid
    patient.StudyID = str(number + 1)
    patient.StudyDate, patient.StudyTime = "20260105", f"{8 + number // 6:02d}{number % 6}000"
    patient.AccessionNumber = f"A{int(rng.integers(10**7)):07d}"
    patient.StudyDescription = "CT abdomen"
    patient.ReferringPhysicianName = ""
    patient.Manufacturer, patient.ManufacturerModelName = "voxelwise", "made-up CT"
    patient.FrameOfReferenceUID = generate_uid(entropy_srcs=[study_uid, "frame"])
    patient.PositionReferenceIndicator = ""
    patient.PatientPosition, patient.BodyPartExamined = "HFS", "ABDOMEN"
    patient.Modality, patient.SOPClassUID = "CT", CTImageStorage
    patient.KVP, patient.XRayTubeCurrent = "120", "180"
    return patient


def _write_slice(path: Path, patient: Dataset, series: Series, index: int) -> None:
    """One CT image: stored values are HU + 1024, as most scanners write them."""
    hu, position = series.slices[index]
    stored = (hu.T.astype(np.int32) - INTERCEPT).clip(0, 4095).astype("<u2")  # rows first
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[series.uid, str(index)])
    image = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    image.update(patient)
    image.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    image.SeriesInstanceUID, image.SeriesNumber = series.uid, series.number
    image.SeriesDescription, image.ConvolutionKernel = series.description, series.kernel
    image.ImageType, image.AcquisitionNumber, image.InstanceNumber = list(series.image_type), series.number, index + 1
    image.SeriesDate = image.AcquisitionDate = image.ContentDate = patient.StudyDate
    image.SeriesTime = image.AcquisitionTime = image.ContentTime = patient.StudyTime
    image.ImagePositionPatient = [f"{value:.10g}" for value in position]
    image.ImageOrientationPatient = list(series.orientation)
    image.PixelSpacing = [f"{value:.10g}" for value in series.pixel_spacing_mm]
    image.SliceThickness, image.SliceLocation = f"{series.thickness_mm:.10g}", f"{position[2]:.10g}"
    image.Rows, image.Columns = stored.shape
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
    image.RescaleIntercept, image.RescaleSlope, image.RescaleType = str(INTERCEPT), "1", "HU"
    image.WindowCenter, image.WindowWidth = "40", "400"
    image.PixelData = stored.tobytes()
    image["PixelData"].VR = "OW"
    image.save_as(path, enforce_file_format=True)
