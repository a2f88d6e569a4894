"""`voxelwise index` against a bare pydicom loop over the same files on disk, and its memory as the archive grows.

    python scripts/benchmarks/index.py [--folder DIR] [--sizes 10000,100000,1000000] [--repeats 5]

Makes small CT files (seeded; 100 slices a series), and measures side by side, alternating: the loop
`pydicom.dcmread(file, stop_before_pixels=True, specific_tags=[...])`, and `voxelwise index` with one worker into a new
database, in a process of its own each; then the index of the unchanged tree, and the peak memory of each. The goal is
1.3 times the loop, and memory that is flat from 10^4 to 10^6 files. Files are in the page cache.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

SLICES = 100
ROOT = "1.2.826.0.1.3680043.8.498."
LOOP = """
import sys, resource, time
from pathlib import Path
import pydicom
tags = {tags!r}
started = time.perf_counter()
for file in Path(sys.argv[1]).rglob("*.dcm"):
    pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags)
print(time.perf_counter() - started, time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
INDEX = """
import sys, resource, time
from voxelwise.pipeline.archive.index import index
started = time.perf_counter()
index(sys.argv[1], db=sys.argv[2])
print(time.perf_counter() - started, time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
# What a reader of geometry and values cannot do without.
TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID"),
    *("Modality", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "SeriesNumber"),
    *("InstanceNumber", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "ImagePositionPatient"),
    *("ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept", "ImageType", "AcquisitionNumber"),
    *("EchoTime", "BodyPartExamined", "SliceThickness", "KVP", "Manufacturer"),
)


def main() -> None:
    """Make the files, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where files are made, and removed afterwards")
    parser.add_argument("--sizes", default="10000", help="numbers of files, joined by commas")
    parser.add_argument("--repeats", type=int, default=5, help="of the smallest size; larger ones are run once")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="index-benchmark-", dir=arguments.folder))
    try:
        for number, size in enumerate(sorted(int(word) for word in arguments.sizes.split(","))):
            make(folder / "archive", size)
            measure(folder, size, arguments.repeats if number == 0 else 1)
    finally:
        shutil.rmtree(folder)


def make(folder: Path, size: int) -> None:
    """Fill an archive up to so many files of 32 x 32 pixels."""
    template = written(ct_slice())
    marks = {name: value.encode() for name, value in MARKS.items()}
    for series in range(size // SLICES):
        target = folder / f"patient{series // 20:05d}" / f"series{series:06d}"
        if target.is_dir():
            continue
        target.mkdir(parents=True)
        for k in range(SLICES):
            data = template
            for name, text in values(series, k).items():
                data = data.replace(marks[name], text.encode())
            (target / f"IM{k:04d}.dcm").write_bytes(data)


# Texts of a fixed length that stand in the template and are replaced in each file.
MARKS = {
    "series": f"{ROOT}1{'7' * 15}",
    "sop": f"{ROOT}2{'7' * 15}",
    "position": "-77.5\\-77.25\\+7777.750",
    "instance": "7777",
}


def values(series: int, k: int) -> dict[str, str]:
    """What differs from file to file."""
    return {
        "series": f"{ROOT}1{series:015d}",
        "sop": f"{ROOT}2{series * SLICES + k:015d}",
        "position": f"-77.5\\-77.25\\{2.5 * k:+09.3f}",
        "instance": f"{k + 1:04d}",
    }


def ct_slice() -> FileDataset:
    """One slice with the tags that scanners write."""
    rng = np.random.default_rng(4)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
    meta.MediaStorageSOPInstanceUID = UID(MARKS["sop"])
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, MARKS["sop"]
    data.StudyInstanceUID, data.SeriesInstanceUID = f"{ROOT}3", MARKS["series"]
    data.FrameOfReferenceUID, data.Modality, data.Manufacturer = f"{ROOT}4", "CT", "Maker"
    data.StudyDate, data.StudyTime, data.AccessionNumber = "20260102", "101112", "1"
    data.StudyDescription, data.SeriesDescription, data.InstitutionName = "Thorax", "axial 2.5", "House"
    data.PatientName, data.PatientID, data.PatientBirthDate, data.PatientSex = "A^B", "1", "19610412", "O"
    data.ImageType, data.BodyPartExamined, data.KVP = ["ORIGINAL", "PRIMARY", "AXIAL"], "CHEST", "120"
    data.SliceThickness, data.ConvolutionKernel, data.PatientPosition = "2.5", "B30f", "HFS"
    data.SeriesNumber, data.AcquisitionNumber, data.InstanceNumber = "3", "1", MARKS["instance"]
    data.ImagePositionPatient = MARKS["position"].split("\\")
    data.ImageOrientationPatient, data.PixelSpacing = ["1", "0", "0", "0", "1", "0"], ["0.75", "0.75"]
    data.SamplesPerPixel, data.PhotometricInterpretation, data.Rows, data.Columns = 1, "MONOCHROME2", 32, 32
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = "-1024", "1", "HU"
    data.WindowCenter, data.WindowWidth = "40", "400"
    data.PixelData = rng.integers(0, 4096, (32, 32)).astype("<u2").tobytes()
    return data


def written(data: FileDataset) -> bytes:
    """The bytes of a file."""
    buffer = pydicom.filebase.DicomBytesIO()
    pydicom.dcmwrite(buffer, data, enforce_file_format=True)
    return bytes(buffer.getvalue())


def measure(folder: Path, size: int, repeats: int) -> None:
    """Loop and index in turn, then the index of the unchanged tree."""
    loops, indexes = [], []
    database = folder / "index.db"
    for _ in range(repeats):
        loops.append(run(LOOP.format(tags=list(TAGS)), folder / "archive"))
        database.unlink(missing_ok=True)
        indexes.append(run(INDEX, folder / "archive", database))
    again = run(INDEX, folder / "archive", database)
    print(f"{size} files ({repeats} times; median, range)")
    for place, what in enumerate(("elapsed", "CPU")):
        pairs = [(index[place], loop[place]) for index, loop in zip(indexes, loops, strict=True)]
        tell(f"loop, {what}", [loop for _, loop in pairs], "s")
        tell(f"index, {what}", [index for index, _ in pairs], "s")
        tell(f"ratio, {what}", [index / loop for index, loop in pairs], "")
    print(f"  again, elapsed  {again[0]:.2f} s (unchanged tree)")
    print(f"  memory          {max(peak for *_, peak in indexes) / 1024:.0f} MiB; again {again[2] / 1024:.0f} MiB")
    print(f"  database        {database.stat().st_size / size:.0f} bytes a file", flush=True)


def tell(name: str, numbers: Sequence[float], unit: str) -> None:
    """Median and range of some figures."""
    middle = statistics.median(numbers)
    print(f"  {name:15} {middle:.2f} {unit}  ({min(numbers):.2f} to {max(numbers):.2f})")


def run(code: str, *arguments: Path) -> tuple[float, float, int]:
    """Seconds elapsed and of the CPU (start included), and peak KiB, of a piece of Python in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(output[-3]), float(output[-2]), int(output[-1])


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"{time.monotonic() - started:.0f} s in all")
