"""What a data set looks like."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import phantoms
import pytest
from PIL import Image
from voxelwise.errors import NothingDoneError
from voxelwise.pipeline.dataset.fingerprint import take_fingerprint
from voxelwise.pipeline.dataset.layouts import read_dataset


def pair(root: Path, name: str, image: np.ndarray, label: np.ndarray, affine: np.ndarray | None = None) -> None:
    affine = np.eye(4) if affine is None else affine
    phantoms.nifti_file(root / "images" / f"{name}.nii", image, affine)
    phantoms.nifti_file(root / "labels" / f"{name}.nii", label.astype(np.uint8), affine)


def test_facts_in_world_order(tmp_path: Path) -> None:
    """A volume stored superior-left-anterior is reported right-anterior-superior."""
    affine = np.array([[0, -2.0, 0, 0], [0, 0, 3, 0], [5, 0, 0, 0], [0, 0, 0, 1]])
    image = np.arange(4 * 6 * 8).reshape(4, 6, 8).astype(np.int16)
    label = np.zeros((4, 6, 8), np.uint8)
    label[1:3, 1, 2:6], label[1:3, 4, 2:6] = 1, 7  # larger index on the second axis is further to the left
    pair(tmp_path, "a", image, label, affine)
    fingerprint = take_fingerprint(read_dataset(tmp_path))
    case = fingerprint.cases[0]
    assert case.shape == (6, 8, 4)
    assert case.spacing_mm == (2, 3, 5)
    assert case.orientation == "SLA"
    assert case.counts == {0: 4 * 6 * 8 - 16, 1: 8, 7: 8}
    assert case.offsets[1][0] == pytest.approx(1)
    assert case.offsets[7][0] == pytest.approx(-1)
    assert [label.value for label in fingerprint.dataset.labels or ()] == [0, 1, 7]
    channel = fingerprint.channels[0]
    assert channel.mean == pytest.approx(image[label > 0].mean())
    assert channel.percentile_50 == pytest.approx(np.median(image[label > 0]))
    assert (channel.low, channel.high) == (0, image.max())
    summary = fingerprint.summary()
    assert json.loads(json.dumps(summary))["labels"]["7"]["median_ml"] == pytest.approx(8 * 30 / 1000)


def test_copies_of_one_image_under_two_patients_are_stopped(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    label = np.zeros((5, 5, 5), np.uint8)
    label[2:4] = 1
    image = rng.normal(size=(5, 5, 5)).astype(np.float32)
    for name, array in (("a", image), ("b", image), ("c", image + 1), ("flat", image * 0), ("flat2", image * 0)):
        pair(tmp_path, name, array, label)
    fingerprint = take_fingerprint(read_dataset(tmp_path))
    assert [case.name for case in fingerprint.cases] == ["a", "c", "flat", "flat2"]
    assert [failure.code for failure in fingerprint.failures] == ["case-copied"]
    (tmp_path / "patients.csv").write_text("case,patient\na,A\nb,A\nc,C\nflat,D\nflat2,E\n")
    assert len(take_fingerprint(read_dataset(tmp_path)).cases) == 5


def test_nothing_left(tmp_path: Path) -> None:
    pair(tmp_path, "a", np.full((4, 4, 4), np.nan, np.float32), np.ones((4, 4, 4)))
    with pytest.raises(NothingDoneError, match=r"none of its 1 cases can be used; the first: .*64 voxels are NaN"):
        take_fingerprint(read_dataset(tmp_path))


def test_all_labels_empty(tmp_path: Path) -> None:
    pair(tmp_path, "a", np.ones((4, 4, 4), np.int16), np.zeros((4, 4, 4)))
    with pytest.raises(NothingDoneError, match="all label maps hold the value 0 alone"):
        take_fingerprint(read_dataset(tmp_path))


def test_one_empty_label_map_is_no_problem(tmp_path: Path) -> None:
    root = phantoms.blob_dataset(tmp_path / "set", cases=2)
    empty = (
        sorted((root / "labels").glob("*.nii*"))[0] if (root / "labels").is_dir() else sorted(root.glob("label*/*"))[0]
    )
    case = next(one for one in read_dataset(root).cases if one.label is not None and one.label.name == empty.name)
    assert case.label is not None
    image = nib.load(case.label)
    phantoms.nifti_file(case.label, np.zeros(image.shape, np.uint8), image.affine)
    fingerprint = take_fingerprint(read_dataset(root))
    assert len(fingerprint.cases) == 2
    assert min(len(fact.offsets) for fact in fingerprint.cases) == 0


def test_grey_and_colour_pictures(tmp_path: Path) -> None:
    """One grey picture among colour ones: three channels for all."""
    rng = np.random.default_rng(0)
    for side in ("images", "labels"):
        (tmp_path / side).mkdir()
    for name, shape in (("a", (9, 8, 3)), ("b", (9, 8)), ("c", (9, 8, 3))):
        Image.fromarray(rng.integers(0, 255, shape).astype(np.uint8)).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray((rng.random((9, 8)) > 0.5).astype(np.uint8) * 255).save(tmp_path / "labels" / f"{name}.png")
    fingerprint = take_fingerprint(read_dataset(tmp_path))
    assert fingerprint.is_pictures
    assert len(fingerprint.channels) == 3
    assert [label.value for label in fingerprint.dataset.labels or ()] == [0, 255]
    assert fingerprint.cases[0].shape == (8, 9, 1)


def test_real_pictures(shared_data: Callable[[str], Path]) -> None:
    root = shared_data("2d_em_membrane")
    dataset = read_dataset(root)
    few = type(dataset)(dataset.name, dataset.root, dataset.cases[:3])
    fingerprint = take_fingerprint(few)
    assert fingerprint.cases[0].shape == (512, 512, 1)
    assert [label.value for label in fingerprint.dataset.labels or ()] == [0, 255]


def test_bad_cases_are_named_and_the_others_go_on(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    crafted = shared_data("odd_nifti") / "crafted"
    pairs = {
        "good": ("reference_image", "reference_label"),
        "floats": ("int16_slope0.1_inter-1000", "label_float"),
        "nan": ("nan_inf", "reference_label"),
        "cut": ("truncated_gz", "reference_label"),
        "shape": ("reference_image", "label_wrong_shape"),
        "shifted": ("reference_image", "label_shifted_5mm"),
    }
    for side in ("images", "labels"):
        (tmp_path / side).mkdir()
    for name, (image, label) in pairs.items():
        (tmp_path / "images" / f"{name}.nii.gz").symlink_to(crafted / f"{image}.nii.gz")
        (tmp_path / "labels" / f"{name}.nii.gz").symlink_to(crafted / f"{label}.nii.gz")
    (tmp_path / "patients.csv").write_text("case,patient\n" + "".join(f"{name},one\n" for name in pairs))
    fingerprint = take_fingerprint(tmp_path, workers=2)
    assert [case.name for case in fingerprint.cases] == ["floats", "good"]
    failures = fingerprint.failures
    assert {failure.case: failure.code for failure in failures} == {
        "cut": "truncated",
        "nan": "not-finite",
        "shape": "grid-shape",
        "shifted": "grid-place",
    }
    messages = {failure.case: failure.message for failure in failures}
    assert "33 x 52 x 35" in messages["shape"]
    assert "5.00 voxels" in messages["shifted"]
    assert all(failure.files[0].startswith(failure.case) for failure in failures)


def test_label_value_that_is_not_in_the_list(tmp_path: Path) -> None:
    root = phantoms.blob_dataset(tmp_path / "set", cases=2, classes=2)
    content = json.loads((root / "dataset.json").read_text())
    content["labels"] = {"0": "background", "1": "ball"}
    (root / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(NothingDoneError, match=r"found the label value 2 \(\d+ voxels\), expected 0, 1"):
        take_fingerprint(root)
    one = sorted((root / "labels").iterdir())[0]
    stored = nib.load(one)
    assert isinstance(stored, nib.Nifti1Image)
    nib.save(nib.Nifti1Image(np.minimum(np.asanyarray(stored.dataobj), 1), stored.affine), one)
    assert [failure.code for failure in take_fingerprint(root).failures] == ["label-unknown"]


def test_channels_of_one_case_on_two_grids(tmp_path: Path) -> None:
    content = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "x": 1}, "file_ending": ".nii"}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    array, moved = np.ones((6, 5, 4), np.int16), np.eye(4)
    moved[0, 3] = 3
    phantoms.nifti_file(tmp_path / "imagesTr" / "a_0000.nii", array, np.eye(4))
    phantoms.nifti_file(tmp_path / "imagesTr" / "a_0001.nii", array, moved)
    phantoms.nifti_file(tmp_path / "labelsTr" / "a.nii", array.astype(np.uint8), np.eye(4))
    with pytest.raises(NothingDoneError, match=r"3\.00 voxels apart"):
        take_fingerprint(tmp_path)
