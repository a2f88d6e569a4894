"""Fine-tuning: all that weights depend on is the model's; its head too where the labels are the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import nibabel as nib
import numpy as np
import phantoms
import pytest
import torch
from nnunet_folders import ARCHITECTURE, DATASET, PLANS, read_here, write_nnunet
from safetensors.torch import load_file
from voxelwise import predict, read_model_folder, train
from voxelwise.errors import UnsafeInputError, UsageError
from voxelwise.pipeline.dataset.plan import Plan, plan_from, read_plan, write_plan
from voxelwise.pipeline.importing.checkpoint import CheckpointReader
from voxelwise.pipeline.importing.import_model import import_model
from voxelwise.pipeline.training import fit as fitting
from voxelwise.pipeline.training.fine_tuning import same_labels
from voxelwise.pipeline.training.fit import network_of
from voxelwise.pipeline.training.start import head_names, start_network
from voxelwise.scripts.main import main

BALLS = {"background": 0, "ball 1": 1, "ball 2": 2}
DEEPER = {
    "n_stages": 4,
    "features_per_stage": [2, 4, 4, 4],
    "kernel_sizes": [[1, 3, 3], *[[3, 3, 3]] * 3],
    "strides": [[1, 1, 1], [1, 2, 2], [1, 2, 2], [1, 1, 2]],
    "n_conv_per_stage": [1] * 4,
    "n_conv_per_stage_decoder": [1] * 3,
}
REGIONS = {"background": 0, "both": [1, 2], "ball 2": 2}
STEP: dict[str, Any] = {"steps": 1, "lr": 1e-12, "device": "cpu", "precision": "float32"}


def imported(folder: Path, *, configuration: str = "3d_fullres", labels: dict[str, Any] = BALLS) -> Path:
    """A model folder made of nnU-Net's for the balls, z-scored, of the folds 0 and 1; of volumes, with a deep head."""
    found = {**PLANS["configurations"][configuration], "normalization_schemes": ["ZScoreNormalization"]}
    found["spacing"] = [6.0, 2.0, 1.5][3 - len(found["spacing"]) :]
    if configuration == "3d_fullres":
        found["architecture"] = {**ARCHITECTURE, "arch_kwargs": {**ARCHITECTURE["arch_kwargs"], **DEEPER}}
    dataset = {**DATASET, "channel_names": {"0": "MR"}, "labels": labels}
    if labels == REGIONS:
        dataset["regions_class_order"] = [1, 2]
    source = write_nnunet(
        folder / "nn",
        plans={**PLANS, "configurations": {configuration: found}},
        dataset=dataset,
        configuration=configuration,
        folds=("0", "1"),
        outputs=2 if labels == REGIONS else 3,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointReader, "read", read_here)
        import_model(source, folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return imported(tmp_path_factory.mktemp("imported"))


@pytest.fixture(scope="module")
def run(dataset: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fine-tuned by one step that moves nothing."""
    out = tmp_path_factory.mktemp("run") / "run"
    train(dataset, out=out, init=model, **STEP)
    return out


def weights(folder: Path, fold: str = "0") -> dict[str, torch.Tensor]:
    return load_file(folder / f"fold_{fold}" / "weights.safetensors")


def labels_of(model: Path, dataset: Path, out: Path) -> np.ndarray:
    predict(model, dataset / "images" / "blob_00.nii.gz", out, device="cpu", fold=0, precision="float32")
    return np.asarray(nib.load(next(out.glob("*.nii.gz"))).dataobj)


def renamed(dataset: Path, folder: Path, **changes: Any) -> Path:
    """The data set with another description."""
    copy = Path(shutil.copytree(dataset, folder))
    description = json.loads((copy / "dataset.json").read_text())
    (copy / "dataset.json").write_text(json.dumps({**description, **changes}))
    return copy


def test_the_plan_is_the_models_and_the_data_sets(run: Path, model: Path) -> None:
    plan, theirs = read_plan(run / "plan.yaml"), plan_from(dict(read_model_folder(model).plan))
    taken = ["dims", "channels", "modality", "spacing_mm", "resampling", "orientation", "crop", "bias_field", "tta"]
    taken += ["normalisation", "patch", "slices", "mirror_axes", "overlap", "blending", "windows", "labels"]
    for field in taken:
        assert getattr(plan, field) == getattr(theirs, field), field
        assert plan.reasons.get(field, "of the model model").startswith("of the model model"), field
    assert {"spacing_mm", "resampling", "normalisation", "patch"} <= plan.reasons.keys()
    assert plan.resampling.kind == "spline"
    assert plan.network.options == theirs.network.options
    assert (plan.dataset, plan.batch, plan.optimizer.lr) == ("blobs", 2, 1e-12)
    assert plan.reasons["network"] == "of the model model"
    assert "suits a CPU" in plan.reasons["batch"]


def test_it_begins_where_the_model_was(run: Path, model: Path, dataset: Path, tmp_path: Path) -> None:
    """Prediction included; the deep heads are taken too, and the record says where all came from."""
    assert "coarse_heads.0.weight" in weights(model)
    assert all(torch.allclose(value, weights(run)[name], atol=1e-9) for name, value in weights(model).items())
    before, after = (labels_of(one, dataset, tmp_path / one.name) for one in (model, run))
    assert len(np.unique(before)) > 1
    np.testing.assert_array_equal(before, after)
    digest = read_model_folder(model).sha256("0")
    start = {"model": "model", "fold": "0", "head": "taken", "sha256": digest}
    record = json.loads((run / "fold_0" / "start.json").read_text())
    assert {key: record[key] for key in start} == start
    assert (record["new"], record["dropped"]) == ([], {})
    assert read_model_folder(run).provenance["start"] == start
    assert str(model.parent) not in (run / "model.yaml").read_text()


@pytest.mark.parametrize(
    ("configuration", "labels"), [("2d", BALLS), ("3d_fullres", REGIONS)], ids=["slices", "regions"]
)
def test_models_of_slices_and_of_regions(
    configuration: str, labels: dict[str, Any], dataset: Path, tmp_path: Path
) -> None:
    model, run = imported(tmp_path, configuration=configuration, labels=labels), tmp_path / "run"
    train(dataset, out=run, init=model, batch=2, **STEP)
    plan = read_plan(run / "plan.yaml")
    assert plan.batch == 2
    assert plan.dims == (2 if configuration == "2d" else 3)
    assert [region.name for region in plan.regions] == (["both", "ball 2"] if labels == REGIONS else [])
    assert [label.name for label in plan.labels] == ["background", "ball 1", "ball 2"]
    before, after = (labels_of(one, dataset, tmp_path / f"{one.name}_out") for one in (model, run))
    assert len(np.unique(before)) > 1
    np.testing.assert_array_equal(before, after)


def test_a_fold_that_the_model_does_not_have_starts_from_its_first(
    run: Path, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = read_plan(run / "plan.yaml")
    with caplog.at_level("INFO"):
        for fold, taken in (("1", "1"), ("4", "0")):
            network = network_of(plan)
            start_network(network, plan, tmp_path, fold=fold)
            assert json.loads((tmp_path / "start.json").read_text())["fold"] == taken
            assert all(torch.equal(value, weights(model, taken)[name]) for name, value in network.state_dict().items())
    told = [record.getMessage() for record in caplog.records if "started from" in record.getMessage()]
    assert told[0].startswith("started from fold 1 of model model (head taken: the labels are the same): taken: ")
    assert told[1].startswith("started from fold 0 of model model, which has no fold 4 (head taken: ")


def test_other_labels_get_a_fresh_head_alone(
    dataset: Path, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As many as the model has, so that its head would fit; and sides, along which nothing is mirrored any more."""
    sides = renamed(dataset, tmp_path / "sides", labels={"0": "background", "1": "ear left", "2": "ear right"})
    with caplog.at_level("INFO"):
        train(sides, out=tmp_path / "run", init=model, **STEP)
    plan, theirs = read_plan(tmp_path / "run" / "plan.yaml"), plan_from(dict(read_model_folder(model).plan))
    assert [label.name for label in plan.labels[1:]] == ["ear left", "ear right"]
    assert plan.mirror_axes == [axis for axis in theirs.mirror_axes if axis != 0] != theirs.mirror_axes
    assert "of the model model, but for those" in plan.reasons["mirror_axes"]
    heads = head_names(plan)
    assert {"head.weight", "head.bias", "coarse_heads.0.weight"} <= heads
    before, after = weights(model), weights(tmp_path / "run")
    same = {name for name in before if torch.allclose(before[name], after[name], atol=1e-9)}
    assert same == before.keys() - heads
    record = json.loads((tmp_path / "run" / "fold_0" / "start.json").read_text())
    assert (record["head"], set(record["new"])) == ("fresh", heads)
    assert "(head fresh: the labels are others)" in caplog.text


@pytest.mark.parametrize(
    ("model", "dataset", "same"),
    [
        ({0: "background", 1: "Liver"}, {0: "0", 1: "liver"}, True),
        ({0: "background", 1: "label 1"}, {0: "background", 1: "liver"}, True),
        ({0: "background", 1: "liver"}, {0: "background", 1: "label 1"}, True),
        ({0: "background", 1: "liver"}, {0: "background", 1: "spleen"}, False),
        ({0: "background", 1: "liver"}, {0: "background", 2: "liver"}, False),
        ({0: "background", 1: "liver"}, {0: "background", 1: "liver", 2: "spleen"}, False),
    ],
)
def test_labels_are_the_same_by_value_and_name(model: dict[int, str], dataset: dict[int, str], same: bool) -> None:
    listed = [[{"value": value, "name": name} for value, name in labels.items()] for labels in (model, dataset)]
    usual = {"dataset": "a", "dims": 3, "channels": ["CT"], "modality": "CT", "normalisation": [{"kind": "zscore"}]}
    usual |= {"patch": [8, 8, 8], "batch": 1, "network": {"name": "unet"}}
    plans: list[Plan] = [plan_from({**usual, "labels": labels}) for labels in listed]
    assert same_labels(plans[0].labels, plans[1].labels) is same


def test_the_same_command_goes_on_even_without_the_model(
    dataset: Path, model: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off behind its first checkpoint; the result has the bits of a run that was not."""
    again = Path(shutil.copytree(model, tmp_path / "again"))
    rest = {"init": again, "steps": 4, "device": "cpu"}
    for name in ("straight", "cut"):
        (tmp_path / name).mkdir()
        made = read_plan(run / "plan.yaml").model_dump() | {"steps_per_epoch": 2}
        made["network"]["start"]["weights"] = str(again)
        write_plan(plan_from(made), tmp_path / name / "plan.yaml")
    train(dataset, out=tmp_path / "straight", **rest)
    trainer = lightning.Trainer

    class Stop(lightning.Callback):
        def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
            if trainer.global_step == 3:
                raise RuntimeError("killed")

    def stopping(**given: Any) -> lightning.Trainer:
        return trainer(**{**given, "callbacks": [*given["callbacks"], Stop()]})

    monkeypatch.setattr(fitting.lightning, "Trainer", stopping)
    with pytest.raises(RuntimeError, match="killed"):
        train(dataset, out=tmp_path / "cut", **rest)
    monkeypatch.undo()
    shutil.rmtree(again)
    assert train(dataset, out=tmp_path / "cut", **rest).done
    straight, cut = (weights(tmp_path / name) for name in ("straight", "cut"))
    assert all(torch.equal(value, cut[name]) for name, value in straight.items())
    with pytest.raises(UsageError, match=r"--init .*again: the model is gone, and no checkpoint of the run is there"):
        train(dataset, out=tmp_path / "cut", fold=1, **rest)


def test_a_run_trains_on_its_store_and_a_run_of_ours_is_a_model(run: Path, tmp_path: Path) -> None:
    """Of the same preprocessing; the weights are the run's."""
    train(run / "preprocessed", out=tmp_path / "next", init=run, **STEP)
    before, after = weights(run), weights(tmp_path / "next")
    assert all(torch.allclose(before[name], value, atol=1e-9) for name, value in after.items())
    assert read_model_folder(tmp_path / "next").provenance["start"]["model"] == "run"


def test_what_the_model_says_too_may_be_said(dataset: Path, model: Path, run: Path) -> None:
    options = {"up_bias": read_plan(run / "plan.yaml").network.options["up_bias"]}
    assert train(dataset, out=run, init=model, network="unet", dims=3, width=2, options=options, **STEP).skipped
    assert train(dataset, out=run, **STEP).skipped


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"network": "vnet"}, "--network vnet: .*model holds network 'unet'; leave --network out"),
        ({"dims": 2}, "--dims 2: the model .*model has dims 3; leave --dims out"),
        ({"width": 8}, "--width 8: the model .*model has width 2; leave --width out"),
        ({"options": {"norm": "batch"}}, "--option norm=batch: the model .*model has norm=instance; leave it out"),
        ({"options": {"weights": "imagenet"}}, "--option weights=imagenet: .* has no option weights; leave it out"),
        ({"plan": "plan.yaml"}, "--plan beside --init .*model: the plan of a fine-tuning is made from the model"),
        ({"init": "nothing"}, "model folder .*nothing does not exist"),
        ({"init": "nn"}, "there is no model.yaml in it; this is nnU-Net's: import-model "),
    ],
)
def test_contradictions_are_one_line(
    given: dict[str, Any], message: str, dataset: Path, model: Path, tmp_path: Path
) -> None:
    init = model.parent / given["init"] if "init" in given else model
    with pytest.raises(UsageError, match=message):
        train(dataset, out=tmp_path / "run", **STEP, **{**given, "init": init})
    assert not (tmp_path / "run").exists()


def test_contradictions_of_a_run_that_goes_on(
    dataset: Path, plan: Path, model: Path, run: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"--dims 2: the model .*model has dims 3"):
        train(dataset, out=run, init=model, dims=2, **STEP)
    with pytest.raises(UsageError, match=r"--init .*run is the folder of the run; choose another --out"):
        train(dataset, out=run, init=run, **STEP)
    other = Path(shutil.copytree(model, tmp_path / "other"))
    with pytest.raises(UsageError, match=r"run holds a run that started from .*model; use --overwrite"):
        train(dataset, out=run, init=other, **STEP)
    (tmp_path / "fresh").mkdir()
    shutil.copy(plan, tmp_path / "fresh" / "plan.yaml")
    with pytest.raises(UsageError, match=r"fresh holds a run that started from fresh weights"):
        train(dataset, out=tmp_path / "fresh", init=model, **STEP)


def test_data_of_other_channels_are_refused(dataset: Path, model: Path, tmp_path: Path) -> None:
    two = tmp_path / "two"
    for case in range(2):
        image = np.random.default_rng(case).normal(0, 8, (8, 8, 8, 2)).astype(np.int16)
        phantoms.nifti_file(two / "images" / f"{case}.nii.gz", image)
        phantoms.nifti_file(two / "labels" / f"{case}.nii.gz", (image[..., 0] > 0).astype(np.uint8))
    names = {"name": "two", "channel_names": {"0": "T1", "1": "T2"}, "labels": {"0": "background", "1": "a"}}
    listed = [{"image": f"images/{case}.nii.gz", "label": f"labels/{case}.nii.gz"} for case in range(2)]
    (two / "dataset.json").write_text(json.dumps({**names, "training": listed}))
    with pytest.raises(UsageError, match=r"the model takes 1 channel \(MR\), and .*two has 2 \(T1, T2\); give"):
        train(two, out=tmp_path / "run", init=model, **STEP)


def test_weights_that_were_changed_since_are_unsafe(
    dataset: Path, model: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By hand, and by another training into the same folder."""
    made = read_plan(run / "plan.yaml").model_dump()
    made["network"]["start"]["folds"]["1"] = "0" * 64
    write_plan(plan_from(made), tmp_path / "plan.yaml")
    with pytest.raises(
        UnsafeInputError, match=r"--init .*: the weights of fold 1 have SHA-256 .*, the plan says 00000"
    ):
        train(dataset, out=tmp_path / "run", plan=tmp_path / "plan.yaml", **STEP)
    damaged = Path(shutil.copytree(model, tmp_path / "damaged"))
    file = damaged / "fold_1" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    words = ["train", str(dataset), "--out", str(tmp_path / "run"), "--init", str(damaged), "--steps", "1"]
    assert main(words) == 5
    assert "was changed or damaged and was not read" in capsys.readouterr().err
