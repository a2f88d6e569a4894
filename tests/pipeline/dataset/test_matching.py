"""Which label map belongs to which image: by reference, by name, by a table; or stopped with both sides named."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import label_phantoms as draw
import numpy as np
import phantoms
import pydicom
import pytest
from dataset_phantoms import LIVER, SHAPE, SPLEEN, WANTED, failures, nifti_pair, only
from voxelwise import convert, dataset
from voxelwise.errors import UsageError
from voxelwise.pipeline.dataset.layouts import read_dataset
from voxelwise.transforms.readers import read_volume


def test_a_contour_set_belongs_to_its_series(tmp_path: Path) -> None:
    """RTSTRUCT, with one of two series of the patient."""
    phantoms.ct_series(tmp_path / "images" / "one", seed=1)
    files = phantoms.ct_series(tmp_path / "images" / "two", seed=2)
    rings = {"liver": [draw.ring(0.5, 4.5, k) for k in (2, 3)]}
    draw.rtstruct_file(tmp_path / "labels" / "rt.dcm", files, rings)
    out = tmp_path / "out"
    outcome = dataset(tmp_path / "images", tmp_path / "labels", out)
    assert outcome.counts == {"in": 2, "done": 1, "skipped": 0, "stopped": 1}
    assert "no label map is called as it is or refers to it" in failures(out)["label-missing"]
    name, sidecar = only(out)
    np.testing.assert_array_equal(
        read_volume(out / "labelsTr" / f"{name}.nii.gz").array[0], draw.box(SHAPE, (1, 5), (1, 5), (2, 4))
    )
    assert sidecar["label"]["source"] == {"kind": "rtstruct", "files": 1}
    draw.rtstruct_file(tmp_path / "other" / "rt.dcm", files, rings, ReferencedFrameOfReferenceSequence=None)
    outcome = dataset(tmp_path / "images", tmp_path / "other", tmp_path / "out2")
    assert "image-missing" in [failure.code for failure in outcome.failures]


def test_a_split_series_is_told_by_its_instances(tmp_path: Path) -> None:
    """Two echoes share a SeriesInstanceUID; the segmentation refers to the slices of one."""
    first = phantoms.mr_series(tmp_path / "mr", names=[f"a{k}.dcm" for k in range(8)], EchoTime="10")
    second = phantoms.mr_series(tmp_path / "mr2", seed=5, EchoTime="20")
    one = pydicom.dcmread(first[0])
    for number, path in enumerate(second):
        header = pydicom.dcmread(path)
        for word in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
            setattr(header, word, one.get(word))
        header.save_as(tmp_path / "mr" / f"b{number}.dcm")
    draw.seg_file(tmp_path / "labels" / "seg.dcm", [tmp_path / "mr" / f"b{k}.dcm" for k in range(8)], {"a": LIVER})
    out = tmp_path / "out"
    outcome = dataset(tmp_path / "mr", tmp_path / "labels", out)
    assert outcome.counts["done"] == 1
    assert only(out)[1]["channels"][0]["facts"]["EchoTime"] == 0.02


def test_a_converted_image_is_known_by_its_id(tmp_path: Path) -> None:
    """SEG -> the NIfTI file that `convert` made of its series, by the salted hash; NIfTI -> DICOM the same way."""
    files = phantoms.ct_series(tmp_path / "ct", affine=phantoms.oblique())
    convert(tmp_path / "ct", tmp_path / "converted")
    draw.seg_file(tmp_path / "seg" / "s.dcm", files, {"liver": LIVER, "spleen": SPLEEN})
    outcome = dataset(tmp_path / "converted", tmp_path / "seg", tmp_path / "out")
    name, sidecar = only(tmp_path / "out")
    assert outcome.counts["done"] == 1
    assert sidecar["channels"][0]["Modality"] == "CT"
    label = tmp_path / "out" / "labelsTr" / f"{name}.nii.gz"
    np.testing.assert_array_equal(read_volume(label).array[0], WANTED)
    phantoms.nifti_file(tmp_path / "predicted" / f"{name}.nii.gz", WANTED, read_volume(label).geometry.affine)
    (tmp_path / "predicted" / "salt.txt").write_bytes((tmp_path / "converted" / "salt.txt").read_bytes())
    assert dataset(tmp_path / "ct", tmp_path / "predicted", tmp_path / "out3").counts["done"] == 1


def test_what_matches_nothing_or_twice_is_stopped(tmp_path: Path) -> None:
    """N23: image without label, label without image, two labels for one image, two images of one name."""
    for name in ("good", "lonely", "twice"):
        phantoms.nifti_file(tmp_path / "images" / f"{name}.nii.gz")
    for folder in ("x", "y"):
        phantoms.nifti_file(tmp_path / "images" / folder / "same.nii.gz")
    for name in ("good", "twice", "same", "LONELY"):
        phantoms.nifti_file(tmp_path / "labels" / f"{name}.nii.gz", WANTED)
    phantoms.nrrd_file(tmp_path / "labels" / "twice.nrrd", WANTED)
    out = tmp_path / "out"
    outcome = dataset(tmp_path / "images", tmp_path / "labels", out)
    assert outcome.counts == {"in": 5, "done": 1, "skipped": 0, "stopped": 4}
    told = failures(out)
    assert set(told) == {"label-missing", "image-missing", "label-doubled", "image-doubled"}
    assert "lonely.nii.gz: no label map" in told["label-missing"]
    assert "is called 'LONELY' ('lonely' differs in upper and lower case)" in told["image-missing"]
    assert "2 label maps belong to it (twice.nii.gz, twice.nrrd)" in told["label-doubled"]
    assert "fits 2 images (x/same.nii.gz, y/same.nii.gz)" in told["image-doubled"]


def test_names_that_differ_in_case_alone_clash(tmp_path: Path) -> None:
    """N23: on some disks one would overwrite the other."""
    for name in ("Case", "case", "other"):
        nifti_pair(tmp_path, name)
    outcome = dataset(tmp_path / "images", tmp_path / "labels", tmp_path / "out")
    assert outcome.done == ("other",)
    assert {failure.code for failure in outcome.failures} == {"case-clash"}
    assert "would both be case 'Case' or 'case'" in outcome.failures[0].message


def test_a_table_pairs_what_names_do_not(tmp_path: Path) -> None:
    """--pairs: image, label, case and patient; the rest is listed; wrong lines are stopped."""
    folder = tmp_path / "all"
    for name in ("t2", "t2_seg", "t1", "t1_seg", "spare"):
        phantoms.nifti_file(folder / f"{name}.nii.gz", WANTED if name.endswith("seg") else None)
    table = tmp_path / "pairs.csv"
    lines = ["image,label,case,patient", "t2.nii.gz,t2_seg.nii.gz,one,ann", "t1,t1_seg,two,ann", "t3,t1_seg,,"]
    table.write_text("\n".join(lines) + "\n")
    outcome = dataset(folder, folder, tmp_path / "out", pairs=table)
    assert outcome.done == ("one", "two")
    assert "pairs.csv, line 4: 0 images are called 't3' and 1 label maps 't1_seg'" in outcome.failures[0].message
    assert len({case.patient for case in read_dataset(tmp_path / "out").cases}) == 1
    listed = json.loads((tmp_path / "out" / "manifest.json").read_text())["facts"]["listed"]
    assert listed == [{"file": "spare.nii.gz", "reason": "not in the table of --pairs"}]
    table.write_text("picture,label\n")
    with pytest.raises(UsageError, match="found the columns picture, label; expected image and label"):
        dataset(folder, folder, tmp_path / "out4", pairs=table)
    with pytest.raises(UsageError, match=r"--pairs .*: cannot be read"):
        dataset(folder, folder, tmp_path / "out4", pairs=tmp_path / "no.csv")


def test_zip_archives(tmp_path: Path) -> None:
    """Images and segmentation in one archive; the refusal of a member names the archive."""
    files = phantoms.ct_series(tmp_path / "ct")
    seg = draw.seg_file(tmp_path / "seg.dcm", files, {"liver": LIVER})
    off = draw.seg_file(tmp_path / "off.dcm", files, {"liver": LIVER}, shift_mm=0.2)
    for number, extra in enumerate((seg, off)):
        (tmp_path / f"in{number}").mkdir()
        with zipfile.ZipFile(tmp_path / f"in{number}" / "all.zip", "w") as archive:
            for file in (*files, extra):
                archive.write(file, file.name)
    outcome = dataset(tmp_path / "in0", tmp_path / "in0", tmp_path / "out")
    label = read_volume(tmp_path / "out" / "labelsTr" / f"{outcome.done[0]}.nii.gz")
    np.testing.assert_array_equal(label.array[0], LIVER)
    outcome = dataset(tmp_path / "in1", tmp_path / "in1", tmp_path / "out1")
    assert "all.zip/off.dcm: frame 1 is not on the grid" in outcome.failures[0].message


def test_frames_of_reference(tmp_path: Path) -> None:
    """Contours that mean another space are stopped; frames that lie on the voxels are noted."""
    files = phantoms.ct_series(tmp_path / "ct")
    other = {"FrameOfReferenceUID": "1.2.3.4"}
    draw.seg_file(tmp_path / "seg" / "s.dcm", files, {"liver": LIVER}, **other)
    outcome = dataset(tmp_path / "ct", tmp_path / "seg", tmp_path / "out")
    assert [entry.code for entry in outcome.notes[outcome.done[0]]] == ["frame-of-reference"]
    path = draw.rtstruct_file(tmp_path / "rt" / "s.dcm", files, {"liver": [draw.ring(0.5, 4.5, 3)]})
    header = pydicom.dcmread(path)
    header.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID = "1.2.3.4"
    header.save_as(path)
    outcome = dataset(tmp_path / "ct", tmp_path / "rt", tmp_path / "out1")
    assert "its FrameOfReferenceUID is not that of its image" in outcome.failures[0].message
