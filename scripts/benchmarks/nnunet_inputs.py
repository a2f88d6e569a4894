"""What `nnunet.py` measures on: images in nnU-Net's naming, and nnU-Net folders with random weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from inputs import ct

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SPACING_MM = (0.9, 0.9, 1.5)


def imported(nnunet: Path) -> Path:
    """The model folder of ours."""
    out = nnunet.parents[2] / "imported" / nnunet.parent.name
    if not (out / "model.yaml").is_file():
        command = [sys.executable, "-m", "voxelwise.scripts.main", "import-model", str(nnunet), str(out), "--quiet"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out


def hippocampus(folder: Path, cases: int) -> Path:
    """Images of MSD Task04 in nnU-Net's naming; noise of such sizes where they are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    there = sorted((DATA / "hippocampus" / "images").glob("*.nii.gz"))
    rng = np.random.default_rng(0)
    for number in range(cases):
        file = folder / f"case_{number:02d}_0000.nii.gz"
        if there:
            nib.save(nib.load(there[number * len(there) // cases]), file)
        else:
            nib.save(nib.Nifti1Image(rng.integers(0, 500, (36, 52, 36)).astype(np.int16), np.eye(4)), file)
    return folder


def volume(file: Path, shape: Sequence[int]) -> Path:
    """A body as .nii.gz."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        affine = np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1])
        nib.save(nib.Nifti1Image(ct((shape[2], shape[1], shape[0])).T, affine), file)
    return file


def untrained(folder: Path, plans: dict[str, Any], classes: int, python: Path, mirror: list[int] | None) -> Path:
    """A folder of nnU-Net with random weights.

    Args:
        folder: in which its data sets and results lie.
        plans: as nnU-Net keeps them.
        classes: with the background.
        python: of nnU-Net's environment.
        mirror: axes that predictions are mirrored along.
    """
    out = folder / "results" / plans["dataset_name"] / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    if (out / "fold_0" / "checkpoint_final.pth").is_file():
        return out
    channel = "CT" if "CT" in plans["configurations"]["3d_fullres"]["normalization_schemes"][0] else "MRI"
    labels = {"background": 0, **{f"organ_{number}": number for number in range(1, classes)}}
    described = {"channel_names": {"0": channel}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    job = {"do": "untrained", "model": str(out), "plans": plans, "described": described, "mirror": mirror}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps([job]))
    variables = {f"nnUNet_{part}": str(folder / part) for part in ("raw", "preprocessed", "results")}
    environ = os.environ | variables
    environ.pop("PYTHONPATH", None)
    subprocess.run([python, EXPERIMENTS / "nnunet_runner.py", folder / "jobs.json"], check=True, env=environ)
    return out


def small_plans(name: str) -> dict[str, Any]:
    """What nnU-Net plans for hippocampus."""
    return {"dataset_name": name} | plans_of([40, 56, 40], 1.0, [32, 64, 128, 256], "ZScoreNormalization")


def ct_plans(name: str, features: int) -> dict[str, Any]:
    """As TotalSegmentator's, with few features."""
    widths = [min(features * 2**stage, features * 10) for stage in range(6)]
    return {"dataset_name": name} | plans_of([128, 128, 128], 1.5, widths, "CTNormalization")


def plans_of(patch: list[int], spacing_mm: float, widths: list[int], scheme: str) -> dict[str, Any]:
    """plans.json of a plain U-Net, 3d_fullres alone."""
    spacing = [spacing_mm] * 3
    stages = len(widths)
    options = {
        "n_stages": stages,
        "features_per_stage": widths,
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1], *[[2, 2, 2]] * (stages - 1)],
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    resampling = "resample_data_or_seg_to_shape"
    orders = {"order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": patch,
        "median_image_size_in_voxels": patch,
        "spacing": spacing,
        "normalization_schemes": [scheme],
        "use_mask_for_norm": [False],
        **{f"resampling_fn_{kind}": resampling for kind in ("data", "seg", "probabilities")},
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **orders},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **orders},
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, **orders},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": options,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
    }
    measured_values = {"max": 2000.0, "mean": 60.0, "median": 55.0, "min": -1024.0}
    measured_values |= {"percentile_00_5": -950.0, "percentile_99_5": 800.0, "std": 280.0}
    return {
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": spacing,
        "original_median_shape_after_transp": patch,
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": measured_values},
    }
