"""Data sets in nnU-Net's raw form for `nnunet_import.py`: small, some real, some phantoms.

hippocampus  real MR (MSD Task04), 1 mm, one channel, z-score
ct           phantoms, about 1.3x1.3x5 mm, CT normalisation, the coarse axis is resampled apart
mr           phantoms, two channels, sagittal slices of about 6 mm (nnU-Net turns the axes), nothing outside the head
             (crop, z-score inside the mask), regions instead of classes, oblique affines

tiny         phantoms as ct, a few thousand voxels: for the folder that a test of ours imports

Cases `test_*` are never trained on; their reference stands in labelsTs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np


@dataclass(frozen=True)
class Phantom:
    """How the phantoms of a set look.

    Args:
        size_mm: of a volume, about.
        spacing_mm: about; each case has its own.
        body: value per channel of what is no organ; outside of it there is `air`.
        organs: value per channel of each organ, label 1, 2, ...
        air: outside the body.
        noise: its deviation.
        oblique: whether affines are turned.
    """

    size_mm: tuple[float, float, float]
    spacing_mm: tuple[float, float, float]
    body: tuple[float, ...]
    organs: tuple[tuple[float, ...], ...]
    air: float
    noise: float
    oblique: bool


CT = Phantom((88, 80, 110), (1.3, 1.3, 5.0), (35,), ((120,), (-90,), (420,)), -1000, 18, oblique=False)
TINY = Phantom((46, 42, 60), (1.2, 1.2, 5.0), (35,), ((200,), (-150,)), -1000, 18, oblique=True)
MR = Phantom((110, 72, 80), (6.0, 1.2, 1.3), (300, 500), ((420, 380), (560, 250)), 0, 22, oblique=True)


def make_set(name: str, folder: Path, hippocampus: Path, *, train: int, test: int) -> Path:
    """Write a set unless it is there: imagesTr, labelsTr, imagesTs, labelsTs, dataset.json.

    Args:
        name: hippocampus, ct, mr or tiny.
        folder: DatasetNNN_name.
        hippocampus: images/ and labels/ of MSD Task04.
        train: cases.
        test: cases that are held out.
    """
    if (folder / "dataset.json").is_file():
        return folder
    for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    if name == "hippocampus":
        copy_cases(hippocampus, folder, train, test)
        described = description({"0": "MRI"}, {"background": 0, "anterior": 1, "posterior": 2}, train)
    elif name == "ct":
        write_phantoms(CT, folder, train, test, seed=1)
        described = description({"0": "CT"}, {"background": 0, "liver": 1, "fat": 2, "bone": 3}, train)
    elif name == "tiny":
        write_phantoms(TINY, folder, train, test, seed=3)
        described = description({"0": "CT"}, {"background": 0, "liver": 1, "fat": 2}, train)
    else:
        write_phantoms(MR, folder, train, test, seed=2)
        regions = {"background": 0, "whole": [1, 2], "core": 2}
        described = description({"0": "T1", "1": "T2"}, regions, train) | {"regions_class_order": [1, 2]}
    (folder / "dataset.json").write_text(json.dumps(described, indent=1))
    return folder


def description(channels: Mapping[str, str], labels: Mapping[str, Any], cases: int) -> dict[str, Any]:
    """nnU-Net's dataset.json."""
    return {"channel_names": channels, "labels": labels, "numTraining": cases, "file_ending": ".nii.gz"}


def copy_cases(source: Path, folder: Path, train: int, test: int) -> None:
    """Real cases, evenly spread over those that there are."""
    images = sorted((source / "images").glob("*.nii.gz"))
    chosen = [images[at * len(images) // (train + test)] for at in range(train + test)]
    for number, image in enumerate(chosen):
        part, name = ("Tr", "case") if number < train else ("Ts", "test")
        shutil.copy(image, folder / f"images{part}" / f"{name}_{number:02d}_0000.nii.gz")
        shutil.copy(source / "labels" / image.name, folder / f"labels{part}" / f"{name}_{number:02d}.nii.gz")


def write_phantoms(look: Phantom, folder: Path, train: int, test: int, seed: int) -> None:
    """Phantoms, each with a size, a spacing and an affine of its own."""
    for number in range(train + test):
        part, name = ("Tr", "case") if number < train else ("Ts", "test")
        rng = np.random.default_rng([seed, number])
        channels, labels, affine = phantom(look, rng)
        for channel, array in enumerate(channels):
            file = folder / f"images{part}" / f"{name}_{number:02d}_{channel:04d}.nii.gz"
            nib.save(nib.Nifti1Image(array, affine), file)
        nib.save(nib.Nifti1Image(labels, affine), folder / f"labels{part}" / f"{name}_{number:02d}.nii.gz")


def phantom(look: Phantom, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One case.

    Shape:
        returns: (C, X, Y, Z) int16, (X, Y, Z) uint8, (4, 4).
    """
    spacing = np.array(look.spacing_mm) * rng.uniform(0.85, 1.15, 3)
    shape = np.round(np.array(look.size_mm) * rng.uniform(0.9, 1.1) / spacing).astype(int)
    axes = [(np.arange(count) - count / 2) * step for count, step in zip(shape, spacing, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    extent = np.array(look.size_mm)
    inside = ellipsoid(grid, rng.uniform(-0.03, 0.03, 3) * extent, extent * (0.42, 0.42, 0.48))
    labels = np.zeros(shape, np.uint8)
    for organ in range(1, len(look.organs) + 1):
        centre = rng.uniform(-0.2, 0.2, 3) * extent
        radius = rng.uniform(0.18, 0.26, 3) * extent * (1.3 if organ == 1 else 0.9)
        labels[ellipsoid(grid, centre, radius) & inside] = organ
    values = np.array([look.body, *look.organs]).T[:, labels]
    shading = 1 + 0.1 * np.sin(grid[0] / extent[0] * 4 + rng.uniform(0, 6))
    noisy = values * shading + rng.normal(0, look.noise, values.shape)
    image = np.where(inside, noisy, look.air if look.air == 0 else look.air + rng.normal(0, look.noise, values.shape))
    affine = np.diag([*(spacing * rng.choice([-1, 1], 3)), 1.0])
    if look.oblique:
        affine[:3, :3] = turn(*rng.uniform(-0.3, 0.3, 2)) @ affine[:3, :3]
    affine[:3, 3] = rng.uniform(-50, 50, 3)
    return image.round().astype(np.int16), labels, affine


def ellipsoid(grid: np.ndarray, centre: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Which points of a grid (3, X, Y, Z) lie in an ellipsoid."""
    return np.asarray(sum(((axis - m) / r) ** 2 for axis, m, r in zip(grid, centre, radius, strict=True)) <= 1)


def turn(about_x: float, about_z: float) -> np.ndarray:
    """A rotation about two axes."""
    (c, s), (d, t) = ((np.cos(angle), np.sin(angle)) for angle in (about_x, about_z))
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ np.array([[d, -t, 0], [t, d, 0], [0, 0, 1]])
