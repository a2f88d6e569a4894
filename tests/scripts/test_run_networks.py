"""The run over all networks: what it narrows, what it measures, when it fails."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import phantoms
import pytest
from voxelwise.networks.registry import NETWORKS

FILE = Path(__file__).resolve().parents[2] / "scripts" / "experiments" / "run_networks.py"
FOUND = {
    "name": "unet",
    "dims": 3,
    "options": {"widths": [8, 16], "blocks": "plain"},
    "parameters": 1234,
    "of_the_paper": 5678,
    "learning_rate": 0.003,
    "before": 1.5,
    "after": 1.25,
    "seconds": 0.5,
    "megabytes": 900,
}


@pytest.fixture(scope="module")
def runs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_networks", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_network_gets_a_small_width(runs: ModuleType) -> None:
    widths = {name: runs.width_and_others(runs.narrow(name, 8))[0].split(", ") for name in NETWORKS}
    assert {name: width[0] for name, width in widths.items() if width[0] != "8"} == {
        "unet3d2016": "4",
        "mscnn": "4",
        "swin_unetr": "12",
    }
    assert widths["unet"] == ["8", "16", "32", "64", "80"]


def test_one_network_is_trained_and_measured(runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "PATCH", {3: [8, 8, 8]})
    runs.prepare(tmp_path, 3, phantoms.blob_dataset(tmp_path / "blobs", cases=3, shape=(12, 10, 8)))
    found = runs.run_one(tmp_path, "highresnet", 3, 4, 5)
    assert found["options"] == {"width": 4}
    assert found["parameters"] < found["of_the_paper"]
    assert 0 < found["after"] < found["before"]
    assert found["seconds"] > 0


def test_a_row_states_the_width(runs: ModuleType) -> None:
    row = "| `unet` | 3 | 8, 16 | blocks plain | 1,234 | 5,678 | 0.003 | 1.500 | 1.250 | 0.50 | 900 |"
    assert runs.line(FOUND) == row
    assert runs.line({"name": "unet", "dims": 3, "error": "a | b"}).count("|") == row.count("|")


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [({}, 0, ""), ({"after": 1.5}, 1, "unet 3D: its loss did not go down"), ({"error": "no room"}, 1, "no room")],
)
def test_it_fails_where_a_loss_does_not_go_down(
    change: dict[str, Any],
    code: int,
    said: str,
    runs: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(runs, "prepare", lambda *_: None)
    monkeypatch.setattr(runs, "result_of", lambda *_: {**FOUND, **change})
    assert runs.main([str(tmp_path), "--volumes", str(tmp_path), "--networks", "unet"]) == code
    assert said in capsys.readouterr().err
    assert "`unet`" in (tmp_path / "table.md").read_text()
