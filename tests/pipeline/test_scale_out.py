"""Cases over processes: every case comes back, with its result or with what went wrong."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tasks import mortal
from voxelwise.errors import CaseError, UsageError
from voxelwise.pipeline.scale_out import SCRATCH, check_scheduler, each, interrupt_held_back


class OddError(CaseError):
    """An exception that cannot be made again from its arguments."""

    def __init__(self, message: str, code: str, series: str) -> None:
        super().__init__(message, code)
        self.series = series


def odd(number: int) -> int:
    """Fail in a way that does not travel by itself."""
    raise OddError(f"{number} is odd", "odd", "series")


@pytest.mark.parametrize("workers", [None, 1])
def test_results_and_errors_come_back(workers: int | None) -> None:
    results = dict(each(int, ["1", "x", "3"], workers))
    assert (results["1"], results["3"]) == (1, 3)
    assert isinstance(results["x"], ValueError)


def test_an_error_keeps_its_message_and_code_on_the_way() -> None:
    ((_, error),) = each(odd, [3])
    assert (type(error), str(error), getattr(error, "code", "")) == (CaseError, "3 is odd", "odd")


def test_a_worker_that_dies_costs_its_own_case_alone() -> None:
    results = dict(each(os._exit, [3, "no number"], workers=2))
    assert isinstance(results["no number"], TypeError)
    assert isinstance(results[3], CaseError)
    assert results[3].code == "worker-died"
    assert "the process that worked on it died" in str(results[3])


def test_a_cluster_that_is_there_already() -> None:
    import dask
    import distributed

    with (
        dask.config.set({"distributed.worker.memory.terminate": False}),
        distributed.LocalCluster(
            n_workers=1, processes=False, host="127.0.0.1", protocol="tcp://", dashboard_address="127.0.0.1:0"
        ) as cluster,
    ):
        results = dict(each(int, ["1", "x"], scheduler=cluster.scheduler_address))
    assert results["1"] == 1
    assert isinstance(results["x"], ValueError)


@pytest.mark.parametrize(
    ("address", "tls", "message"),
    [
        ("10.1.2.3:8786", None, "expected tls://HOST:PORT"),
        ("http://127.0.0.1:8786", None, "expected tls://HOST:PORT"),
        ("tcp://10.1.2.3:8786", None, "a plain connection to another machine"),
        ("tcp://hospital.example:8786", None, "a plain connection to another machine"),
        ("tls://10.1.2.3:8786", None, "TLS needs --tls-config FILE"),
        ("tls://10.1.2.3:8786", "nowhere.yaml", "no such file"),
        (None, "tls.yaml", "--tls-config is for a cluster"),
    ],
)
def test_a_cluster_that_must_not_be_used(address: str | None, tls: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_scheduler(address, tls)
    check_scheduler("tcp://127.0.0.1:8786")
    check_scheduler("tcp://[::1]:8786")


def test_a_file_of_certificates_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "tls.yaml").write_text("ca-file: ca.pem\n")
    with pytest.raises(UsageError, match="expected ca-file, cert and key"):
        list(each(int, ["1"], scheduler="tls://10.1.2.3:8786", tls_config=tmp_path / "tls.yaml"))


def test_an_interrupt_waits_for_the_end_of_the_block() -> None:
    steps = []

    def interrupted() -> None:
        with interrupt_held_back():
            signal.raise_signal(signal.SIGINT)
            steps.append("after")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert steps == ["after"]
    with interrupt_held_back():
        pass


def test_the_scratch_of_a_killed_run_goes_when_the_next_one_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / f"{SCRATCH}killed"
    (left / "files").mkdir(parents=True)
    (left / "lock").touch()
    assert sorted(result for _, result in each(int, ["1", "2"], 2)) == [1, 2]
    assert not list(tmp_path.glob("voxelwise-*"))


def test_nothing_of_dask_for_one_worker() -> None:
    code = (
        "import sys; from voxelwise.pipeline.scale_out import each; list(each(int, ['1', '2'], 1)); "
        "print(sorted({'dask', 'distributed', 'tornado'} & sys.modules.keys()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_cluster_without_our_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import distributed

    monkeypatch.setattr("voxelwise.pipeline.scale_out.__version__", "0.0.1")
    with (
        distributed.LocalCluster(
            n_workers=1, processes=False, host="127.0.0.1", protocol="tcp://", dashboard_address="127.0.0.1:0"
        ) as cluster,
        pytest.raises(UsageError, match=r"its workers have voxelwise .*, this is 0.0.1"),
    ):
        list(each(int, ["1"], scheduler=cluster.scheduler_address))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_are_killed_now_and_then(tmp_path: Path) -> None:
    """Seeded SIGKILLs: what was at hand is tried once more, and every other case is done."""
    rng = random.Random(4)
    tasks = [(tmp_path, number, 0.3) for number in range(40)]
    killed = 0
    results = {}
    for task, result in each(mortal, tasks, workers=2):
        results[task[1]] = result
        if rng.random() < 0.25 and killed < 10:
            alive = {int(path.name.split("-")[1]) for path in tmp_path.iterdir()}
            for pid in sorted(alive, reverse=True):
                if Path(f"/proc/{pid}").exists() and pid != os.getpid():
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
                    break
    assert killed > 0
    assert results == {number: number for number in range(40)}
    dead = dict(each(os._exit, [3, 4], workers=2))
    assert {getattr(error, "code", None) for error in dead.values()} == {"worker-died"}
