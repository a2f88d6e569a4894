"""Folds: nnU-Net's where each case is a patient, and no patient on both sides."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import KFold
from voxelwise.errors import UsageError
from voxelwise.pipeline.dataset.cases import Case, Dataset
from voxelwise.pipeline.dataset.folds import all_cases, make_folds
from voxelwise.pipeline.manifest import Failure


def dataset_of(patients: list[str]) -> Dataset:
    cases = tuple(Case(f"case{n:03d}", (Path("i"),), Path("l"), patient) for n, patient in enumerate(patients))
    return Dataset("set", Path("set"), cases)


def test_equal_to_nnunet() -> None:
    """Its `generate_crossval_split`: KFold on the sorted names."""
    dataset = dataset_of([f"p{n:03d}" for n in range(23)])
    names = sorted(case.name for case in dataset.cases)
    for fold, (train, validation) in zip(
        make_folds(dataset), KFold(5, shuffle=True, random_state=12345).split(names), strict=True
    ):
        assert fold.train == tuple(names[i] for i in train)
        assert fold.validation == tuple(names[i] for i in validation)


@given(st.lists(st.integers(0, 12).map(str), min_size=1, max_size=40).filter(lambda found: len(set(found)) > 1))
def test_no_patient_on_both_sides_and_every_case_validates_once(patients: list[str]) -> None:
    dataset = dataset_of(patients)
    owner = {case.name: case.patient for case in dataset.cases}
    folds = make_folds(dataset)
    assert len(folds) == min(5, len(set(patients)))
    for fold in folds:
        assert not {owner[name] for name in fold.train} & {owner[name] for name in fold.validation}
        assert sorted((*fold.train, *fold.validation)) == sorted(owner)
    assert sorted(name for fold in folds for name in fold.validation) == sorted(owner)


def test_few_patients_are_stated(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(make_folds(dataset_of(["a", "b", "c"]))) == 3
    assert "3 patients: 3 folds instead of 5" in caplog.text


def test_one_patient_cannot_be_folded() -> None:
    dataset = dataset_of(["a", "a"])
    with pytest.raises(UsageError, match="has 1 patient; folds need two or more: train with --fold all"):
        make_folds(dataset)
    assert all_cases(dataset).train == ("case000", "case001")


def test_folds_of_a_file_are_those_of_the_file(tmp_path: Path) -> None:
    dataset = dataset_of(["a", "b", "c", "d", "e", "e"])
    entries = [{"train": list(fold.train), "val": list(fold.validation)} for fold in make_folds(dataset)]
    (tmp_path / "folds.json").write_text(json.dumps(entries))
    assert make_folds(dataset, tmp_path / "folds.json") == make_folds(dataset)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([{"train": ["case000"], "val": ["case009"]}], "fold 0 names 'case009', which is no case"),
        ([{"train": ["case000"], "val": ["case001"]}], "patient on both sides .validation case 'case001'"),
        ([{"train": [], "val": ["case001"]}], "fold 0 has no training case"),
        ([{"train": "case000"}], "fold 0: expected"),
        ({}, "expected a list"),
    ],
)
def test_splits_that_cannot_be_used(tmp_path: Path, content: object, words: str) -> None:
    (tmp_path / "s.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=words):
        make_folds(dataset_of(["a", "a", "b"]), tmp_path / "s.json")


def test_splits_pass_over_cases_that_were_left_out(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps([{"train": ["case000", "gone"], "val": ["case001"]}]))
    whole = dataset_of(["a", "b"])
    dataset = Dataset(whole.name, whole.root, whole.cases, failures=(Failure("gone", (), "not-finite", "NaN"),))
    assert make_folds(dataset, tmp_path / "s.json")[0].train == ("case000",)
    with pytest.raises(UsageError, match="cannot be read as JSON"):
        make_folds(dataset, tmp_path / "none.json")
