"""Imports as a whole: the model folder, its record, the command line; and that what fails leaves nothing."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nnunet_folders import DATASET, PLANS, write_nnunet
from PIL import Image
from voxelwise.errors import CaseError, UsageError
from voxelwise.networks.nnunet import unet_from_nnunet
from voxelwise.networks.nnunet_weights import weights_from_nnunet
from voxelwise.pipeline.importing.checkpoint import CheckpointReader
from voxelwise.pipeline.importing.import_model import fold_names, import_model
from voxelwise.pipeline.inference.checks import check_modality
from voxelwise.pipeline.inference.inputs import gather
from voxelwise.pipeline.inference.predict import predict
from voxelwise.pipeline.model_folder import ModelFolder, load_network, read_model_folder
from voxelwise.scripts.main import main
from voxelwise.transforms.volume import Geometry, Volume

pytestmark = pytest.mark.usefixtures("no_child")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_becomes_a_model(tmp_path: Path) -> None:
    """One model of two folds, each with its own weights; the record says what it came from."""
    source = write_nnunet(tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres", folds=("0", "1"))
    made = import_model(source, tmp_path / "m")
    model = read_model_folder(tmp_path / "m")
    assert made.folds == model.folds == ("0", "1")
    assert [(label.value, label.name) for label in model.labels] == [(0, "background"), (1, "organ"), (2, "vessel")]
    state = CheckpointReader().read(source / "fold_1" / "checkpoint_final.pth", ("network_weights",)).weights
    wanted = weights_from_nnunet(state, unet_from_nnunet(PLANS["configurations"]["3d_fullres"], [2, 0, 1]), 1, 3)
    found = load_network(model, "1").state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert names_in(tmp_path / "m") == ["fold_0", "fold_1", "import.json", "model.yaml"]
    record = json.loads((tmp_path / "m" / "import.json").read_text())
    assert record["source"] == model.provenance["imported"]
    assert record["source"]["folder"] == source.name
    assert record["source"]["trainer"] == "nnUNetTrainer"
    assert sorted(record["source"]["files"]) == [
        "dataset.json",
        "fold_0/checkpoint_final.pth",
        "fold_1/checkpoint_final.pth",
        "plans.json",
    ]
    assert record["report"]["taken"][0] == "configuration 3d_fullres, folds 0, 1"
    assert str(tmp_path) not in (tmp_path / "m" / "model.yaml").read_text()


@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_an_imported_model_predicts(tmp_path: Path, configuration: str) -> None:
    """An image with the channel's number behind its name, and one without: the same labels on the same grid."""
    import_model(write_nnunet(tmp_path / "nn", configuration=configuration), tmp_path / "m")
    voxels = np.random.default_rng(0).normal(50, 40, (9, 20, 14)).astype(np.int16)
    image = nib.Nifti1Image(voxels, np.diag([3.0, 0.6, 0.8, 1.0]))
    for folder, name in (("plain", "a.nii.gz"), ("numbered", "a_0000.nii.gz")):
        (tmp_path / folder).mkdir()
        nib.save(image, tmp_path / folder / name)
        predict(tmp_path / "m", tmp_path / folder, tmp_path / f"{folder}_out", device="cpu", tta=False)
    labels = [nib.load(tmp_path / f"{folder}_out" / "a.nii.gz") for folder in ("plain", "numbered")]
    found = np.asarray(labels[0].dataobj)
    assert found.shape == voxels.shape
    assert len(np.unique(found)) > 1
    np.testing.assert_array_equal(found, np.asarray(labels[1].dataobj))
    np.testing.assert_allclose(labels[0].affine, image.affine)


def two_channels(folder: Path, names: Sequence[str]) -> ModelFolder:
    """An imported model of two channels, z-scored."""
    full = {**PLANS["configurations"]["3d_fullres"], "use_mask_for_norm": [False] * 2}
    plans = {**PLANS, "configurations": {"3d_fullres": full | {"normalization_schemes": ["ZScoreNormalization"] * 2}}}
    dataset = {**DATASET, "channel_names": dict(zip("01", names, strict=True))}
    import_model(write_nnunet(folder / "nn", plans=plans, dataset=dataset), folder / "m")
    return read_model_folder(folder / "m")


@pytest.mark.parametrize(
    ("model", "data", "code"),
    [
        (("T1", "FLAIR"), ("FLAIR", "T1"), "channels"),
        (("T1", "FLAIR"), ("t1", "flair"), None),
        (("MRI", "rescale_to_0_1"), ("MR", "zscore"), None),
        (("CT", "PET"), ("CT", "MR"), "modality"),
    ],
)
def test_channels_are_held_against_the_names_of_a_data_set(
    tmp_path: Path, model: tuple[str, str], data: tuple[str, str], code: str | None
) -> None:
    """A raw data set of nnU-Net says what its channels are; free names stop nobody."""
    imported = two_channels(tmp_path, model)
    raw = tmp_path / "Dataset001_X"
    (raw / "imagesTr").mkdir(parents=True)
    (raw / "dataset.json").write_text(json.dumps({**DATASET, "channel_names": dict(zip("01", data, strict=True))}))
    for number in range(2):
        image = nib.Nifti1Image(np.ones((4, 4, 4), np.int16), np.eye(4))
        nib.save(image, raw / "imagesTr" / f"a_{number:04d}.nii.gz")
    found = gather(raw, imported)
    assert [failure.code for failure in found.failures] == ([] if code is None else [code])
    assert [job.sources[0].name for job in found.jobs] == ([] if code else ["a"])


@pytest.mark.parametrize(("channel", "stopped"), [("CT", True), ("MRI", False), ("T1", False), ("noNorm", False)])
def test_channels_are_held_against_the_modality_of_dicom(tmp_path: Path, channel: str, stopped: bool) -> None:
    dataset = {**DATASET, "channel_names": {"0": channel}}
    import_model(write_nnunet(tmp_path / "nn", dataset=dataset), tmp_path / "m")
    volume = Volume(np.ones((1, 4, 4, 4), np.float32), Geometry((4, 4, 4), np.eye(4)), "MR")
    with pytest.raises(CaseError, match="the image is MR, the model was trained on CT") if stopped else nullcontext():
        check_modality(volume, read_model_folder(tmp_path / "m").plan)


def test_colours_of_a_picture_are_its_channels(tmp_path: Path) -> None:
    """nnU-Net names a picture in colours NAME_0000.png, though it holds all three channels."""
    flat = {**PLANS["configurations"]["2d"], "use_mask_for_norm": [False] * 3}
    flat["normalization_schemes"] = ["RGBTo01Normalization"] * 3
    plans = {**PLANS, "image_reader_writer": "NaturalImage2DIO", "configurations": {"2d": flat}}
    plans["transpose_forward"] = [0, 1, 2]
    dataset = {**DATASET, "channel_names": {"0": "R", "1": "G", "2": "B"}, "file_ending": ".png"}
    source = write_nnunet(tmp_path / "nn", plans=plans, dataset=dataset, configuration="2d")
    import_model(source, tmp_path / "m")
    plan = read_model_folder(tmp_path / "m").plan
    assert (plan["modality"], plan["patch"], plan["orientation"]) == ("picture", [16, 8, 1], None)
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (12, 20, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images" / "a_0000.png")
    predict(tmp_path / "m", tmp_path / "images", tmp_path / "out", device="cpu", tta=False)
    with Image.open(tmp_path / "out" / "a.png") as labels:
        assert labels.size == (20, 12)


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    """The second fold does not fit: there is no half of a model."""
    source = write_nnunet(tmp_path / "nn", folds=("0", "1"))
    write_nnunet(source, folds=("1",), network_weights={"a": torch.ones(1)})
    with pytest.raises(UsageError, match="weights do not fit the plans"):
        import_model(source, tmp_path / "m")
    assert names_in(tmp_path) == ["nn"]


def test_only_an_import_is_replaced(tmp_path: Path) -> None:
    source = write_nnunet(tmp_path / "nn", folds=("0", "1"))
    import_model(source, tmp_path / "m")
    with pytest.raises(UsageError, match="is there already; use --overwrite or another folder"):
        import_model(source, tmp_path / "m")
    import_model(source, tmp_path / "m", fold=1, overwrite=True)
    assert names_in(tmp_path / "m") == ["fold_1", "import.json", "model.yaml"]
    (tmp_path / "m" / "import.json").unlink()
    with pytest.raises(UsageError, match="was not made by `voxelwise import-model`, and is not replaced"):
        import_model(source, tmp_path / "m", overwrite=True)
    with pytest.raises(UsageError, match="lie in one another; choose another place"):
        import_model(source, source / "m")


def test_archives_of_nnunet_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("Dataset999/nnUNetTrainer__nnUNetPlans__2d/plans.json", "{}")
    with pytest.raises(UsageError, match=r"is an archive with a plans\.json of nnU-Net; unpack it"):
        import_model(tmp_path / "m.zip", tmp_path / "m")


def test_names_of_folds() -> None:
    assert fold_names("0, 02,all") == ("0", "2", "all")
    assert fold_names([1, "all"]) == ("1", "all")
    assert fold_names(()) == ()
    with pytest.raises(UsageError, match="--fold 'x': expected numbers with commas, such as 0,1,2, or all"):
        fold_names("0,x")


class Payload:
    def __reduce__(self) -> tuple[object, ...]:
        return os.getcwd, ()


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The report on stderr, one document on stdout; other types end with 5."""
    write_nnunet(tmp_path / "nn")
    assert main(["import-model", str(tmp_path / "nn"), str(tmp_path / "m"), "--fold", "0", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["folds"] == ["0"]
    assert "taken over: configuration 3d_fullres, fold 0\n" in err
    assert err.endswith(f"import-model: nnU-Net, fold 0 -> {tmp_path / 'm'}\n")
    write_nnunet(tmp_path / "bad", hook=Payload())
    assert main(["import-model", str(tmp_path / "bad"), str(tmp_path / "b")]) == 5
    assert "which is neither a tensor nor a plain value; it was not read" in capsys.readouterr().err
    assert main(["import-model", str(tmp_path), str(tmp_path / "b")]) == 2
    assert "holds several trained folders or lies above one; give one of them: bad, nn" in capsys.readouterr().err


def test_an_orientation_is_checked_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--orientation XYZ: expected a letter for each axis, as RAS or LPS are"):
        import_model(tmp_path / "nowhere", tmp_path / "out", orientation="XYZ")
