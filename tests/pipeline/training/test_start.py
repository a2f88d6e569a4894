"""Weights to start from: taken and recorded, refused where they are of another network, of another hash or unsafe."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from voxelwise import read_model_folder, train
from voxelwise.errors import UnsafeInputError, UsageError
from voxelwise.networks.base import SliceNetwork
from voxelwise.networks.fcrn import FCNVGG16
from voxelwise.networks.vgg import VGG16
from voxelwise.networks.vnet import VNet
from voxelwise.pipeline.dataset.plan import plan_from, read_plan
from voxelwise.pipeline.dataset.plan_parts import Start
from voxelwise.pipeline.identity import file_digest
from voxelwise.pipeline.training import start as starting
from voxelwise.pipeline.training.fit import network_of
from voxelwise.scripts.main import main


@pytest.fixture
def weights(plan, tmp_path) -> Path:
    """Of the plan's network, but for other classes."""
    torch.manual_seed(5)
    values = {key: value.contiguous() for key, value in network_of(read_plan(plan)).state_dict().items()}
    values["head.weight"] = torch.zeros(7, *values["head.weight"].shape[1:])
    save_file(values, tmp_path / "before.safetensors")
    return tmp_path / "before.safetensors"


def test_a_run_starts_from_them_and_says_so(dataset, plan, weights, tmp_path, caplog) -> None:
    run, options = tmp_path / "run", {"weights": weights}
    with caplog.at_level("INFO"):
        train(dataset, out=run, plan=plan, steps=1, lr=1e-9, options=options, device="cpu")
    record = json.loads((run / "fold_0" / "start.json").read_text())
    assert record["dropped"] == {"head.weight": "it has the shape (7, 4, 1, 1, 1), the network's (3, 4, 1, 1, 1)"}
    assert record["new"] == ["head.weight"]
    assert record["sha256"] == file_digest(weights)
    assert "started from before.safetensors: taken: " in caplog.text
    assert "new head.weight" in caplog.text
    model = read_model_folder(run)
    assert model.provenance["start"] == {"weights": "before.safetensors", "sha256": file_digest(weights)}
    assert model.plan["network"]["start"]["sha256"] == file_digest(weights)
    assert str(tmp_path) not in (run / "model.yaml").read_text()
    assert read_plan(run / "plan.yaml").network.start.weights == str(weights)
    again = train(dataset, out=run, plan=plan, steps=1, lr=1e-9, options=options, device="cpu")
    assert again.skipped
    weights.unlink()  # a run that has its checkpoint does not need it
    assert train(dataset, out=run, steps=1, lr=1e-9, device="cpu").skipped


def test_another_file_under_the_same_name_is_refused(dataset, plan, weights, tmp_path) -> None:
    options = {"weights": str(weights)}
    pinned = starting.with_start_pinned(plan_from({**read_plan(plan).model_dump(), "network": named(plan, options)}))
    save_file({"head.weight": torch.zeros(1)}, weights)
    with pytest.raises(UnsafeInputError, match=r"before.safetensors: SHA-256 is .* the plan says"):
        train(dataset, out=tmp_path / "run", plan=pinned, steps=1, device="cpu")


def named(plan: Path, options: dict[str, str]) -> dict[str, object]:
    network = read_plan(plan).network
    return {"name": network.name, "options": {**network.options, **options}}


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("other.safetensors", 2, "nothing in it fits UNet; it holds fc.weight"),
        ("vnet.safetensors", 2, "nothing in it fits UNet; it holds "),
        ("missing.safetensors", 2, "there is no such file; give a file, or weights=imagenet"),
        ("net.caffemodel", 2, "weights are read from .safetensors"),
        ("unsafe.pt", 5, "unsafe.pt holds more than tensors, or none; it was not read"),
        ("imagenet", 2, "UNet has no trunk that ImageNet weights are known for"),
    ],
)
def test_wrong_weights_are_one_line_before_anything_is_read(
    name: str, code: int, message: str, dataset, plan, tmp_path, capsys
) -> None:
    save_file({"fc.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    save_file(VNet(3, 1, 3, width=2).state_dict(), tmp_path / "vnet.safetensors")  # its last bias would fit
    torch.save(torch.nn.Linear(1, 1), tmp_path / "unsafe.pt")
    (tmp_path / "net.caffemodel").write_bytes(b"0")
    given = name if name == "imagenet" else str(tmp_path / name)
    run = tmp_path / "run"
    words = ["train", str(dataset), "--out", str(run), "--plan", str(plan), "--steps", "1", "--option"]
    assert main([*words, f"weights={given}"]) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    assert len(lines) == 1
    assert not run.exists()


def asking(**start: str) -> Any:
    """As much of a plan as says where a network starts."""
    return SimpleNamespace(network=SimpleNamespace(start=Start(**start)))


def test_weights_of_a_library_start_the_network_inside_a_slice_network(tmp_path, monkeypatch) -> None:
    weights = VGG16(3, width=1).state_dict()
    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", lambda *args, **options: weights)
    network = FCNVGG16(2, 3, 2, width=1)
    starting.start_network(SliceNetwork(network), asking(weights="imagenet"), tmp_path)
    assert torch.equal(network.trunk.features[0].weight, weights["features.0.weight"])
    record = json.loads((tmp_path / "start.json").read_text())
    assert record["weights"] == "imagenet (vgg16 of torchvision)"
    assert (len(record["taken"]), record["dropped"]) == (26, {})
    assert starting.read_start(tmp_path)["start"]["sha256"] == record["sha256"]
    torch.manual_seed(0)
    again = FCNVGG16(2, 3, 2, width=1)
    starting.start_network(again, asking(weights="imagenet"), tmp_path)
    assert json.loads((tmp_path / "start.json").read_text())["sha256"] == record["sha256"]  # of the weights alone


def test_weights_of_a_library_are_checked_before_anything_is_read() -> None:
    network = FCNVGG16(2, 3, 2, width=1)
    with pytest.raises(UsageError, match="channel_order=bgr is of a file of weights; imagenet has rgb"):
        starting.check_start(asking(weights="imagenet", channel_order="bgr"), network)
    with pytest.raises(UsageError, match=r"vgg16 of torchvision \(of its full width\): nothing in it fits FCNVGG16"):
        starting.check_start(asking(weights="imagenet"), network)


def test_a_file_that_is_gone_is_missed_where_there_is_no_checkpoint(tmp_path) -> None:
    plan = asking(weights=str(tmp_path / "gone.safetensors"), sha256="0" * 64)
    assert starting.with_start_pinned(plan) is plan
    with pytest.raises(UsageError, match=r"gone\.safetensors: the file is gone, and no checkpoint"):
        starting.start_network(FCNVGG16(2, 3, 2, width=1), plan, tmp_path)
    assert starting.read_start(tmp_path) == {}


def test_weights_are_no_option_of_a_network(plan) -> None:
    values, options = read_plan(plan).model_dump(), {"weights": "a", "channel_order": "bgr"}
    network = plan_from({**values, "network": named(plan, options)}).network
    assert network.start.model_dump() == {"weights": "a", "sha256": None, "channel_order": "bgr"}
    assert "weights" not in network.options
    assert "start" not in values["network"]
    with pytest.raises(UsageError, match="channel_order"):
        plan_from({**values, "network": named(plan, {**options, "channel_order": "gbr"})})
