"""`dataset`: label maps proved to lie on the grids of their images, values and classes checked, and written."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import label_phantoms as draw
import numpy as np
import phantoms
import pydicom
import pytest
from dataset_phantoms import LIVER, SHAPE, SPLEEN, WANTED, failures, nifti_pair
from PIL import Image
from voxelwise import dataset
from voxelwise.errors import CaseError, UsageError
from voxelwise.pipeline.dataset.checks import read_case
from voxelwise.pipeline.dataset.layouts import read_dataset
from voxelwise.transforms.geometry import reorient_to
from voxelwise.transforms.readers import read_volume
from voxelwise.transforms.regrid import turned_onto

CANARIES = (b"Canary", b"CANARY", b"Quetzal", b"19610412", b"1.2.826.0.1")


def test_dicom_and_seg_become_a_data_set(tmp_path: Path) -> None:
    """Voxels, classes, patients and books of an archive that holds images and segmentations side by side."""
    for number in (1, 2):
        folder = tmp_path / "archive" / f"p{number}"
        files = phantoms.ct_series(folder / "ct", seed=number, PatientID=f"CANARY-{number}")
        segments = {"liver": LIVER, "spleen": SPLEEN} if number == 1 else {"Spleen": SPLEEN}
        draw.seg_file(folder / "seg.dcm", files, segments)
    out = tmp_path / "out"
    outcome = dataset(tmp_path / "archive", tmp_path / "archive", out)
    assert outcome.counts == {"in": 2, "done": 2, "skipped": 0, "stopped": 0}
    found = read_dataset(out)
    assert [(label.value, label.name) for label in found.labels or ()] == [
        (0, "background"),
        (1, "liver"),
        (2, "Spleen"),
    ]
    assert found.channels == ("CT",)
    assert len({case.patient for case in found.cases}) == 2
    sums = []
    for case in found.cases:
        image, label = read_volume(case.images[0]), read_volume(case.label or out)
        np.testing.assert_array_equal(image.array[0], phantoms.ramp(SHAPE))
        np.testing.assert_array_equal(image.geometry.affine, label.geometry.affine)
        sums.append((int((label.array == 1).sum()), int((label.array == 2).sum())))
    assert sorted(sums) == [(0, SPLEEN.sum()), (LIVER.sum(), SPLEEN.sum())]
    described = json.loads((out / "dataset.json").read_text())["label_details"]
    assert described["liver"] == {
        "value": 1,
        "code": {"scheme": "SCT", "value": "10200001", "meaning": "Organ 1"},
        "color": [217, 130, 101],
    }
    assert [entry.code for entries in outcome.notes.values() for entry in entries].count("class-absent") == 1


def test_nothing_written_names_the_patient(tmp_path: Path) -> None:
    """No byte of what is written holds a name, a number, a birth date or a UID of the archive (S13)."""
    files = phantoms.ct_series(tmp_path / "ct")
    draw.seg_file(tmp_path / "labels" / "seg.dcm", files, {"liver of Quetzal": LIVER, "spleen": SPLEEN})
    dataset(tmp_path / "ct", tmp_path / "labels", tmp_path / "out")
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) == 8
    for path in written:
        data = path.read_bytes()
        data += gzip.decompress(data) if path.suffix == ".gz" else b""
        if path.name == "timings.json":
            continue  # holds the command line
        assert not [canary for canary in CANARIES if canary in data], path.name
    names = json.loads((tmp_path / "out" / "dataset.json").read_text())["labels"]
    assert set(names) == {"background", "Organ 1", "spleen"}


@pytest.mark.parametrize("codes", ["LPS", "PIR", "SRA"])
def test_turned_label_maps_are_turned_back(tmp_path: Path, codes: str) -> None:
    """A label map of the same grid in another order of axes: exact, and noted."""
    nifti_pair(tmp_path)
    turned, affine = reorient_to(WANTED[np.newaxis], phantoms.AXIAL, codes)
    phantoms.nifti_file(tmp_path / "labels" / "a.nii.gz", turned[0], affine)
    outcome = dataset(tmp_path / "images", tmp_path / "labels", tmp_path / "out")
    label = read_volume(tmp_path / "out" / "labelsTr" / "a.nii.gz")
    np.testing.assert_array_equal(label.array[0], WANTED)
    codes_noted = [entry.code for entry in outcome.notes.get("a", ())]
    assert codes_noted == ([] if codes == "LPS" else ["label-turned"])


def test_another_grid_is_stopped_or_resampled_when_asked(tmp_path: Path) -> None:
    """N21: half a voxel off."""
    nifti_pair(tmp_path)
    affine = phantoms.AXIAL.copy()
    affine[0, 3] += 0.35
    phantoms.nifti_file(tmp_path / "labels" / "a.nii.gz", WANTED, affine)
    outcome = dataset(tmp_path / "images", tmp_path / "labels", tmp_path / "out")
    assert outcome.exit_code == 4
    assert "0.50 voxels apart at the corners" in outcome.failures[0].message
    outcome = dataset(tmp_path / "images", tmp_path / "labels", tmp_path / "out2", resample_label=True)
    assert [entry.code for entry in outcome.notes["a"]] == ["label-resampled"]
    phantoms.nifti_file(tmp_path / "labels" / "a.nii.gz", WANTED[:, :, :7])
    outcome = dataset(tmp_path / "images", tmp_path / "labels", tmp_path / "out3")
    assert "(12 x 10 x 8): 12 x 10 x 7; correct the pair" in outcome.failures[0].message


def test_a_seg_on_another_grid_is_resampled_when_asked(tmp_path: Path) -> None:
    """A third of a voxel along the rows."""
    files = phantoms.ct_series(tmp_path / "ct")
    draw.seg_file(tmp_path / "seg" / "s.dcm", files, {"liver": LIVER}, shift_mm=0.2)
    outcome = dataset(tmp_path / "ct", tmp_path / "seg", tmp_path / "out")
    assert outcome.failures[0].code == "label-grid"
    outcome = dataset(tmp_path / "ct", tmp_path / "seg", tmp_path / "out2", resample_label=True)
    label = read_volume(next((tmp_path / "out2" / "labelsTr").iterdir()))
    np.testing.assert_array_equal(label.array[0], LIVER)


@pytest.mark.parametrize(
    ("values", "code", "message"),
    [
        (WANTED.astype(np.float32) * 1.5, "label-not-whole", "105 voxels hold values that are not whole"),
        (WANTED * 3, "label-unknown", r"found the label value 3 \(105 voxels\), 6 \(48 voxels\), expected 0, 1, 2"),
    ],
)
def test_values_are_held_against_the_list(tmp_path: Path, values: np.ndarray, code: str, message: str) -> None:
    """N20: values and counts are told."""
    nifti_pair(tmp_path)
    phantoms.nifti_file(tmp_path / "labels" / "a.nii.gz", values)
    outcome = dataset(tmp_path / "images", tmp_path / "labels", tmp_path / "out", classes=["liver", "spleen"])
    assert outcome.failures[0].code == code
    with pytest.raises(CaseError, match=message):
        raise CaseError(outcome.failures[0].message, code)


def test_values_that_are_nearly_whole_are_rounded(tmp_path: Path) -> None:
    """N20: 0.9999 is 1; values without names are called by their number."""
    nifti_pair(tmp_path)
    phantoms.nifti_file(tmp_path / "labels" / "a.nii.gz", WANTED.astype(np.float32) * 0.9999)
    outcome = dataset(tmp_path / "images", tmp_path / "labels", tmp_path / "out")
    assert [entry.code for entry in outcome.notes["a"]] == ["label-rounded"]
    labels = read_dataset(tmp_path / "out").labels or ()
    assert [label.name for label in labels] == ["background", "label 1", "label 2"]


def test_overlapping_segments_need_an_order(tmp_path: Path) -> None:
    """STOP without --classes; with it the later class stays, others are left out."""
    files = phantoms.ct_series(tmp_path / "ct")
    core = draw.box(SHAPE, (2, 4), (3, 6), (3, 4))
    draw.seg_file(tmp_path / "seg" / "s.dcm", files, {"core": core, "liver": LIVER, "spleen": SPLEEN})
    outcome = dataset(tmp_path / "ct", tmp_path / "seg", tmp_path / "out")
    assert "6 voxels belong to two segments; give --classes" in outcome.failures[0].message
    outcome = dataset(tmp_path / "ct", tmp_path / "seg", tmp_path / "out2", classes=["liver", "Core"])
    (name,) = outcome.done
    label = read_volume(tmp_path / "out2" / "labelsTr" / f"{name}.nii.gz")
    np.testing.assert_array_equal(label.array[0], np.where(core, 2, LIVER))
    assert "label-overlap" in [entry.code for entry in outcome.notes[name]]
    with pytest.raises(UsageError, match=r"no segment is called 'kidney' \(there are: core, liver, spleen\)"):
        dataset(tmp_path / "ct", tmp_path / "seg", tmp_path / "out3", classes=["kidney"])
    with pytest.raises(UsageError, match="each class stands there once, and background is class 0"):
        dataset(tmp_path / "ct", tmp_path / "seg", tmp_path / "out3", classes=["liver", "Liver"])
    assert not (tmp_path / "out3").exists()


def test_the_same_command_again_does_what_is_left(tmp_path: Path) -> None:
    """A killed run is resumed to the same bytes; other inputs or settings are refused."""
    for name in ("a", "b"):
        nifti_pair(tmp_path, name)
    ends = (tmp_path / "images", tmp_path / "labels", tmp_path / "out")
    dataset(*ends)
    before = {path: path.read_bytes() for path in ends[2].rglob("*") if path.is_file() and path.name != "timings.json"}
    (ends[2] / "labelsTr" / "b.nii.gz").unlink()
    outcome = dataset(*ends)
    assert (outcome.done, outcome.skipped) == (("b",), ("a",))
    assert all(path.read_bytes() == data for path, data in before.items())
    with pytest.raises(UsageError, match=r"other settings \(classes"):
        dataset(*ends, classes=["liver", "spleen"])
    phantoms.nifti_file(ends[1] / "b.nii.gz", WANTED, scl_slope=2)
    with pytest.raises(UsageError, match="case b was made of other files"):
        dataset(*ends)
    for folder in ends[:2]:
        (folder / "b.nii.gz").unlink()
    with pytest.raises(UsageError, match=r"holds 1 cases that the inputs no longer have \(the first: b\)"):
        dataset(*ends)
    assert dataset(*ends, overwrite=True).done == ("a",)
    assert sorted(path.name for path in (ends[2] / "imagesTr").iterdir()) == ["a.json", "a_0000.nii.gz"]


def test_what_is_wrong_use(tmp_path: Path) -> None:
    """Nothing is written for it."""
    nifti_pair(tmp_path)
    files = phantoms.ct_series(tmp_path / "images" / "ct")
    draw.seg_file(tmp_path / "labels" / "s.dcm", files, {"liver": LIVER})
    with pytest.raises(UsageError, match="1 label maps are SEG or RTSTRUCT with names and 1 are files with numbers"):
        dataset(tmp_path / "images", tmp_path / "labels", tmp_path / "out")
    with pytest.raises(UsageError, match="lies inside the input"):
        dataset(tmp_path / "images", tmp_path / "labels", tmp_path / "images" / "out")
    with pytest.raises(UsageError, match="does not exist"):
        dataset(tmp_path / "images", tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_label_files_that_are_none(tmp_path: Path) -> None:
    """A 4D file is stopped; a label map without a place, where its image has one, as well."""
    nifti_pair(tmp_path)
    nifti_pair(tmp_path, "b", sform_code=0, qform_code=0)
    phantoms.nifti_file(tmp_path / "labels" / "a.nii.gz", np.stack([WANTED, WANTED], axis=-1))
    out = tmp_path / "out"
    dataset(tmp_path / "images", tmp_path / "labels", out)
    told = failures(out)
    assert "holds 2 volumes, a label map is one volume" in told["label-4d"]
    assert "b.nii.gz: is 12 x 10 x 8 without world coordinates, its image b.nii.gz 12 x 10 x 8" in told["grid-shape"]


def test_pictures(tmp_path: Path) -> None:
    """Colour pictures and grey label maps: no place in the world, equal sides; `plan` reads what is written."""
    rng = np.random.default_rng(0)
    for name, size in (("a", (9, 7)), ("b", (7, 9))):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "labels").mkdir(exist_ok=True)
        colours = rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)
        Image.fromarray(colours).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray((rng.random(size[::-1]) > 0.5).astype(np.uint8)).save(tmp_path / "labels" / f"{name}.png")
    out = tmp_path / "out"
    outcome = dataset(tmp_path / "images", tmp_path / "labels", out)
    assert outcome.done == ("a",)
    assert "b.png: is 7 x 9 without world coordinates, its image b.png 9 x 7" in outcome.failures[0].message
    (case,) = read_dataset(out).cases
    voxels = read_case(case)
    assert voxels.image.shape == (3, 9, 7, 1)
    assert set(voxels.counts) == {0, 1}


def test_segments_without_a_name(tmp_path: Path) -> None:
    """A name that tells the patient is not taken; where nothing is left, the case is stopped, or the class left out."""
    files = phantoms.ct_series(tmp_path / "ct")
    path = draw.seg_file(tmp_path / "seg" / "s.dcm", files, {"CANARY-7731": LIVER, "spleen": SPLEEN})
    header = pydicom.dcmread(path)
    del header.SegmentSequence[0].SegmentedPropertyTypeCodeSequence
    header.save_as(path)
    outcome = dataset(tmp_path / "ct", tmp_path / "seg", tmp_path / "out")
    assert "a segment has no name, or one that holds the patient's name or number" in outcome.failures[0].message
    outcome = dataset(tmp_path / "ct", tmp_path / "seg", tmp_path / "out1", classes=["spleen"])
    label = read_volume(tmp_path / "out1" / "labelsTr" / f"{outcome.done[0]}.nii.gz")
    np.testing.assert_array_equal(label.array[0], SPLEEN)


def test_an_image_without_a_place(tmp_path: Path) -> None:
    """Both codes 0; an empty label map is noted."""
    nifti_pair(tmp_path)
    nifti_pair(tmp_path, "b")
    phantoms.nifti_file(tmp_path / "images" / "a.nii.gz", sform_code=0, qform_code=0)
    phantoms.nifti_file(tmp_path / "labels" / "b.nii.gz", np.zeros(SHAPE, dtype=np.uint8))
    outcome = dataset(tmp_path / "images", tmp_path / "labels", tmp_path / "out")
    assert outcome.failures[0].code == "no-world-coordinates"
    assert [entry.code for entry in outcome.notes["b"]] == ["label-empty"]
    assert read_dataset(tmp_path / "out").labels is None


@pytest.mark.slow  # processes that start and import
def test_workers_write_the_same_bytes(tmp_path: Path) -> None:
    """Two processes and one."""
    for name in ("a", "b"):
        nifti_pair(tmp_path, name)
    trees = []
    for workers in (1, 2):
        out = tmp_path / f"out{workers}" / "set"
        dataset(tmp_path / "images", tmp_path / "labels", out, workers=workers)
        trees.append({path.name: path.read_bytes() for path in out.rglob("*") if path.suffix in (".gz", ".csv")})
        trees[-1]["dataset.json"] = (out / "dataset.json").read_bytes()
    assert trees[0] == trees[1]


@pytest.mark.slow
def test_the_data_set_can_be_planned_and_trained_on(tmp_path: Path) -> None:
    """What `dataset` writes, `plan` and two steps of `train` take."""
    from voxelwise import plan, take_fingerprint, train

    phantoms.blob_dataset(tmp_path / "blobs", cases=4)
    out = tmp_path / "out"
    blobs = tmp_path / "blobs"
    assert dataset(blobs / "images", blobs / "labels", out, classes=["one", "two"], channels=["MR"]).exit_code == 0
    made = plan(take_fingerprint(out), out=tmp_path / "plan.yaml")
    assert [label.name for label in made.labels] == ["background", "one", "two"]
    outcome = train(out, out=tmp_path / "run", network="unet", width=4, steps=2, fold="0")
    assert outcome.exit_code == 0


@pytest.mark.parametrize(("case", "voxels"), [("ct_3slice", 107098), ("ct_24x38x3", 315)])
def test_real_segmentations(shared_data: Callable[[str], Path], tmp_path: Path, case: str, voxels: int) -> None:
    """Two CTs with dcmqi's SEG objects; the label maps equal dcmqi's NRRD ones in the world."""
    folder = shared_data("dicom_seg") / case
    out = tmp_path / "out"
    outcome = dataset(folder / "dicom", folder / "seg", out)
    (name,) = outcome.done
    label = read_volume(out / "labelsTr" / f"{name}.nii.gz")
    wanted = read_volume(next((folder / "labels_nrrd").iterdir()))
    np.testing.assert_array_equal(label.array[0], turned_onto(wanted.array[0], wanted.geometry.affine, label.geometry))
    assert int(label.array.sum()) == voxels
