"""Odd NIfTI files of other projects, and damaged copies: the outcome of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from voxelwise.errors import CaseError
from voxelwise.transforms.nifti import read_nifti
from voxelwise.transforms.readers import find_sources, read_source, read_volume

# file -> volumes, shape of one, type of its voxels, what is said
READ: dict[str, tuple[int, tuple[int, ...], str, set[str]]] = {
    "4d_int16_scaled.nii": (20, (17, 21, 3), "float32", set()),
    "big_endian_float_qform_only.nii.gz": (1, (64, 64, 21), "float32", set()),
    "flair_lesion_labels_0_3.nii.gz": (1, (124, 160, 140), "uint8", set()),
    "flair_uint8.nii.gz": (1, (124, 160, 140), "uint8", set()),
    "image_without_label_hippocampus_118.nii.gz": (1, (37, 52, 33), "uint8", set()),
    "nifti2_4d.nii.gz": (2, (32, 20, 12), "int16", set()),
    "no_sform_no_qform.nii.gz": (1, (64, 64, 10), "uint8", {"no-world-coordinates"}),
    "tiny_7x5x3.nii.gz": (1, (7, 5, 3), "uint8", set()),
    "crafted/4d_one_volume.nii.gz": (1, (34, 52, 35), "float32", {"trailing-dimension"}),
    "crafted/constant.nii.gz": (1, (34, 52, 35), "float32", set()),
    "crafted/int16_slope0.1_inter-1000.nii.gz": (1, (34, 52, 35), "float32", set()),
    "crafted/label_0_255.nii.gz": (1, (34, 52, 35), "uint8", set()),
    "crafted/label_float.nii.gz": (1, (34, 52, 35), "float32", set()),
    "crafted/label_shifted_5mm.nii.gz": (1, (34, 52, 35), "uint8", set()),
    "crafted/label_wrong_shape.nii.gz": (1, (33, 52, 35), "uint8", set()),
    "crafted/lps.nii.gz": (1, (34, 52, 35), "float32", set()),
    "crafted/nan_inf.nii.gz": (1, (34, 52, 35), "float32", {"not-finite"}),
    "crafted/qform_only.nii.gz": (1, (34, 52, 35), "float32", set()),
    "crafted/reference_image.nii.gz": (1, (34, 52, 35), "float32", set()),
    "crafted/reference_label.nii.gz": (1, (34, 52, 35), "uint8", set()),
    "crafted/scl_slope_zero.nii.gz": (1, (34, 52, 35), "int16", set()),
}
STOPPED = {
    "complex64_mr.nii.gz": "datatype 32 is complex64; expected whole or real numbers",
    "not_a_nifti.nii": "not an image in a format that is read",
    "rgb24_ct_perfusion.nii.gz": "datatype 128 is RGB24",
    "crafted/sform_qform_conflict.nii.gz": r"55\.5 voxels apart .*--affine sform or --affine qform",
    "crafted/text_renamed.nii.gz": "not an image in a format that is read",
    "crafted/truncated_gz.nii.gz": "the gzip stream ends early: 144016 of 247520 bytes",
    "crafted/zero_bytes.nii.gz": r"the file is empty \(0 bytes\)",
}


def test_every_file_has_its_outcome_here(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("odd_nifti")
    there = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.suffix in (".nii", ".gz")}
    assert there == {*READ, *STOPPED, "5d_small.nii"}


@pytest.mark.parametrize("name", READ)
def test_what_is_read(shared_data: Callable[[str], Path], name: str) -> None:
    path = shared_data("odd_nifti") / name
    found = find_sources(path)
    count, shape, dtype, said = READ[name]
    assert (len(found.sources), found.stopped) == (count, ())
    image = nib.load(path)
    for source in found.sources[:2]:
        volume = read_source(source)
        assert (volume.geometry.shape, str(volume.array.dtype)) == (shape, dtype)
        assert {entry.code for entry in (*volume.repairs, *volume.notes)} == said
        if volume.geometry.has_world:
            np.testing.assert_allclose(volume.geometry.affine, image.affine, atol=1e-4)
        values = np.asanyarray(image.dataobj).reshape(*shape, -1)[..., source.part or 0]
        np.testing.assert_allclose(volume.array[0], values, rtol=1e-6)


@pytest.mark.parametrize("name", STOPPED)
def test_what_is_stopped(shared_data: Callable[[str], Path], name: str) -> None:
    with pytest.raises(CaseError, match=STOPPED[name]):
        read_volume(shared_data("odd_nifti") / name)


def test_five_dimensions_that_declare_vectors(shared_data: Callable[[str], Path]) -> None:
    path = shared_data("odd_nifti") / "5d_small.nii"
    volume = read_volume(path)
    assert (volume.channels, volume.geometry.shape) == (3, (1, 2, 3))
    wanted = np.moveaxis(np.asanyarray(nib.load(path).dataobj)[:, :, :, 0], -1, 0)
    np.testing.assert_allclose(volume.array, wanted, rtol=1e-6)


def test_the_crafted_copies_agree_with_their_reference(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("odd_nifti") / "crafted"
    reference = read_nifti(folder / "reference_image.nii.gz")
    for name in ("qform_only", "4d_one_volume"):
        copy = read_nifti(folder / f"{name}.nii.gz")
        np.testing.assert_allclose(copy.geometry.affine, reference.geometry.affine, atol=1e-4)
        np.testing.assert_array_equal(copy.array, reference.array)
    lps = read_nifti(folder / "lps.nii.gz")
    np.testing.assert_array_equal(lps.array[:, ::-1, ::-1], reference.array)
    assert read_nifti(folder / "scl_slope_zero.nii.gz").array.max() == 30000
    scaled = read_nifti(folder / "int16_slope0.1_inter-1000.nii.gz").array
    assert (scaled.min(), scaled.max()) == (pytest.approx(-1000), pytest.approx(2000))
