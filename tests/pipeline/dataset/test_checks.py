"""Pairs for training: grids that agree, finite voxels, whole labels; each fault stops its case."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pytest
from voxelwise.errors import CaseError
from voxelwise.pipeline.dataset.cases import Case
from voxelwise.pipeline.dataset.checks import read_case

NO_CODES = {"sform_code": 0, "qform_code": 0}


def pair(folder: Path, image: dict[str, Any] | None = None, label: dict[str, Any] | None = None) -> Case:
    """An image and its label map; the mappings are arguments of `phantoms.nifti_file`."""
    labels = (phantoms.ramp() > 0).astype(np.uint8)
    first = phantoms.nifti_file(folder / "image.nii.gz", **(image or {}))
    second = phantoms.nifti_file(folder / "label.nii.gz", **{"array": labels, **(label or {})})
    return Case("a", (first,), second, "a")


def moved(voxels: float) -> np.ndarray:
    affine = phantoms.AXIAL.copy()
    affine[:3, 3] += voxels * affine[:3, 0]
    return affine


def test_a_good_pair_is_read(tmp_path: Path) -> None:
    voxels = read_case(pair(tmp_path))
    np.testing.assert_array_equal(voxels.image[0], phantoms.ramp())
    assert voxels.counts == {0: 101, 1: 859}
    assert read_case(pair(tmp_path, label={"affine": moved(0.09)})).counts == voxels.counts


def test_grids_that_differ_stop(tmp_path: Path) -> None:
    """N21: the message names the way out."""
    with pytest.raises(CaseError, match=r"lies up to 0\.20 voxels away .*`voxelwise dataset --resample-label`"):
        read_case(pair(tmp_path, label={"affine": moved(0.2)}))
    with pytest.raises(CaseError, match="has shape 12 x 10 x 7"):
        read_case(pair(tmp_path, label={"array": np.ones((12, 10, 7), np.uint8)}))


def test_pairs_without_codes_have_to_agree(tmp_path: Path) -> None:
    """N02: neither has a place, and both have one spacing."""
    assert read_case(pair(tmp_path, NO_CODES, NO_CODES)).counts == {0: 101, 1: 859}
    with pytest.raises(CaseError, match=r"label\.nii\.gz.* has no world coordinates and the other one has"):
        read_case(pair(tmp_path, {}, NO_CODES))
    with pytest.raises(CaseError, match=r"image\.nii\.gz has no world coordinates and the other one has"):
        read_case(pair(tmp_path, NO_CODES, {}))
    with pytest.raises(CaseError, match="voxels away"):
        read_case(pair(tmp_path, NO_CODES, {**NO_CODES, "pixdim": [1, 1.4, 0.9, 2.5, 1, 1, 1, 1]}))


def test_a_flat_image_may_have_a_picture_as_its_mask(tmp_path: Path) -> None:
    image = {"array": phantoms.ramp((12, 10))}
    label = {"array": np.ones((12, 10), np.uint8), **NO_CODES}
    assert read_case(pair(tmp_path, image, label)).counts == {1: 120}


def test_channels_on_other_grids_stop(tmp_path: Path) -> None:
    """N22."""
    case = pair(tmp_path)
    other = phantoms.nifti_file(tmp_path / "other.nii.gz", affine=moved(0.3))
    two = Case("a", (case.images[0], other), case.label, "a")
    with pytest.raises(CaseError, match=r"0\.30 voxels apart at the corners.*`voxelwise dataset`"):
        read_case(two)


def test_voxels_and_labels_that_cannot_be_trained_stop(tmp_path: Path) -> None:
    """N16 and N20."""
    array = phantoms.ramp().astype(np.float32)
    array[1, 2, 3] = np.nan
    with pytest.raises(CaseError, match=r"1 voxels are NaN or infinite \(the first at \(1, 2, 3\)\)"):
        read_case(pair(tmp_path, {"array": array}))
    labels = (phantoms.ramp() > 0).astype(np.float32)
    almost = read_case(pair(tmp_path, label={"array": labels * np.float32(0.9999)}))
    assert almost.counts == {0: 101, 1: 859}
    assert [note.code for note in almost.notes] == ["label-rounded"]
    with pytest.raises(CaseError, match=r"859 voxels hold values that are not whole \(0\.9\)"):
        read_case(pair(tmp_path, label={"array": labels * np.float32(0.9)}))
    with pytest.raises(CaseError, match=r"1 \(859 voxels\)"):
        read_case(pair(tmp_path), values=[0, 2])


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("reference_label", None),
        ("label_float", None),
        ("label_0_255", None),
        ("label_wrong_shape", "has shape 33 x 52 x 35"),
        ("label_shifted_5mm", r"lies up to 5\.00 voxels away"),
    ],
)
def test_real_pairs(shared_data: Callable[[str], Path], label: str, message: str | None) -> None:
    crafted = shared_data("odd_nifti") / "crafted"
    case = Case("a", (crafted / "reference_image.nii.gz",), crafted / f"{label}.nii.gz", "a")
    if message is None:
        assert set(read_case(case).counts) <= {0, 1, 2, 255}
        return
    with pytest.raises(CaseError, match=message):
        read_case(case)
