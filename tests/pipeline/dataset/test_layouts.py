"""Layouts of data sets, and what is wrong in them, named case by case."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import phantoms
import pytest
from voxelwise.errors import UsageError
from voxelwise.pipeline.dataset.layouts import base_name, check_cases, read_dataset


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def described(root: Path, **content: object) -> Path:
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def codes(root: Path) -> dict[str, str]:
    return {failure.case: failure.code for failure in read_dataset(root).failures}


def test_base_name() -> None:
    names = ("a.nii.gz", "b.v2.nii", "c.PNG", "series 3")
    assert [base_name(Path(name)) for name in names] == ["a", "b.v2", "c", "series 3"]


def test_decathlon(tmp_path: Path) -> None:
    dataset = read_dataset(phantoms.blob_dataset(tmp_path / "set", cases=3))
    assert dataset.layout == "msd"
    assert len(dataset.cases) == 3
    assert dataset.labels is not None
    assert [label.value for label in dataset.labels] == [0, 1, 2]
    assert all(case.patient == case.name and case.label is not None for case in dataset.cases)
    assert read_dataset(tmp_path / "set" / "dataset.json") == dataset


def test_decathlon_whose_images_lie_elsewhere(tmp_path: Path) -> None:
    pair = {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}
    other = {"image": "./imagesTr/b.nii.gz", "label": "./labelsTr/b.nii.gz"}
    described(tmp_path, modality={"0": "CT"}, labels={"0": "background", "1": "liver"}, training=[pair, other])
    with pytest.raises(
        UsageError, match=r"none of the 2 listed pairs exists .*imagesTr/a\.nii\.gz.*relative to dataset\.json"
    ):
        read_dataset(tmp_path)
    touch(tmp_path, "imagesTr/b.nii.gz", "labelsTr/b.nii.gz")
    dataset = read_dataset(tmp_path)
    assert [case.name for case in dataset.cases] == ["b"]
    assert codes(tmp_path) == {"a": "file-missing"}


def test_nnunet_channels(tmp_path: Path) -> None:
    content = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "tumour": 2},
        "file_ending": ".nii.gz",
    }
    described(tmp_path, **content)
    touch(tmp_path, *(f"imagesTr/{name}.nii.gz" for name in ("a_0000", "a_0001", "b_0000", "c_0000", "c_0001")))
    touch(tmp_path, "labelsTr/a.nii.gz", "labelsTr/b.nii.gz", "labelsTr/d.nii.gz", "imagesTr/._a_0000.nii.gz")
    dataset = read_dataset(tmp_path)
    assert dataset.layout == "nnunet"
    assert dataset.channels == ("T1", "T2")
    assert [(case.name, [file.name for file in case.images]) for case in dataset.cases] == [
        ("a", ["a_0000.nii.gz", "a_0001.nii.gz"])
    ]
    assert codes(tmp_path) == {"b": "channel-missing", "c": "label-missing", "d": "image-missing"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"labels": {"background": 0, "a": [1, 2]}}, r"label 'a' is \[1, 2\]; expected one whole value.*Regions"),
        ({"labels": {"background": 0, "ignore": 3}}, "label 'ignore' is 3"),
        ({"labels": {"0": "background"}}, "at least two different values"),
        ({"labels": 3}, "labels is 3, expected values and names"),
        ({"channel_names": "CT"}, "channel_names is 'CT', expected numbers and names"),
        ({"training": ["a.nii"]}, r"training\[0\] is 'a.nii', expected an object with `image` and `label`"),
    ],
)
def test_description_that_cannot_be_understood(tmp_path: Path, content: dict[str, object], words: str) -> None:
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    with pytest.raises(UsageError, match=words):
        read_dataset(described(tmp_path, **content))


def test_description_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(UsageError, match=r"dataset\.json cannot be read as JSON"):
        read_dataset(tmp_path)
    described(tmp_path, labels={})
    with pytest.raises(UsageError, match=r"no list `training` \(Decathlon\) and .*imagesTr \(nnU-Net\) is not there"):
        read_dataset(tmp_path)


def test_plain_folder(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "images/a.nii.gz",
        "images/b.png",
        "images/c.nii",
        "images/notes.txt",
        "images/e.nii",
        "images/e.nii.gz",
    )
    touch(tmp_path, "labels/a.nii.gz", "labels/b.gif", "labels/d.nii", "labels/e.nii")
    dataset = read_dataset(tmp_path)
    assert [(case.name, case.images[0].name) for case in dataset.cases] == [("a", "a.nii.gz"), ("b", "b.png")]
    assert dataset.labels is None
    assert codes(tmp_path) == {"c": "label-missing", "d": "image-missing", "e": "case-doubled"}


def test_ids_that_differ_in_case_alone_clash(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{side}/{name}.nii" for side in ("images", "labels") for name in ("Case1", "case1", "other")))
    assert codes(tmp_path) == {"Case1": "case-clash", "case1": "case-clash"}
    assert [case.name for case in read_dataset(tmp_path).cases] == ["other"]


def test_patients(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{side}/{name}.nii" for side in ("images", "labels") for name in ("a1", "a2", "b")))
    (tmp_path / "patients.csv").write_text("case,patient\na1,A\na2,A\nb,B\n")
    assert [case.patient for case in read_dataset(tmp_path).cases] == ["A", "A", "B"]
    (tmp_path / "patients.csv").write_text("case,patient\na1,A\n")
    with pytest.raises(UsageError, match=r"2 cases have no patient \(the first: a2\)"):
        read_dataset(tmp_path)
    (tmp_path / "patients.csv").write_text("id;who\n")
    with pytest.raises(UsageError, match="found the columns id;who, expected case and patient"):
        read_dataset(tmp_path)


def test_folder_that_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        read_dataset(tmp_path / "none")
    with pytest.raises(UsageError, match=r"is empty; expected a dataset\.json"):
        read_dataset(tmp_path)
    touch(tmp_path, "masks/a.png", "images/a.png")
    with pytest.raises(UsageError, match=r"found images/, masks/; expected a dataset\.json .* images/ and labels/"):
        read_dataset(tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        read_dataset(tmp_path / "masks" / "a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "images" / "a.png").unlink()
    with pytest.raises(UsageError, match="holds no case"):
        read_dataset(tmp_path)


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
    good, failures = check_cases(read_dataset(tmp_path), workers=2)
    assert [case.name for case in good] == ["floats", "good"]
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
    described(root, **content)
    good, failures = check_cases(read_dataset(root))
    assert good == []
    assert {failure.code for failure in failures} == {"label-unknown"}
    assert "label value 2 (" in failures[0].message


def test_channels_of_one_case_on_two_grids(tmp_path: Path) -> None:
    described(tmp_path, channel_names={"0": "T1", "1": "T2"}, labels={"background": 0, "x": 1}, file_ending=".nii")
    array, moved = np.ones((6, 5, 4), np.int16), np.eye(4)
    moved[0, 3] = 3
    phantoms.nifti_file(tmp_path / "imagesTr" / "a_0000.nii", array, np.eye(4))
    phantoms.nifti_file(tmp_path / "imagesTr" / "a_0001.nii", array, moved)
    phantoms.nifti_file(tmp_path / "labelsTr" / "a.nii", array.astype(np.uint8), np.eye(4))
    _, failures = check_cases(read_dataset(tmp_path))
    assert [failure.code for failure in failures] == ["channel-grids"]
    assert "3.00 voxels apart" in failures[0].message
