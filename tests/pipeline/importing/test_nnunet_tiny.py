"""A folder that nnU-Net's own trainer left behind, beside the labels that nnU-Net gives with it (sums in float32).

Anisotropic CT phantoms, CT normalisation, the coarse axis resampled apart; an oblique case that was not trained on.
Made by `scripts/experiments/nnunet_import.py --tiny`.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from voxelwise.pipeline.importing.import_model import import_model
from voxelwise.pipeline.inference.predict import predict

TINY = Path(__file__).resolve().parents[2] / "data" / "nnunet_tiny"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny") / "model"
    import_model(TINY, out)
    return out


@pytest.mark.parametrize(("mirrored", "labels"), [(False, "labels"), (True, "labels_mirrored")])
def test_labels_are_those_of_nnunet(model: Path, tmp_path: Path, mirrored: bool, labels: str) -> None:
    predict(model, TINY / "case_0000.nii.gz", tmp_path / "out.nii.gz", engine="torch", device="cpu", tta=mirrored)
    found, wanted = nib.load(tmp_path / "out.nii.gz"), nib.load(TINY / f"{labels}.nii.gz")
    theirs = np.asanyarray(wanted.dataobj)
    assert (np.asanyarray(found.dataobj) == theirs).mean() >= 0.999
    assert np.bincount(theirs.ravel(), minlength=3).min() > 100
    np.testing.assert_allclose(found.affine, wanted.affine, atol=1e-5)
