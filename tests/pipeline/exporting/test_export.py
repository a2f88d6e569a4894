"""Exports: each file gives what the network gives, MONAI runs its bundle, and what fails leaves nothing."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import phantoms
import pytest
import safetensors.torch
import torch
from monai.bundle import ConfigParser
from monai.inferers import SliceInferer
from voxelwise.errors import NothingDoneError, UsageError
from voxelwise.networks.base import SliceNetwork
from voxelwise.networks.registry import build_network
from voxelwise.pipeline.exporting.bundle import preprocessing
from voxelwise.pipeline.exporting.export import export_model
from voxelwise.pipeline.exporting.formats import FORMS, run_onnx, run_program, run_torchscript
from voxelwise.pipeline.inference.predict import predict
from voxelwise.pipeline.model_folder import load_network, write_model_folder
from voxelwise.scripts.main import main
from voxelwise.transforms.chains import build_chain, preprocessing_steps
from voxelwise.transforms.located import plain

# of others: torch calls TorchScript old, which MONAI's workflows load; MONAI misses a plugin for DICOM
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning"),
]
OPTIONS: dict[str, Any] = {"widths": [4, 8]}
LABELS = [{"value": 0, "name": "background"}, {"value": 3, "name": "organ"}, {"value": 7, "name": "vessel"}]


def plan(**changes: Any) -> dict[str, Any]:
    return {
        "dims": 3,
        "channels": ["T1"],
        "modality": "MR",
        "labels": LABELS,
        "spacing_mm": None,
        "orientation": "RAS",
        "crop": "none",
        "bias_field": False,
        "normalisation": [{"kind": "zscore"}],
        "patch": [8, 12, 8],
        "network": {"name": "unet", "options": OPTIONS},
        "mirror_axes": [0],
        "overlap": 0.5,
        "tta": False,
        **changes,
    }


def make_model(folder: Path, *, fold: str = "0", **changes: Any) -> Path:
    fields = plan(**changes)
    torch.manual_seed(0)
    network = build_network("unet", fields["dims"], len(fields["channels"]), len(LABELS), **OPTIONS)
    write_model_folder(folder, network, OPTIONS, fields, fold=fold)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


def windows(count: int, *size: int) -> torch.Tensor:
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(7))


def is_close(file: Path, run: Any, network: torch.nn.Module, *size: int) -> None:
    """Windows that the export did not see, one, two and three of them."""
    batches = [windows(count, *size) for count in (1, 2, 3)]
    with torch.no_grad():
        for found, batch in zip(run(file, batches), batches, strict=True):
            torch.testing.assert_close(found, network(batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("format", "run"), [("torch", run_program), ("torchscript", run_torchscript)])
def test_a_file_gives_what_the_network_gives(tmp_path: Path, model: Path, format: str, run: Any) -> None:
    made = export_model(model, tmp_path / "out", format=format)
    assert made.any_number
    assert made.max_difference < 1e-4
    file = tmp_path / "out" / f"network{FORMS[format].suffix}"
    is_close(file, run, load_network(model), 1, 8, 12, 8)
    card = json.loads((tmp_path / "out" / "model.json").read_text())
    assert card["input"]["shape"] == ["any", 1, 8, 12, 8]
    assert card["output"]["shape"] == ["any", 3, 8, 12, 8]
    assert [label["value"] for label in card["labels"]] == [0, 3, 7]
    readme = (tmp_path / "out" / "README.md").read_text()
    words = ("Turn to RAS", "Keep the spacing", "subtract the mean", "| 1 | 3 | organ |", "share 50%", "8 x 12 x 8")
    for word in words:
        assert word in readme
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["files"] == dict(made.files)
    assert set(made.files) == {file.name, "model.json", "README.md"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="onnxscript is not installed")
def test_onnx_gives_what_the_network_gives(tmp_path: Path, model: Path) -> None:
    made = export_model(model, tmp_path / "out", format="onnx")
    assert made.any_number
    is_close(tmp_path / "out" / "network.onnx", run_onnx, load_network(model), 1, 8, 12, 8)


def test_onnx_names_what_to_install(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(UsageError, match=r"needs onnxscript, which is not installed; pip install 'voxelwise\[onnx\]'"):
        export_model(model, tmp_path / "out", format="onnx")


def labels_of_workflow(bundle: Path, images: Path) -> dict[str, Path]:
    """What the evaluator of the bundle does, step by step, as it needs ignite."""
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser.read_meta(str(bundle / "configs" / "metadata.json"))
    parser.update({"bundle_root": str(bundle), "dataset_dir": str(images), "device": "$torch.device('cpu')"})
    network, found = parser.get_parsed_content("network"), parser.get_parsed_content("inferer")
    finish = parser.get_parsed_content("postprocessing")
    with torch.no_grad():
        for sample in parser.get_parsed_content("dataset"):
            finish({**sample, "pred": found(sample["image"][None], network)[0]})
    return {path.name: path for path in (bundle / "labels").iterdir()}


def agreement(first: Path, second: Path) -> float:
    one, two = nib.load(first), nib.load(second)
    assert one.shape == two.shape
    np.testing.assert_allclose(one.affine, two.affine, atol=1e-5)
    return float((np.asanyarray(one.dataobj) == np.asanyarray(two.dataobj)).mean())


@pytest.mark.parametrize("spacing", [None, [1.4, 1.8, 2.5]])
def test_monai_runs_its_bundle_to_the_same_labels(tmp_path: Path, spacing: list[float] | None) -> None:
    """One window a volume, as MONAI lays windows by a rule of its own."""
    shape = (8, 12, 8) if spacing is None else (16, 24, 8)
    model = make_model(tmp_path / "model", spacing_mm=spacing)
    array = np.random.default_rng(0).integers(-100, 400, shape).astype(np.int16)
    phantoms.nifti_file(tmp_path / "in" / "a.nii.gz", array, phantoms.AXIAL)
    made = export_model(model, tmp_path / "bundle")
    assert set(made.files) == {
        *("configs/inference.json", "configs/metadata.json"),
        *("models/model.ts", "models/model.safetensors", "docs/README.md"),
    }
    predict(model, tmp_path / "in", tmp_path / "ours")
    found = labels_of_workflow(tmp_path / "bundle", tmp_path / "in")
    equal = agreement(found["a.nii.gz"], tmp_path / "ours" / "a.nii.gz")
    assert equal == 1.0 if spacing is None else equal >= 0.99
    weights = safetensors.torch.load_file(tmp_path / "bundle" / "models" / "model.safetensors")
    assert weights.keys() == load_network(model).state_dict().keys()


@pytest.mark.skipif(importlib.util.find_spec("ignite") is None, reason="pytorch-ignite is not installed")
def test_monais_workflow_runs_as_its_command_runs_it(tmp_path: Path, model: Path) -> None:
    from monai.bundle import ConfigWorkflow

    phantoms.nifti_file(tmp_path / "in" / "a.nii.gz", phantoms.ramp((8, 12, 8)))
    export_model(model, tmp_path / "bundle")
    workflow = ConfigWorkflow(
        config_file=str(tmp_path / "bundle" / "configs" / "inference.json"),
        workflow_type="inference",
        logging_file=False,
        bundle_root=str(tmp_path / "bundle"),
        dataset_dir=str(tmp_path / "in"),
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    assert (tmp_path / "bundle" / "labels" / "a.nii.gz").is_file()


def test_a_slice_model_goes_slice_by_slice(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", dims=2, patch=[8, 8, 1], normalisation=[{"kind": "zscore"}])
    made = export_model(model, tmp_path / "bundle")
    parser = ConfigParser()
    parser.read_config(str(tmp_path / "bundle" / "configs" / "inference.json"))
    parser["bundle_root"] = str(tmp_path / "bundle")
    found = parser.get_parsed_content("inferer")
    assert isinstance(found, SliceInferer)
    network = load_network(model)
    assert isinstance(network, SliceNetwork)
    volume = windows(1, 1, 8, 8, 5)
    with torch.no_grad():
        torch.testing.assert_close(found(volume, parser.get_parsed_content("network")), network(volume))
    assert made.any_number
    card = json.loads((tmp_path / "bundle" / "configs" / "metadata.json").read_text())["voxelwise"]
    assert card["input"]["slices_along_axis"] == 2


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "zscore"},
        {"kind": "zscore_nonzero"},
        {"kind": "zscore", "low": -1.0, "high": 1.5},
        {"kind": "rescale", "low": -50.0, "high": 250.0},
        {"kind": "rescale_own", "mean": 0.5, "std": 0.5},
        {"kind": "rescale_nonzero", "mean": 0.5, "std": 0.5},
        {"kind": "window", "low": -50.0, "high": 250.0, "mean": 30.0, "std": 80.0},
    ],
)
def test_monais_transforms_prepare_what_ours_prepare(tmp_path: Path, values: dict[str, Any]) -> None:
    array = np.random.default_rng(0).integers(-100, 400, (14, 12, 10)).astype(np.int16)
    array[:3], array[:, :, -2:] = 0, 0
    path = phantoms.nifti_file(tmp_path / "a.nii.gz", array, phantoms.AXIAL)
    steps = preprocessing_steps(**plan(crop="nonzero", spacing_mm=[1.0, 1.0, 2.0], normalisation=[values]))
    ours = build_chain([step for step in steps if step["name"] != "ToClasses"])({"image": str(path)})["image"]
    parser = ConfigParser({"imports": ["$import torch"], "chain": {"_target_": "Compose", "transforms": None}})
    parser["chain"]["transforms"] = preprocessing(steps)
    theirs = parser.get_parsed_content("chain")({"image": str(path)})["image"]
    assert tuple(theirs.shape) == tuple(ours.shape)
    torch.testing.assert_close(plain(theirs), plain(ours), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bias_field": True}, "it corrects the bias field"),
        ({"modality": "picture", "orientation": None}, "it is for pictures"),
        ({"channels": ["a", "b"], "normalisation": [{"kind": "zscore"}, {"kind": "zscore_nonzero"}]}, "different ways"),
    ],
)
def test_what_no_bundle_can_hold_is_said_in_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    model = make_model(tmp_path / "model", **changes)
    with pytest.raises(NothingDoneError, match=f"no MONAI bundle can be made of this model: .*{message}"):
        export_model(model, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_file_that_gives_something_else_is_not_kept(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def something_else(path: Path, batches: Any) -> Any:
        return [batch.expand(-1, 3, -1, -1, -1) for batch in batches]

    monkeypatch.setitem(FORMS, "torchscript", replace(FORMS["torchscript"], run=something_else))
    with pytest.raises(NothingDoneError, match=r"gives logits that differ by .* nothing was kept"):
        export_model(model, tmp_path / "out", format="torchscript")
    assert not list(tmp_path.iterdir())


OWN = """
import torch
from voxelwise.networks.unet import UNet
class Odd(UNet):
    def forward(self, image):
        if float(image.sum()) > 1e9:
            raise ValueError("no")
        return super().forward(image)
"""


def test_a_network_that_cannot_be_exported_says_why(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(OWN)
    name = f"{tmp_path / 'odd.py'}:Odd"
    network = build_network(name, 3, 1, 3, **OPTIONS)
    fields = plan(network={"name": name, "options": OPTIONS})
    write_model_folder(tmp_path / "model", network, OPTIONS, fields, name=name)
    with pytest.raises(NothingDoneError, match=r"^Odd cannot be exported as \.pt2: [^\n]+; try another --format"):
        export_model(tmp_path / "model", tmp_path / "out", format="torch", network=name)
    assert export_model(tmp_path / "model", tmp_path / "out", format="torchscript", network=name).any_number


def test_one_fold_is_exported(tmp_path: Path, model: Path) -> None:
    several = make_model(tmp_path / "model")
    make_model(several, fold="1")
    with pytest.raises(UsageError, match="holds the folds 0, 1, an export holds one; name it with --fold"):
        export_model(several, tmp_path / "out", format="torchscript")
    assert export_model(several, tmp_path / "out", format="torchscript", fold=1).fold == "1"


def test_what_is_there_is_kept_unless_it_is_an_export(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export_model(model, out, format="torchscript")
    with pytest.raises(UsageError, match="is there already; use --overwrite"):
        export_model(model, out, format="torchscript")
    assert export_model(model, out, format="torchscript", overwrite=True).out == out
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(UsageError, match="was not made by `voxelwise export`, and is not replaced"):
        export_model(model, tmp_path / "mine", format="torchscript", overwrite=True)
    with pytest.raises(UsageError, match="lies inside the model folder"):
        export_model(model, model / "export", format="torchscript")
    with pytest.raises(UsageError, match="unknown --format 'tensorflow'"):
        export_model(model, tmp_path / "new", format="tensorflow")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


def test_the_command_says_what_it_made(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(model), str(tmp_path / "out"), "--format", "torchscript", "--json"]) == 0
    said = capsys.readouterr()
    assert "export: fold 0 as torchscript, any number of windows; logits differ by at most" in said.err
    assert json.loads(said.out)["format"] == "torchscript"
    assert main(["export", str(model), str(tmp_path / "out"), "--format", "torchscript"]) == 2
