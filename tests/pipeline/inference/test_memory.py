"""`predict --memory` held to its word in a process of its own: the measured peak stays below whatever was named."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import phantoms
import psutil
import pytest
import torch
from scipy.ndimage import gaussian_filter
from voxelwise.networks.registry import build_network
from voxelwise.pipeline.inference.loading import load_predictor
from voxelwise.pipeline.model_folder import write_model_folder
from voxelwise.pipeline.start import idle_bytes
from voxelwise.transforms.readers import read_volume

OPTIONS: dict[str, Any] = {"widths": [4, 8]}
AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])


@dataclass(frozen=True)
class Run:
    """Exit code, what was said, and the most that the process held with its children."""

    code: int
    told: str
    peak: int


def predict(*words: str | Path) -> Run:
    """The command in a process of its own, watched."""
    command = [sys.executable, "-m", "voxelwise.scripts.main", "predict", *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as child:
        peak = 0
        while child.poll() is None:
            with suppress(psutil.Error):
                watched = psutil.Process(child.pid)
                peak = max(peak, sum(one.memory_info().rss for one in [watched, *watched.children(recursive=True)]))
            time.sleep(0.005)
        assert child.stderr is not None
        return Run(child.returncode, child.stderr.read(), peak)


def make_model(folder: Path, *, classes: int, **changes: Any) -> Path:
    plan: dict[str, Any] = {
        "dims": 3,
        "channels": ["image"],
        "modality": "MR",
        "labels": [{"value": at, "name": f"organ {at}"} for at in range(classes)],
        "orientation": "RAS",
        "crop": "none",
        "bias_field": False,
        "patch": [48, 48, 48],
        "network": {"name": "unet", "options": OPTIONS},
        "mirror_axes": [],
        "overlap": 0.25,
        "tta": False,
        **changes,
    }
    torch.manual_seed(0)
    write_model_folder(folder, build_network("unet", 3, 1, classes, **OPTIONS), OPTIONS, plan, fold="0")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_random_amounts_are_held(tmp_path: Path, seed: int) -> None:
    """Done with the labels that come without a limit, or refused with 6 before the network; never more than named."""
    random = np.random.default_rng(seed)
    shape = tuple(int(side) for side in random.integers(60, 260, 3))
    model = make_model(
        tmp_path / "model",
        classes=int(random.choice([2, 20, 105])),
        spacing_mm=[None, [1.5, 1.5, 1.5], [0.9, 0.9, 2.0]][seed % 3],
        normalisation=[{"kind": str(random.choice(["zscore", "zscore_nonzero"]))}],
    )
    array = gaussian_filter(random.standard_normal(shape, dtype=np.float32), 2) * 4000
    source = phantoms.nifti_file(tmp_path / "case.nii.gz", array.astype(np.int16), AFFINE)
    idle = idle_bytes()
    assert idle is not None
    amount = round(idle * random.uniform(0.95, 1.6))
    run = predict(model, source, tmp_path / "out.nii.gz", "--memory", str(amount), "--device", "cpu")
    assert run.code in (0, 6), run.told
    if run.code == 6:
        assert "--memory" in run.told
        assert not (tmp_path / "out.nii.gz").exists()
        return
    assert run.peak <= amount
    found = np.asanyarray(nib.load(tmp_path / "out.nii.gz").dataobj)
    wanted = load_predictor(model, device="cpu").labels(read_volume(source))
    # an untrained network's scores tie here and there, and which boxes are interpolated as a whole depends on the plan
    assert (found != wanted).mean() <= 1e-5


@pytest.mark.slow
def test_less_than_doctor_names_is_refused(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", classes=2, spacing_mm=None, normalisation=[{"kind": "zscore"}])
    source = phantoms.nifti_file(tmp_path / "case.nii.gz", np.zeros((50, 50, 50), np.int16), AFFINE)
    idle = idle_bytes()
    assert idle is not None
    run = predict(model, source, tmp_path / "out.nii.gz", "--memory", str(round(0.95 * idle)), "--device", "cpu")
    assert run.code == 6
    assert "before it reads an image" in run.told
