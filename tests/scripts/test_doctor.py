"""`doctor` and `networks`: what there is."""

from __future__ import annotations

import json

import pytest
from voxelwise.pipeline import doctor
from voxelwise.scripts.main import main


def test_doctor_tells_what_works(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "gpus", lambda: [{"name": "a card", "memory_bytes": 16 * 10**9}])
    monkeypatch.setattr(doctor, "idle_bytes", lambda: 774 * 10**6)
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["transfer_syntaxes"]["RLE Lossless"]["decoders"] == ["pydicom"]
    assert report["cpu"]["cores"] >= 1
    assert report["problems"] == []
    assert report["prediction_bytes"] == 774 * 10**6
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "a card, 16 GB" in text
    assert "0.77 GB and more for each image: the least for --memory" in text
    assert "JPEG-LS Lossless Image Compression" in text


def test_networks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["networks", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"unet", "vnet"} <= rows.keys()
    fcn = rows["fcn8s"]
    assert (fcn["parameters"], fcn["counted"], fcn["kind"]) == ([134_362_751], [3, 21], "segmentation")
    assert "S4" in fcn["sources"]
    assert rows["jule3d"]["kind"] == "features"
    assert main(["networks"]) == 0
    text = capsys.readouterr().out
    assert "Milletari" in text
    assert "134,362,751 (2D)" in text
    assert "S4: FCN-8s for subcutaneous fat" in text
