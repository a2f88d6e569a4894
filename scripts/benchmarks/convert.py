"""DICOM to NIfTI, ours beside dcm2niix, dicom2nifti, SimpleITK and MONAI: time, peak memory, and that voxels are equal.

    python scripts/benchmarks/convert.py                                  512 x 512 x 120, the goal
    python scripts/benchmarks/convert.py --slices 300 --rounds 5
    python scripts/benchmarks/convert.py --data FOLDER [--case NAME ...]   series on disk

All ways convert the same series in turn, round after round, and the order turns with the round; the first round is not
counted. Functions are called warm in this process, commands are timed from start to end. The peak is the resident
memory above that of the idle process, children summed, of one conversion in a process of its own, per byte of voxels.
Goal: .nii.gz in at most 0.2 of dcm2niix's time and 1.6 times that of reading the bytes and packing them as we pack;
peak at most 1.3 volumes; voxels and affine (1e-4 mm) equal to dcm2niix's, the type as narrow, the file at most 1.12
times as large.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
from inputs import ct, write_ct_series

FORMATS = (".nii.gz", ".nii")
SAMPLE_SECONDS = 0.001
BIN = Path(sys.executable).parent


class RefusedError(Exception):
    """A peer does not convert this series; the message says why."""


def ours(folder: Path, out: Path, suffix: str) -> None:
    """The Python function."""
    from voxelwise import convert

    convert(folder, out / "volumes", format=suffix[1:])


def ours_command(folder: Path, out: Path, suffix: str) -> None:
    """The whole command, from the start of Python."""
    run([BIN / "voxelwise", "convert", folder, out / "volumes", "--format", suffix[1:]])


def dcm2niix(folder: Path, out: Path, suffix: str) -> None:
    """Its command."""
    run([BIN / "dcm2niix", "-z", "y" if suffix == ".nii.gz" else "n", "-b", "n", "-o", out, folder])


def dicom2nifti(folder: Path, out: Path, suffix: str) -> None:
    """Its function, without reorientation."""
    from dicom2nifti import convert_directory

    convert_directory(str(folder), str(out), compression=suffix == ".nii.gz", reorient=False)


def simpleitk(folder: Path, out: Path, suffix: str) -> None:
    """The usual series reader and writer."""
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    sitk.WriteImage(reader.Execute(), str(out / f"volume{suffix}"), useCompression=suffix == ".nii.gz")


def monai(folder: Path, out: Path, suffix: str) -> None:
    """LoadImage and SaveImage, as shipped but for the type, which would be float32."""
    from monai.transforms import LoadImage, SaveImage

    image = LoadImage(image_only=True, ensure_channel_first=True, dtype=np.int16)(folder)
    SaveImage(out, output_ext=suffix, output_dtype=np.int16, separate_folder=False, print_log=False)(image)


def floor(folder: Path, out: Path, suffix: str) -> None:
    """The bytes of the files read and packed at our level, in one thread: no header, no geometry, no order."""
    from isal import isal_zlib
    from voxelwise.transforms.gzip_blocks import LEVEL

    packer = isal_zlib.compressobj(LEVEL, isal_zlib.DEFLATED, 31)
    with open(out / f"floor{suffix}", "wb") as file:
        for path in sorted(folder.iterdir()):
            data = path.read_bytes()
            file.write(packer.compress(data) if suffix == ".nii.gz" else data)
        if suffix == ".nii.gz":
            file.write(packer.flush())


WAYS: dict[str, Callable[[Path, Path, str], None]] = {
    "voxelwise": ours,
    "voxelwise (command)": ours_command,
    "dcm2niix": dcm2niix,
    "dicom2nifti": dicom2nifti,
    "SimpleITK": simpleitk,
    "MONAI": monai,
    "bytes + isal": floor,
}
NEEDS = {"dicom2nifti": "dicom2nifti", "SimpleITK": "SimpleITK", "MONAI": "monai"}


@dataclass(frozen=True)
class Figures:
    """What one way took for one series."""

    seconds: tuple[float, ...]
    peak_bytes: int
    file: Path | None


def run(command: list[object]) -> None:
    """A command that must end well; its words are shown if it does not."""
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if result.returncode:
        raise RefusedError(f"exit {result.returncode}: {' '.join((result.stderr or result.stdout).split())[-150:]}")


def installed() -> tuple[str, ...]:
    """The ways that can be tried here; the others are named."""
    there = []
    for name in WAYS:
        missing = name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None
        missing = missing or (name == "dcm2niix" and not (BIN / "dcm2niix").exists())
        if missing:
            print(f"{name} is not installed and left out; `pip install voxelwise[bench]` brings it")
        else:
            there.append(name)
    return tuple(there)


def timed(name: str, folder: Path, out: Path, suffix: str) -> float:
    """One conversion into an empty folder."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        WAYS[name](folder, out, suffix)
    return time.perf_counter() - started


def peak_above_idle(name: str, folder: Path, out: Path, suffix: str) -> int:
    """Bytes of one conversion in a fresh process, above what it held when it was ready to begin."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    words = [sys.executable, __file__, "--alone", name, str(folder), str(out), suffix]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()  # it is ready
        process = psutil.Process(child.pid)
        idle = peak = resident(process)
        child.stdin.write(b"\n")
        child.stdin.flush()
        while child.poll() is None:
            peak = max(peak, resident(process))
            time.sleep(SAMPLE_SECONDS)
        highest = child.stdout.read().split()  # of the process itself, between two samples too
    return max(peak, int(highest[-1]) if highest else 0) - idle


def resident(process: psutil.Process) -> int:
    """Resident bytes of a process and its children."""
    total = 0
    for one in (process, *children(process)):
        try:
            total += one.memory_info().rss
        except psutil.Error:
            continue
    return total


def children(process: psutil.Process) -> list[psutil.Process]:
    """Its children; none once it has gone."""
    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []


def alone(name: str, folder: Path, out: Path, suffix: str) -> None:
    """Be the fresh process: import, say so, wait, convert, tell the highest resident memory since then."""
    if name in NEEDS:
        importlib.import_module(NEEDS[name])
    if name == "MONAI":
        importlib.import_module("monai.transforms")
    if name == "voxelwise":
        importlib.import_module("voxelwise.pipeline.archive.convert")
    print("ready", flush=True)
    sys.stdin.readline()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    WAYS[name](folder, out, suffix)
    status = Path("/proc/self/status").read_text()
    print(1024 * int(status.split("VmHWM:")[1].split()[0]), flush=True)


def written(out: Path, suffix: str) -> Path | None:
    """The largest volume in an output folder."""
    files = [path for path in out.rglob(f"*{suffix}") if path.name != f"floor{suffix}"]
    return max(files, key=lambda path: path.stat().st_size, default=None)


def compared(own: Path, other: Path) -> str:
    """What differs between two files once both are brought to RAS; empty where nothing does."""
    ours_, theirs = (nib.as_closest_canonical(nib.Nifti1Image.from_filename(path)) for path in (own, other))
    a, b = np.asanyarray(ours_.dataobj), np.asanyarray(theirs.dataobj)
    if a.shape != b.shape:
        return f"shape {a.shape}, {b.shape}"
    found = []
    if not np.array_equal(a, b):
        off = np.abs(a.astype(np.float64) - b).max() if a.dtype.names is None else np.nan
        found.append(f"voxels differ by up to {off:.3g}")
    # the reach of a difference: at the far corner of the grid
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in a.shape[:3]])).reshape(3, -1)
    apart = np.abs((ours_.affine - theirs.affine)[:3] @ np.vstack([corners, np.ones(corners.shape[1])])).max()
    if apart > 1e-4:
        found.append(f"{apart:.2g} mm apart")
    if ours_.get_data_dtype().itemsize > theirs.get_data_dtype().itemsize:
        found.append(f"type {ours_.get_data_dtype()}, theirs {theirs.get_data_dtype()}")
    return ", ".join(found)


def measure(folder: Path, suffix: str, names: tuple[str, ...], rounds: int, work: Path) -> dict[str, Figures]:
    """All ways in turn, `rounds` times, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        left = [name for name in names if name in seconds]
        for name in left[number % len(left) :] + left[: number % len(left)]:
            try:
                took = timed(name, folder, work / name.split()[0] / suffix[1:] / str(len(name)), suffix)
            except Exception as error:  # whatever a peer raises is its refusal
                print(f"  {name} refuses: {type(error).__name__}: {' '.join(str(error).split())[:150]}")
                del seconds[name]
                continue
            if number:
                seconds[name].append(took)
    figures = {}
    for name, values in seconds.items():
        out = work / name.split()[0] / suffix[1:] / str(len(name))
        file = written(out, suffix)
        peak = peak_above_idle(name, folder, work / "alone", suffix)
        figures[name] = Figures(tuple(values), peak, file)
    return figures


def report(figures: dict[str, Figures], suffix: str) -> bool:
    """Print the table of one series and one format; whether the goal is met (True where it does not apply)."""
    own = figures.get("voxelwise")
    if own is None or own.file is None:
        print("  not converted by voxelwise")
        return False
    image = nib.Nifti1Image.from_filename(own.file)
    size = int(np.prod(image.shape)) * image.get_data_dtype().itemsize
    base = statistics.median(own.seconds)
    print(f"  {image.shape} {image.get_data_dtype()}, {size / 1e6:.1f} MB of voxels, to {suffix}")
    columns = f"{'median s':>9s}{'range':>16s}{'ours / it':>10s}{'peak / volume':>14s}{'file MB':>9s}"
    print(f"  {'':20s}{columns}  equal to ours")
    for name, one in figures.items():
        median = statistics.median(one.seconds)
        spread = f"{min(one.seconds):.3f}-{max(one.seconds):.3f}"
        file = f"{one.file.stat().st_size / 1e6:9.2f}" if one.file else f"{'':9s}"
        equal = "" if one.file is None or name.startswith("voxelwise") else compared(own.file, one.file) or "yes"
        times = f"{median:9.3f}{spread:>16s}{base / median:10.2f}"
        print(f"  {name:20s}{times}{one.peak_bytes / size:14.2f}{file}  {equal}")
    if suffix != ".nii.gz" or "dcm2niix" not in figures or figures["dcm2niix"].file is None:
        return True
    return gates(own, figures["dcm2niix"], figures["bytes + isal"], size)


def gates(own: Figures, peer: Figures, bare: Figures, size: int) -> bool:
    """Hold the figures against the goal."""
    if own.file is None or peer.file is None:
        return False
    base = statistics.median(own.seconds)
    ours, theirs = (nib.Nifti1Image.from_filename(file).get_data_dtype() for file in (own.file, peer.file))
    narrow = ours == theirs
    rows = [
        ("time / dcm2niix", base / statistics.median(peer.seconds), 0.2),
        ("time / (bytes + isal)", base / statistics.median(bare.seconds), 1.6),
        ("peak / volume", own.peak_bytes / size, 1.3),
    ]
    if narrow:
        rows.append(("file / dcm2niix's", own.file.stat().st_size / peer.file.stat().st_size, 1.12))
    good = True
    for what, found, limit in rows:
        good &= found <= limit
        print(f"  {what:24s}{found:7.3f}   goal {limit:5.2f}   {'met' if found <= limit else 'MISSED'}")
    different = compared(own.file, peer.file)
    print(f"  gate: voxels, affine and type {'equal to dcm2niix' if not different else f'NOT equal: {different}'}")
    return good and not different


def series_below(data: Path, wanted: list[str]) -> list[Path]:
    """Folders below `data` that directly hold DICOM files, those that `wanted` names if it names any."""
    found = []
    for top, folders, names in os.walk(data):
        folders.sort()
        for name in sorted(names)[:3]:
            with open(Path(top, name), "rb") as file:
                if file.read(132)[128:] == b"DICM":
                    found.append(Path(top))
                    break
    return [one for one in found if not wanted or any(word in one.as_posix() for word in wanted)]


def main() -> int:
    """Make or find the series, measure, report."""
    if sys.argv[1:2] == ["--alone"]:
        alone(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=120, help="of the made CT (0: none)")
    parser.add_argument("--data", type=Path, help="folder with series to convert as well")
    parser.add_argument("--case", nargs="*", default=[], help="parts of names of series below --data")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, help="scratch folder (a temporary one)")
    options = parser.parse_args()
    names = installed()
    good = True
    if options.work is not None:
        Path(options.work).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.work) as scratch:
        work = Path(scratch)
        cases = {}
        if options.slices:
            folder = work / "ct"
            write_ct_series(ct((options.slices, 512, 512)), folder)
            cases[f"made CT, 512 x 512 x {options.slices}"] = folder
        if options.data is not None:
            cases |= {one.relative_to(options.data).as_posix(): one for one in series_below(options.data, options.case)}
        for title, folder in cases.items():
            for suffix in FORMATS:
                print(f"\n{title}")
                met = report(measure(folder, suffix, names, options.rounds, work / "out"), suffix)
                good &= met or not title.startswith("made")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
