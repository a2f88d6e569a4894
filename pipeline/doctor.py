"""`doctor`: versions, devices, codecs and memory of this machine, and what is wrong with them."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
from pydicom.pixels import get_decoder
from pydicom.uid import UID, AllTransferSyntaxes

from .start import idle_bytes
from .versions import LIBRARIES as DECIDING

LIBRARIES = (
    *DECIDING,
    *("safetensors", "pydantic", "scikit-image", "scikit-learn", "matplotlib", "pillow", "tensorboard"),
)
OPTIONAL = ("openvino", "onnxruntime", "segmentation-models-pytorch")  # voxelwise[openvino], [onnx], [encoders]
CODECS = ("pylibjpeg", "pylibjpeg-openjpeg", "pyjpegls", "python-gdcm")
SAFE_TORCH = (2, 10)  # before it, the restricted reader of torch.load could be got around


def doctor() -> dict[str, Any]:
    """What works on this machine and what does not.

    Returns:
        versions (None: not installed), python, system, cpu, devices, memory_bytes, prediction_bytes (the least for
        `predict --memory`: what its process takes before it reads an image; None: it does not start), disk_free_bytes,
        transfer_syntaxes with their decoders, and problems: one sentence for each thing to see to.
    """
    report = {
        "versions": {name: version(name) for name in ("voxelwise", *LIBRARIES, *CODECS, *OPTIONAL)},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu(),
        "devices": gpus(),
        "memory_bytes": memory(),
        "prediction_bytes": idle_bytes(),
        "disk_free_bytes": shutil.disk_usage(Path.cwd()).free,
        "transfer_syntaxes": transfer_syntaxes(),
    }
    return {**report, "problems": list(problems(report))}


def version(name: str) -> str | None:
    """Installed version of a distribution; None where there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def cpu() -> dict[str, Any]:
    """Cores and the instructions that decide how fast a network runs."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
        cores = len(os.sched_getaffinity(0))
    except (OSError, AttributeError):
        flags, cores = set(), os.cpu_count() or 1
    return {
        "cores": cores,
        "avx2": "avx2" in flags,
        "avx512": "avx512f" in flags,
        "bf16": bool(flags & {"avx512_bf16", "amx_bf16"}),
        "amx": "amx_tile" in flags,
    }


def gpus() -> list[dict[str, Any]]:
    """The CUDA devices that torch sees."""
    if find_spec("torch") is None:
        return []
    torch = importlib.import_module("torch")  # not at the top: what is missing must still be told
    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [{"name": one.name, "memory_bytes": one.total_memory} for one in found]


def memory() -> dict[str, int]:
    """RAM, and how much of it is free."""
    ram = psutil.virtual_memory()
    return {"total": int(ram.total), "available": int(ram.available)}


def transfer_syntaxes() -> dict[str, dict[str, Any]]:
    """DICOM transfer syntaxes and what decodes their pixels here."""
    found: dict[str, dict[str, Any]] = {}
    for syntax in AllTransferSyntaxes:
        uid = UID(syntax)
        if not uid.is_encapsulated:
            found[uid.name] = {"uid": str(uid), "decoders": ["built in"]}
            continue
        try:
            decoder = get_decoder(uid)
        except NotImplementedError:
            continue  # video and others that are no volumes
        found[uid.name] = {"uid": str(uid), "decoders": sorted(decoder.available_plugins)}
    return found


def problems(report: dict[str, Any]) -> Iterator[str]:
    """What a user should see to, one sentence each."""
    missing = [name for name in (*LIBRARIES, *CODECS) if report["versions"][name] is None]
    if missing:
        yield f"not installed: {', '.join(missing)}; run pip install voxelwise again"
    torch_version = report["versions"]["torch"]
    if torch_version and tuple(int(part) for part in torch_version.split(".")[:2]) < SAFE_TORCH:
        yield f"torch {torch_version} can be made to run code by a weights file; install torch 2.10 or later"
    mute = [name for name, one in report["transfer_syntaxes"].items() if not one["decoders"]]
    if mute:
        yield f"no codec for: {', '.join(mute)}; such series are stopped with the package to install"
    if report["disk_free_bytes"] < 10**9:
        yield f"only {report['disk_free_bytes'] / 1e6:.0f} MB free on the disk of this folder"
