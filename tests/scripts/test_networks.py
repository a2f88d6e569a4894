"""Networks that are named wrongly on the command line: one line that says what to do, exit code 2, nothing left."""

from __future__ import annotations

from pathlib import Path

import phantoms
import pytest
from voxelwise.scripts.main import main


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantoms.blob_dataset(tmp_path_factory.mktemp("blobs"), cases=3, shape=(12, 12, 8))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--network", "resattunet"], "unknown network 'resattunet'; did you mean 'res_att_unet'?"),
        (["--network", "fcn8s"], "network 'fcn8s' is 2D, not 3D; use --dims 2"),
        (["--network", "vnet", "--option", "kernal=3"], "option of network 'vnet': 'kernal'; did you mean 'kernel'?"),
        (["--option", "encoder=resnet34"], "encoder 'resnet34' is 2D, not 3D; use --dims 2"),
        (["--dims", "2", "--option", "encoder=resnet33"], "unknown encoder 'resnet33'; did you mean 'resnet34'?"),
        (["--network", "res_att_unet", "--option", "depth=35"], "one of [18, 34, 50, 101] layers here, got depth=35"),
        (["--network", "resnet34_unet", "--width", "2"], "leaves a layer without channels; give a larger width"),
        (["--loss", "dise"], "loss: found 'dise', expected: input should be 'dice_ce', 'dice'"),
    ],
)
@pytest.mark.parametrize("verb", ["plan", "train"])
def test_wrong_networks(
    verb: str, words: list[str], message: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if verb == "plan" and "--loss" in words:
        pytest.skip("an option of train alone")
    out = tmp_path / "out"
    steps = ["--steps", "1"] if verb == "train" else []
    assert main([verb, str(dataset), "--out", str(out), *steps, *words]) == 2
    text = capsys.readouterr().err.strip()
    assert message in text
    assert len(text.splitlines()) == 1
    assert not out.exists()
