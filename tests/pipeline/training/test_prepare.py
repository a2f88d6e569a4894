"""Before the first step: a run in use is left alone, bad cases are named, memory is held against the plan."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from voxelwise import predict, preprocess, train, write_model_folder
from voxelwise.errors import FolderInUseError, NoRoomError, NothingDoneError, UsageError
from voxelwise.networks.registry import build_network
from voxelwise.pipeline import model_folder
from voxelwise.pipeline.dataset.plan import read_plan
from voxelwise.pipeline.lock import FolderLock
from voxelwise.pipeline.training import supervised
from voxelwise.pipeline.training.planning import changed, check_network
from voxelwise.pipeline.training.prepare import check_memory, reserved

OWN_CLASS = """
from voxelwise.networks.unet import UNet

class Mine(UNet):
    def __init__(self, spatial_dims, in_channels, out_channels):
        super().__init__(spatial_dims, in_channels, out_channels, widths=(4, 8))
"""


@pytest.fixture
def untrained(monkeypatch) -> list[str]:
    """Folds are prepared and not trained; the list holds their names."""
    names: list[str] = []

    def record(folder, name, *_, **__):
        names.append(name)
        (folder / "weights.safetensors").write_bytes(b"none")
        return 1, {}

    monkeypatch.setattr(supervised, "fit", record)
    return names


def copy_of(dataset: Path, folder: Path) -> Path:
    return Path(shutil.copytree(dataset, folder))


def change(path: Path, edit) -> None:
    picture = nib.load(path)
    voxels = np.asarray(picture.dataobj).copy()
    edit(voxels)
    nib.save(nib.Nifti1Image(voxels, picture.affine), path)


def test_an_overwrite_leaves_a_run_in_use_alone(untrained, dataset, plan, tmp_path) -> None:
    run = tmp_path / "run"
    train(dataset, out=run, plan=plan, steps=1, device="cpu")
    (run / "model.yaml").write_text("kept")
    fold = FolderLock(run / "fold_3" / ".lock", run / "fold_3")
    (run / "fold_3").mkdir()
    fold.acquire()
    with pytest.raises(FolderInUseError, match=r"fold_3 is in use by another run"):
        train(dataset, out=run, plan=plan, steps=2, device="cpu", overwrite=True)
    assert (run / "model.yaml").read_text() == "kept"
    assert train(dataset, out=run, plan=plan, steps=1, device="cpu", fold=1).done  # beside the other fold
    fold.release()
    assert train(dataset, out=run, plan=plan, steps=2, device="cpu", overwrite=True).done
    assert not (run / ".lock").exists()


def test_a_run_of_another_plan_is_named_by_what_differs(untrained, dataset, plan, tmp_path) -> None:
    """Also by a field that one of the two plans leaves out, as it has its default."""
    run, given = tmp_path / "run", {"plan": plan, "steps": 1, "device": "cpu"}
    train(dataset, out=run, **given)
    with pytest.raises(UsageError, match=r'run holds a run of another plan \(loss: null -> "dice"\); use --overwrite'):
        train(dataset, out=run, loss="dice", **given)
    train(dataset, out=run, loss="dice", overwrite=True, **given)
    with pytest.raises(UsageError, match=r'another plan \(loss: "dice" -> null\)'):
        train(dataset, out=run, **given)


def test_two_preparations_do_not_meet(dataset, plan, tmp_path) -> None:
    with reserved(tmp_path / "run", overwrite=False):
        (tmp_path / "run" / "kept").touch()
        with pytest.raises(FolderInUseError, match=r"run is in use by another run \(process"):
            train(dataset, out=tmp_path / "run", plan=plan, steps=1, device="cpu")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["kept"]


def test_wrong_use_leaves_no_empty_folder(dataset, tmp_path) -> None:
    with pytest.raises(UsageError, match=r"unknown network 'unett'"):
        train(dataset, out=tmp_path / "run", network="unett", steps=1)
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--out .*file: cannot write there"):
        train(dataset, out=tmp_path / "file", steps=1)


def test_folds_that_end_together_are_both_in_the_model(plan, tmp_path, monkeypatch) -> None:
    network = build_network("unet", 3, 1, 3, widths=[2, 4])
    fields = read_plan(plan).model_dump(mode="json")

    def write(fold: int) -> None:
        for _ in range(3):
            write_model_folder(tmp_path, network, {"widths": [2, 4]}, fields, fold=str(fold), preprocessing=[])

    threads = [threading.Thread(target=write, args=(fold,)) for fold in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert model_folder.read_model_folder(tmp_path).folds == ("0", "1", "2")
    monkeypatch.setattr(model_folder, "WAIT_SECONDS", 0.1)
    lock = FolderLock(tmp_path / model_folder.LOCK_FILE, tmp_path)
    lock.acquire()
    with pytest.raises(FolderInUseError, match=r"model.yaml is in use by another run"):
        write(0)
    lock.release()


def test_another_network_brings_its_learning_rate(plan) -> None:
    made = read_plan(plan)
    vnet = {"network": "vnet", "width": 4}
    assert changed(made, vnet).optimizer.lr == 0.0003
    assert "0.0003" in changed(made, vnet).reasons["optimizer"]
    assert changed(changed(made, vnet), {"network": "unet"}).optimizer == made.optimizer
    assert changed(made, {**vnet, "lr": 0.01}).optimizer.lr == 0.01
    own = made.model_copy(update={"optimizer": made.optimizer.model_copy(update={"lr": 0.002})})
    assert changed(own, vnet).optimizer.lr == 0.002


def test_an_unknown_label_stops_its_case_alone(untrained, dataset, tmp_path) -> None:
    copy = copy_of(dataset, tmp_path / "copy")
    change(copy / "labels" / "blob_02.nii.gz", lambda voxels: voxels.__setitem__((0, 0, 0), 9))
    outcome = train(copy, out=tmp_path / "run", width=4, steps=1, device="cpu")
    assert outcome.exit_code == 3
    assert [failure.case for failure in outcome.failures] == ["blob_02"]
    assert "9" in outcome.failures[0].message
    folds = json.loads((tmp_path / "run" / "folds.json").read_text())
    assert len({*folds["0"]["train"], *folds["0"]["validation"]}) == 5


def test_no_good_case_at_all(untrained, dataset, tmp_path) -> None:
    copy = copy_of(dataset, tmp_path / "copy")
    for path in (copy / "labels").iterdir():
        change(path, lambda voxels: voxels.__setitem__((0, 0, 0), 9))
    with pytest.raises(NothingDoneError, match=r"none of its 6 cases can be used; the first: .*blob_00"):
        train(copy, out=tmp_path / "run", width=4, steps=1, device="cpu")
    assert untrained == []


def test_a_cache_has_the_folds_of_its_data_set(untrained, dataset, tmp_path) -> None:
    """With a case that was stopped on the way, and then one that was damaged in the cache."""
    copy, cache = copy_of(dataset, tmp_path / "copy"), tmp_path / "cache"
    change(copy / "labels" / "blob_02.nii.gz", lambda voxels: voxels.__setitem__((0, 0, 0), 9))
    preprocess(copy, out=cache, width=4)
    outcomes = [train(source, out=tmp_path / out, steps=1, width=4, device="cpu", cross_validate=True)
                for source, out in ((copy, "one"), (cache, "two"))]  # fmt: skip
    folds = [json.loads((tmp_path / out / "folds.json").read_text()) for out in ("one", "two")]
    assert folds[0] == folds[1]
    assert [[failure.case for failure in outcome.failures] for outcome in outcomes] == [["blob_02"], ["blob_02"]]
    entry = cache / "blob_04.case"
    data = bytearray(entry.read_bytes())
    data[len(data) // 2] ^= 1
    entry.write_bytes(data)
    outcome = train(cache, out=tmp_path / "three", steps=1, device="cpu")
    assert outcome.exit_code == 3
    assert [failure.case for failure in outcome.failures] == ["blob_02", "blob_04"]
    assert "blob_04.case has another checksum" in outcome.failures[1].message
    assert "blob_04" not in json.loads((tmp_path / "three" / "folds.json").read_text())["0"]["train"]


def test_a_cache_that_is_not_finished_is_refused(dataset, plan, tmp_path) -> None:
    preprocess(dataset, out=tmp_path / "cache", plan=plan)
    manifest = tmp_path / "cache" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "finished": False}))
    with pytest.raises(UsageError, match=r"cache: preprocessing was cut off or still goes on"):
        train(tmp_path / "cache", out=tmp_path / "run", steps=1, device="cpu")


def test_memory_is_held_against_a_given_plan(untrained, dataset, plan, tmp_path) -> None:
    given = read_plan(plan).model_copy(update={"batch": 8})
    built = check_network(given)
    single = built.activation_bytes(given.patch, training=True)
    weights = 16 * sum(one.numel() for one in built.parameters())
    check_memory(given, built, 8 * single + weights)
    with pytest.raises(NoRoomError, match=r"batch 8\) needs about .* GB are given; --batch 3 would fit"):
        train(dataset, out=tmp_path / "run", plan=given, steps=1, device="cpu", memory=int(3.5 * single + weights))
    with pytest.raises(NoRoomError, match=r"give a smaller patch in the plan, or a smaller --width"):
        train(dataset, out=tmp_path / "run", plan=given, steps=1, device="cpu", memory="1KB")
    with pytest.raises(UsageError, match=r"--gpu-memory 1GB: the training runs on the CPU; give --memory"):
        train(dataset, out=tmp_path / "run", plan=given, steps=1, device="cpu", gpu_memory="1GB")
    assert untrained == []


def test_a_users_file_is_known_by_its_content_and_not_by_its_place(dataset, tmp_path) -> None:
    file, run = tmp_path / "code" / "mine.py", tmp_path / "run"
    file.parent.mkdir()
    file.write_text(OWN_CLASS)
    settings = {"network": f"{file}:Mine", "steps": 1, "device": "cpu"}
    train(dataset, out=run, **settings)
    assert str(file.parent) not in (run / "model.yaml").read_text()
    assert train(dataset, out=run, resume=True, **settings).skipped
    assert train(dataset, out=run, fold=1, resume=True, **settings).done
    image = next(iter(sorted((dataset / "images").iterdir())))
    assert predict(run, image, tmp_path / "out", device="cpu", network=f"{file}:Mine").exit_code == 0
    file.write_text(OWN_CLASS + "# changed\n")
    with pytest.raises(UsageError, match=r"fold_0 holds results of other settings \(code_sha256: "):
        train(dataset, out=run, resume=True, **settings)
