"""`evaluate` from files to tables: matching, grids, refusals, and going on where an earlier run stopped."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from voxelwise.errors import NothingDoneError, UsageError
from voxelwise.pipeline.evaluation.evaluate import evaluate

AFFINE = np.diag([2.0, 2.0, 5.0, 1.0])


def label_map(shift: int = 0) -> np.ndarray:
    labels = np.zeros((12, 11, 9), dtype=np.uint8)
    labels[2:7, 2:8, 2:7] = 1
    labels[8:11, 3:6, 3:6] = 2
    return np.roll(labels, shift, 1)


def write(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for number in range(3):
        write(tmp_path / "pred" / f"c{number}.nii.gz", label_map(number % 2))
        write(tmp_path / "ref" / f"c{number}.nii.gz", label_map())
    return tmp_path / "pred", tmp_path / "ref"


def test_tables_of_three_cases(folders: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = evaluate(*folders, out=out)
    assert outcome.exit_code == 0
    assert outcome.done == ("c0", "c1", "c2")
    rows = {(row["case"], row["class"]): row for row in table(out / "scores.csv")}
    assert len(rows) == 3 * 5
    assert rows["c0", "1"]["dice"] == "1"
    assert rows["c1", "1"]["dice"] == "0.833333"
    assert rows["c1", "1"]["hd95_mm"] == "2"
    assert rows["c0", "1"]["reference_ml"] == f"{5 * 6 * 5 * 0.02:.6g}"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["mean_over_cases"]["1"]["dice"]["value"] == pytest.approx((1 + 5 / 6 + 1) / 3)
    assert summary["cases"] == 3
    assert {row["aggregation"] for row in table(out / "summary.csv")} == {"mean over cases", "pooled"}
    foreground = [float(rows[f"c{number}", "foreground"]["dice"]) for number in range(3)]
    assert outcome.facts["mean_foreground_dice"] == pytest.approx(np.mean(foreground), rel=1e-5)


def test_second_run_skips_and_changes_nothing(folders: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(*folders, out=out)
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file() and path.name != "timings.json"}
    outcome = evaluate(*folders, out=out)
    assert outcome.skipped == ("c0", "c1", "c2")
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.name in before} == before
    write(folders[0] / "c1.nii.gz", label_map(0))
    outcome = evaluate(*folders, out=out)
    assert (outcome.done, outcome.skipped) == (("c1",), ("c0", "c2"))
    assert outcome.facts["mean_foreground_dice"] == 1.0


def test_other_settings_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    evaluate(*folders, out=tmp_path / "out")
    with pytest.raises(UsageError, match=r"other settings \(tolerance_mm: 2.0 -> 1.0\)"):
        evaluate(*folders, out=tmp_path / "out", tolerance=1.0)
    assert evaluate(*folders, out=tmp_path / "out", tolerance=1.0, overwrite=True).exit_code == 0


def test_grids_that_differ_stop_their_case_only(folders: tuple[Path, Path], tmp_path: Path) -> None:
    moved = AFFINE.copy()
    moved[0, 3] = 0.5
    write(folders[0] / "c0.nii.gz", label_map(), moved)
    write(folders[0] / "c1.nii.gz", label_map()[:-1])
    outcome = evaluate(*folders, out=tmp_path / "out")
    assert outcome.exit_code == 3
    assert outcome.done == ("c2",)
    messages = {row["case"]: row["message"] for row in table(tmp_path / "out" / "failures.csv")}
    assert "their voxels lie 0.25 voxels apart (0.1 is accepted)" in messages["c0"]
    assert "the prediction has the shape (11, 11, 9), its reference (12, 11, 9)" in messages["c1"]


def test_a_broken_file_stops_its_case_only(folders: tuple[Path, Path], tmp_path: Path) -> None:
    whole = (folders[0] / "c1.nii.gz").read_bytes()
    (folders[0] / "c1.nii.gz").write_bytes(whole[: len(whole) // 2])
    outcome = evaluate(*folders, out=tmp_path / "out")
    assert outcome.exit_code == 3
    assert [failure.case for failure in outcome.failures] == ["c1"]


def test_nothing_scored_is_four(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for number in range(3):
        write(folders[0] / f"c{number}.nii.gz", np.full((12, 11, 9), 0.5, dtype=np.float32))
    outcome = evaluate(*folders, out=tmp_path / "out")
    assert outcome.exit_code == 4
    assert "c0: the prediction: 1188 voxels hold values that are not whole (0.5)" in outcome.failures[0].message


def test_nearly_whole_labels_are_rounded(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """0.9999 is class 1, as in training; NaN and -1 are no label."""
    write(folders[0] / "c0.nii.gz", label_map().astype(np.float32) * np.float32(0.9999))
    odd = label_map().astype(np.float32)
    odd[0, 0, 0] = np.nan
    write(folders[0] / "c1.nii.gz", odd)
    write(folders[0] / "c2.nii.gz", label_map().astype(np.int16) - 1)
    outcome = evaluate(*folders, out=tmp_path / "out")
    assert outcome.done == ("c0",)
    assert outcome.facts["mean_foreground_dice"] == 1.0
    codes = {failure.case: failure.code for failure in outcome.failures}
    assert codes == {"c1": "label-not-whole", "c2": "label-out-of-range"}


def test_values_outside_the_labels_stop_the_case(folders: tuple[Path, Path], tmp_path: Path) -> None:
    outcome = evaluate(*folders, out=tmp_path / "out", labels={1: "organ"})
    assert "holds the value 2, the labels are 0, 1" in outcome.failures[0].message
    outcome = evaluate(*folders, out=tmp_path / "named", labels={1: "organ", 2: "lesion"})
    assert table(tmp_path / "named" / "scores.csv")[1]["name"] == "organ"


def test_references_of_a_data_set(folders: tuple[Path, Path], tmp_path: Path) -> None:
    root = tmp_path / "set"
    for number in range(4):
        write(root / "imagesTr" / f"c{number}_0000.nii.gz", label_map())
        write(root / "labelsTr" / f"c{number}.nii.gz", label_map())
    labels = {"background": 0, "organ": 1, "lesion": 2}
    described = {"labels": labels, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz", "numTraining": 4}
    (root / "dataset.json").write_text(json.dumps(described))
    write(folders[0] / "extra.nii.gz", label_map())
    outcome = evaluate(folders[0], root, out=tmp_path / "out")
    assert outcome.exit_code == 0
    assert outcome.done == ("c0", "c1", "c2")
    assert [entry.code for entry in outcome.notes["c3"]] == ["no-prediction"]
    assert [entry.code for entry in outcome.notes["extra"]] == ["no-reference"]
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert (scores["only_predicted"], scores["only_referenced"]) == (["extra"], ["c3"])
    assert scores["labels"]["2"] == "lesion"


def test_pictures_and_single_files(tmp_path: Path) -> None:
    for name in ("pred", "ref"):
        (tmp_path / name).mkdir()
        Image.fromarray(label_map()[:, :, 4] * 100).save(tmp_path / name / "x.png")
    assert evaluate(tmp_path / "pred", tmp_path / "ref", out=tmp_path / "out").done == ("x",)
    row = table(tmp_path / "out" / "scores.csv")[1]
    assert (row["class"], row["dice"], row["hd95_mm"], row["reference_ml"]) == ("100", "1", "0", "")
    (tmp_path / "pred" / "x.png").rename(tmp_path / "y.png")
    assert evaluate(tmp_path / "y.png", tmp_path / "ref" / "x.png", out=tmp_path / "one").done == ("x",)


def test_nothing_in_common(folders: tuple[Path, Path], tmp_path: Path) -> None:
    write(tmp_path / "other" / "z.nii.gz", label_map())
    with pytest.raises(NothingDoneError, match=r"no prediction in .*pred \(c0, c1, c2\) has the base name of"):
        evaluate(folders[0], tmp_path / "other", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_use(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"predictions .*nowhere does not exist"):
        evaluate(tmp_path / "nowhere", folders[1], out=tmp_path / "out")
    with pytest.raises(UsageError, match=r"references .*empty is empty"):
        evaluate(folders[0], tmp_path / "empty", out=tmp_path / "out")
    (tmp_path / "empty" / "notes.txt").write_text("x")
    with pytest.raises(UsageError, match=r"holds no label map \(found notes.txt"):
        evaluate(tmp_path / "empty", folders[1], out=tmp_path / "out")
    write(folders[0] / "c0.nii", label_map())
    with pytest.raises(UsageError, match="shares its base name with another file"):
        evaluate(*folders, out=tmp_path / "out")
    with pytest.raises(UsageError, match="--tolerance is -1"):
        evaluate(*folders, out=tmp_path / "out", tolerance=-1)
