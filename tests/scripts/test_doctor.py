"""`doctor` and `networks`: what there is."""

from __future__ import annotations

import json

import pytest
from voxelwise.scripts import doctor
from voxelwise.scripts.main import main


def test_doctor_tells_what_works(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "gpus", lambda: [{"name": "a card", "memory_bytes": 16 * 10**9}])
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["transfer_syntaxes"]["RLE Lossless"]["decoders"] == ["pydicom"]
    assert report["cpu"]["cores"] >= 1
    assert report["problems"] == []
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "a card, 16 GB" in text
    assert "JPEG-LS Lossless Image Compression" in text


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


def test_networks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["networks", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"unet", "vnet"} <= rows.keys()
    assert main(["networks"]) == 0
    assert "Milletari" in capsys.readouterr().out
