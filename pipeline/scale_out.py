"""Many independent cases over processes: one worker is the process itself, more are a Dask cluster.

With `workers` the cluster is one of our own on this machine: it listens on the loopback address, shows no dashboard
and sends nothing anywhere. With `scheduler` it is one that is there already, on this machine or behind TLS; its workers
must see the same files under the same paths. At most one case a process is under way, so that memory stays bounded,
unless the caller allows more.

A worker that dies (killed, a codec that crashed) costs the case that it had at hand and no other: what was in flight is
tried again one by one, so that the case can be named.
"""

from __future__ import annotations

import copy
import ipaddress
import logging
import multiprocessing
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from .. import __version__
from ..errors import CaseError, UsageError, VoxelwiseError
from ..transforms.zip_files import temporary_folder

Task = TypeVar("Task")
Result = TypeVar("Result")

SCRATCH = "voxelwise-dask-"  # temporary folders; those of killed runs go when the next one begins
SECONDS_TO_CONNECT = 20.0
SECONDS_BETWEEN_LOOKS = 15.0
LOOKS_WITHOUT_WORKERS = 3  # in a row, and the cluster is given up
QUIET = {
    "distributed.scheduler.allowed-failures": 0,  # we try again ourselves, one case at a time
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.diagnostics.nvml": False,
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    "distributed.comm.retry.count": 0,
    "distributed.admin.system-monitor.interval": "10s",
}


def each(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    workers: int | None = 1,
    *,
    scheduler: str | None = None,
    tls_config: Path | str | None = None,
    total: int | None = None,
    at_once: int = 1,
    preload: str | None = None,
) -> Generator[tuple[Task, Result | Exception], None, None]:
    """Run `function` on every task; yield each task with its result, or the exception that it raised, as they come.

    Args:
        function: of a module (it is sent to other processes by name).
        tasks: one argument each; they may come one by one.
        workers: processes; 1 or None computes here.
        scheduler: address of a Dask cluster, in the place of processes of our own.
        tls_config: YAML file with `ca-file`, `cert` and `key`, for a `tls://` scheduler.
        total: number of tasks, where they are no sequence.
        at_once: tasks that a process of our own has at hand, each in a thread.
        preload: module that a process of our own imports before anything else.

    Raises:
        UsageError: a scheduler that must not or cannot be used.
    """
    check_scheduler(scheduler, tls_config)
    count = total if total is not None else len(tasks) if isinstance(tasks, Sequence) else None
    if scheduler is None and (workers is None or workers <= 1 or (count is not None and count <= 1)):
        for task in tasks:
            yield task, _attempt(function, task)
        return
    waiting, suspects = Waiting(tasks), list[Task]()
    while waiting:
        tried, done = waiting.given, False
        with _cluster(min(workers or 1, count or workers or 1), scheduler, tls_config, at_once, preload) as client:
            for task, result in _spread(client, function, waiting):
                done = True
                if _is_dead(result):
                    suspects.append(task)
                else:
                    yield task, result
            if waiting and not done:  # all processes were gone before one task was: those that were tried are suspect
                suspects += [waiting.take() for _ in range(waiting.given - tried)]
            while suspects and not waiting:
                task = suspects.pop(0)
                ((_, result),) = list(_spread(client, function, Waiting([task]))) or [(task, _died())]
                yield task, _died() if _is_dead(result) else result


def check_scheduler(address: str | None, tls_config: Path | str | None = None) -> None:
    """Refuse a cluster to which cases would travel unprotected.

    Raises:
        UsageError: a plain connection to another machine, TLS without its files, an address that is none.
    """
    if address is None:
        if tls_config is not None:
            raise UsageError("--tls-config is for a cluster; give its address with --scheduler tls://HOST:PORT")
        return
    parts = urlsplit(address)
    if parts.scheme not in ("tcp", "tls") or not parts.hostname or parts.port is None:
        raise UsageError(f"--scheduler {address}: expected tls://HOST:PORT, or tcp://127.0.0.1:PORT on this machine")
    if parts.scheme == "tcp" and not _is_loopback(parts.hostname):
        raise UsageError(
            f"--scheduler {address}: a plain connection to another machine, which anyone on the way could read; use "
            "tls://HOST:PORT with --tls-config, or a scheduler on this machine"
        )
    if parts.scheme == "tls" and tls_config is None:
        raise UsageError(f"--scheduler {address}: TLS needs --tls-config FILE with ca-file, cert and key")
    if tls_config is not None and not Path(tls_config).is_file():
        raise UsageError(f"--tls-config {tls_config}: no such file; give a YAML file with ca-file, cert and key")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _attempt(function: Callable[[Task], Result], task: Task) -> Result | Exception:
    """The result, or an exception that can travel to another process."""
    try:
        return function(task)
    except CaseError as error:
        return CaseError(str(error), error.code)
    except VoxelwiseError as error:
        return error
    except Exception as error:
        try:
            copy.copy(error)  # made anew from its arguments, as after a journey
        except Exception:
            return RuntimeError(type(error).__name__)
        return error


def _spread(
    client: Any, function: Callable[[Task], Result], waiting: Waiting[Task]
) -> Iterator[tuple[Task, Result | Exception]]:
    """Tasks over the processes of a cluster, as many at once as there are processes.

    Ends early where the cluster has lost all its processes for good; what was not done is in `waiting` then.
    """
    from distributed import TimeoutError, wait

    flying: dict[Any, Task] = {}
    looks = 0
    while waiting or flying:
        width = max(1, sum(client.nthreads().values()))  # fewer while a dead process is replaced
        while waiting and len(flying) < width:
            task = waiting.take()
            # as one piece: Dask would take the arguments apart, dataclasses too, and look for its own objects in them
            flying[client.submit(partial(_attempt, function, task), pure=False)] = task
        try:
            with client.as_current():
                ready = wait(list(flying), timeout=SECONDS_BETWEEN_LOOKS, return_when="FIRST_COMPLETED").done
        except TimeoutError:
            if client.status != "running":
                raise UsageError("the Dask scheduler is gone; start it again and give the same command") from None
            looks = 0 if client.nthreads() else looks + 1
            if looks < LOOKS_WITHOUT_WORKERS:
                continue
            if client.cluster is None:
                raise UsageError("the Dask cluster has no workers any more; start some and try again") from None
            waiting.give_back(list(flying.values()))
            return
        looks = 0
        for future in ready:
            task = flying.pop(future)
            yield task, _result(future)
            future.release()


def _result(future: Any) -> Any:
    """What a future holds; the error of Dask itself where the process died or the case could not travel."""
    try:
        return future.result()
    except Exception as error:
        return error


def _is_dead(result: Any) -> bool:
    return type(result).__name__ in ("KilledWorker", "CancelledError", "FutureCancelledError")


def _died() -> CaseError:
    return CaseError(
        "the process that worked on it died (a codec that crashed, or killed for its memory); "
        "try it alone with --workers 1, or leave it out",
        "worker-died",
    )


def own_place() -> tuple[int, int]:
    """The number of this process among those of `each`, from 0, and the threads that Dask gave it; 0 and 1 elsewhere.

    A process that takes the place of a dead one has its number.
    """
    import distributed

    try:
        worker = distributed.get_worker()
    except ValueError:
        return 0, 1
    return (worker.name if isinstance(worker.name, int) else 0), int(worker.state.nthreads)


def _cluster(
    workers: int, scheduler: str | None, tls_config: Path | str | None, at_once: int, preload: str | None
) -> AbstractContextManager[Any]:
    return _own(workers, at_once, preload) if scheduler is None else _connected(scheduler, tls_config)


@contextmanager
def _own(workers: int, at_once: int = 1, preload: str | None = None) -> Iterator[Any]:
    """A cluster of processes on this machine, gone when the block ends."""
    with (
        temporary_folder(SCRATCH) as scratch,
        _quiet(scratch) as distributed,
        ExitStack() as stack,
    ):
        with interrupt_held_back():  # half a cluster cannot be closed
            cluster = distributed.LocalCluster(
                n_workers=workers,
                threads_per_worker=at_once,
                processes=True,
                host="127.0.0.1",
                protocol="tcp://",
                scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
                memory_limit=0,
                preload=[] if preload is None else [preload],
                silence_logs=logging.CRITICAL + 1,
            )
            stack.enter_context(cluster)
        yield stack.enter_context(distributed.Client(cluster, set_as_default=False))


@contextmanager
def interrupt_held_back() -> Iterator[None]:
    """A Ctrl-C that comes in the block counts when the block has ended."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        yield
        return
    came: list[int] = []
    old = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)
        if came:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def _connected(address: str, tls_config: Path | str | None) -> Iterator[Any]:
    """A cluster that is there already."""
    with temporary_folder(SCRATCH) as scratch, _quiet(scratch) as distributed:
        security = None if tls_config is None else distributed.Security(**_tls(Path(tls_config)))
        try:
            client = distributed.Client(address, security=security, timeout=SECONDS_TO_CONNECT, set_as_default=False)
        except OSError as error:
            raise UsageError(f"--scheduler {address}: cannot be reached ({error}); start it, or correct it") from None
        with client:
            if not client.nthreads():
                raise UsageError(f"--scheduler {address}: has no workers; start some")
            _check_versions(client, address)
            yield client


def _check_versions(client: Any, address: str) -> None:
    """Refuse workers that cannot import what they are sent: they would die of it, again and again.

    Raises:
        UsageError: a worker has no voxelwise, or another version.
    """
    try:
        found = set(client.run(metadata.version, "voxelwise").values())
    except metadata.PackageNotFoundError:
        found = {"not installed"}
    if found != {__version__}:
        named = ", ".join(sorted(found))
        raise UsageError(
            f"--scheduler {address}: its workers have voxelwise {named}, this is {__version__}; install the same there"
        )


def _tls(path: Path) -> dict[str, Any]:
    """The arguments of Dask's `Security` from a file of ours."""
    from dask.config import collect_yaml

    try:
        words = next(iter(collect_yaml([str(path)])), None)
    except (ValueError, OSError):
        words = None
    if not isinstance(words, dict) or not {"ca-file", "cert", "key"} <= words.keys():
        raise UsageError(f"--tls-config {path}: expected ca-file, cert and key; see the documentation of Dask on TLS")
    own = {name: str(path.parent / str(words[name])) for name in ("ca-file", "cert", "key")}
    return {
        "tls_ca_file": own["ca-file"],
        "tls_client_cert": own["cert"],
        "tls_client_key": own["key"],
        "require_encryption": True,
    }


@contextmanager
def _quiet(scratch: Path) -> Iterator[Any]:
    """Dask, imported now, set up to say and send nothing while the block lasts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import dask
        import distributed

    # a server that has imported Dask once and forks from there starts in half the time of fresh interpreters
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    own = {"temporary-directory": str(scratch), "distributed.worker.multiprocessing-method": method}
    with dask.config.set({**QUIET, **own}), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield distributed


class Waiting(Generic[Task]):
    """Tasks that are fetched when there is room for them, and some that came back."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self.source = iter(tasks)
        self.back: list[Task] = []
        self.given = 0

    def __bool__(self) -> bool:
        if not self.back:
            self.back += islice(self.source, 1)
        return bool(self.back)

    def take(self) -> Task:
        """The next one."""
        self.given += 1
        return self.back.pop(0) if self.back else next(self.source)

    def give_back(self, tasks: Sequence[Task]) -> None:
        """Tasks that were not done; they come next."""
        self.back[:0] = tasks
