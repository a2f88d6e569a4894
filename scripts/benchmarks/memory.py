"""`voxelwise predict --memory` held to its word: one case under several amounts, its plan, and the measured peak.

    python scripts/benchmarks/memory.py [--shape 512,512,800] [--classes 105] [--budgets 2GB,3GB,4GB,8GB,16GB]

Makes a CT-like volume and a model folder with a small untrained network, and predicts in a process of its own for each
amount. The resident size of the process and its children is sampled every few milliseconds; the system's own peak of
the process stands beside it. Labels of all runs must be the same, and those of a box in the middle equal to what comes
out where all scores of the box are kept: each window that touches it is added up in one tensor (classes x box), without
slabs, strips or a head taken off.
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
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import torch
from inputs import PIXEL_MM, SLICE_MM, ct
from voxelwise.networks.registry import build_network
from voxelwise.pipeline.inference.loading import load_predictor
from voxelwise.pipeline.inference.windows import axis_starts, importance
from voxelwise.pipeline.model_folder import write_model_folder
from voxelwise.pipeline.sizes import parse_bytes
from voxelwise.transforms.chains import run_chain
from voxelwise.transforms.located import plain
from voxelwise.transforms.nifti import read_nifti

SAMPLE_SECONDS = 0.05
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
    parser.add_argument("--engine", default="torch", help="another one gives other labels where two classes nearly tie")
    parser.add_argument("--folder", type=Path, help="where files are kept; a temporary one by default")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        model = make_model(folder / "model", arguments)
        case = make_volume(folder / "case.nii.gz", numbers(arguments.shape))
        runs = []
        for budget in arguments.budgets.split(","):
            run = predict(model, case, folder / f"out_{budget}.nii.gz", budget, arguments.engine)
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
    finished = [folder / f"out_{budget}.nii.gz" for budget, _, run in runs if run.code == 0]
    if finished:
        share = share_equal_to_unstreamed(model, case, finished[0])
        print(f"labels of a box equal to those of the unstreamed sums on {share:.6%} of its voxels")
        same = same and share >= 0.99999
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


def predict(model: Path, case: Path, out: Path, budget: str, engine: str) -> Run:
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
        "--engine",
        engine,
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


@torch.inference_mode()
def share_equal_to_unstreamed(model: Path, case: Path, labels: Path) -> float:
    """Share of voxels of a box of a label map that have the class that plain sums of all windows give them."""
    predictor = load_predictor(model, device="cpu")
    network, patch = predictor.networks[0], predictor.patch
    image = plain(run_chain(predictor.chain, {"image": read_nifti(case)})["image"]).float()
    box = [slice(side // 2 - side // 32, side // 2 + side // 32) for side in image.shape[1:]]
    sides = [part.stop - part.start for part in box]
    sums, total = torch.zeros(network.out_channels, *sides).double(), torch.zeros(sides).double()
    curves = [importance(side) for side in patch]
    weights = curves[0][:, None, None] * curves[1][:, None] * curves[2]
    starts = [axis_starts(*axis, predictor.overlap) for axis in zip(image.shape[1:], patch, strict=True)]
    for corner in product(*starts):
        window = [slice(first, first + side) for first, side in zip(corner, patch, strict=True)]
        ours, theirs = shared(box, window), shared(window, box)
        if any(part.stop <= part.start for part in ours):
            continue
        all_ours, all_theirs = (slice(None), *ours), (slice(None), *theirs)
        where = (slice(None), *window)
        scores = network(image[where][None])[0].double()
        sums[all_ours] += scores[all_theirs] * weights[theirs]
        total[ours] += weights[theirs]
    wanted = (sums / total).argmax(0).numpy()
    written = nib.load(labels)
    assert isinstance(written, nib.Nifti1Image)
    found = np.asanyarray(written.dataobj)[::-1, ::-1]  # the network's grid is RAS, the case's LPS
    return float((found[tuple(box)] == wanted).mean())


def shared(one: Sequence[slice], other: Sequence[slice]) -> tuple[slice, ...]:
    """Where two boxes overlap, seen from the first."""
    ends = [(max(a.start, b.start) - a.start, min(a.stop, b.stop) - a.start) for a, b in zip(one, other, strict=True)]
    return tuple(slice(*pair) for pair in ends)


def own_peak(pid: int) -> int:
    """Bytes that a process has held at most, as Linux keeps it; it starts anew where the process measures itself."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    sys.exit(main())
