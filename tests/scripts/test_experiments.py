"""The comparisons of the sources: each file can be planned; the runner compares arms on cases that none has seen."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import phantoms
import pytest
import yaml
from PIL import Image
from voxelwise.networks.losses import LOSSES
from voxelwise.networks.registry import build_network, count_parameters
from voxelwise.pipeline.dataset.cases import Case, Dataset
from voxelwise.pipeline.dataset.layouts import read_dataset

FOLDER = Path(__file__).resolve().parents[2] / "scripts" / "experiments"
FILES = [path for path in sorted(FOLDER.glob("*.yaml")) if "arms:" in path.read_text()]
SMALL = {
    "title": "Discs",
    "plan": {"dims": 2, "patch": [16, 16, 1], "batch": 1, "validation_cases": 1, "tta": False, "augmentation": {}},
    "arms": {"unet": {"network": "unet2015", "options": {"padding": "same"}}, "otsu": {"multi_otsu": {"parts": 3}}},
    "epochs": 1,
    "select": "best",
    "measures": ["iou"],
    "figures": {"unet": {"IoU": 0.9}},
}


@pytest.fixture(scope="module")
def load() -> Iterator[Any]:
    """A module of the folder by its name; the scripts import one another as scripts do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield importlib.import_module


@pytest.fixture(scope="module")
def experiment(load: Any) -> ModuleType:
    return load("experiment")


@pytest.fixture(scope="module")
def runner(load: Any) -> ModuleType:
    return load("run_experiment")


@pytest.fixture(scope="module")
def otsu(load: Any) -> ModuleType:
    return load("multi_otsu")


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures of a bright disc on two shades of grey."""
    folder = tmp_path_factory.mktemp("discs")
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:16, :16]
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for number in range(5):
        disc = np.hypot(rows - rng.integers(5, 11), columns - rng.integers(5, 11)) <= 4
        image = np.where(disc, 220, np.where(columns < 8, 20, 90)) + rng.integers(0, 5, (16, 16))
        Image.fromarray(image.astype(np.uint8)).save(folder / "images" / f"{number}.png")
        Image.fromarray(disc.astype(np.uint8)).save(folder / "labels" / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("blobs")
    return read_dataset(phantoms.blob_dataset(folder, cases=2, shape=(12, 12, 8), classes=1))


def write(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    return path


def cases(count: int, patients: int) -> Dataset:
    listed = tuple(Case(f"{number:02d}", (), None, f"p{number % patients}") for number in range(count))
    return Dataset("some", Path("some"), listed)


def test_they_are_all_there() -> None:
    names = {"vein_ultrasound", "covid_ct", "melanoma", "cells", "fat", "prostate", "brain"}
    assert {path.stem for path in FILES} == names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_says_what_to_type_and_can_be_planned(
    path: Path, experiment: ModuleType, blobs: Dataset, tmp_path: Path
) -> None:
    command = f"# python scripts/experiments/run_experiment.py scripts/experiments/{path.name} DATASET --out DIR"
    assert path.read_text().splitlines()[0] == command
    read = experiment.read_experiment(path)
    patch = [16, 16, 8] if read.plan["dims"] == 3 else [32, 32, 1]
    plans = experiment.plans_of(read, read.arms, blobs, tmp_path, experiment.Smaller(width=8, patch=patch))
    assert list(plans) == list(read.arms)
    for name, plan in plans.items():
        assert plan.network.name == read.arms[name].network
        assert plan.loss in LOSSES
        assert plan.optimizer.name in ("adam", "sgd")  # those of the sources
        assert plan.average_weights == 0
        assert not plan.tta


def test_the_covid_figures_are_those_of_one_confusion_matrix(experiment: ModuleType) -> None:
    """F1 follows from precision and sensitivity: a slip of the pen would show."""
    for figures in experiment.read_experiment(FOLDER / "covid_ct.yaml").figures.values():
        precision, sensitivity = figures["precision"], figures["sensitivity"]
        assert figures["F1"] == pytest.approx(2 * precision * sensitivity / (precision + sensitivity), abs=0.0015)


def test_arms_are_trained_scored_and_set_beside_the_source(
    runner: ModuleType, discs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(write(tmp_path / "small.yaml")), str(discs), "--out", str(tmp_path / "out")]
    words += ["--steps", "2", "--width", "2", "--device", "cpu"]
    assert runner.main(words) == 0
    told = capsys.readouterr().out
    assert "fold 0 (3 cases train, 1 choose the epoch, 1 test), 2 steps, best weights, width 2" in told
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in told.splitlines()[2:]
        if "|" in line
    }
    assert rows["arm"][1:] == [
        "Dice, mean over cases",
        "Dice, pooled",
        "mIoU, pooled",
        "accuracy, pooled",
        "IoU, pooled",
        "the source",
    ]
    assert rows["otsu (brightest of 3)"] == ["-", "1.000", "1.000", "1.000", "1.000", "1.000", ""]
    network = build_network("unet2015", 2, 1, 2, width=2, padding="same")
    assert rows["unet"][0] == f"{count_parameters(network):,}"
    assert rows["unet"][-1] == "IoU 0.900"
    assert 0 < float(rows["unet"][4]) < 1
    weights = tmp_path / "out" / "unet" / "fold_0" / "weights.safetensors"
    before = weights.stat().st_mtime_ns
    assert runner.main(words) == 0  # goes on where it was: at the end
    assert capsys.readouterr().out == told
    assert weights.stat().st_mtime_ns == before
    assert runner.main([*words, "--width", "3"]) == 2
    assert "width: 2 -> 3); choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words", "said"),
    [
        ({"arm": {}}, [], "unknown field 'arm'; did you mean 'arms'?"),
        ({"arms": {"a": {"network": "unett"}}, "figures": {}}, [], "unknown network of arm a: 'unett'; did you mean"),
        ({"arms": {"a": {"lose": "bce"}}, "figures": {}}, [], "arm a: unknown field of a plan 'lose'"),
        ({"arms": {"a": {"loss": "bc"}}, "figures": {}}, [], "arm a: choices of the plan: loss: found 'bc', expected"),
        (
            {"arms": {"a": {"options": {"wide": 1}}}, "figures": {}},
            [],
            "arm a: unknown option of network 'unet': 'wide'",
        ),
        ({"arms": {"cases": {}}, "figures": {}}, [], "'cases' is the name of a folder"),
        ({"figures": {"unett": {"IoU": 1}}}, [], "unknown arm with figures 'unett'; did you mean 'unet'?"),
        ({"measures": ["mio"]}, [], "unknown measure 'mio'; did you mean 'miou'"),
        ({"epochs": 0}, [], "epochs: Input should be greater than or equal to 1"),
        ({}, ["--arms", "unet,fcn"], "unknown arm 'fcn'"),
        ({}, ["--fold", "5"], "--fold 5: there are the folds 0 to 4"),
        ({}, ["--cases", "1"], "has 1 patient; folds need two or more"),
        ({}, ["--patch", "16", "16", "16"], "must be 1 along the slice axis"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_use_is_one_line(
    changes: dict[str, Any],
    words: list[str],
    said: str,
    runner: ModuleType,
    discs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write(tmp_path / "wrong.yaml", **changes)
    assert runner.main([str(path), str(discs), "--out", str(tmp_path / "out"), *words]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "said"), [("a: [", "not YAML at line"), ("- a", "found list, expected title"), (None, "cannot be read")]
)
def test_a_file_that_is_no_experiment_is_said(
    text: str | None, said: str, runner: ModuleType, discs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken.yaml"
    if text is not None:
        path.write_text(text)
    assert runner.main([str(path), str(discs), "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_steps_are_refused(runner: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        runner.main([str(write(tmp_path / "small.yaml")), "DATASET", "--out", "OUT", "--steps", "0"])
    assert "--steps: '0' is no whole number from 1 on" in capsys.readouterr().err


def test_a_data_set_that_is_not_there_is_said(
    runner: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "small.yaml")
    assert runner.main([str(path), str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    assert "none does not exist" in capsys.readouterr().err


def test_multi_otsu_is_refused_where_there_are_several_classes(experiment: ModuleType, tmp_path: Path) -> None:
    dataset = read_dataset(phantoms.blob_dataset(tmp_path / "blobs", cases=2, shape=(12, 12, 8)))
    read = experiment.read_experiment(write(tmp_path / "small.yaml"))
    with pytest.raises(experiment.UsageError, match="multi-Otsu tells one class from the background"):
        experiment.plans_of(read, {"otsu": read.arms["otsu"]}, dataset, tmp_path / "plans", experiment.Smaller())


def test_the_side_of_multi_otsu_is_the_one_that_fits_the_labels(otsu: ModuleType, discs: Path, tmp_path: Path) -> None:
    bright = read_dataset(discs).cases
    assert otsu.better_side(bright, 3, 1) == "brightest"
    dark = []
    for case in bright:
        picture = tmp_path / case.images[0].name
        Image.fromarray(255 - np.asarray(Image.open(case.images[0]))).save(picture)
        dark.append(Case(case.name, (picture,), case.label, case.patient))
    assert otsu.better_side(dark, 3, 1) == "darkest"


def test_multi_otsu_finds_nothing_in_an_image_of_one_value(otsu: ModuleType) -> None:
    assert not otsu.outer_part(np.full((1, 4, 4), 7), 3, "darkest").any()


def test_the_epoch_is_chosen_on_no_test_case_and_no_patient_is_parted(runner: ModuleType) -> None:
    dataset = cases(count=20, patients=10)
    patients = {case.name: case.patient for case in dataset.cases}
    tested = []
    for split in runner.splits_of(dataset, "best"):
        sides = [{patients[name] for name in split[side]} for side in ("train", "val", "test")]
        assert all(sides)
        assert sum(map(len, sides)) == len(set.union(*sides)) == 10
        tested += split["test"]
    assert sorted(tested) == sorted(patients)


def test_the_test_cases_validate_where_nothing_is_chosen_by_them(runner: ModuleType) -> None:
    assert all(split["val"] == split["test"] for split in runner.splits_of(cases(6, 6), "last"))


def test_two_patients_leave_none_to_choose_the_epoch_by(runner: ModuleType) -> None:
    assert [split["val"] for split in runner.splits_of(cases(2, 2), "best")] == [[], []]


def test_some_cases_are_spread_over_all(runner: ModuleType) -> None:
    names = [case.name for case in runner.some_cases(cases(9, 9), 3).cases]
    assert names == ["01", "04", "07"]
