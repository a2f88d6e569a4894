"""`voxelwise doctor`: what works on this machine and what does not."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from . import options
from .terminal import document, short, table

LIBRARIES = (
    *("torch", "monai", "lightning", "numpy", "scipy", "nibabel", "pydicom", "SimpleITK", "itk", "blosc2", "isal"),
    *("safetensors", "pydantic", "scikit-image", "scikit-learn", "matplotlib", "pillow", "tensorboard"),
)
CODECS = ("pylibjpeg", "pylibjpeg-openjpeg", "pyjpegls", "python-gdcm")
SAFE_TORCH = (2, 10)  # before it, the restricted reader of torch.load could be got around


def run(as_json: options.AsJson = False, debug: options.Debug = False) -> int:
    """Versions, devices, codecs, memory: what works here and what does not."""
    report = examine()
    if as_json:
        document(report)
    else:
        print(table(("what", "found", "verdict"), rows(report)))
        for problem in report["problems"]:
            print(f"! {problem}")
    return 0


def examine() -> dict[str, Any]:
    """All that `doctor` shows."""
    report = {
        "versions": {name: version(name) for name in ("voxelwise", *LIBRARIES, *CODECS)},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu(),
        "devices": gpus(),
        "memory_bytes": memory(),
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
    import torch

    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [{"name": one.name, "memory_bytes": one.total_memory} for one in found]


def memory() -> dict[str, int]:
    """RAM, and how much of it is free."""
    import psutil

    ram = psutil.virtual_memory()
    return {"total": int(ram.total), "available": int(ram.available)}


def transfer_syntaxes() -> dict[str, dict[str, Any]]:
    """DICOM transfer syntaxes and what decodes their pixels here."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID, AllTransferSyntaxes

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


def rows(report: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The report as a table."""
    yield "system", f"{report['system']}, Python {report['python']}", "ok"
    for name, found in report["versions"].items():
        yield name, found or "-", "ok" if found else "missing"
    cores = report["cpu"]
    features = ", ".join(name for name in ("avx2", "avx512", "bf16", "amx") if cores[name]) or "none of avx2, bf16"
    yield "CPU", f"{cores['cores']} cores; {features}", "ok" if cores["bf16"] else "ok (bf16: no, float32 is used)"
    if not report["devices"]:
        yield "GPU", "none that torch sees", "CPU is used"
    for number, device in enumerate(report["devices"]):
        yield f"cuda:{number}", f"{device['name']}, {device['memory_bytes'] / 1e9:.0f} GB", "ok"
    ram = report["memory_bytes"]
    yield "memory", f"{ram['available'] / 1e9:.1f} of {ram['total'] / 1e9:.1f} GB free", "ok"
    yield "disk", f"{report['disk_free_bytes'] / 1e9:.1f} GB free here", "ok"
    for name, one in report["transfer_syntaxes"].items():
        yield short(name), ", ".join(one["decoders"]) or "-", "ok" if one["decoders"] else "no codec"
