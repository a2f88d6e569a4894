"""`voxelwise predict --memory` held to its word: one case under several amounts, its plan, and the measured peak.

    python scripts/benchmarks/memory.py [--shape 512,512,800] [--classes 105] [--budgets 2GB,3GB,4GB,8GB,16GB]

Makes a CT-like volume and a model folder with a small untrained network, and predicts in a process of its own for each
amount. The resident size of the process and its children is sampled every few milliseconds; the system's own peak of
the process stands beside it. Labels of all runs must be the same.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import torch
from inputs import PIXEL_MM, SLICE_MM, ct
from voxelwise.networks.registry import build_network
from voxelwise.pipeline.model_folder import write_model_folder
from voxelwise.pipeline.sizes import parse_bytes

SAMPLE_SECONDS = 0.005
REFUSED = 6


@dataclass(frozen=True)
class Run:
    """One run: its exit code, what it said, seconds, peaks in bytes (sampled with children, the system's), labels."""

    code: int
    told: str
    seconds: float
    tree: int
    process: int
    labels: str


def main() -> int:
    """Make the case, measure, print; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="512,512,800", help="X,Y,Z of the volume")
    parser.add_argument("--classes", type=int, default=105)
    parser.add_argument("--widths", default="8,16", help="channels per level of the network")
    parser.add_argument("--patch", default="96,96,96")
    parser.add_argument("--overlap", type=float, default=0.25)
    parser.add_argument("--spacing", help="of the network's grid in mm, where the volume is resampled")
    parser.add_argument("--budgets", default="2GB,3GB,4GB,8GB,16GB", help="amounts for --memory; none: without it")
    parser.add_argument("--folder", type=Path, help="where files are kept; a temporary one by default")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        model = make_model(folder / "model", arguments)
        case = make_volume(folder / "case.nii.gz", numbers(arguments.shape))
        runs = []
        for budget in arguments.budgets.split(","):
            run = predict(model, case, folder / f"out_{budget}.nii.gz", budget)
            limit = None if budget == "none" else parse_bytes(budget)
            runs.append((budget, limit, run))
            print(
                f"{budget:>6}  {verdict(run, limit):<8} exit {run.code}  {run.seconds:6.0f} s  "
                f"peak {run.tree / 1e9:.3f} GB with children, {run.process / 1e9:.3f} GB of the process itself  "
                f"labels {run.labels[:8]}"
            )
            print(f"        {run.told}", flush=True)
    kept = all(verdict(run, limit) != "BROKEN" for _, limit, run in runs)
    same = len({run.labels for _, _, run in runs if run.code == 0}) <= 1
    print(f"{'every amount was held' if kept else 'an amount was overstepped'}; labels {'equal' if same else 'DIFFER'}")
    return 0 if kept and same else 1


def verdict(run: Run, limit: int | None) -> str:
    """Whether the run kept its word."""
    if run.code == REFUSED and limit is not None:
        return "refused"
    if run.code != 0:
        return "BROKEN"
    return "held" if limit is None or max(run.tree, run.process) <= limit else "BROKEN"


def numbers(text: str) -> tuple[int, ...]:
    """1,2,3."""
    return tuple(int(part) for part in text.split(","))


def make_model(folder: Path, arguments: argparse.Namespace) -> Path:
    """A model folder with an untrained network."""
    if (folder / "model.yaml").is_file():
        return folder
    options = {"widths": list(numbers(arguments.widths))}
    spacing = None if arguments.spacing is None else [float(part) for part in arguments.spacing.split(",")]
    plan = {
        "dims": 3,
        "channels": ["ct"],
        "modality": "CT",
        "labels": [
            {"value": 0, "name": "background"},
            *({"value": at, "name": f"organ {at}"} for at in range(1, arguments.classes)),
        ],
        "spacing_mm": spacing,
        "orientation": "RAS",
        "crop": "none",
        "bias_field": False,
        "normalisation": [{"kind": "window", "low": -1000, "high": 1000, "mean": 0.0, "std": 400.0}],
        "patch": list(numbers(arguments.patch)),
        "network": {"name": "unet", "options": options},
        "mirror_axes": [],
        "overlap": arguments.overlap,
        "tta": False,
    }
    torch.manual_seed(0)
    write_model_folder(folder, build_network("unet", 3, 1, arguments.classes, **options), options, plan, fold="0")
    return folder


def make_volume(path: Path, shape: Sequence[int]) -> Path:
    """A body as .nii.gz; long ones are made of shorter ones."""
    if not path.is_file():
        x, y, z = shape
        part = ct((min(z, 100), y, x)).T
        pieces = [part if at % 2 == 0 else part[..., ::-1] for at in range(-(-z // part.shape[2]))]
        array = np.concatenate(pieces, axis=2)[..., :z]
        nib.save(nib.Nifti1Image(array, np.diag([-PIXEL_MM, -PIXEL_MM, SLICE_MM, 1])), path)
    return path


def predict(model: Path, case: Path, out: Path, budget: str) -> Run:
    """Predict in a process of its own, and watch it."""
    command = [
        sys.executable,
        "-m",
        "voxelwise.scripts.main",
        "predict",
        str(model),
        str(case),
        str(out),
        "--overwrite",
    ]
    command += [] if budget == "none" else ["--memory", budget]
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as told:
        child = subprocess.Popen(command, stderr=told, stdout=subprocess.DEVNULL)
        tree = process = 0
        while child.poll() is None:
            with suppress(psutil.Error, OSError):
                watched = psutil.Process(child.pid)
                family = [watched, *watched.children(recursive=True)]
                tree = max(tree, sum(one.memory_info().rss for one in family))
                process = max(process, own_peak(child.pid))
            time.sleep(SAMPLE_SECONDS)
        told.seek(0)
        lines = [line.strip() for line in told if " GB" in line]
    seconds = time.monotonic() - started
    labels = hashlib.sha256(out.read_bytes()).hexdigest() if child.returncode == 0 else ""
    return Run(child.returncode, lines[-1] if lines else "", seconds, tree, process, labels)


def own_peak(pid: int) -> int:
    """Bytes that a process has held at most, as Linux keeps it; it starts anew where the process measures itself."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    sys.exit(main())
