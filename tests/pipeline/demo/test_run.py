"""The demo from nothing to its report: in miniature always, at full size and to its promises when slow tests run."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from voxelwise.errors import UsageError
from voxelwise.pipeline.demo.run import demo
from voxelwise.transforms.readers import read_volume

TINY = {"training": {"steps": 2, "width": 4}, "archive": {"subjects": 3, "new": 1, "shape": (32, 28, 8)}}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    outcome = demo(out=folder, **TINY)
    assert outcome.exit_code == 0
    assert len(outcome.done) == 1
    assert any(line.startswith("voxelwise train YOUR_DATASET") for line in outcome.facts["next_steps"])
    return folder


def test_everything_is_there(out: Path) -> None:
    for name in ("report.html", "scores.csv", "volumes.csv", "index.csv", "manifest.json", "run/model.yaml"):
        assert (out / name).stat().st_size > 0, name
    (case,) = [path.name.removesuffix(".nii.gz") for path in (out / "rules").iterdir()]
    with (out / "scores.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["case"], row["method"], row["name"]) for row in rows] == [
        (case, "network", "SAT"),
        (case, "network", "VAT"),
        (case, "rules", "SAT"),
        (case, "rules", "VAT"),
    ]
    assert float(rows[2]["dice"]) > 0.5
    assert (out / "overlays" / f"{case}.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "report.html").read_text().count("data:image/png;base64,") == 1
    assert sorted(np.unique(read_volume(out / "references" / f"{case}.nii.gz").array)) == [0, 1, 2]


def test_results_name_nobody(out: Path) -> None:
    """Names and ids of the studies stay in the archive."""
    written = [path for path in out.rglob("*") if path.is_file() and out / "archive" not in path.parents]
    for path in written:
        data = path.read_bytes()
        assert b"Demo^" not in data, path
        assert b"DEMO-" not in data, path


def test_same_call_finishes_what_is_left(out: Path) -> None:
    (out / "report.html").unlink()
    before = (out / "scores.csv").read_bytes()
    outcome = demo(out=out, **TINY)
    assert outcome.exit_code == 0
    assert (out / "report.html").exists()
    assert (out / "scores.csv").read_bytes() == before
    with pytest.raises(UsageError, match=r"other settings \(seed: 0 -> 1\)"):
        demo(out=out, seed=1, **TINY)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_promises(seed: int, tmp_path: Path) -> None:
    """Unseen subjects: mean Dice of 0.90 for both kinds of fat, better than the rules where the ring has gaps."""
    told = demo(out=tmp_path, seed=seed).facts["figures"]
    network, rules = told["network"], told["rules"]
    for name in ("SAT", "VAT"):
        assert network["dice_all"][name] >= 0.90
        assert network["dice_gaps"][name] > rules["dice_gaps"][name]
        assert rules["dice_closed"][name] >= 0.95
        assert network["median_volume_error_percent"][name] <= 5.0
