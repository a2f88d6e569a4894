"""Layouts of data sets, and what is wrong in them, named case by case."""

from __future__ import annotations

import json
from pathlib import Path

import phantoms
import pytest
from voxelwise.errors import UsageError
from voxelwise.pipeline.dataset.layouts import base_name, is_dataset, read_dataset


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
    assert not is_dataset(tmp_path)
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


def test_images_without_a_label_map_are_cases_where_they_are_asked_for(tmp_path: Path) -> None:
    """As prediction asks: in each layout, with no row in patients.csv and even without a folder of labels."""
    plain, listed, numbered = (tmp_path / name for name in ("plain", "listed", "numbered"))
    touch(plain, "images/a.nii", "images/b.nii", "labels/a.nii", "labels/c.nii")
    (plain / "patients.csv").write_text("case,patient\na,A\n")
    touch(listed, "i/a.nii", "i/b.nii", "l/a.nii")
    pairs = [{"image": f"i/{name}.nii", "label": f"l/{name}.nii"} for name in "ab"]
    described(listed, modality={"0": "CT"}, labels={"0": "background", "1": "x"}, training=pairs)
    touch(numbered, "imagesTr/a_0000.nii", "imagesTr/b_0000.nii")
    described(numbered, channel_names={"0": "CT"}, labels={"background": 0, "x": 1}, file_ending=".nii")
    for root, labels in ((plain, ["a.nii", None]), (listed, ["a.nii", None]), (numbered, [None, None])):
        found = read_dataset(root, unlabelled=True)
        assert [case.name for case in found.cases] == ["a", "b"]
        assert [case.label and case.label.name for case in found.cases] == labels
    assert [failure.code for failure in read_dataset(plain, unlabelled=True).failures] == ["image-missing"]
    assert codes(plain) == {"b": "label-missing", "c": "image-missing"}
    assert codes(listed) == {"b": "file-missing"}
    with pytest.raises(UsageError, match="labelsTr is not there"):
        read_dataset(numbered)


def test_label_folders_and_names_of_others(tmp_path: Path) -> None:
    """As DRIVE: the field of view in mask/ is no target."""
    touch(tmp_path, *(f"images/{number}_training.tif" for number in (21, 22, 23)), "mask/21_training_mask.gif")
    touch(tmp_path, *(f"1st_manual/{number}_manual1.gif" for number in (21, 22, 24)))
    dataset = read_dataset(tmp_path)
    assert [(case.name, case.images[0].name, case.label.name) for case in dataset.cases if case.label] == [
        ("21", "21_training.tif", "21_manual1.gif"),
        ("22", "22_training.tif", "22_manual1.gif"),
    ]
    assert codes(tmp_path) == {"23": "label-missing", "24": "image-missing"}
    assert is_dataset(tmp_path)


def test_label_maps_beside_their_images(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "1-mask.png", "2.jpg", "2_seg.png", "3.jpg", "4-mask.png", "README.txt")
    dataset = read_dataset(tmp_path)
    assert [(case.name, case.label.name) for case in dataset.cases if case.label] == [
        ("1", "1-mask.png"),
        ("2", "2_seg.png"),
    ]
    assert codes(tmp_path) == {"3": "label-missing", "4": "image-missing"}
    assert is_dataset(tmp_path)
    touch(tmp_path, "more/5.jpg")
    assert not is_dataset(tmp_path)  # whoever predicts such a folder means all that lies below it


def test_pictures_alone_are_no_data_set(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "2-mask.png")
    assert not is_dataset(tmp_path)
    with pytest.raises(UsageError, match=r"images and label maps such as 1.png and 1-mask.png"):
        read_dataset(tmp_path)
