"""DICOM SEG and RTSTRUCT objects for tests, drawn on the slices of a phantom series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, SegmentationStorage

UID = "1.2.826.0.1.3680043.8.498.77."
Rings = Sequence[np.ndarray]


def item(**values: Any) -> Dataset:
    """A data set of these elements."""
    dataset = Dataset()
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset


def seg_file(
    path: Path,
    images: Sequence[Path],
    segments: Mapping[str, np.ndarray],
    *,
    kind: str = "BINARY",
    order: np.ndarray | None = None,
    flip: tuple[bool, bool] = (False, False),
    keep_empty: bool = False,
    shift_mm: float = 0.0,
    **tags: Any,
) -> Path:
    """Write a SEG.

    Args:
        images: files of the series, slice k first to last.
        segments: name -> mask (X, Y, Z) of its series, or its fraction from 0 to 1.
        kind: BINARY, FRACTIONAL or LABELMAP (the segments then do not overlap).
        order: of the frames in the file.
        flip: store the columns, or the rows, the other way round.
        keep_empty: frames without a voxel are kept.
        shift_mm: along the rows.
        tags: elements of the data set put in as they are; None leaves one out.
    """
    slices = [pydicom.dcmread(image) for image in images]
    first = slices[0]
    frames: list[tuple[int, int, np.ndarray]] = []
    if kind == "LABELMAP":
        whole = sum(number * mask.astype(np.uint8) for number, mask in enumerate(segments.values(), start=1))
        frames = [(0, k, np.asarray(whole)[:, :, k]) for k in range(len(slices))]
    else:
        for number, mask in enumerate(segments.values(), start=1):
            for k in range(len(slices)):
                if keep_empty or np.any(mask[:, :, k]):
                    frames.append((number, k, mask[:, :, k]))
    frames = [frames[index] for index in order] if order is not None else frames
    cosines = np.array(first.ImageOrientationPatient, dtype=float).reshape(2, 3)
    spacing = np.array(first.PixelSpacing, dtype=float)[::-1]  # along the columns' direction first
    size = (int(first.Columns), int(first.Rows))
    stored, groups = [], []
    for number, k, plane in frames:
        position = np.array(slices[k].ImagePositionPatient, dtype=float) + shift_mm * cosines[0]
        for axis in (0, 1):
            if flip[axis]:
                position = position + cosines[axis] * spacing[axis] * (size[axis] - 1)
                plane = np.flip(plane, axis)
        stored.append(plane.T)
        group = item(
            FrameContentSequence=Items([item(DimensionIndexValues=[number, k + 1])]),
            PlanePositionSequence=Items([item(ImagePositionPatient=[f"{value:.9g}" for value in position])]),
            DerivationImageSequence=Items(
                [item(SourceImageSequence=Items([item(ReferencedSOPInstanceUID=slices[k].SOPInstanceUID)]))]
            ),
        )
        if kind != "LABELMAP":
            group.SegmentIdentificationSequence = Items([item(ReferencedSegmentNumber=number)])
        groups.append(group)
    turned = [cosines[axis] * (-1 if flip[axis] else 1) for axis in (0, 1)]
    shared = item(
        PlaneOrientationSequence=Items(
            [item(ImageOrientationPatient=[f"{value:.9g}" for value in np.concatenate(turned)])]
        ),
        PixelMeasuresSequence=Items([item(PixelSpacing=list(first.PixelSpacing), SliceThickness=first.SliceThickness)]),
    )
    dataset = blank(path, SegmentationStorage, first, "SEG")
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = size[1], size[0], len(frames)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.SegmentationType = kind
    pixels = np.array(stored) if stored else np.zeros((0, *size[::-1]))
    if kind == "BINARY":
        dataset.BitsAllocated = dataset.BitsStored = 1
        dataset.HighBit = 0
        packed = np.packbits(pixels.astype(np.uint8).ravel(), bitorder="little").tobytes()
    else:
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit = 7
        if kind == "FRACTIONAL":
            dataset.SegmentationFractionalType, dataset.MaximumFractionalValue = "PROBABILITY", 200
            pixels = np.rint(pixels * 200)
        packed = pixels.astype(np.uint8).tobytes()
    dataset.PixelData = packed + b"\0" * (len(packed) % 2)
    dataset["PixelData"].VR = "OB"
    dataset.SegmentSequence = Items([segment(number, name) for number, name in enumerate(segments, start=1)])
    dataset.SharedFunctionalGroupsSequence = Items([shared])
    dataset.PerFrameFunctionalGroupsSequence = Items(groups)
    referenced = [
        item(ReferencedSOPClassUID=one.SOPClassUID, ReferencedSOPInstanceUID=one.SOPInstanceUID) for one in slices
    ]
    dataset.ReferencedSeriesSequence = Items(
        [item(SeriesInstanceUID=first.SeriesInstanceUID, ReferencedInstanceSequence=Items(referenced))]
    )
    return save(dataset, path, tags)


def segment(number: int, name: str) -> Dataset:
    """One entry of a SegmentSequence, coded as an organ."""
    code = item(CodeValue=f"1020{number:04d}", CodingSchemeDesignator="SCT", CodeMeaning=f"Organ {number}")
    category = item(CodeValue="123037004", CodingSchemeDesignator="SCT", CodeMeaning="Anatomical Structure")
    return item(
        SegmentNumber=number,
        SegmentLabel=name,
        SegmentAlgorithmType="MANUAL",
        SegmentedPropertyCategoryCodeSequence=Items([category]),
        SegmentedPropertyTypeCodeSequence=Items([code]),
        RecommendedDisplayCIELabValue=[41661, 41167, 40792],
    )


def rtstruct_file(
    path: Path,
    images: Sequence[Path],
    rois: Mapping[str, Rings],
    *,
    kind: str = "CLOSED_PLANAR",
    offset: tuple[float, float, float] = (0, 0, 0),
    **tags: Any,
) -> Path:
    """Write an RTSTRUCT.

    Args:
        images: files of the series.
        rois: name -> contours, each (n, 3) in voxel indices of the series.
        kind: ContourGeometricType of all.
        offset: added to all voxel indices.
        tags: elements of the data set put in as they are; None leaves one out.
    """
    slices = [pydicom.dcmread(image) for image in images]
    first = slices[0]
    cosines = np.array(first.ImageOrientationPatient, dtype=float).reshape(2, 3)
    spacing = np.array(first.PixelSpacing, dtype=float)[::-1]
    origin = np.array(first.ImagePositionPatient, dtype=float)
    step = np.array(slices[-1].ImagePositionPatient, dtype=float) - origin
    step = step / max(len(slices) - 1, 1)
    matrix = np.stack([cosines[0] * spacing[0], cosines[1] * spacing[1], step], axis=1)
    dataset = blank(path, RTStructureSetStorage, first, "RTSTRUCT")
    dataset.StructureSetROISequence = Items(
        [item(ROINumber=number, ROIName=name) for number, name in enumerate(rois, start=1)]
    )
    contours = []
    for number, rings in enumerate(rois.values(), start=1):
        drawn = []
        for ring in rings:
            places = (np.asarray(ring, dtype=float) + offset) @ matrix.T + origin
            drawn.append(
                item(
                    ContourGeometricType=kind,
                    NumberOfContourPoints=len(places),
                    ContourData=[f"{value:.6f}" for value in places.ravel()],
                )
            )
        contours.append(
            item(ReferencedROINumber=number, ROIDisplayColor=[255, 10 * number, 0], ContourSequence=Items(drawn))
        )
    dataset.ROIContourSequence = Items(contours)
    dataset.RTROIObservationsSequence = Items(
        [item(ObservationNumber=number, ReferencedROINumber=number) for number in range(1, len(rois) + 1)]
    )
    images_ = [item(ReferencedSOPInstanceUID=one.SOPInstanceUID) for one in slices]
    series = item(SeriesInstanceUID=first.SeriesInstanceUID, ContourImageSequence=Items(images_))
    study = item(ReferencedSOPInstanceUID=first.StudyInstanceUID, RTReferencedSeriesSequence=Items([series]))
    space = item(FrameOfReferenceUID=first.FrameOfReferenceUID, RTReferencedStudySequence=Items([study]))
    dataset.ReferencedFrameOfReferenceSequence = Items([space])
    return save(dataset, path, tags)


def blank(path: Path, sop_class: str, image: Dataset, modality: str) -> FileDataset:
    """An object of the patient and study of an image."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, sop_class
    meta.MediaStorageSOPInstanceUID = f"{UID}{sum(path.name.encode())}"
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.SeriesInstanceUID = modality, f"{meta.MediaStorageSOPInstanceUID}.1"
    for name in ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        setattr(dataset, name, image.get(name))
    dataset.SeriesDescription = "drawn by Canary"
    return dataset


def save(dataset: FileDataset, path: Path, tags: Mapping[str, Any]) -> Path:
    """Write with the last changes."""
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def box(shape: Sequence[int], *ranges: tuple[int, int]) -> np.ndarray:
    """A mask that is true inside a box."""
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(*one) for one in ranges)] = True
    return mask


def ring(low: float, high: float, depth: float) -> np.ndarray:
    """A square contour in voxel indices."""
    return np.array([[low, low, depth], [high, low, depth], [high, high, depth], [low, high, depth]])
