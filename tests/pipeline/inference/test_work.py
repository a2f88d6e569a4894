"""Who computes: devices and shares of processes, and the same label maps whoever it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import phantoms
import psutil
import pytest
import torch
from voxelwise.errors import CaseError, NoRoomError, UsageError
from voxelwise.networks.registry import build_network
from voxelwise.pipeline.inference import spread as stage
from voxelwise.pipeline.inference import work
from voxelwise.pipeline.inference.budget import Limits
from voxelwise.pipeline.inference.loading import load_predictor
from voxelwise.pipeline.inference.predict import predict
from voxelwise.pipeline.inference.work import local_devices, processes, shares
from voxelwise.pipeline.model_folder import write_model_folder

OPTIONS: dict[str, Any] = {"widths": [4, 8]}
GB = 10**9


def plan(**changes: Any) -> dict[str, Any]:
    return {
        "dims": 3,
        "channels": ["image"],
        "modality": "MR",
        "spacing_mm": [1.0, 1.0, 2.0],
        "orientation": "RAS",
        "labels": [{"value": 0, "name": "background"}, {"value": 4, "name": "organ"}],
        "crop": "none",
        "bias_field": False,
        "normalisation": [{"kind": "zscore"}],
        "patch": [8, 8, 8],
        "network": {"name": "unet", "options": OPTIONS},
        "mirror_axes": [],
        "overlap": 0.5,
        "tta": False,
        **changes,
    }


def make_model(folder: Path, **changes: Any) -> Path:
    torch.manual_seed(0)
    write_model_folder(folder, build_network("unet", 3, 1, 2, **OPTIONS), OPTIONS, plan(**changes))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four cases, of which c1 is cut off."""
    for number in range(4):
        array = np.random.default_rng(number).integers(0, 400, (12, 10, 8)).astype(np.int16)
        path = phantoms.nifti_file(tmp_path / "in" / f"c{number}.nii.gz", array)
        if number == 1:
            path.write_bytes(path.read_bytes()[:-300])
    return tmp_path / "in"


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def in_process_cluster() -> Any:
    import distributed

    return distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=False,
        host="127.0.0.1",
        protocol="tcp://",
        dashboard_address="127.0.0.1:0",
    )


def same_results(first: Path, second: Path) -> None:
    """All files but the times, and of the manifest all but what may differ from run to run."""
    names = {path.name for path in first.iterdir()} - {"timings.json"}
    assert names == {path.name for path in second.iterdir()} - {"timings.json"}
    for name in sorted(names - {"manifest.json"}):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    one, two = (json.loads((out / "manifest.json").read_text()) for out in (first, second))
    for each in (one, two):
        del each["facts"]
    assert one == two


def test_a_cluster_gives_what_one_process_gives(tmp_path: Path, model: Path, images: Path) -> None:
    alone = predict(model, images, tmp_path / "alone")
    with in_process_cluster() as cluster:
        outcome = predict(model, images, tmp_path / "cluster", scheduler=cluster.scheduler_address)
    assert outcome.done == alone.done == ("c0", "c2", "c3")
    assert [one.code for one in outcome.failures] == [one.code for one in alone.failures]
    same_results(tmp_path / "alone", tmp_path / "cluster")
    facts = json.loads((tmp_path / "cluster" / "manifest.json").read_text())["facts"]
    assert (facts["workers"], facts["device"], facts["threads"]) == ("cluster", "auto", None)


def test_a_dead_process_is_told_with_its_case(
    tmp_path: Path, model: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def each(function: Any, tasks: Any, workers: int, **_: Any) -> Iterator[tuple[Any, Any]]:
        for task in tasks:
            died = CaseError("the process that worked on it died", "worker-died")
            yield task, died if task.task.case == "c2" else function(task) if task.task.case != "c1" else died

    monkeypatch.setattr(stage, "each", each)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    outcome = predict(model, images, tmp_path / "out", workers=3)
    assert outcome.done == ("c0", "c3")
    message = {one.case: one.message for one in outcome.failures}["c2"]
    assert message == "c2.nii.gz: the process that worked on it died"


def test_what_is_left_of_one_case_needs_no_other_process(
    tmp_path: Path, model: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (images / "c1.nii.gz").unlink()
    predict(model, images, tmp_path / "out")
    (tmp_path / "out" / "c3.nii.gz").unlink()
    monkeypatch.setattr(stage, "each", None)
    outcome = predict(model, images, tmp_path / "out", workers=2)
    assert (outcome.done, outcome.skipped) == (("c3",), ("c0", "c2"))
    assert predict(model, images, tmp_path / "out", workers=2).skipped == ("c0", "c2", "c3")


def test_words_that_contradict_each_other(tmp_path: Path, model: Path, images: Path) -> None:
    with pytest.raises(UsageError, match=r"a loaded Predictor computes in its own process"):
        predict(load_predictor(model), images, tmp_path / "out", workers=2)
    for options, message in (
        ({"workers": 2, "scheduler": "tcp://127.0.0.1:1"}, "--workers is for this machine, a cluster has its own"),
        ({"scheduler": "tcp://10.0.0.1:1"}, "a plain connection to another machine"),
        ({"tls_config": "x.yaml"}, "--tls-config is for a cluster"),
        ({"single_process": True, "scheduler": "tcp://127.0.0.1:1"}, "--single-process starts no other process"),
        ({"single_process": True, "engine": "compile"}, "--engine compile starts compilers, --single-process starts"),
        ({"device": "cpu,cpu"}, "names a device twice"),
        ({"device": "cuda:0,cuda:1", "scheduler": "tcp://127.0.0.1:1"}, "each worker of a cluster takes one device"),
    ):
        with pytest.raises(UsageError, match=message):
            predict(model, images, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("two_gpus")
def test_gpus_get_one_process_each() -> None:
    assert local_devices("auto", None) == ("cuda:0", "cuda:1")
    assert local_devices("auto", 4) == ("cuda:0", "cuda:1")
    assert local_devices("auto", 1) == ("cuda:0",)
    assert local_devices("cuda:1", None) == ("cuda:1",)
    assert local_devices("cuda:0, cuda:1", None) == ("cuda:0", "cuda:1")
    options: dict[str, Any] = {"scheduler": None, "single_process": False}
    assert processes("auto", None, **options) == (("cuda:0", "cuda:1"), 2)
    assert processes("auto", 4, **options) == (("cuda:0", "cuda:1"), 4)
    assert processes("cpu", None, **options) == (("cpu",), 1)
    assert processes("auto", None, scheduler=None, single_process=True) == (("cuda:0",), 1)
    with pytest.raises(UsageError, match="each device needs a process, --workers is 1"):
        local_devices("cuda:0,cuda:1", 1)
    with pytest.raises(UsageError, match="this machine has 2 CUDA devices"):
        local_devices("cuda:0,cuda:2", None)


def test_without_a_gpu_auto_is_one_process() -> None:
    if not torch.cuda.is_available():
        assert processes("auto", None, scheduler=None, single_process=False) == (("cpu",), 1)


def test_shares_of_memory_add_up_to_what_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "resident", lambda: 500 * 10**6)
    limits, on_one = shares(Limits(8 * GB, 12 * GB), 4, ("cuda:0", "cuda:1"))
    assert limits.ram is not None
    assert 4 * limits.ram + 500 * 10**6 + work.CLUSTER_BYTES <= 8 * GB
    assert limits.ram > 1.8 * GB
    assert (limits.gpu, on_one) == (6 * GB, 2)
    assert shares(Limits(), 2, ("cpu",)) == (Limits(), 2)
    with pytest.raises(NoRoomError, match=r"each of 4 processes takes 0\.56 GB .* give at least 2\.9GB"):
        shares(Limits(2 * GB), 4, ("cpu",))


def test_a_gpu_that_is_shared_is_shared_fairly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70 * GB, 80 * GB))
    gpu, cpu = torch.device("cuda:0"), torch.device("cpu")
    shared = stage._gpu_shared
    assert shared(Limits(), 2, gpu) == Limits(gpu=40 * GB)
    assert shared(Limits(), 1, gpu) == Limits()
    assert shared(Limits(gpu=GB), 2, gpu) == Limits(gpu=GB)
    assert shared(Limits(), 2, cpu) == Limits()


@pytest.mark.parametrize("ram", [None, GB])
def test_a_process_has_its_network_for_one_case_at_a_time(monkeypatch: pytest.MonkeyPatch, ram: int | None) -> None:
    """Threads of one process, as a cluster may give it: two images at most, and one under a limit."""
    lock, counts, most = threading.Lock(), {"held": 0, "network": 0}, {"held": 0, "network": 0}

    def change(name: str, by: int) -> None:
        with lock:
            counts[name] += by
            most[name] = max(most[name], counts[name])

    class Steps:
        def read(self, task: str) -> str:
            change("held", 1)
            time.sleep(0.01)
            return task

        def segment(self, task: str, ready: str) -> str:
            change("network", 1)
            time.sleep(0.01)
            change("network", -1)
            change("held", -1)
            return task

        def write(self, task: str, result: str) -> str:
            return result

    monkeypatch.setattr(stage, "_steps", lambda recipe: Steps())
    errand: Any = SimpleNamespace(recipe=SimpleNamespace(limits=Limits(ram)), task="a")
    threads = [threading.Thread(target=stage.do_case, args=(errand,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == {"held": 1 if ram else 2, "network": 1}
    assert counts == {"held": 0, "network": 0}


def test_the_model_is_loaded_once_a_process(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []

    def load(folder: Path, **options: Any) -> Any:
        loads.append(options["device"])
        return SimpleNamespace(limits=options["limits"])

    monkeypatch.setattr(stage, "load_predictor", load)
    monkeypatch.setattr(stage, "own_place", lambda: (3, 1))
    monkeypatch.setattr(stage, "_loaded", {})
    recipe = stage.Recipe(model, {"tta": False}, devices=("cpu", "cpu:1"))
    monkeypatch.setattr(stage, "resolve_device", torch.device)
    assert stage._steps(recipe) is stage._steps(recipe)
    stage._steps(stage.Recipe(model, {"tta": True}, devices=("cpu", "cpu:1")))
    assert loads == ["cpu:1", "cpu:1"]  # number 3 of two devices in turn


KILLER = """
import os
from voxelwise.networks.unet import UNet
class Killer(UNet):
    def forward(self, image):
        if not image.is_meta and bool((image == 1).all()):
            os.kill(os.getpid(), 9)
        return super().forward(image)
"""


@pytest.mark.slow
def test_two_processes_give_what_one_gives_and_a_dead_one_costs_its_case(tmp_path: Path, images: Path) -> None:
    code = tmp_path / "net.py"
    code.write_text(KILLER)
    name = f"{code}:Killer"
    bright = {"kind": "rescale", "low": 0, "high": 400}  # which is 1 behind it
    fields = plan(network={"name": name, "options": OPTIONS}, normalisation=[bright], spacing_mm=None)
    network = build_network(name, 3, 1, 2, **OPTIONS)
    folder = write_model_folder(tmp_path / "model", network, OPTIONS, fields, name=name).folder
    alone = predict(folder, images, tmp_path / "alone", network=name, engine="torch")
    outcome = predict(folder, images, tmp_path / "two", network=name, engine="torch", workers=2)
    assert outcome.done == alone.done == ("c0", "c2", "c3")
    same_results(tmp_path / "alone", tmp_path / "two")
    phantoms.nifti_file(images / "flat.nii.gz", np.full((12, 10, 8), 400, np.int16))
    outcome = predict(folder, images, tmp_path / "dead", network=name, engine="torch", workers=2)
    assert outcome.done == ("c0", "c2", "c3")
    assert {one.case: one.code for one in outcome.failures}["flat"] == "worker-died"
    facts = json.loads((tmp_path / "two" / "manifest.json").read_text())["facts"]
    assert facts["engine"] == {"name": "torch", "version": torch.__version__, "precision": facts["engine"]["precision"]}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_limit_holds_for_all_processes_and_a_killed_run_goes_on(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", patch=[32, 32, 32], overlap=0.25)
    for number in range(6):
        array = np.random.default_rng(number).integers(0, 400, (150, 150, 60)).astype(np.int16)
        phantoms.nifti_file(tmp_path / "in" / f"c{number}.nii.gz", array)
    words = [sys.executable, "-m", "voxelwise.scripts.main", "predict", str(model), str(tmp_path / "in")]
    words += [str(tmp_path / "out"), "--device", "cpu", "--engine", "torch", "--workers", "2", "--memory"]
    refused = subprocess.run([*words, "1GB"], capture_output=True, text=True, check=False)
    assert refused.returncode == 6, refused.stderr
    assert not (tmp_path / "out").exists()
    amount = round((float(refused.stderr.split("give at least ")[1].split("GB")[0]) + 0.3) * GB)
    first = subprocess.Popen([*words, str(amount)], stderr=subprocess.DEVNULL)
    while first.poll() is None and len(list((tmp_path / "out").glob("c*.nii.gz"))) < 2:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    peak = 0
    with subprocess.Popen([*words, str(amount)], stderr=subprocess.DEVNULL) as second:
        while second.poll() is None:
            with suppress(psutil.Error):
                tree = [psutil.Process(second.pid), *psutil.Process(second.pid).children(recursive=True)]
                peak = max(peak, sum(one.memory_info().rss for one in tree))
            time.sleep(0.01)
    assert second.returncode == 0
    assert 0 < peak <= amount
    timings = json.loads((tmp_path / "out" / "timings.json").read_text())
    assert 0 < len(timings["cases"]) < 6
    predict(model, tmp_path / "in", tmp_path / "alone", device="cpu", engine="torch")
    for number in range(6):  # another plan adds up in another order, and an untrained network's classes are near ties
        one, two = (np.asanyarray(nib.load(tmp_path / out / f"c{number}.nii.gz").dataobj) for out in ("alone", "out"))
        assert (one == two).mean() >= 0.9999
