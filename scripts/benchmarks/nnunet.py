"""nnU-Net's own prediction beside ours, from the same weights: wall time and peak memory of the whole process tree.

    python scripts/benchmarks/nnunet.py [--python nnU-Net's] [--rounds 1] [--rows hippocampus,ct25,ct105,budget]

hippocampus  20 real MR (MSD Task04), or noise of their size where the set is not there; the network and windows that
             nnU-Net plans for them (40x56x40, 32 features), mirrored as nnU-Net does it by default
ct25, ct105  one CT 320x320x208 of 0.9x0.9x1.5 mm, 25 and 105 classes, as TotalSegmentator's models: 1.5 mm, CT
             normalisation, windows 128x128x128 half overlapping, no mirroring; few features
budget       the folder of ct105 and a CT of 512x512x400 under --memory 4GB, ours alone

`nnUNetv2_predict -device cpu` as shipped against `voxelwise predict` on the imported folder, by the default engine and
by torch, in turn, from the start of the command to its end, all cores of the machine for both. Weights are random (they
give blobs, as organs are). Memory is the greatest sum over all processes of a run, shared pages counted once (PSS).
Exit code 1: at 105 classes more than 0.5 of the time or 0.25 of the memory, in any row slower, or 4 GB overstepped.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from memory import predict as predict_within
from memory import verdict as kept_within
from nnunet_inputs import ct_plans, hippocampus, imported, small_plans, untrained, volume
from voxelwise.pipeline.sizes import parse_bytes
from voxelwise.transforms.nifti import read_nifti

SAMPLE_SECONDS = 0.1
BUDGET = "4GB"


@dataclass
class Row:
    """One line of the table: what was measured of one program on one input."""

    seconds: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)

    def text(self) -> str:
        """Medians."""
        return f"{statistics.median(self.seconds):8.1f} s  {max(self.peaks) / 1e9:7.2f} GB"


@dataclass(frozen=True)
class Input:
    """A folder of images and two folders of the same weights.

    Args:
        name: of the row.
        number: of nnU-Net's data set.
        images: folder.
        model: imported from nnU-Net's folder.
        mirror: whether predictions are mirrored.
        limits: of time and memory, ours / nnU-Net's.
    """

    name: str
    number: int
    images: Path
    model: Path
    mirror: bool
    limits: tuple[float, float]


def main() -> int:
    """Make inputs, measure, print; 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="of an environment with nnU-Net 2.x")
    parser.add_argument("--rows", default="hippocampus,ct25,ct105,budget")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--cases", type=int, default=20, help="of the hippocampus row")
    parser.add_argument("--shape", default="320,320,208", help="X,Y,Z of the CT")
    parser.add_argument("--features", type=int, default=8, help="of the CT's network, first stage")
    parser.add_argument("--folder", type=Path, help="where files are kept; a temporary one by default")
    given = parser.parse_args()
    rows = given.rows.split(",")
    print(f"{os.cpu_count()} cores, {given.rounds} rounds", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)).resolve()
        inputs = list(make_inputs(folder, given, rows))
        kept = [measured(one, given.python, given.rounds, folder) for one in inputs if one.name in rows]
        if "budget" in rows:
            kept.append(budget(folder, inputs[-1].model))
    return 0 if all(kept) else 1


def make_inputs(folder: Path, given: argparse.Namespace, rows: Sequence[str]) -> Iterator[Input]:
    """Images, folders of nnU-Net and imported ones, as far as they are not there."""
    shape = [int(part) for part in given.shape.split(",")]
    if "hippocampus" in rows:
        images = hippocampus(folder / "images_hippocampus", given.cases)
        nnunet = untrained(folder, small_plans("Dataset901_hippocampus"), 3, given.python, [0, 1, 2])
        yield Input("hippocampus", 901, images, imported(nnunet), mirror=True, limits=(1.0, np.inf))
    for classes, number in ((25, 925), (105, 905)):
        if f"ct{classes}" in rows or (classes == 105 and "budget" in rows):
            images = volume(folder / "images_ct" / "body_0000.nii.gz", shape).parent
            plans = ct_plans(f"Dataset{number}_ct{classes}", given.features)
            nnunet = untrained(folder, plans, classes, given.python, None)
            limits = (0.5, 0.25) if classes == 105 else (1.0, np.inf)
            yield Input(f"ct{classes}", number, images, imported(nnunet), mirror=False, limits=limits)


def measured(one: Input, python: Path, rounds: int, folder: Path) -> bool:
    """Time both programs in turn, print their lines and ratios; whether the limits are kept."""
    theirs = folder / "labels" / one.name / "nnunet"
    command = [str(python.parent / "nnUNetv2_predict"), "-i", str(one.images), "-o", str(theirs), "-d", str(one.number)]
    command += ["-c", "3d_fullres", "-f", "0", "-device", "cpu", "--disable_progress_bar"]
    command += [] if one.mirror else ["--disable_tta"]
    ways = {"nnU-Net": command}
    for engine in ("auto", "torch"):
        out = folder / "labels" / one.name / engine
        ours = [sys.executable, "-m", "voxelwise.scripts.main", "predict", str(one.model), str(one.images), str(out)]
        ways[f"ours, {engine}"] = [*ours, "--engine", engine, "--overwrite", "--tta" if one.mirror else "--no-tta"]
    found = {name: Row() for name in ways}
    for _ in range(rounds):
        for name, words in ways.items():
            variables = {"nnUNet_results": str(folder / "results")} if name == "nnU-Net" else {}
            seconds, peak = watched(words, variables, folder)
            found[name].seconds.append(seconds)
            found[name].peaks.append(peak)
    reached = {}
    for name, row in found.items():
        line = f"{one.name:12} {name:12} {row.text()}"
        if name != "nnU-Net":
            slower = statistics.median(np.divide(row.seconds, found["nnU-Net"].seconds).tolist())
            larger = max(row.peaks) / max(found["nnU-Net"].peaks)
            reached[name] = slower <= one.limits[0] and larger <= one.limits[1]
            line += f"  {slower:.3f} of the time, {larger:.3f} of the memory: {'kept' if reached[name] else 'MISSED'}"
            line += f"; {alike(theirs.with_name(name.removeprefix('ours, ')), theirs)}"
        print(line, flush=True)
    return reached["ours, auto"]


def watched(command: Sequence[str], variables: Mapping[str, str], folder: Path) -> tuple[float, float]:
    """Seconds and greatest memory of a command with all of its processes, in bytes."""
    peak = 0.0
    environ = os.environ | variables
    environ.pop("OMP_NUM_THREADS", None)
    if variables:
        environ.pop("PYTHONPATH", None)
    with open(folder / "told.log", "a") as told:
        started = time.monotonic()
        child = psutil.Popen(command, stdout=told, stderr=told, env=environ)
        while child.poll() is None:
            with suppress(psutil.Error):
                peak = max(peak, sum(held(one) for one in (child, *child.children(recursive=True))))
            time.sleep(SAMPLE_SECONDS)
    if child.returncode:
        raise SystemExit(f"exit code {child.returncode}: {' '.join(command)}; what it said is in {folder / 'told.log'}")
    return time.monotonic() - started, peak


def held(process: psutil.Process) -> int:
    """Bytes of a process, its part of shared pages; 0 when it has ended meanwhile."""
    try:
        memory = process.memory_full_info()
        return int(getattr(memory, "pss", memory.rss))
    except psutil.Error:
        return 0


def budget(folder: Path, model: Path) -> bool:
    """The long CT under `--memory`."""
    case = volume(folder / "images_long" / "long.nii.gz", (512, 512, 400))
    run = predict_within(model, case, folder / "long_labels.nii.gz", BUDGET, "auto")
    said = kept_within(run, parse_bytes(BUDGET))
    peaks = f"{run.tree / 1e9:.3f} GB with children, {run.process / 1e9:.3f} GB of the process itself"
    print(f"512x512x400, 105 classes, --memory {BUDGET}: {said}, exit {run.code}, {run.seconds:.0f} s, peak {peaks}")
    print(f"    {run.told}")
    return said == "held"


def alike(ours: Path, theirs: Path) -> str:
    """The least share of equal labels of a case, and how much of it lies at a border of labels."""
    shares, borders = [], []
    for file in theirs.glob("*.nii.gz"):
        labels, other = (read_nifti(folder / file.name).array for folder in (theirs, ours))
        shares.append(float((labels == other).mean()))
        borders.append(float(np.mean(labels[1:] != labels[:-1])))
    return f"{min(shares):.4%} of labels equal ({max(borders):.1%} change along X)"


if __name__ == "__main__":
    sys.exit(main())
