"""`voxelwise doctor`: what works on this machine and what does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from . import options
from .terminal import document, short, table


def run(as_json: options.AsJson = False, debug: options.Debug = False) -> int:
    """Versions, devices, codecs, memory: what works here and what does not."""
    from ..pipeline.doctor import doctor

    report = doctor()
    if as_json:
        document(report)
    else:
        print(table(("what", "found", "verdict"), rows(report)))
        for problem in report["problems"]:
            print(f"! {problem}")
    return 0


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
    least = report["prediction_bytes"]
    told = "-" if least is None else f"{least / 1e9:.2f} GB and more for each image: the least for --memory"
    yield "prediction", told, "ok" if least else "does not start"
    yield "disk", f"{report['disk_free_bytes'] / 1e9:.1f} GB free here", "ok"
    for name, one in report["transfer_syntaxes"].items():
        yield short(name), ", ".join(one["decoders"]) or "-", "ok" if one["decoders"] else "no codec"
