"""Layouts: where volumes go, and the files that stand beside them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import phantoms
import pytest
from voxelwise.errors import UsageError
from voxelwise.pipeline.archive.arrangement import Place, bids_places
from voxelwise.pipeline.archive.convert import convert
from voxelwise.pipeline.dataset.layouts import read_dataset
from voxelwise.transforms.readers import Source

ID = "[0-9a-f]{12}"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A CT and an MR of one patient, and a file."""
    root = tmp_path / "archive"
    phantoms.ct_series(root / "ct", seed=1)
    phantoms.mr_series(root / "mr", seed=2)
    phantoms.nifti_file(root / "atlas.nii.gz")
    return root


def names(out: Path, ending: str) -> list[str]:
    return sorted(path.relative_to(out).as_posix() for path in out.rglob(f"*{ending}"))


def test_bids(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = convert(archive, out, layout="bids")
    volumes = names(out, ".nii.gz")
    assert len(volumes) == len(outcome.done) == 3
    patterns = (
        rf"(sub-{ID})/(ses-{ID})/ct/\1_\2_acq-{ID}_ct\.nii\.gz",
        rf"(sub-{ID})/(ses-{ID})/anat/\1_\2_acq-{ID}_MR\.nii\.gz",
        rf"(sub-{ID})/other/\1_acq-{ID}_image\.nii\.gz",
    )
    for pattern in patterns:
        assert sum(bool(re.fullmatch(pattern, name)) for name in volumes) == 1, pattern
    subjects = {name.split("/")[0] for name in volumes}
    assert len(subjects) == 2  # both series are of one patient
    assert (out / "participants.tsv").read_text().split() == ["participant_id", *sorted(subjects)]
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["GeneratedBy"][0]["Name"] == "voxelwise"
    for name in volumes:
        record = json.loads((out / name.replace(".nii.gz", ".json")).read_text())
        if record["Modality"]:
            assert name.startswith(f"sub-{record['patient']}/ses-{record['study']}/")
    assert convert(archive, out, layout="bids").skipped == outcome.done


def test_no_bids_place_is_given_twice(tmp_path: Path) -> None:
    """Copies of a series that no tag tells apart get places of their own; what still clashes is stopped."""
    root = tmp_path / "archive"
    sources = [Source("dicom", (root / who / "x.dcm",), "", "1.2.3/file=1", "MR") for who in "ab"]
    places = bids_places(sources, "a salt of ours", root)
    assert len({place.base for place in places if isinstance(place, Place)}) == 2
    same = bids_places([sources[0], sources[0]], "a salt of ours", root)
    assert [str(one).partition(" would be")[2].partition("; ")[2] for one in same] == ["use --layout flat or msd"] * 2


def test_an_msd_folder_is_a_data_set_when_label_maps_are_there(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = convert(archive, out, layout="msd")
    contents = json.loads((out / "dataset.json").read_text())
    assert contents["numTraining"] == len(contents["training"]) == len(outcome.done) == 3
    assert contents["modality"] == {"0": "CT+MR"}
    assert {case.label for case in read_dataset(out, unlabelled=True).cases} == {None}
    with pytest.raises(UsageError, match="none of the 3 listed pairs exists"):
        read_dataset(out)
    for entry in contents["training"]:
        shape = nib.load(out / entry["image"]).shape
        phantoms.nifti_file(out / entry["label"], np.ones(shape, np.uint8))
    dataset = read_dataset(out)
    assert [case.name for case in dataset.cases] == sorted(outcome.done)
    assert convert(archive, out, layout="msd").skipped == outcome.done


def test_a_stopped_case_leaves_no_empty_folder(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(archive, out, layout="bids")
    outcome = convert(archive / "ct", out, layout="bids", overwrite=True)
    assert len(outcome.done) == 1
    assert not list(out.rglob("anat"))
    assert not list(out.rglob("other"))


def test_one_file_has_no_layout(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--layout msd makes a folder, and OUT is one file"):
        convert(archive / "ct", tmp_path / "ct.nii.gz", layout="msd")
