"""What works here, as a Python function."""

from __future__ import annotations

import voxelwise
from voxelwise.pipeline import doctor


def test_python_functions() -> None:
    """The memory of an idle prediction is measured in a process of its own."""
    report = voxelwise.doctor()
    assert report["problems"] == []
    assert 2 * 10**8 < report["prediction_bytes"] < 3 * 10**9
    assert {row.name for row in voxelwise.describe_networks()} >= {"unet", "vnet"}


def test_doctor_names_what_is_missing() -> None:
    report = {
        "versions": {**dict.fromkeys((*doctor.LIBRARIES, *doctor.CODECS), "1.0"), "itk": None, "torch": "2.9.1"},
        "transfer_syntaxes": {"RLE Lossless": {"uid": "1.2", "decoders": []}},
        "disk_free_bytes": 5 * 10**6,
    }
    told = list(doctor.problems(report))
    assert told[0] == "not installed: itk; run pip install voxelwise again"
    assert told[1].startswith("torch 2.9.1 can be made to run code by a weights file; install torch 2.10")
    assert told[2].startswith("no codec for: RLE Lossless")
    assert told[3] == "only 5 MB free on the disk of this folder"
    assert doctor.version("no such thing") is None
