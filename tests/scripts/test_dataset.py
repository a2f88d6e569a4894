"""`voxelwise dataset` on the command line: options reach the stage, exit codes and JSON are those of all verbs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import phantoms
import pytest
from voxelwise.scripts.main import main


def test_a_data_set_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Channels and classes with commas; 3 where a case was stopped; the next step is told."""
    labels = np.zeros((12, 10, 8), dtype=np.uint8)
    labels[2:5] = 1
    for name in ("a_T1", "a_T2", "b_T1"):
        phantoms.nifti_file(tmp_path / "images" / f"{name}.nii.gz")
    for name in ("a", "b"):
        phantoms.nifti_file(tmp_path / "labels" / f"{name}.nii.gz", labels)
    out = tmp_path / "out"
    words = ["dataset", str(tmp_path / "images"), str(tmp_path / "labels"), str(out)]
    code = main([*words, "--channels", "T1, T2", "--classes", "organ", "--json"])
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert (code, told["exit_code"]) == (3, 3)
    assert told["counts"] == {"in": 3, "done": 1, "skipped": 0, "stopped": 2}
    assert told["facts"]["classes"] == ["organ"]
    assert f"next: voxelwise plan {out}" in captured.err
    described = json.loads((out / "dataset.json").read_text())
    assert described["channel_names"] == {"0": "T1", "1": "T2"}
    assert described["labels"] == {"background": 0, "organ": 1}
    assert main([*words, "--register", "warp"]) == 2
    assert "expected one of rigid, affine" in capsys.readouterr().err
