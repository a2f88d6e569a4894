"""The labels of an imported nnU-Net folder beside nnU-Net's own, on cases that were not trained on.

    python scripts/experiments/nnunet_import.py --out DIR [--python nnU-Net's] [--hippocampus MSD_FOLDER]

Makes an environment with nnU-Net 2.x in DIR/env (or takes --python), three small data sets (`nnunet_sets.py`: real MR;
anisotropic CT phantoms; two-channel MR phantoms with regions), plans and trains each with nnU-Net's own trainer and
few iterations (default and residual-encoder plans, 3d_fullres and 2d, two folds; features, blocks, patches and batches
of the plans are made smaller, depth, kernels and strides stay), predicts the held-out cases with nnU-Net as it is
shipped (sums in float16), with its sums in float32, and with `voxelwise import-model` + `voxelwise predict --engine
torch`, with and without mirroring. Exit code 1 where a limit is missed:

    equal labels in every case      >= 99.9 % of voxels to nnU-Net with float32 sums, >= 99.5 % to it as shipped
    Dice against the reference      within 0.001 of both (mean over cases and labels)

The same command again finishes what is left. --iterations and --sets make it smaller. --tiny FOLDER does nothing of it
but trains the smallest folder there is (anisotropic CT phantoms, 4 features) and leaves what a test of ours needs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nnunet_sets import make_set
from voxelwise.scripts.main import main as voxelwise

HERE = Path(__file__).resolve().parent
SETS = {"hippocampus": 501, "ct": 502, "mr": 503, "tiny": 504}
PLANS = {"default": ("ExperimentPlanner", "nnUNetPlans"), "resenc": ("nnUNetPlannerResEncM", "nnUNetResEncUNetMPlans")}
WAYS = (
    *((sums, mirror) for sums in ("as shipped", "float32 sums") for mirror in (False, True)),
    ("half Gaussian", False),  # float32 sums but for the weights of windows
)
SETTINGS = {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "nnUNet_compile": "false", "MPLBACKEND": "agg"}
LEAST_EQUAL = {"as shipped": 0.995, "float32 sums": 0.999}
MOST_DICE = 0.001


@dataclass(frozen=True)
class Model:
    """One trained folder.

    Args:
        data: name of the set.
        plans: default or resenc.
        configuration: 3d_fullres or 2d.
        out: folder of the whole run.
    """

    data: str
    plans: str
    configuration: str
    out: Path

    @property
    def raw(self) -> Path:
        """The data set."""
        return self.out / "raw" / f"Dataset{SETS[self.data]}_{self.data}"

    @property
    def folder(self) -> Path:
        """What nnU-Net leaves behind."""
        name = f"nnUNetTrainer__{PLANS[self.plans][1]}__{self.configuration}"
        return self.out / "results" / self.raw.name / name

    def labels(self, way: str, mirror: bool) -> Path:
        """Label maps of the held-out cases."""
        name = f"{self.data}_{self.plans}_{self.configuration}"
        return self.out / "labels" / name / f"{way.replace(' ', '_')}{'_mirrored' if mirror else ''}"


def main() -> int:
    """Everything, then the table; 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder that everything is written to")
    parser.add_argument("--python", type=Path, help="of an environment with nnU-Net 2.x; made in DIR/env by default")
    parser.add_argument("--hippocampus", type=Path, default=HERE.parents[2] / "shared" / "data" / "hippocampus")
    parser.add_argument("--tiny", type=Path, help="where to leave the tiny folder")
    parser.add_argument("--sets", default="hippocampus,ct,mr")
    parser.add_argument("--plans", default=",".join(PLANS))
    parser.add_argument("--configurations", default="3d_fullres,2d")
    parser.add_argument("--folds", default="0,1")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=50, help="of an epoch")
    given = parser.parse_args()
    out = given.out.resolve()
    python = given.python or environment(out / "env")
    if given.tiny:
        leave_tiny(python, out, given.tiny)
        return 0
    models = [
        Model(data, plans, configuration, out)
        for data in given.sets.split(",")
        for plans in given.plans.split(",")
        for configuration in given.configurations.split(",")
    ]
    for data in given.sets.split(","):
        make_set(data, out / "raw" / f"Dataset{SETS[data]}_{data}", given.hippocampus, train=8, test=2)
    run_nnunet(python, out, list(jobs(models, [int(fold) for fold in given.folds.split(",")], given)))
    kept = [compared(model, mirror) for model in models for mirror in (False, True)]
    return 0 if all(kept) else 1


def environment(folder: Path) -> Path:
    """The interpreter of an environment with nnU-Net."""
    python = folder / "bin" / "python"
    if not python.is_file():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "nnunetv2>=2.6,<3"], check=True)
    return python


def jobs(models: Sequence[Model], folds: list[int], given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What nnU-Net has to do, in order; what is there is left out."""
    planned = set()
    for model in models:
        planner, plans = PLANS[model.plans]
        shared = {"dataset": SETS[model.data], "plans": plans}
        there = model.out / "preprocessed" / model.raw.name / f"{plans}_{model.configuration}"
        if not there.is_dir() and (model.data, plans) not in planned:
            planned.add((model.data, plans))
            names = given.configurations.split(",")
            yield {"do": "plan", "planner": planner, "configurations": names, "features": 8, "patch": 40} | shared
        for fold in folds:
            if not (model.folder / f"fold_{fold}" / "checkpoint_final.pth").is_file():
                length = {"epochs": given.epochs, "iterations": given.iterations}
                yield {"do": "train", "configuration": model.configuration, "fold": fold} | shared | length
        for sums, mirror in WAYS:
            where = {"images": str(model.raw / "imagesTs"), "out": str(model.labels(sums, mirror))}
            if len(list(model.labels(sums, mirror).glob("*.nii.gz"))) < len(cases(model)):
                shared = {"model": str(model.folder), "folds": folds, "mirror": mirror, "sums": sums}
                yield {"do": "predict"} | shared | where


def cases(model: Model) -> list[str]:
    """Names of the held-out cases."""
    return sorted(file.name for file in (model.raw / "labelsTs").glob("*.nii.gz"))


def run_nnunet(python: Path, out: Path, todo: list[dict[str, Any]]) -> None:
    """Do jobs in nnU-Net's environment, in one process; what it says goes to DIR/nnunet.log."""
    if not todo:
        return
    (out / "jobs.json").write_text(json.dumps(todo, indent=1))
    folders = {f"nnUNet_{name}": str(out / name) for name in ("raw", "preprocessed", "results")}
    for folder in folders.values():
        Path(folder).mkdir(parents=True, exist_ok=True)
    print(f"nnU-Net: {len(todo)} jobs, its words in {out / 'nnunet.log'}", flush=True)
    with open(out / "nnunet.log", "a") as told:
        command = [str(python), str(HERE / "nnunet_runner.py"), str(out / "jobs.json")]
        environ = os.environ | SETTINGS | folders
        environ.pop("PYTHONPATH", None)
        subprocess.run(command, check=True, env=environ, stdout=told, stderr=subprocess.STDOUT)


def leave_tiny(python: Path, out: Path, folder: Path) -> None:
    """A trained folder of nnU-Net with one case and nnU-Net's labels of it (float32 sums), as small as can be."""
    model = Model("tiny", "default", "3d_fullres", out)
    make_set("tiny", model.raw, Path(), train=5, test=1)
    shared = {"dataset": SETS["tiny"], "plans": PLANS["default"][1]}
    planned = {"planner": PLANS["default"][0], "configurations": ["3d_fullres"], "features": 4, "patch": 32}
    todo: list[dict[str, Any]] = [{"do": "plan"} | shared | planned]
    todo += [{"do": "train", "configuration": "3d_fullres", "fold": 0, "epochs": 7, "iterations": 100} | shared]
    for mirror in (False, True):
        job = {"do": "predict", "model": str(model.folder), "folds": [0], "mirror": mirror, "sums": "float32 sums"}
        todo.append({**job, "images": str(model.raw / "imagesTs"), "out": str(model.labels("float32 sums", mirror))})
    run_nnunet(python, out, todo)
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    for name in ("plans.json", "dataset.json", "fold_0/checkpoint_final.pth"):
        shutil.copy(model.folder / name, folder / name)
    (case,) = cases(model)
    shutil.copy(model.raw / "imagesTs" / case.replace(".nii.gz", "_0000.nii.gz"), folder / "case_0000.nii.gz")
    for mirror, name in ((False, "labels.nii.gz"), (True, "labels_mirrored.nii.gz")):
        shutil.copy(model.labels("float32 sums", mirror) / case, folder / name)


def compared(model: Model, mirror: bool) -> bool:
    """Import, predict, print one line of the table (shares are the least of any case); whether the limits are kept."""
    imported = model.out / "imported" / f"{model.data}_{model.plans}_{model.configuration}"
    if not (imported / "model.yaml").is_file():
        ran(["import-model", str(model.folder), str(imported), "--quiet"])
    ours = model.labels("voxelwise", mirror)
    images = str(model.raw / "imagesTs")
    exact = ["--engine", "torch", "--precision", "float32", "--tta" if mirror else "--no-tta"]
    ran(["predict", str(imported), images, str(ours), *exact, "--overwrite", "--quiet"])
    theirs = {sums: model.labels(sums, mirror) for sums, mirrored in WAYS if mirrored == mirror}
    alike = {sums: equal(ours, folder) for sums, folder in theirs.items()}
    moved = {sums: equal(folder, theirs["float32 sums"]) for sums, folder in theirs.items()}
    apart = {sums: dice(ours, model) - dice(folder, model) for sums, folder in theirs.items()}
    kept = all(alike[sums] >= least and abs(apart[sums]) <= MOST_DICE for sums, least in LEAST_EQUAL.items())
    gaussian = f"  half Gaussian {moved['half Gaussian']:9.4%}" if "half Gaussian" in moved else ""
    print(
        f"{model.data:12} {model.plans:8} {model.configuration:10} {'mirrored' if mirror else 'plain':9}"
        f" equal: float32 {alike['float32 sums']:9.4%}  as shipped {alike['as shipped']:9.4%}"
        f"  Dice {dice(ours, model):.4f} {apart['float32 sums']:+.5f} {apart['as shipped']:+.5f}"
        f"  {'kept' if kept else 'MISSED'}  (nnU-Net: as shipped {moved['as shipped']:9.4%} of its float32{gaussian})",
        flush=True,
    )
    return kept


def ran(words: list[str]) -> None:
    """Run a verb of ours; stop where it fails."""
    if code := voxelwise(words):
        raise SystemExit(f"voxelwise {' '.join(words)}: exit code {code}")


def labels_of(file: Path) -> np.ndarray:
    """A label map as it is stored."""
    image = nib.load(file)
    assert isinstance(image, nib.Nifti1Image)
    return np.asanyarray(image.dataobj)


def equal(ours: Path, theirs: Path) -> float:
    """The least share of equal labels of any case."""
    return min(float((labels_of(ours / file.name) == labels_of(file)).mean()) for file in theirs.glob("*.nii.gz"))


def dice(found: Path, model: Model) -> float:
    """Mean over cases and labels against the reference; 1 where neither has a label."""
    scores = []
    for name in cases(model):
        truth, labels = labels_of(model.raw / "labelsTs" / name), labels_of(found / name)
        for value in range(1, int(truth.max()) + 1):
            one, other = truth == value, labels == value
            size = one.sum() + other.sum()
            scores.append(2 * (one & other).sum() / size if size else 1.0)
    return float(np.mean(scores))


if __name__ == "__main__":
    sys.exit(main())
