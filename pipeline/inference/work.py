"""Who computes the cases of a run: this process, others on this machine, or a Dask cluster.

Processes of this machine share its cores, its memory and its GPUs: one a GPU first, and where there are more, the
processes of a GPU share its memory. What `--memory` names holds for all of them together with the one that waits.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...errors import NoRoomError, UsageError
from ...transforms.read_options import ReadOptions
from ..devices import resolve_device, resolve_precision
from ..scale_out import check_scheduler
from .budget import Limits, check_gpu_limit, rounded_up
from .cases import Done, Steps, Task
from .engines import check_engine
from .footprint import give_back, resident
from .loading import Model, loaded
from .overlap import in_turn
from .predictor import Predictor
from .reading import check_idle
from .spread import Recipe, spread

CLUSTER_BYTES = 150 * 10**6  # Dask in the process that waits, and the servers that its processes are forked from
WORKER_BYTES = 60 * 10**6  # Dask in each of the others, beside what this process takes
ENGINE_BYTES = 300 * 10**6  # of libraries that other engines than torch load there


@dataclass(frozen=True, eq=False)
class Work:
    """How the cases of a run are computed.

    Args:
        predictor: the model; on the CPU and only to be asked where other processes compute.
        loading: options of `load_predictor` that are the same for every process.
        devices: that processes take in turn.
        workers: processes on this machine.
        limits: of all of them together.
        scheduler: address of a cluster, if it computes.
        tls_config: for it.
        single_process: whether no thread is started either.
    """

    predictor: Predictor
    loading: Mapping[str, Any]
    devices: tuple[str, ...]
    workers: int
    limits: Limits
    scheduler: str | None
    tls_config: Path | str | None
    single_process: bool

    @property
    def elsewhere(self) -> bool:
        """Whether other processes compute."""
        return self.workers > 1 or self.scheduler is not None

    @property
    def facts(self) -> dict[str, Any]:
        """What the manifest says of it, and what may differ from run to run."""
        return {
            "device": ", ".join(self.devices) if self.elsewhere else str(self.predictor.device),
            "engine": {"name": self.loading["engine"]} if self.elsewhere else self.predictor.engine_facts,
            "threads": self.threads,
            "limits": {name: amount for name, amount in asdict(self.limits).items() if amount is not None},
            **({"workers": self.workers if self.scheduler is None else "cluster"} if self.elsewhere else {}),
        }

    @property
    def threads(self) -> int | None:
        """Of one process; None where its Dask decides."""
        return None if self.scheduler is not None else max(1, torch.get_num_threads() // self.workers)

    def shares(self) -> tuple[Limits, int]:
        """What one process may take, and how many share a GPU.

        Raises:
            NoRoomError: a share of RAM is less than a process takes before it reads an image.
        """
        own = WORKER_BYTES + (0 if self.loading.get("engine") == "torch" else ENGINE_BYTES)
        return shares(self.limits, self.workers, self.devices, own)

    def for_cases(self, count: int) -> Work:
        """The same with no more processes than cases.

        Raises:
            NoRoomError: a share of RAM is less than a process takes before it reads an image.
        """
        if count == 0:
            return self
        fewer = replace(self, workers=min(self.workers, count))
        if fewer.elsewhere == self.elsewhere:
            if fewer.workers > 1:
                fewer.shares()
            return fewer
        here = {**self.loading, "precision": self.predictor.precision}
        predictor = loaded(self.predictor.model, device=self.devices[0], limits=self.limits, **here)
        check_idle(self.limits)
        return replace(fewer, predictor=predictor)

    def results(
        self, tasks: Sequence[Task], options: ReadOptions, fill_nan: str | None
    ) -> Generator[tuple[Task, Done | Exception], None, None]:
        """Each case with what came of it, or the error that stopped it."""
        if not tasks or not self.elsewhere:
            return in_turn(Steps(self.predictor, options, fill_nan), tasks, threads=not self.single_process)
        limits, share = self.limits, 1
        if self.scheduler is None:
            limits, share = self.shares()
        recipe = Recipe(
            model=self.predictor.model.folder.absolute(),
            options={**self.loading, "precision": self.predictor.precision},
            devices=self.devices,
            limits=limits,
            workers=self.workers,
            waiting=(self.limits.ram or 0) - (limits.ram or 0) * self.workers,
            share=share,
            threads=self.threads,
            reading=options,
            fill_nan=fill_nan,
        )
        return spread(recipe, tasks, self.workers, scheduler=self.scheduler, tls_config=self.tls_config)


def arrange(
    model: Model,
    *,
    device: str,
    workers: int | None,
    scheduler: str | None,
    tls_config: Path | str | None,
    single_process: bool,
    limits: Limits,
    **loading: Any,
) -> Work:
    """Decide who computes, and load the model: to compute with it, or only to look at it.

    Args:
        model: model folder, or a loaded `Predictor`, which computes in this process.
        device: auto, cpu, cuda:0, or several with commas between.
        workers: processes; one a device when left out.
        scheduler: address of a Dask cluster.
        tls_config: for it.
        single_process: start nothing.
        limits: of all processes.
        loading: further options of `load_predictor`.

    Raises:
        UsageError: options that contradict each other; what `load_predictor` refuses.
        NoRoomError: a limit is less than the process takes before it reads an image.
    """
    check_scheduler(scheduler, tls_config)
    named = model.engine_facts["name"] if isinstance(model, Predictor) else loading.get("engine")
    if single_process and named == "compile":
        raise UsageError("--engine compile starts compilers, --single-process starts nothing; leave one of them out")
    devices: tuple[str, ...]
    if isinstance(model, Predictor):
        if scheduler is not None or (workers or 1) > 1:
            raise UsageError("a loaded Predictor computes in its own process; give its model folder for more")
        devices, count = (str(model.device),), 1
    else:
        devices, count = processes(device, workers, scheduler=scheduler, single_process=single_process)
    if scheduler is None:
        check_gpu_limit(limits, devices)
    if count > 1 or scheduler is not None:
        predictor = looked_at(model, devices[0], **loading)
    else:
        predictor = loaded(model, device=devices[0], limits=limits, **loading)
        check_idle(predictor.limits)
        limits = predictor.limits
    if own := loading.get("network"):  # other processes may stand elsewhere
        path, colon, name = str(own).rpartition(":")
        loading["network"] = f"{Path(path).absolute()}{colon}{name}" if colon else own
    return Work(predictor, loading, devices, count, limits, scheduler, tls_config, single_process)


def processes(
    device: str, workers: int | None, *, scheduler: str | None, single_process: bool
) -> tuple[tuple[str, ...], int]:
    """The devices that processes take in turn, and the number of processes on this machine.

    Raises:
        UsageError: options that contradict each other, an unknown device.
    """
    if single_process and (scheduler is not None or (workers or 1) > 1):
        raise UsageError("--single-process starts no other process; leave --workers and --scheduler out")
    if scheduler is not None:
        if workers is not None:
            raise UsageError("--workers is for this machine, a cluster has its own; leave it or --scheduler out")
        if "," in device:
            raise UsageError(f"--device {device}: each worker of a cluster takes one device; name one, or auto")
        return (device,), 1
    devices = local_devices(device, 1 if single_process else workers)
    return devices, workers or len(devices)


def looked_at(model: Model, device: str, **options: Any) -> Predictor:
    """The model as other processes will load it, for what the process that waits has to know of it.

    It stays on the CPU: a GPU is for those who compute. Its precision is the word that holds for all of them.
    """
    there = torch.device("cpu") if device == "cpu" else resolve_device("auto")
    precision = resolve_precision(str(options.pop("precision")), there)
    check_engine(str(options.pop("engine")))
    predictor = loaded(model, device="cpu", precision="float32", engine="torch", **options)
    return replace(predictor, precision=precision)


def local_devices(device: str, workers: int | None) -> tuple[str, ...]:
    """The devices that the processes of this machine take in turn.

    Args:
        device: auto, cpu, cuda:0, or several with commas between.
        workers: processes that were asked for; None for one a device.

    Raises:
        UsageError: an unknown device, one that is named twice, or several for one process.
    """
    if device == "auto":
        count = torch.cuda.device_count() if torch.cuda.is_available() and workers != 1 else 0
        return tuple(f"cuda:{number}" for number in range(count)) if count > 1 else (str(resolve_device(device)),)
    named = tuple(str(resolve_device(word.strip())) for word in device.split(","))
    if len(set(named)) < len(named):
        raise UsageError(f"--device {device}: names a device twice; name each once, and more processes with --workers")
    if workers is not None and workers < len(named):
        raise UsageError(
            f"--device {device}: each device needs a process, --workers is {workers}; leave --workers out, or name "
            "fewer devices"
        )
    return named


def shares(limits: Limits, workers: int, devices: Sequence[str], own: int = WORKER_BYTES) -> tuple[Limits, int]:
    """What one process may take of the limits of all, and how many share a GPU.

    Args:
        limits: of all.
        workers: processes that compute.
        devices: that they take in turn.
        own: bytes that each of them takes beside what this one takes.

    Raises:
        NoRoomError: a share of RAM is less than a process takes before it reads an image.
    """
    share = -(-workers // len(devices))
    gpu = None if limits.gpu is None else limits.gpu // share
    if limits.ram is None:
        return replace(limits, gpu=gpu), share
    give_back()
    held = resident()  # with the libraries and a network, as each of the others will hold them
    ram = (limits.ram - held - CLUSTER_BYTES) // workers
    if ram < held + own:
        least = held + CLUSTER_BYTES + workers * (held + own)
        raise NoRoomError(
            f"--memory {limits.ram / 1e9:.2f} GB for --workers {workers}: each of {workers} processes takes "
            f"{(held + own) / 1e9:.2f} GB with its libraries and the network, before it reads an image; give at least "
            f"{rounded_up(least)} and room for {workers} images, or fewer workers"
        )
    return Limits(ram, gpu), share
