"""Networks of slices on CT volumes, as their sources used them: volumes in, label maps on the same grids out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import phantoms
import pytest
from voxelwise import predict, train
from voxelwise.pipeline.dataset.plan import read_plan

SHAPE, SPACING_MM = (22, 18, 7), (2.0, 2.0, 5.0)
FAT, ORGAN = 3, 117  # not in a row, as users' label maps are
NARROW = {"fcn8s": 2, "res_att_unet": 4, "resnet34_unet": 4}


@pytest.fixture(scope="module")
def abdomens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three CT volumes on oblique grids: a body of water in a rind of fat, with an organ in it, in air."""
    folder = tmp_path_factory.mktemp("abdomens")
    draw = np.random.default_rng(0)
    x, y, _ = np.indices(SHAPE)
    for case in range(3):
        radius = np.hypot(x - 11 - case, y - 9)
        labels = np.select([radius < 3, (radius >= 5) & (radius < 7)], [ORGAN, FAT]).astype(np.uint8)
        values = np.select([labels == ORGAN, labels == FAT, radius < 7], [150, -100, 30], -1000)
        image = (values + draw.normal(0, 10, SHAPE)).astype(np.int16)
        phantoms.nifti_file(folder / "images" / f"ct_{case}.nii.gz", image, phantoms.oblique(SPACING_MM))
        phantoms.nifti_file(folder / "labels" / f"ct_{case}.nii.gz", labels, phantoms.oblique(SPACING_MM))
    return folder


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "res_att_unet" else [pytest.mark.slow]) for name in NARROW]
)
def test_a_slice_network_of_the_sources_segments_ct_volumes(abdomens: Path, name: str, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    options: dict[str, Any] = {"network": name, "dims": 2, "width": NARROW[name], "batch": 2, "steps": 2}
    train(abdomens, out=run, device="cpu", **options)
    plan = read_plan(run / "plan.yaml")
    assert (plan.slice_axis, plan.network.name, plan.modality) == (2, name, "CT")
    assert predict(run, abdomens / "images", out, device="cpu").exit_code == 0
    for image in (abdomens / "images").iterdir():
        source, written = nib.load(image), nib.load(out / image.name)
        assert written.shape == source.shape
        np.testing.assert_array_equal(written.affine, source.affine)
        assert set(np.unique(written.dataobj)) <= {0, FAT, ORGAN}
    assert json.loads((run / "folds.json").read_text())
