"""Reading and writing beside the network: the same files, two images at most, and each fault where it belongs."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import phantoms
import pydicom
import pytest
import torch
from pydicom.uid import RLELossless
from voxelwise.errors import CaseError, NoRoomError, UsageError
from voxelwise.networks.registry import build_network
from voxelwise.pipeline.inference import cases
from voxelwise.pipeline.inference.budget import Limits
from voxelwise.pipeline.inference.overlap import in_turn
from voxelwise.pipeline.inference.predict import predict
from voxelwise.pipeline.model_folder import write_model_folder
from voxelwise.transforms.cores import alone, is_alone, threads

OPTIONS: dict[str, Any] = {"widths": [4, 8]}
SECONDS = 20.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fields: dict[str, Any] = {
        "dims": 3,
        "channels": ["image"],
        "modality": "",
        "spacing_mm": [1.0, 1.0, 2.0],
        "orientation": "RAS",
        "labels": [{"value": 0, "name": "background"}, {"value": 1, "name": "organ"}],
        "crop": "none",
        "bias_field": False,
        "normalisation": [{"kind": "zscore"}],
        "patch": [8, 8, 8],
        "network": {"name": "unet", "options": OPTIONS},
        "mirror_axes": [],
        "overlap": 0.5,
        "tta": False,
    }
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    write_model_folder(folder, build_network("unet", 3, 1, 2, **OPTIONS), OPTIONS, fields)
    return folder


def make_cases(folder: Path, count: int = 3) -> Path:
    for number in range(count):
        array = np.random.default_rng(number).integers(0, 400, (12, 10, 8)).astype(np.int16)
        phantoms.nifti_file(folder / f"c{number}.nii.gz", array)
    return folder


@dataclass
class Slow:
    """Steps that note what they do, and wait in the network for what should happen beside it."""

    ram: int | None = None
    needed: int = 0
    planned: int = 0
    events: list[str] = field(default_factory=list)
    waits: dict[str, str] = field(default_factory=dict)
    held: int = 0
    most: int = 0
    errors: dict[str, Exception] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self.predictor = SimpleNamespace(limits=Limits(self.ram))

    def note(self, event: str, held: int = 0) -> None:
        with self.changed:
            self.events.append(event)
            self.held += held
            self.most = max(self.most, self.held)
            self.changed.notify_all()
        if error := self.errors.get(event):
            raise error

    def reading_bytes(self, task: str) -> int:
        return self.needed

    def read(self, task: str, *, planned: bool = False) -> str:
        self.note(f"read {task}", held=1)
        return task

    def segment(self, task: str, ready: str, on_plan: Callable[[Any], None] | None) -> str:
        if on_plan is not None:
            on_plan(SimpleNamespace(ram={"all": self.planned}))
        event = self.waits.get(task)
        with self.changed:
            assert event is None or self.changed.wait_for(lambda: event in self.events, SECONDS)
        self.note(f"segment {task}", held=-1)
        return task

    def write(self, task: str, result: str) -> str:
        self.note(f"write {task}")
        return f"done {task}"


def told(steps: Slow, tasks: str, **options: bool) -> list[str]:
    return [str(result) for _, result in in_turn(steps, tasks, **options)]  # type: ignore[arg-type]


def test_the_next_case_is_read_and_the_last_one_written_beside_the_network() -> None:
    steps = Slow(waits={"a": "read b", "b": "write a", "c": "write b"})
    assert told(steps, "abcd") == ["done a", "done b", "done c", "done d"]
    assert steps.most <= 2
    assert steps.events.index("read d") > steps.events.index("segment b")


def test_without_threads_each_step_waits_for_the_one_before() -> None:
    steps = Slow()
    told(steps, "ab", threads=False)
    assert steps.events == ["read a", "segment a", "write a", "read b", "segment b", "write b"]


def test_under_a_limit_the_next_case_is_read_where_the_plan_has_room_for_it() -> None:
    room = Slow(ram=100, planned=60, needed=40, waits={"a": "read b"})
    assert told(room, "abc") == ["done a", "done b", "done c"]
    none = Slow(ram=100, planned=61, needed=40)
    told(none, "abc")
    assert none.most == 1
    place = none.events.index
    assert place("segment a") < place("read b")
    assert place("write a") < place("segment b")


def test_results_come_in_order_and_a_fault_stays_with_its_case() -> None:
    faults: dict[str, Exception] = {"read b": CaseError("b cut"), "segment c": CaseError("c nan")}
    faults["write d"] = CaseError("d disk")
    steps = Slow(errors=faults)
    assert told(steps, "abcde") == ["done a", "b cut", "c nan", "d disk", "done e"]


def test_threads_or_not_the_files_are_the_same(tmp_path: Path, model: Path) -> None:
    cut = make_cases(tmp_path / "in") / "c1.nii.gz"
    cut.write_bytes(cut.read_bytes()[:-300])
    one = predict(model, tmp_path / "in", tmp_path / "a")
    two = predict(model, tmp_path / "in", tmp_path / "b", single_process=True)
    assert one.done == two.done == ("c0", "c2")
    for name in ("c0.nii.gz", "c2.nii.gz", "manifest.json", "failures.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_record_is_kept_when_the_file_is_in_its_place(tmp_path: Path, model: Path) -> None:
    make_cases(tmp_path / "in")
    seen: list[tuple[str, bool]] = []
    record = cases.Steps.write

    def slow_write(self: cases.Steps, task: cases.Task, result: cases.Result) -> cases.Done:
        seen.append((task.case, task.target.exists()))
        done = record(self, task, result)
        assert dict(done.files) == {task.target: cases.file_digest(task.target)}
        return done

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cases.Steps, "write", slow_write)
        assert predict(model, tmp_path / "in", tmp_path / "out").done == ("c0", "c1", "c2")
    assert seen == [("c0", False), ("c1", False), ("c2", False)]


@pytest.mark.parametrize(
    ("number", "raised", "message"),
    [
        (errno.ENOSPC, NoRoomError, r"c1\.nii\.gz: no space left on its disk"),
        (
            errno.EROFS,
            UsageError,
            r"c1\.nii\.gz: cannot be written \(Read-only file system\); make its folder writable",
        ),
    ],
)
def test_a_place_that_takes_no_more_ends_the_run(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, number: int, raised: type[Exception], message: str
) -> None:
    make_cases(tmp_path / "in")
    with monkeypatch.context() as patched:
        faulty_disk(patched, "c1.nii.gz", number)
        with pytest.raises(raised, match=message):
            predict(model, tmp_path / "in", tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"c0.nii.gz", "manifest.json"}
    assert not {name for name in names if name.startswith((".c", "c1", "c2"))}
    again = predict(model, tmp_path / "in", tmp_path / "out")
    assert (again.skipped, again.done) == (("c0",), ("c1", "c2"))


def test_another_fault_of_the_disk_stops_its_case(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cases(tmp_path / "in")
    faulty_disk(monkeypatch, "c1.nii.gz", errno.EIO)
    outcome = predict(model, tmp_path / "in", tmp_path / "out")
    assert outcome.done == ("c0", "c2")
    assert [(one.case, one.code) for one in outcome.failures] == [("c1", "unwritable")]
    assert "cannot be written (Input/output error); check its disk" in outcome.failures[0].message


def faulty_disk(patch: pytest.MonkeyPatch, name: str, number: int) -> None:
    """Let a fault of the disk come when the file of this name is synced."""
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if f".{name}." in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    patch.setattr(os, "fsync", fsync)


def test_a_label_map_goes_where_its_preview_cannot_be_written(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_cases(tmp_path / "in", 1)
    faulty_disk(monkeypatch, "c0.png", errno.EIO)
    outcome = predict(model, tmp_path / "in", tmp_path / "out", preview=True)
    assert [one.code for one in outcome.failures] == ["unwritable"]
    assert not (tmp_path / "out" / "c0.nii.gz").exists()


def test_a_single_process_starts_nothing(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread, no pool, no child, for volumes in files and for compressed series."""
    make_cases(tmp_path / "in", 2)
    for path in phantoms.mr_series(tmp_path / "in" / "mr", phantoms.ramp((12, 10, 6))):
        dataset = pydicom.dcmread(path)
        dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.save_as(path)
    (tmp_path / "salt").write_text("a salt of ours")
    wanted = predict(model, tmp_path / "in", tmp_path / "a", salt=tmp_path / "salt")

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("something was started")

    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setattr(threading.Thread, "start", refused)
    monkeypatch.setattr(ThreadPoolExecutor, "submit", refused)
    monkeypatch.setattr(subprocess, "Popen", refused)
    monkeypatch.setattr(os, "fork", refused)
    found = predict(model, tmp_path / "in", tmp_path / "b", salt=tmp_path / "salt", single_process=True)
    assert found.done == wanted.done
    assert len(found.done) == 3
    for case in found.done:
        name = f"{case}.nii.gz"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with pytest.raises(UsageError, match="--single-process starts no other process"):
        predict(model, tmp_path / "in", tmp_path / "c", single_process=True, workers=2)


def test_alone_ends_with_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = threads()
    with alone():
        assert (is_alone(), threads()) == (True, 1)
    assert (is_alone(), threads()) == (False, before)
