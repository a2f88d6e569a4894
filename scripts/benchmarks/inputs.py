"""What the benchmarks are measured on: a seeded CT-like body with organs and correlated noise, and its DICOM series."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from scipy import ndimage

# HU, then centre and radius (z, y, x) in a cube from -1 to 1: lungs, liver, spleen, spine, kidney
ORGANS = (
    (-850, (0.1, -0.1, -0.3), (0.6, 0.25, 0.25)),
    (-850, (0.1, -0.1, 0.3), (0.6, 0.25, 0.25)),
    (110, (-0.3, 0.05, 0.3), (0.35, 0.22, 0.28)),
    (130, (-0.4, 0.1, -0.4), (0.2, 0.1, 0.1)),
    (600, (0.0, 0.35, 0.0), (1.2, 0.08, 0.08)),
    (150, (-0.5, 0.2, 0.2), (0.15, 0.08, 0.06)),
)
NOISE_HU = 18.0
PIXEL_MM, SLICE_MM = 0.8, 2.5


def ct(shape: tuple[int, int, int] = (120, 512, 512), seed: int = 0) -> np.ndarray:
    """HU of a body, (Z, Y, X) int16."""
    axes = [np.linspace(-1, 1, size, dtype=np.float32) for size in shape]
    z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
    body = np.broadcast_to((x / 0.8) ** 2 + (y / 0.55) ** 2 < 1, shape)
    volume = np.where(body, np.float32(40), np.float32(-1000))
    for hu, (cz, cy, cx), (rz, ry, rx) in ORGANS:
        volume[((z - cz) / rz) ** 2 + ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1] = hu
    noise = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    grain = 2 * ndimage.uniform_filter(noise, (1, 2, 2))
    volume += np.where(body, grain * NOISE_HU, grain * NOISE_HU * 0.35)
    return np.asarray(np.clip(volume, -1024, 3071).round().astype(np.int16))


def write_ct_series(volume: np.ndarray, folder: Path) -> None:
    """Write (Z, Y, X) int16 as an uncompressed axial series, one file a slice."""
    folder.mkdir(parents=True)
    shared = {name: generate_uid() for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    for number, plane in enumerate(volume):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_ = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        tags = {
            **shared,
            "SOPClassUID": CTImageStorage,
            "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
            "Modality": "CT",
            "PatientName": "Phantom^One",
            "PatientID": "P1",
            "StudyDate": "20200101",
            "StudyTime": "120000",
            "SeriesNumber": 1,
            "AcquisitionNumber": 1,
            "InstanceNumber": number + 1,
            "PatientPosition": "HFS",
            "ImagePositionPatient": [-PIXEL_MM * 256, -PIXEL_MM * 256, SLICE_MM * number],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "PixelSpacing": [PIXEL_MM, PIXEL_MM],
            "SliceThickness": SLICE_MM,
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
            "Rows": plane.shape[0],
            "Columns": plane.shape[1],
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": 1,
            "RescaleIntercept": 0,
            "RescaleSlope": 1,
        }
        for name, value in tags.items():
            setattr(slice_, name, value)
        slice_.PixelData = plane.tobytes()
        slice_["PixelData"].VR = "OW"
        slice_.save_as(folder / f"{number:04d}.dcm", enforce_file_format=True)


def organ_logits(classes: int, shape: tuple[int, int, int] = (64, 112, 112), seed: int = 0) -> np.ndarray:
    """Smooth logits like an organ model's, float32 (classes, *shape): background, and an ellipsoid for each class.

    Enlarged to (96, 192, 192), 0.7 % of the voxels lie at a border with 2 classes, 5.7 % with 25, 14 % with 105.
    """
    draw = np.random.default_rng(seed)
    grid = np.meshgrid(*[np.linspace(0, 1, size, dtype=np.float32) for size in shape], indexing="ij")
    logits = np.zeros((classes, *shape), np.float32)
    for number in range(1, classes):
        centre = draw.uniform(0.15, 0.85, 3)
        radius = draw.uniform(0.06, 0.16, 3) * (1.6 if classes < 5 else 1.0)
        away = np.sqrt(sum(((axis - m) / r) ** 2 for axis, m, r in zip(grid, centre, radius, strict=True)))
        logits[number] = np.clip(8 * (1 - away), -12, 8)
    grain = 0.3 * ndimage.gaussian_filter(draw.standard_normal(shape).astype(np.float32), 1)
    return np.asarray(logits + grain * np.linspace(0.5, 1.5, classes, dtype=np.float32)[:, None, None, None])
