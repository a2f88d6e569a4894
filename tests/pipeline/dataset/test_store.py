"""The store: right voxels, right classes, made anew where anything changed or broke."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pytest
from voxelwise.errors import CaseError, NoRoomError, NothingDoneError, UsageError
from voxelwise.pipeline.dataset.fingerprint import take_fingerprint
from voxelwise.pipeline.dataset.layouts import read_dataset
from voxelwise.pipeline.dataset.plan import Plan, make_plan, write_plan
from voxelwise.pipeline.dataset.store import open_store, preprocess
from voxelwise.scripts.main import explain
from voxelwise.transforms.chains import build_chain, preprocessing_steps, run_chain

CPU: dict[str, Any] = {"device_kind": "cpu", "memory_bytes": 16 * 10**9}


@pytest.fixture
def blobs(tmp_path: Path) -> tuple[Path, Plan]:
    root = phantoms.blob_dataset(tmp_path / "set", cases=3)
    return root, make_plan(take_fingerprint(read_dataset(root)), **CPU)


def test_holds_what_the_chain_makes(blobs: tuple[Path, Plan], tmp_path: Path) -> None:
    root, plan = blobs
    outcome = preprocess(root, out=tmp_path / "cache", plan=plan)
    assert outcome.counts == {"in": 3, "done": 3, "skipped": 0, "stopped": 0}
    store = open_store(tmp_path / "cache")
    assert store.steps == tuple(preprocessing_steps(**plan.model_dump()))
    chain = build_chain(store.steps, ("image", "label"))
    for case in read_dataset(root).cases:
        expected = run_chain(chain, {"image": case.images[0], "label": case.label})
        image, labels = store.image(case.name), store.labels(case.name)
        assert image.dtype == np.float32
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(image[:], expected["image"].numpy())
        np.testing.assert_array_equal(image[:, 3:9, 2:7, 1:5], expected["image"].numpy()[:, 3:9, 2:7, 1:5])
        np.testing.assert_array_equal(labels[:], expected["label"].numpy()[0])
        np.testing.assert_allclose(store.affine(case.name), expected["image"].affine)
        assert store.shape(case.name) == image.shape
        foreground = store.foreground(case.name)
        assert set(foreground) == set(np.unique(labels[:])) - {0}
        for number, voxels in foreground.items():
            assert (labels[:][tuple(voxels.T)] == number).all()


def test_second_run_skips_and_equal_runs_are_equal_bytes(blobs: tuple[Path, Plan], tmp_path: Path) -> None:
    root, plan = blobs
    preprocess(root, out=tmp_path / "a", plan=plan)
    preprocess(root, out=tmp_path / "b", plan=plan)
    assert preprocess(root, out=tmp_path / "a", plan=plan).counts["skipped"] == 3
    for path in (tmp_path / "a").glob("*.case"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_broken_entry_is_made_anew(blobs: tuple[Path, Plan], tmp_path: Path, damage: str) -> None:
    root, plan = blobs
    preprocess(root, out=tmp_path / "cache", plan=plan)
    entry = sorted((tmp_path / "cache").glob("*.case"))[1]
    whole = entry.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :]
    entry.write_bytes({"cut": whole[:middle], "flip": flipped, "gone": b""}[damage])
    if damage == "gone":
        entry.unlink()
    assert preprocess(root, out=tmp_path / "cache", plan=plan).counts == {
        "in": 3,
        "done": 1,
        "skipped": 2,
        "stopped": 0,
    }
    assert entry.read_bytes() == whole


def test_changed_image_gives_new_voxels(blobs: tuple[Path, Plan], tmp_path: Path) -> None:
    """The key is the content, not the path."""
    root, plan = blobs
    preprocess(root, out=tmp_path / "cache", plan=plan)
    first, second = read_dataset(root).cases[:2]
    before = open_store(tmp_path / "cache").image(first.name)[:]
    first.images[0].write_bytes(second.images[0].read_bytes())
    second.images[0].unlink()
    outcome = preprocess(root, out=tmp_path / "cache", plan=plan)
    assert first.name in outcome.done
    assert not np.array_equal(open_store(tmp_path / "cache").image(first.name)[:], before)


def test_other_plan_is_refused(blobs: tuple[Path, Plan], tmp_path: Path) -> None:
    root, plan = blobs
    preprocess(root, out=tmp_path / "cache", plan=plan)
    other = plan.model_copy(update={"spacing_mm": [2.0, 2.0, 2.0]})
    with pytest.raises(UsageError, match=r"results of other settings .*steps"):
        preprocess(root, out=tmp_path / "cache", plan=other)
    write_plan(other, tmp_path / "other.yaml")
    assert preprocess(root, out=tmp_path / "cache", plan=tmp_path / "other.yaml", overwrite=True).counts["done"] == 3


def test_bad_cases_are_left_out_and_the_others_done(blobs: tuple[Path, Plan], tmp_path: Path) -> None:
    root, plan = blobs
    first, second, third = read_dataset(root).cases
    first.images[0].write_bytes(b"no image")
    copied = second.images[0].read_bytes()
    third.images[0].write_bytes(copied)
    outcome = preprocess(root, out=tmp_path / "cache", plan=plan)
    assert outcome.done == (second.name,)
    assert outcome.exit_code == 3
    assert {failure.case: failure.code for failure in outcome.failures}[third.name] == "case-copied"
    assert (tmp_path / "cache" / "failures.csv").is_file()
    assert open_store(tmp_path / "cache").cases == (second.name,)
    second.images[0].write_bytes(b"")
    third.images[0].write_bytes(b"")
    with pytest.raises(NothingDoneError, match="none of its cases could be preprocessed"):
        preprocess(root, out=tmp_path / "cache", plan=plan)


def test_empty_labels_constant_and_tiny_images(tmp_path: Path) -> None:
    root = tmp_path / "set"
    label = np.zeros((5, 5, 5), np.uint8)
    for name, image in (
        ("zero", np.zeros((5, 5, 5))),
        ("flat", np.full((5, 5, 5), 9)),
        ("ramp", phantoms.ramp((5, 5, 5))),
    ):
        some = label.copy()
        some[2, 2, 2] = name == "ramp"
        phantoms.nifti_file(root / "images" / f"{name}.nii", image.astype(np.int16), np.eye(4))
        phantoms.nifti_file(root / "labels" / f"{name}.nii", some, np.eye(4))
    assert preprocess(root, out=tmp_path / "cache", crop="nonzero", **CPU).counts["done"] == 3
    store = open_store(tmp_path / "cache")
    assert store.foreground("zero") == {}
    assert store.shape("zero") == (1, 5, 5, 5)
    assert np.isfinite(store.image("flat")[:]).all()
    assert store.foreground("ramp")[1].tolist() == [[2, 2, 2]]


def test_class_that_vanishes_is_noted(blobs: tuple[Path, Plan], tmp_path: Path) -> None:
    root, plan = blobs
    coarse = plan.model_copy(update={"spacing_mm": [30.0, 30.0, 30.0]})
    outcome = preprocess(root, out=tmp_path / "cache", plan=coarse)
    assert "class-vanished" in {note.code for notes in outcome.notes.values() for note in notes}


@pytest.mark.slow  # two processes that each load torch
def test_processes_give_the_same_bytes(blobs: tuple[Path, Plan], tmp_path: Path) -> None:
    root, plan = blobs
    preprocess(root, out=tmp_path / "one", plan=plan)
    preprocess(root, out=tmp_path / "two", plan=plan, workers=2)
    for path in (tmp_path / "one").glob("*.case"):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_a_full_disk_ends_the_run_and_the_next_one_finishes(
    blobs: tuple[Path, Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, (root, plan) = tmp_path / "cache", blobs
    with monkeypatch.context() as patched:
        phantoms.full_disk(patched, "blob_01.case")
        with pytest.raises(NoRoomError, match=r"blob_01\.case: no space left on its disk") as raised:
            preprocess(root, out=cache, plan=plan)
    assert explain(raised.value)[0] == 6
    assert [path.name for path in cache.glob("*.case")] == ["blob_00.case"]
    assert not list(cache.glob(".*.part"))
    assert preprocess(root, out=cache, plan=plan).counts == {"in": 3, "done": 2, "skipped": 1, "stopped": 0}
    assert open_store(cache).cases == ("blob_00", "blob_01", "blob_02")


def test_no_store(blobs: tuple[Path, Plan], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no store of preprocessed cases"):
        open_store(tmp_path)
    root, plan = blobs
    preprocess(root, out=tmp_path / "cache", plan=plan)
    store = open_store(tmp_path / "cache")
    with pytest.raises(UsageError, match="has no case 'other'"):
        store.image("other")
    entry = tmp_path / "cache" / f"{store.cases[0]}.case"
    entry.write_bytes(b"\x80\x04pickled")
    with pytest.raises(CaseError, match="cannot be opened"):
        store.image(store.cases[0])
    assert json.loads((tmp_path / "cache" / "manifest.json").read_text())["command"] == "preprocess"
