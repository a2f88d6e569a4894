"""MONAI bundles: the labels are MONAI's, what cannot be taken over is listed, and nothing is executed."""

from __future__ import annotations

import copy
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import phantoms
import pytest
import torch
from voxelwise.errors import UsageError
from voxelwise.networks.registry import build_network
from voxelwise.pipeline.dataset.plan import plan_from
from voxelwise.pipeline.exporting.export import export_model
from voxelwise.pipeline.importing import bounds
from voxelwise.pipeline.importing.bundle import convert_bundle, is_bundle
from voxelwise.pipeline.importing.checkpoint import CheckpointReader
from voxelwise.pipeline.importing.import_model import import_model
from voxelwise.pipeline.inference.predict import predict
from voxelwise.pipeline.model_folder import load_network, read_model_folder, write_model_folder

from .bundles import (
    ARGMAX,
    BACK,
    PAINT,
    SEGRESNET,
    SIGMOID,
    SOFTMAX,
    THRESHOLD,
    UNET,
    WINDOW,
    compose,
    config,
    labels_of_monai,
    metadata,
    steps,
    write_bundle,
)

pytestmark = [
    pytest.mark.usefixtures("no_child"),
    pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*non-tuple sequence for multidimensional indexing:UserWarning"),
]
LPS = np.diag([-1.5, -1.5, 2.0, 1.0])
NORMALISE = {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True, "channel_wise": True}
SLICES = {"_target_": "SliceInferer", "roi_size": [16, 16], "spatial_dim": 2, "overlap": 0.5}
UNIT = {"_target_": "ScaleIntensityd", "keys": "image"}
REGIONS = [SIGMOID, BACK, THRESHOLD, {"_target_": "Lambdad", "keys": "pred", "func": PAINT}]

# a bundle, and how many of the voxels must be labelled as MONAI labels them
SAME: dict[str, tuple[dict[str, Any], dict[str, Any], np.ndarray, float]] = {
    # images are turned, nothing is resampled
    "classes": (config(), metadata(["background", "spleen"]), LPS, 1.0),
    "regions of four channels": (
        config(
            SEGRESNET,
            outputs=3,
            channels=4,
            preprocessing=compose({"_target_": "LoadImaged", "keys": "image"}, NORMALISE),
            postprocessing=compose(*REGIONS),
        ),
        metadata(["Tumor core", "Whole tumor", "Enhancing tumor"], "MR", ["T1c", "T1", "T2", "FLAIR"]),
        LPS,
        1.0,
    ),
    "slices": (
        config(
            dims=2, outputs=4, inferer=SLICES, preprocessing=compose({"_target_": "LoadImaged", "keys": "image"}, UNIT)
        ),
        metadata([], "MR"),
        LPS,
        1.0,
    ),
    # as the zoo's whole-body CT: zeros become what the mean becomes, and the range -1 to 1
    "range of nonzero voxels": (
        config(
            preprocessing=steps({**NORMALISE, "channel_wise": False}, {**UNIT, "minv": -1.0, "maxv": 1.0}),
            postprocessing=compose(SOFTMAX, ARGMAX, {**BACK, "nearest_interp": True}),
        ),
        metadata(["background", "spleen"]),
        LPS,
        1.0,
    ),
    "resampled": (
        config(inferer={"_target_": "SlidingWindowInferer", "roi_size": [32, 32, 16], "mode": "gaussian"}),
        metadata(["background", "spleen"]),
        np.diag([1.2, -1.3, 2.4, 1.0]),
        0.999,
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_labels_are_monais(tmp_path: Path, name: str) -> None:
    inference, described, affine, wanted = SAME[name]
    if name == "slices":
        inference["preprocessing"]["transforms"].insert(1, {"_target_": "EnsureChannelFirstd", "keys": "image"})
    root = write_bundle(tmp_path / "bundle", inference, described)
    rng = np.random.default_rng(0)
    channels = inference["network_def"]["in_channels"]
    arrays = rng.integers(-100, 200, (channels, 24, 24, 12)).astype(np.int16)
    files = [phantoms.nifti_file(tmp_path / f"{number}.nii.gz", one, affine) for number, one in enumerate(arrays)]
    joined = arrays[0] if channels == 1 else np.moveaxis(arrays, 0, -1)
    phantoms.nifti_file(tmp_path / "in" / "case.nii.gz", joined, affine)
    made = import_model(root, tmp_path / "model")
    predict(tmp_path / "model", tmp_path / "in", tmp_path / "out", engine="torch", device="cpu")
    ours = np.asanyarray(nib.load(tmp_path / "out" / "case.nii.gz").dataobj)
    theirs = labels_of_monai(root, str(files[0]) if channels == 1 else [str(file) for file in files])
    assert len(np.unique(theirs)) > 1
    equal = float((ours == theirs).mean())
    assert equal >= wanted, equal
    assert made.kind == "MONAI bundle"


def plan_of(root: Path) -> Any:
    with CheckpointReader() as reader:
        return convert_bundle(root, reader).plan


def test_a_bundle_becomes_a_plan(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "spleen_ct", config(), metadata(["background", "spleen"]))
    with CheckpointReader() as reader:
        found = convert_bundle(root, reader)
    plan = found.plan
    assert (plan.dataset, plan.channels, plan.modality) == ("spleen_ct", ["CT"], "CT")
    assert (plan.orientation, plan.spacing_mm, plan.crop) == ("RAS", [1.5, 1.5, 2.0], "none")
    assert plan.normalisation[0].model_dump(exclude_defaults=True) == {"kind": "rescale", "low": -57.0, "high": 164.0}
    assert (plan.patch, plan.overlap, plan.blending, plan.tta) == ([16, 16, 8], 0.5, "constant", False)
    assert [(label.value, label.name) for label in plan.labels] == [(0, "background"), (1, "spleen")]
    assert plan.network.options == {
        "class_name": "UNet",
        "arguments": {"channels": [4, 8], "strides": [2], "num_res_units": 2, "norm": "batch"},
    }
    assert found.source["name"] == "a bundle of a test"
    assert set(found.source["files"]) == {"configs/inference.json", "configs/metadata.json", "models/model.pt"}
    assert (plan.resampling.kind, plan.resampling.scores, plan.windows) == ("span", "probabilities", "stepped")
    assert found.report.differs == ()


def test_regions_are_painted_in_their_order(tmp_path: Path) -> None:
    inference = config(SEGRESNET, outputs=3, postprocessing=compose(*REGIONS))
    del inference["network"]  # what a loader of checkpoints says of it leads nowhere, and is not needed
    names = ["Tumor core", "Whole tumor", "Enhancing tumor"]
    root = write_bundle(tmp_path / "brats", inference, metadata(names, "MR"))
    plan = plan_of(root)
    assert [(one.name, one.values, one.writes) for one in plan.regions] == [
        ("Whole tumor", [1, 2, 4], 2),
        ("Tumor core", [1, 4], 1),
        ("Enhancing tumor", [4], 4),
    ]
    assert [label.value for label in plan.labels] == [0, 1, 2, 4]


def test_an_archive_is_read_as_its_folder(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "bundle", config(), metadata(["background", "spleen"]))
    with zipfile.ZipFile(tmp_path / "spleen.zip", "w") as archive:
        for path in sorted(root.rglob("*.*")):
            archive.write(path, f"spleen_ct/{path.relative_to(root)}")
    assert is_bundle(tmp_path / "spleen.zip")
    import_model(tmp_path / "spleen.zip", tmp_path / "packed")
    import_model(root, tmp_path / "plain")
    packed, plain = (read_model_folder(tmp_path / name) for name in ("packed", "plain"))
    assert packed.sha256("0") == plain.sha256("0")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(UsageError, match=r"other.zip is no MONAI bundle"):
        import_model(tmp_path / "other.zip", tmp_path / "none")


def test_an_export_comes_back(tmp_path: Path) -> None:
    fields = plan_from(
        {
            "dataset": "organs",
            "dims": 3,
            "channels": ["T1"],
            "modality": "MR",
            "labels": [
                {"value": value, "name": name} for value, name in ((0, "background"), (3, "organ"), (7, "cyst"))
            ],
            "spacing_mm": [1.4, 1.8, 2.5],
            "crop": "nonzero",
            "normalisation": [{"kind": "zscore", "low": -3.0, "high": 3.0}],
            "patch": [8, 12, 8],
            "batch": 4,
            "overlap": 0.25,
            "mirror_axes": [0],
            "network": {"name": "unet", "options": {"widths": [4, 8]}},
        }
    ).model_dump()
    torch.manual_seed(0)
    network = build_network("unet", 3, 1, 3, widths=[4, 8])
    write_model_folder(tmp_path / "model", network, {"widths": [4, 8]}, fields)
    export_model(tmp_path / "model", tmp_path / "bundle")
    import_model(tmp_path / "bundle", tmp_path / "again")
    first, again = (read_model_folder(tmp_path / name) for name in ("model", "again"))
    assert first.sha256("0") == again.sha256("0")
    assert again.preprocessing == first.preprocessing
    assert again.labels == first.labels
    phantoms.nifti_file(tmp_path / "in" / "a.nii.gz", phantoms.ramp((20, 18, 10)), phantoms.AXIAL)
    found = []
    for name in ("model", "again"):
        predict(tmp_path / name, tmp_path / "in", tmp_path / f"out_{name}", engine="torch", device="cpu")
        found.append(np.asanyarray(nib.load(tmp_path / f"out_{name}" / "a.nii.gz").dataobj))
    np.testing.assert_array_equal(*found)
    assert load_network(again).state_dict().keys() == network.state_dict().keys()


def edited(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    inference = copy.deepcopy(config())
    change(inference)
    return inference


def in_chain(*more: dict[str, Any], at: int = -1) -> dict[str, Any]:
    """A preprocessing with transforms of its own."""
    chain = steps({**WINDOW, "clip": True})
    chain["transforms"][at:at] = more
    return {"preprocessing": chain}


def network(**arguments: Any) -> dict[str, Any]:
    """A network with arguments of its own."""
    return {"network_def": {**UNET, "spatial_dims": 3, "in_channels": 1, "out_channels": 2, **arguments}}


OBSTACLES: list[tuple[dict[str, Any], str]] = [
    (
        {"network_def": {**UNET, "_target_": "scripts.net.Own"}},
        "network_def: scripts.net.Own is code of the bundle's own",
    ),
    ({"network_def": {**UNET, "_target_": "DiNTS"}}, "network_def, DiNTS: is none of the networks that are taken"),
    ({"network_def": "$torch.jit.load('x')"}, r"network_def is the expression \$torch.jit.load"),
    ({"network_def": {"_target_": "torch.jit.load", "f": "x"}}, "torch.jit.load is code of the bundle's own or"),
    (
        {"network_def": {**UNET, "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "act": "$f()"}},
        r"act is the exp.* \$f",
    ),
    (
        {"network_def": {**UNET, "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "depth": 3}},
        "argument of MONAI's UNet",
    ),
    (network(num_res_units=60000), "MONAI's UNet with these arguments has more than 500 parts, which no network has"),
    (network(num_res_units=1e9), r"holds the number 1e\+09, which no network has"),
    (network(num_res_units=float("nan")), "holds the number nan, which no network has"),
    (network(spatial_dims=float("inf")), "spatial_dims is inf, expected numbers"),
    (network(window_size=[7, 7, 17]), "holds the number 17 under window_size, which no network has"),
    ({"inferer": {"_target_": "SimpleInferer"}}, "inferer, SimpleInferer: is none of SlidingWindowInferer"),
    ({"inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 15, 8]}}, "no multiple of"),
    ({"inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, -1, 8]}}, "expected 3 numbers of voxels"),
    ({"postprocessing": compose(SOFTMAX, BACK)}, "postprocessing has no AsDiscreted"),
    ({"postprocessing": compose(SIGMOID, THRESHOLD)}, "gives 2 masks that may overlap"),
    ({"postprocessing": compose(SIGMOID, {**THRESHOLD, "threshold": 0.3})}, "threshold is 0.3 behind sigmoid"),
    (
        {"postprocessing": compose(ARGMAX, {"_target_": "KeepLargestConnectedComponentd", "keys": "pred"})},
        "KeepLargestConnectedComponentd: has no counterpart here",
    ),
    (
        {"postprocessing": compose(ARGMAX, {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: open('x')"})},
        r"func is \$lambda x: open.*not evaluated",
    ),
    (
        in_chain({"_target_": "Lambdad", "keys": "image", "func": "$print"}),
        "preprocessing 5, Lambdad: has no counterpart",
    ),
    (in_chain(NORMALISE), "NormalizeIntensityd: cannot follow a clip"),
    (in_chain({"_target_": "Rotate90d", "keys": "image"}, at=2), "preprocessing 2, Rotate90d: has no counterpart"),
    (in_chain({"_target_": "Orientationd", "keys": "image", "axcodes": "LPS"}), "stands behind Spacingd"),
    (in_chain({"_target_": "NormalizeIntensityd", "keys": "image"}, at=3), "Spacingd: stands behind a normalisation"),
    (in_chain({"_target_": "mypackage.Scale", "keys": "image"}), "preprocessing 5: mypackage.Scale is code"),
    (in_chain({"_target_": "CastToTyped", "keys": "image", "dtype": "$torch.float16"}), "makes the image float16"),
    (
        {"preprocessing": steps({**UNIT, "minv": 1.0, "maxv": -1.0})},
        "brings the image's own range to none that rises",
    ),
    ({"overlap": "@nowhere"}, r"overlap is the expression \$@nowhere, which leads nowhere"),
    ({"handlers": [], "overlap": "$random.random()"}, r"overlap is the expression \$random.random\(\)"),
]


@pytest.mark.parametrize(("changes", "message"), OBSTACLES)
def test_what_stands_in_the_way_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(bounds, "MOST_PARTS", 500)
    root = write_bundle(tmp_path / "bundle", config(), metadata(["background", "spleen"]))
    (root / "configs" / "inference.json").write_text(json.dumps({**config(), **changes}))
    with pytest.raises(UsageError, match=f"what stands in the way: .*{message}") as caught:
        import_model(root, tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_all_obstacles_are_named_at_once(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "bundle", config(), metadata([]))
    (root / "models" / "model.pt").rename(root / "models" / "model.ts")
    wrong = {"inferer": {"_target_": "SimpleInferer"}, "postprocessing": compose(SOFTMAX)}
    (root / "configs" / "inference.json").write_text(json.dumps({**config(), **wrong}))
    told = r"\(1\) inferer.*; \(2\) postprocessing.*; \(3\) the weights models/model.pt are not there .*TorchScript"
    with pytest.raises(UsageError, match=told):
        import_model(root, tmp_path / "model")


def test_nothing_of_a_bundle_is_executed(tmp_path: Path) -> None:
    inference = config()
    mark = tmp_path / "executed"
    inference["imports"] = [f"$open({str(mark)!r}, 'w').close()"]
    inference["datalist"] = f"$open({str(mark)!r}, 'w').close()"
    root = write_bundle(tmp_path / "bundle", inference, metadata(["background", "spleen"]))
    (root / "scripts").mkdir()
    (root / "scripts" / "__init__.py").write_text(f"open({str(mark)!r}, 'w').close()")
    import_model(root, tmp_path / "model")
    assert not mark.exists()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "bundle", config(), metadata(["background", "spleen"]))
    other = config({**UNET, "channels": [4, 12]})
    (root / "configs" / "inference.json").write_text(json.dumps(other))
    with pytest.raises(UsageError, match=r"model.pt: the weights are not those of MONAI's UNet .* have another shape"):
        import_model(root, tmp_path / "model")
