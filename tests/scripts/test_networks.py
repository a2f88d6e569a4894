"""The list of networks; and those named wrongly: one line that says what to do, exit code 2, nothing left."""

from __future__ import annotations

import json
from pathlib import Path

import phantoms
import pytest
from voxelwise.networks import registry
from voxelwise.networks.registry import NetworkRow
from voxelwise.scripts.main import main

ROWS = [
    NetworkRow("vnet", (3, 2), (65_183_258, 13_276_890), (1, 2), "Milletari et al.", "S1", "segmentation"),
    NetworkRow("csae", (2, 3), (382_753, 1_926_853), (1,), "Kallenberg et al.", "", "features"),
]


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[NetworkRow]:
    """Two of them; test_registry.py counts them all."""
    monkeypatch.setattr(registry, "describe_networks", lambda: ROWS)
    return ROWS


@pytest.mark.usefixtures("rows")
def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["networks"]) == 0
    text = capsys.readouterr().out
    vnet, csae = (next(line for line in text.splitlines() if line.startswith(row.name)) for row in ROWS)
    for word in ("65,183,258 (3D), 13,276,890 (2D)", "1 to 2", "S1", "Milletari et al."):
        assert word in vnet
    for word in ("features", "382,753 (2D), 1,926,853 (3D)", "Kallenberg et al."):
        assert word in csae
    assert all(f"{source}: " in text for source in registry.SOURCES)


def test_json(rows: list[NetworkRow], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["networks", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found] == [row.name for row in rows]
    assert found[0] == {
        "name": "vnet",
        "dims": [3, 2],
        "parameters": [65_183_258, 13_276_890],
        "counted": [1, 2],
        "paper": "Milletari et al.",
        "sources": "S1",
        "kind": "segmentation",
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantoms.blob_dataset(tmp_path_factory.mktemp("blobs"), cases=3, shape=(12, 12, 8))


WRONG = [
    (["--network", "resattunet"], "unknown network 'resattunet'; did you mean 'res_att_unet'"),
    (["--network", "fcn8s"], "network 'fcn8s' is 2D, not 3D; use --dims 2"),
    (["--network", "vnet", "--option", "kernal=3"], "option of network 'vnet': 'kernal'; did you mean 'kernel'?"),
    (
        ["--network", "vnet", "--option", "width=wide"],
        "width of network 'vnet': found 'wide', expected: input should",
    ),
    (["--network", "cen", "--option", "width=-1"], "network 'cen' cannot be built with {'width': -1}"),
    (["--option", "encoder=resnet34"], "encoder 'resnet34' is 2D, not 3D; use --dims 2"),
    (["--dims", "2", "--option", "encoder=resnet33"], "unknown encoder 'resnet33'; did you mean 'resnet34'"),
    (["--network", "res_att_unet", "--option", "depth=35"], "one of [18, 34, 50, 101] layers here, got depth=35"),
    (["--network", "resnet34_unet", "--width", "2"], "leaves a layer without channels; give a larger width"),
]
LOSS = (["--loss", "dise"], "loss: found 'dise', expected: input should be 'dice_ce', 'dice'")


@pytest.mark.parametrize(
    ("verb", "words", "message"), [*(("plan", *one) for one in WRONG), *(("train", *one) for one in [*WRONG, LOSS])]
)
def test_wrong_networks(
    verb: str, words: list[str], message: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    steps = ["--steps", "1"] if verb == "train" else []
    assert main([verb, str(dataset), "--out", str(out), *steps, *words]) == 2
    text = capsys.readouterr().err.strip()
    assert message in text
    assert len(text.splitlines()) == 1
    assert not out.exists()
