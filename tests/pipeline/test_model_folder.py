"""Model folders: what is written comes back; what was changed, damaged or pickled is refused before it is read."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from voxelwise.errors import UnsafeInputError, UsageError
from voxelwise.networks.base import SliceNetwork
from voxelwise.networks.registry import build_network
from voxelwise.pipeline import model_folder
from voxelwise.pipeline.model_folder import load_network, read_model_folder, select_folds, write_model_folder

OPTIONS: dict[str, Any] = {"widths": [4, 8]}
LABELS = [{"value": 0, "name": "background"}, {"value": 7, "name": "liver", "color": [200, 30, 30]}]
OWN_NETWORK = """
from torch import nn
from voxelwise.networks.base import SegmentationNetwork

class Tiny(SegmentationNetwork):
    def __init__(self, spatial_dims, in_channels, out_channels):
        super().__init__(spatial_dims, in_channels, out_channels, stride=(1, 1, 1), receptive_field=(1, 1, 1))
        self.head = nn.Conv3d(in_channels, out_channels, 1)

    def body(self, image):
        return image
"""


def plan(**changes: Any) -> dict[str, Any]:
    return {"dims": 3, "patch": [8, 8, 8], "network": {"name": "unet", "options": OPTIONS}, "labels": LABELS, **changes}


def write(folder: Path, seed: int = 0, **changes: Any) -> torch.nn.Module:
    torch.manual_seed(seed)
    network = build_network("unet", 3, 1, 2, **OPTIONS)
    arguments: dict[str, Any] = {"options": OPTIONS, "plan": plan(), "preprocessing": [], **changes}
    write_model_folder(folder, network, **arguments)
    return network.eval()


def same_weights(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_network_comes_back_as_it_was(tmp_path: Path) -> None:
    network = write(tmp_path / "model", provenance={"steps": 12})
    shutil.move(tmp_path / "model", tmp_path / "moved")
    model = read_model_folder(tmp_path / "moved")
    assert model.folds == ("0",)
    assert model.plan == plan()
    assert [label.value for label in model.labels] == [0, 7]
    assert model.labels[1].model_dump()["color"] == [200, 30, 30]
    assert model.provenance == {"steps": 12}
    loaded = load_network(model)
    assert same_weights(loaded, network)
    assert not loaded.training
    image = torch.randn(1, 1, 8, 8, 8)
    assert torch.equal(loaded(image), network(image))
    assert str(tmp_path) not in (tmp_path / "moved" / "model.yaml").read_text()


def test_two_writes_of_one_network_are_equal_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b")
    for name in ("model.yaml", "fold_0/weights.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_model_yaml_or_its_folder_may_be_named(tmp_path: Path) -> None:
    write(tmp_path)
    assert read_model_folder(tmp_path / "model.yaml").folder == tmp_path


def test_folds_are_added_and_chosen(tmp_path: Path) -> None:
    first = write(tmp_path, seed=0)
    second = write(tmp_path, seed=1, fold="1")
    model = read_model_folder(tmp_path)
    assert model.folds == ("0", "1")
    assert same_weights(load_network(model, "0"), first)
    assert same_weights(load_network(model, 1), second)
    assert select_folds(model, None) == ("0", "1")
    with pytest.raises(UsageError, match=r"holds the folds 0, 1; name one"):
        load_network(model)
    with pytest.raises(UsageError, match=r"--fold 4: .* has no such fold \(there are: 0, 1\)"):
        load_network(model, 4)
    with pytest.raises(UsageError, match=r"fold '../x' is no name of a fold"):
        write(tmp_path, fold="../x")


def test_weights_of_a_fold_are_replaced(tmp_path: Path) -> None:
    write(tmp_path, seed=0)
    second = write(tmp_path, seed=1)
    assert same_weights(load_network(tmp_path), second)
    assert "previous_sha256" not in (tmp_path / "model.yaml").read_text()


@pytest.mark.parametrize("killed_at", range(1, 6))
def test_killed_while_weights_are_replaced_the_folder_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    """Each rename is a moment of which one side is seen: the folder holds the old weights or the new ones."""
    first = write(tmp_path, seed=0)
    replace, count = os.replace, 0

    def killed(source: Any, target: Any) -> None:
        nonlocal count
        count += 1
        if count == killed_at:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    try:
        second = write(tmp_path, seed=1)
    except KeyboardInterrupt:
        torch.manual_seed(1)
        second = build_network("unet", 3, 1, 2, **OPTIONS)
    monkeypatch.undo()
    loaded = load_network(tmp_path)
    assert same_weights(loaded, first) or same_weights(loaded, second)
    assert same_weights(loaded, second) == (killed_at > 2)


def test_another_model_is_not_mixed_in(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(UsageError, match="holds another model: its plan differs; use another folder"):
        write(tmp_path, fold="1", plan=plan(patch=[16, 16, 16]))


def test_labels_and_classes_must_agree(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 labels for a network of 2 classes"):
        write(tmp_path, labels=LABELS[:1])


def test_the_preprocessing_chain_is_made_from_the_plan(tmp_path: Path) -> None:
    fields = plan(
        channels=["CT"],
        orientation="RAS",
        spacing_mm=None,
        crop="none",
        bias_field=False,
        normalisation=[{"kind": "zscore"}],
    )
    write(tmp_path, plan=fields, preprocessing=None)
    names = [step["name"] for step in read_model_folder(tmp_path).preprocessing]
    assert names[0] == "LoadVolume"
    assert names[-1] == "Normalise"


@pytest.mark.parametrize("axis", [0, 2])
def test_a_slice_model_is_wrapped_along_the_axis_of_its_windows(tmp_path: Path, axis: int) -> None:
    patch = [16, 16, 16]
    patch[axis] = 1
    network = SliceNetwork(build_network("unet", 2, 1, 2, **OPTIONS), axis=axis)
    write_model_folder(tmp_path, network, OPTIONS, plan(dims=2, patch=patch), preprocessing=[])
    loaded = load_network(tmp_path)
    assert isinstance(loaded, SliceNetwork)
    assert loaded.axis == axis
    assert same_weights(loaded.network, network.network)


def test_a_users_own_class_is_asked_for_again(tmp_path: Path) -> None:
    file = tmp_path / "code" / "mine.py"
    file.parent.mkdir()
    file.write_text(OWN_NETWORK)
    named = f"{file}:Tiny"
    network = build_network(named, 3, 1, 2)
    folder = tmp_path / "model"
    write_model_folder(folder, network, {}, plan(network={"name": "mine.py:Tiny"}), name=named, preprocessing=[])
    assert same_weights(load_network(folder, network=named), network)
    assert str(file.parent) not in (folder / "model.yaml").read_text()
    # even the same file lying in the model folder is not run
    shutil.copy(file, folder / "mine.py")
    with pytest.raises(UsageError, match=r"code is never taken from a model folder: give the file again, --network"):
        load_network(folder)
    with pytest.raises(UsageError, match=r"was trained with class Tiny; name that one"):
        load_network(folder, network=f"{file}:Other")
    file.write_text(OWN_NETWORK + "\n# changed\n")
    with pytest.raises(UsageError, match=r"give the file as it was then"):
        load_network(folder, network=named)


def test_another_network_than_the_models_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(UsageError, match=r"holds network 'unet'; leave --network out"):
        load_network(tmp_path, network="vnet")
    assert load_network(tmp_path, network="unet")


def test_a_changed_byte_is_refused_before_the_weights_are_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    model = read_model_folder(tmp_path)
    path = tmp_path / "fold_0" / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    monkeypatch.setattr(model_folder.safetensors.torch, "load", lambda _: pytest.fail("the weights were parsed"))
    for read in (lambda: read_model_folder(tmp_path), lambda: load_network(model)):
        with pytest.raises(UnsafeInputError, match=r"SHA-256 is .*, model.yaml says .*was not read") as refusal:
            read()
        assert refusal.value.exit_code == 5


def pickled(kind: str) -> bytes:
    if kind == "pickle":
        return pickle.dumps({"weights": 1}, protocol=4)
    file = io.BytesIO()
    torch.save({"weights": torch.zeros(2)}, file)
    return file.getvalue()


@pytest.mark.parametrize(("kind", "what"), [("pickle", "a pickle"), ("zip", "a zip archive, as torch.save writes it")])
def test_a_pickle_is_refused_even_with_the_right_hash(tmp_path: Path, kind: str, what: str) -> None:
    write(tmp_path)
    path = tmp_path / "fold_0" / "weights.safetensors"
    path.write_bytes(pickled(kind))
    edit(tmp_path, lambda content: content["folds"]["0"].update(sha256=model_folder.file_digest(path)))
    with pytest.raises(UnsafeInputError, match=rf"is {what}; weights must be safetensors, nothing was read"):
        read_model_folder(tmp_path)


def test_rubbish_is_no_safetensors_file(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "fold_0" / "weights.safetensors"
    for data in (b"", b"hello weights, how are you"):
        path.write_bytes(data)
        with pytest.raises(UnsafeInputError, match="is no safetensors file"):
            read_model_folder(tmp_path)
    path.write_bytes(b"\xff\xff\xff\xff\0\0\0\0{")
    edit(tmp_path, lambda content: content["folds"]["0"].update(sha256=model_folder.file_digest(path)))
    with pytest.raises(UnsafeInputError, match="is not a whole safetensors file"):
        load_network(tmp_path)


@pytest.mark.parametrize("weights", ["../outside.safetensors", "/etc/hostname", "fold_0/../../outside.safetensors"])
def test_weights_outside_of_the_folder_are_refused(tmp_path: Path, weights: str) -> None:
    write(tmp_path / "model")
    shutil.copy(tmp_path / "model" / "fold_0" / "weights.safetensors", tmp_path / "outside.safetensors")
    edit(tmp_path / "model", lambda content: content["folds"]["0"].update(weights=weights))
    with pytest.raises(UnsafeInputError, match="which lies outside of the model folder"):
        read_model_folder(tmp_path / "model")


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "model")
    path = tmp_path / "model" / "fold_0" / "weights.safetensors"
    shutil.move(path, tmp_path / "outside.safetensors")
    path.symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(UnsafeInputError, match="which lies outside of the model folder"):
        read_model_folder(tmp_path / "model")


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    edit(tmp_path, lambda content: content["network"]["options"].update(widths=[4, 6]))
    with pytest.raises(UsageError, match=r"does not fit network 'unet': .*size mismatch"):
        load_network(tmp_path)


def test_what_is_no_model_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere does not exist; give the folder that a run"):
        read_model_folder(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"is no model folder: there is no model.yaml in it"):
        read_model_folder(tmp_path)
    (tmp_path / "plans.json").touch()
    with pytest.raises(UsageError, match=r"in it; this is nnU-Net's: import-model .* MODEL makes one of it"):
        read_model_folder(tmp_path)
    for text, message in {
        "format: [": "cannot be read as YAML",
        "- 1": "found format None, expected 1",
        "format: 99": "found format 99, expected 1; use the version of voxelwise that wrote it",
        "format: 1\nnetwork: 3": r"model.yaml: network: .* \(found '3'\); correct it",
        "!!python/object/apply:os.system ['true']": "cannot be read as YAML",
    }.items():
        (tmp_path / "model.yaml").write_text(text)
        with pytest.raises(UsageError, match=message):
            read_model_folder(tmp_path)
    write(tmp_path / "model")
    (tmp_path / "model" / "fold_0" / "weights.safetensors").unlink()
    with pytest.raises(UsageError, match=r"weights.safetensors is not there, though model.yaml names it"):
        read_model_folder(tmp_path / "model")
    edit(tmp_path / "model", lambda content: content.update(folds={}))
    with pytest.raises(UsageError, match=r"there are no weights yet"):
        read_model_folder(tmp_path / "model")


def test_a_model_yaml_of_megabytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    monkeypatch.setattr(model_folder, "LARGEST_MODEL_FILE", 100)
    with pytest.raises(UnsafeInputError, match=r"a model.yaml has a few kilobytes"):
        read_model_folder(tmp_path)


def edit(folder: Path, change: Any) -> None:
    content = yaml.safe_load((folder / "model.yaml").read_text())
    change(content)
    (folder / "model.yaml").write_text(yaml.safe_dump(content))
