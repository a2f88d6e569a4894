"""Tiny series, volumes and data sets for tests, made on the spot and known voxel by voxel."""

from __future__ import annotations

import errno
import gzip
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, MRImageStorage

ROOT = "1.2.826.0.1.3680043.8.498."
AXIAL = np.array([[-0.7, 0, 0, 15.0], [0, -0.9, 0, 12.0], [0, 0, 2.5, -14.0], [0, 0, 0, 1]])


def oblique(spacing_mm: tuple[float, float, float] = (0.7, 0.9, 2.5)) -> np.ndarray:
    """A right-angled affine that is turned about two axes, in numbers that float32 holds."""
    a, b = 0.35, -0.21
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x * spacing_mm
    affine[:3, 3] = [-40, 17, 3]
    return affine.astype(np.float32).astype(np.float64)


def uid(rng: np.random.Generator) -> str:
    """A valid UID from a generator, so that two runs make the same files."""
    return ROOT + str(int(rng.integers(10**15, 10**16)))


def ramp(shape: tuple[int, ...] = (12, 10, 8), dtype: Any = np.int16) -> np.ndarray:
    """An array whose every voxel has a value of its own, negative ones among them."""
    return (np.arange(np.prod(shape)).reshape(shape) - 100).astype(dtype)


def ct_series(
    folder: Path, array: np.ndarray | None = None, affine: np.ndarray | None = None, **tags: Any
) -> list[Path]:
    """Write a CT series.

    Args:
        array: (X, Y, Z) whole HU; X runs along the columns, Y along the rows, Z over the files.
        affine: of the array, RAS+.
        tags: any DICOM keyword; a function of the slice number gives each slice its own value, None leaves the tag out.
            `seed`, `slope`, `intercept`, `signed`, `names` (a list of file names) are options of the maker.
    """
    return series(folder, "CT", array, affine, tags, intercept=-1024.0)


def mr_series(
    folder: Path, array: np.ndarray | None = None, affine: np.ndarray | None = None, **tags: Any
) -> list[Path]:
    """Write an MR series (no rescale tags); arguments as `ct_series`."""
    return series(folder, "MR", array, affine, tags, intercept=0.0)


def series(
    folder: Path,
    modality: str,
    array: np.ndarray | None,
    affine: np.ndarray | None,
    tags: dict[str, Any],
    intercept: float,
) -> list[Path]:
    """Write one file a slice and return the paths in slice order."""
    options = {name: tags.pop(name, default) for name, default in OPTIONS.items()}
    array = (ramp() if modality == "CT" else ramp() + 100) if array is None else np.asarray(array)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ (AXIAL if affine is None else np.asarray(affine, dtype=np.float64))
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    rng = np.random.default_rng(options["seed"])
    shared = {"StudyInstanceUID": uid(rng), "SeriesInstanceUID": uid(rng), "FrameOfReferenceUID": uid(rng)}
    intercept = intercept if options["intercept"] is None else options["intercept"]
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k in range(array.shape[2]):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
        meta.MediaStorageSOPInstanceUID = uid(rng)
        slice_ = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        slice_.SOPClassUID, slice_.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        slice_.Modality, slice_.InstanceNumber, slice_.SeriesNumber, slice_.AcquisitionNumber = modality, k + 1, 3, 1
        slice_.PatientName, slice_.PatientID, slice_.PatientBirthDate = "Canary^Quetzal", "CANARY-7731", "19610412"
        slice_.StudyDate, slice_.ImageType, slice_.PatientPosition = "20260102", ["ORIGINAL", "PRIMARY", "AXIAL"], "HFS"
        slice_.ImagePositionPatient = [f"{value:.9g}"[:16] for value in lps[:3, 3] + k * lps[:3, 2]]
        cosines = (lps[:3, :2] / spacing[:2]).T.reshape(-1)
        slice_.ImageOrientationPatient = [f"{value:.9g}"[:16] for value in cosines]
        slice_.PixelSpacing = [f"{spacing[1]:.9g}"[:16], f"{spacing[0]:.9g}"[:16]]
        slice_.SliceThickness = f"{spacing[2]:.9g}"[:16]
        if modality == "CT" or options["slope"] != 1 or intercept:
            slice_.RescaleSlope, slice_.RescaleIntercept = f"{options['slope']:g}", f"{intercept:g}"
        if modality == "CT":
            slice_.RescaleType, slice_.KVP = "HU", "120"
        stored = np.rint((array[:, :, k].T - intercept) / options["slope"])
        slice_.Rows, slice_.Columns = stored.shape
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 16, 15
        slice_.PixelRepresentation = int(options["signed"])
        slice_.PixelData = stored.astype("<i2" if options["signed"] else "<u2").tobytes()
        slice_["PixelData"].VR = "OW"
        for name, value in {**shared, **tags}.items():
            value = value(k) if callable(value) else value
            if value is not None:
                setattr(slice_, name, value)
            elif name in slice_:
                delattr(slice_, name)
        path = folder / (options["names"][k] if options["names"] else f"IM{k:04d}.dcm")
        slice_.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


OPTIONS: dict[str, Any] = {"seed": 0, "slope": 1.0, "intercept": None, "signed": False, "names": None}


def enhanced_ct(path: Path, array: np.ndarray | None = None, order: np.ndarray | None = None) -> Path:
    """Write an enhanced multi-frame CT (axial, `AXIAL`), its frames stored in `order`."""
    array = ramp() if array is None else array
    order = np.arange(array.shape[2]) if order is None else order
    single = series(path.parent / "single", "CT", array, None, {}, intercept=-1024.0)
    parts = [pydicom.dcmread(single[k]) for k in order]
    whole = parts[0].copy()
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    shared, groups = Dataset(), []
    measures, orientation, transform = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = whole.PixelSpacing, whole.SliceThickness
    orientation.ImageOrientationPatient = whole.ImageOrientationPatient
    transform.RescaleSlope, transform.RescaleIntercept, transform.RescaleType = "1", "-1024", "HU"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([orientation])
    shared.PixelValueTransformationSequence = Sequence([transform])
    for index, part in enumerate(parts):
        group, place, content = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = part.ImagePositionPatient
        content.StackID, content.InStackPositionNumber, content.DimensionIndexValues = "1", index + 1, [1, index + 1]
        group.PlanePositionSequence, group.FrameContentSequence = Sequence([place]), Sequence([content])
        groups.append(group)
    for name in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "RescaleSlope",
        "RescaleIntercept",
        "RescaleType",
    ):
        delattr(whole, name)
    whole.SharedFunctionalGroupsSequence, whole.PerFrameFunctionalGroupsSequence = Sequence([shared]), Sequence(groups)
    whole.NumberOfFrames, whole.PixelData = len(parts), b"".join(part.PixelData for part in parts)
    whole.save_as(path, enforce_file_format=True)
    for file in single:
        file.unlink()
    return path


def siemens_mosaic(
    path: Path, array: np.ndarray | None = None, affine: np.ndarray | None = None, **options: Any
) -> Path:
    """Write one volume as a Siemens mosaic, with the private headers that say where its slices are.

    Args:
        options: any DICOM keyword; `image` and `series` replace values of the two CSA headers (None leaves one out),
            `count` the private number of slices, `listed` the places of the slices in the protocol.
    """
    array = ramp((6, 5, 7)) + 100 if array is None else array
    affine = oblique() if affine is None else affine
    single = mr_series(path.parent / "single", array, affine)
    whole = pydicom.dcmread(single[0])
    count, side = array.shape[2], int(np.ceil(np.sqrt(array.shape[2])))
    rows, columns = array.shape[1], array.shape[0]
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    step = lps[:3, 2]
    spacing = np.linalg.norm(step)
    tiles = np.zeros((side * rows, side * columns), dtype="<u2")
    for k in range(count):
        row, column = k // side * rows, k % side * columns
        tiles[row : row + rows, column : column + columns] = array[:, :, k].T
    whole.Rows, whole.Columns, whole.PixelData = *tiles.shape, tiles.tobytes()
    corner = lps[:3, 3] - lps[:3, 0] * (columns * (side - 1) / 2) - lps[:3, 1] * (rows * (side - 1) / 2)
    whole.ImagePositionPatient = [f"{value:.12g}"[:16] for value in corner]
    whole.ImageType, whole.SpacingBetweenSlices = ["ORIGINAL", "PRIMARY", "M", "MOSAIC"], f"{spacing:.12g}"[:16]
    centre = lps[:3, 3] + lps[:3, 0] * columns / 2 + lps[:3, 1] * rows / 2
    places = options.pop("listed", [centre + k * step for k in range(count)])
    lines = [f"sSliceArray.lSize = {len(places)}"]
    for k, place in enumerate(places):
        named = zip(("Sag", "Cor", "Tra"), place, strict=True)
        lines += [f"sSliceArray.asSlice[{k}].sPosition.d{axis} = {value:.9g}" for axis, value in named]
    image = {"NumberOfImagesInMosaic": [f"{count}"], "SliceNormalVector": [f"{v:.8f}" for v in step / spacing]}
    whole.add_new(0x00190010, "LO", "SIEMENS MR HEADER")
    whole.add_new(0x0019100A, "US", options.pop("count", count))
    whole.add_new(0x00290010, "LO", "SIEMENS CSA HEADER")
    for tag, values, name in (
        (0x00291010, image, "image"),
        (0x00291020, {"MrPhoenixProtocol": ["\n".join(lines)]}, "series"),
    ):
        changed = options.pop(name, {})
        if changed is not None:
            whole.add_new(tag, "OB", csa_header({**values, **changed}))
    for name, value in options.items():
        setattr(whole, name, value) if value is not None else delattr(whole, name)
    for file in single:
        file.unlink()
    whole.save_as(path, enforce_file_format=True)
    return path


def csa_header(values: dict[str, list[str]]) -> bytes:
    """The private header of Siemens MR files, second kind."""
    data = b"SV10\4\3\2\1" + struct.pack("<II", len(values), 77)
    for name, items in values.items():
        data += struct.pack("<64si4siii", name.encode(), len(items), b"UN\0\0", 0, len(items), 77)
        for item in items:
            text = item.encode() + b"\0"
            data += struct.pack("<4i", len(text), len(text), 77, len(text)) + text + bytes(-len(text) % 4)
    return data


def nifti_file(path: Path, array: np.ndarray | None = None, affine: np.ndarray | None = None, **fields: Any) -> Path:
    """Write a NIfTI file with sform and qform 1; `fields` are header fields put in as they are, wrong ones too."""
    array = ramp() if array is None else np.asarray(array)
    image = nib.Nifti1Image(array, AXIAL if affine is None else affine, dtype=array.dtype)
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine, 1)
    image.header.set_xyzt_units("mm", "sec")
    data = image.to_bytes()
    header = nib.Nifti1Header(data[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    data = header.binaryblock + data[348:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data, compresslevel=1, mtime=0) if path.name.lower().endswith(".gz") else data)
    return path


def nrrd_file(
    path: Path, array: np.ndarray | None = None, affine: np.ndarray | None = None, packed: bool = False
) -> Path:
    """Write an NRRD file of int16 in LPS, raw or gzip."""
    array = ramp() if array is None else np.asarray(array)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ (np.array(AXIAL) * [[-1], [-1], [1], [1]] if affine is None else affine)
    vectors = [f"({','.join(f'{value:.17g}' for value in vector)})" for vector in lps[:3].T]
    fields = {
        "type": "int16",
        "dimension": str(array.ndim),
        "space": "left-posterior-superior",
        "sizes": " ".join(str(size) for size in array.shape),
        "space directions": " ".join(vectors[:3]),
        "kinds": "domain domain domain",
        "endian": "little",
        "encoding": "gzip" if packed else "raw",
        "space origin": vectors[3],
    }
    header = "NRRD0004\n" + "".join(f"{name}: {value}\n" for name, value in fields.items()) + "\n"
    data = array.astype("<i2").tobytes(order="F")
    path.write_bytes(header.encode() + (gzip.compress(data, mtime=0) if packed else data))
    return path


def mha_file(
    path: Path, array: np.ndarray | None = None, affine: np.ndarray | None = None, packed: bool = False
) -> Path:
    """Write a MetaImage file of int16 in LPS, raw or zlib."""
    array = ramp() if array is None else np.asarray(array)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ (AXIAL if affine is None else affine)
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    data = array.astype("<i2").tobytes(order="F")
    data = zlib.compress(data) if packed else data
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": str(packed),
        **({"CompressedDataSize": str(len(data))} if packed else {}),
        "TransformMatrix": " ".join(f"{value:.17g}" for value in (lps[:3, :3] / spacing).T.reshape(-1)),
        "Offset": " ".join(f"{value:.17g}" for value in lps[:3, 3]),
        "ElementSpacing": " ".join(f"{value:.17g}" for value in spacing),
        "DimSize": " ".join(str(size) for size in array.shape),
        "ElementType": "MET_SHORT",
        "ElementDataFile": "LOCAL",
    }
    path.write_bytes("".join(f"{name} = {value}\n" for name, value in fields.items()).encode() + data)
    return path


def full_disk(patch: pytest.MonkeyPatch, name: str) -> None:
    """Let the disk be full when the file of this name, and no other, is synced."""
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if f".{name}." in os.readlink(f"/proc/self/fd/{descriptor}"):  # the temporary file of `atomic_write`
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    patch.setattr(os, "fsync", fsync)


def blob_dataset(
    folder: Path,
    cases: int = 6,
    shape: tuple[int, int, int] = (24, 20, 16),
    classes: int = 2,
    seed: int = 0,
    modality: str = "MR",
) -> Path:
    """Write an MSD data set of bright balls that a small network learns within seconds.

    Class k is a ball of its own brightness at a place that differs from case to case; labels run from 0 (background)
    to `classes`.
    """
    rng = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"), axis=-1)
    affine = np.diag([1.0, 1.0, 1.5, 1.0])
    affine[:3, 3] = -10
    training = []
    for case in range(cases):
        image = rng.normal(0, 8, shape)
        labels = np.zeros(shape, dtype=np.uint8)
        for value in range(1, classes + 1):
            radius = min(shape) * rng.uniform(0.2, 0.28)
            centre = [rng.uniform(radius, size - 1 - radius) for size in shape]
            labels[np.linalg.norm(places - centre, axis=-1) <= radius] = value
        image += 100 * labels
        name = f"blob_{case:02d}.nii.gz"
        nifti_file(folder / "images" / name, np.rint(image).astype(np.int16), affine)
        nifti_file(folder / "labels" / name, labels, affine)
        training.append({"image": f"./images/{name}", "label": f"./labels/{name}"})
    description = {
        "name": "blobs",
        "modality": {"0": modality},
        "labels": {"0": "background", **{str(value): f"ball {value}" for value in range(1, classes + 1)}},
        "numTraining": cases,
        "training": training,
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder
