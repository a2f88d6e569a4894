"""The comparisons of the sources: each file says what to type and what to expect, and each arm can be planned."""

from __future__ import annotations

from pathlib import Path

import phantoms
import pytest
import yaml
from voxelwise.networks.registry import NETWORKS
from voxelwise.pipeline.dataset.fingerprint import Fingerprint, take_fingerprint
from voxelwise.pipeline.dataset.plan import make_plan

FOLDER = Path(__file__).resolve().parents[2] / "scripts" / "experiments"
FILES = [path for path in sorted(FOLDER.glob("*.yaml")) if "arms:" in path.read_text()]


@pytest.fixture(scope="module")
def fingerprint(tmp_path_factory: pytest.TempPathFactory) -> Fingerprint:
    return take_fingerprint(phantoms.blob_dataset(tmp_path_factory.mktemp("blobs"), cases=3, shape=(12, 12, 8)))


def test_they_are_all_there() -> None:
    names = {"vein_ultrasound", "covid_ct", "melanoma", "cells", "fat", "prostate", "brain"}
    assert {path.stem for path in FILES} == names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_says_what_to_type_and_can_be_planned(path: Path, fingerprint: Fingerprint) -> None:
    text = path.read_text()
    command = f"# python scripts/experiments/run_experiment.py scripts/experiments/{path.name} DATASET --out DIR"
    assert text.splitlines()[0] == command
    content = yaml.safe_load(text)
    assert set(content["figures"]) <= set(content["arms"])
    for arm in content["arms"].values():
        fields = {**content["plan"], **{key: value for key, value in arm.items() if key != "multi_otsu"}}
        network, options = fields.pop("network", "unet"), fields.pop("options", {})
        fields["patch"] = [16, 16, 8] if fields["dims"] == 3 else [32, 32, 1]
        made = make_plan(fingerprint, network=network, options=options, **fields)
        assert made.network.name in NETWORKS
        assert made.optimizer.name in ("adam", "sgd")
