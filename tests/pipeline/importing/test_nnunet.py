"""nnU-Net's plans as ours: axes, labels, regions, normalisation, resampling; and what is refused, by name."""

from __future__ import annotations

import json
import shutil
import signal
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunet_folders import DATASET, FULL, PLANS, write_nnunet
from voxelwise.errors import UsageError
from voxelwise.pipeline.importing.checkpoint import CheckpointReader
from voxelwise.pipeline.importing.conversion import Conversion
from voxelwise.pipeline.importing.nnunet import Wanted, convert_nnunet
from voxelwise.pipeline.importing.nnunet_folder import is_nnunet
from voxelwise.pipeline.importing.nnunet_plan import in_our_order, our_axes
from voxelwise.pipeline.importing.nnunet_report import is_known

pytestmark = pytest.mark.usefixtures("no_child")


def convert(root: Path, **options: Any) -> Conversion:
    return convert_nnunet(root, CheckpointReader(), Wanted(**options))


def changed(values: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with the entry at `a/b/c` set, or taken out where the value is `...`."""
    copy = deepcopy(values)
    *above, last = path.split("/")
    inner = copy
    for key in above:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return copy


def test_axes_come_into_our_order(tmp_path: Path) -> None:
    """transpose_forward (2, 0, 1): nnU-Net's axes are X, Z, Y."""
    plan = convert(write_nnunet(tmp_path / "m")).plan
    assert plan.patch == [4, 16, 8]
    assert plan.spacing_mm == [3.0, 0.5, 0.8]
    assert plan.mirror_axes == [0, 2]
    assert plan.network.options["kernels"][0] == [1, 3, 3]
    assert plan.network.options["strides"][1] == [1, 2, 2]
    assert (plan.orientation, plan.crop, plan.modality, plan.batch, plan.tta) == (None, "nonzero", "CT", 3, True)
    assert plan.resampling.model_dump(exclude_defaults=True) == {"kind": "spline"}
    assert plan.normalisation[0].model_dump() == {
        "kind": "window",
        "low": -10.0,
        "high": 120.0,
        "mean": 50.0,
        "std": 20.0,
    }


def test_slices_keep_the_spacing_between_them(tmp_path: Path) -> None:
    root = write_nnunet(tmp_path / "m", configuration="2d", inference_allowed_mirroring_axes=(1,))
    plan = convert(root).plan
    assert (plan.dims, plan.patch, plan.spacing_mm) == (2, [1, 16, 8], [None, 0.5, 0.8])
    assert plan.mirror_axes == [1]
    assert plan.network.options["strides"][1] == [2, 1]


@pytest.mark.parametrize("transpose", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
def test_order_of_axes(transpose: tuple[int, ...]) -> None:
    """The value of nnU-Net's axis j, which was (Z, Y, X)[transpose[j]], is the one of that letter."""
    letters = ["ZYX"[axis] for axis in transpose]
    assert in_our_order(letters, transpose, "") == ["X", "Y", "Z"]
    assert in_our_order(letters[1:], transpose, "?").index("?") == 2 - transpose[0]
    assert ["XYZ"[axis] for axis in our_axes([0, 1], transpose, 2)] == sorted(letters[1:])


def test_configurations_inherit(tmp_path: Path) -> None:
    plan = convert(write_nnunet(tmp_path / "m", configuration="3d_lowres")).plan
    assert (plan.spacing_mm, plan.patch) == ([6.0, 1.0, 1.6], [4, 16, 8])


def test_plans_of_the_older_form(tmp_path: Path) -> None:
    """As TotalSegmentator's are: no `architecture`, intensities by modality, `modality` for channel names."""
    old = {name: value for name, value in FULL.items() if name != "architecture"} | {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 2,
        "unet_max_num_features": 4,
        "n_conv_per_stage_encoder": [1, 1],
        "n_conv_per_stage_decoder": [1],
        "num_pool_per_axis": [0, 1, 1],
        "pool_op_kernel_sizes": [[1, 1, 1], [1, 2, 2]],
        "conv_kernel_sizes": [[1, 3, 3], [3, 3, 3]],
    }
    plans = changed(PLANS, "configurations", {"3d_fullres": old})
    plans["foreground_intensity_properties_by_modality"] = plans.pop("foreground_intensity_properties_per_channel")
    plans["image_reader_writer"] = "NibabelIOWithReorient"
    dataset = {"modality": {"0": "CT"}, "labels": DATASET["labels"]}
    found = convert(write_nnunet(tmp_path / "m", plans=plans, dataset=dataset))
    assert found.plan.network.options["widths"] == [2, 4]
    assert (found.plan.normalisation[0].high, found.plan.orientation) == (120.0, "RAS")
    assert [fold for fold, _ in found.networks] == ["0"]


def test_regions_in_the_order_of_the_outputs(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    dataset = {**DATASET, "labels": labels, "regions_class_order": [1, 2, 3]}
    found = convert(write_nnunet(tmp_path / "m", dataset=dataset))
    assert [region.model_dump() for region in found.plan.regions] == [
        {"name": "whole", "values": [1, 2, 3], "writes": 1},
        {"name": "core", "values": [2, 3], "writes": 2},
        {"name": "enhancing", "values": [3], "writes": 3},
    ]
    assert [(one.value, one.name) for one in found.plan.labels] == [
        (0, "background"),
        (1, "label 1"),
        (2, "label 2"),
        (3, "enhancing"),
    ]
    assert "label 4 (ignore): of training alone, it is never predicted" in found.report.ignored
    assert next(found.networks)[1].out_channels == 3


@pytest.mark.parametrize(
    ("scheme", "mask", "expected"),
    [
        ("ZScoreNormalization", True, {"kind": "zscore_mask"}),
        ("ZScoreNormalization", False, {"kind": "zscore"}),
        ("NoNormalization", True, {"kind": "none"}),
        ("RescaleTo01Normalization", False, {"kind": "rescale_own"}),
        ("RGBTo01Normalization", False, {"kind": "rescale", "low": 0.0, "high": 255.0}),
    ],
)
def test_normalisation(tmp_path: Path, scheme: str, mask: bool, expected: dict[str, Any]) -> None:
    plans = changed(PLANS, "configurations/3d_fullres/normalization_schemes", [scheme])
    plans = changed(plans, "configurations/3d_fullres/use_mask_for_norm", [mask])
    plan = convert(write_nnunet(tmp_path / "m", plans=plans)).plan
    assert plan.normalisation[0].model_dump(exclude_defaults=True) == expected


@pytest.mark.parametrize(
    ("channels", "median", "modality"),
    [
        (["CT"], 40.0, "CT"),
        (["CT"], 1400.0, "other"),
        (["MRI"], 0.0, "MR"),
        (["T1", "FLAIR"], 0.0, "MR"),
        (["rescale_to_0_1"], 0.0, "other"),
        (["CT", "PET"], 0.0, "other"),
        (["CT", "zscore"], 0.0, "other"),
    ],
)
def test_modality_is_that_of_all_channels(tmp_path: Path, channels: list[str], median: float, modality: str) -> None:
    count = len(channels)
    plans = changed(PLANS, "configurations/3d_fullres/normalization_schemes", ["ZScoreNormalization"] * count)
    plans = changed(plans, "configurations/3d_fullres/use_mask_for_norm", [False] * count)
    plans = changed(plans, "foreground_intensity_properties_per_channel", {"0": {"median": median}})
    dataset = {**DATASET, "channel_names": {str(at): name for at, name in enumerate(channels)}}
    assert convert(write_nnunet(tmp_path / "m", plans=plans, dataset=dataset)).plan.modality == modality


def test_no_resampling_at_all(tmp_path: Path) -> None:
    plans = PLANS
    for field in ("data", "probabilities"):
        plans = changed(plans, f"configurations/3d_fullres/resampling_fn_{field}", "no_resampling_hack")
        plans = changed(plans, f"configurations/3d_fullres/resampling_fn_{field}_kwargs", {})
    plan = convert(write_nnunet(tmp_path / "m", plans=plans)).plan
    assert (plan.spacing_mm, plan.resampling.kind) == (None, "linear")


CONFIGURATION = "configurations/3d_fullres"
ARGUMENTS = f"{CONFIGURATION}/architecture/arch_kwargs"
WRONG_PLANS: list[tuple[str, Any, str]] = [
    (f"{CONFIGURATION}/normalization_schemes", ["MyNormalization"], r"unknown normalisation in .*plans\.json: 'MyNorm"),
    (
        f"{CONFIGURATION}/resampling_fn_data",
        "resample_torch_fornnunet",
        "unknown resampling function in .*'resample_",
    ),
    (f"{CONFIGURATION}/resampling_fn_data", "no_resampling_hack", "images are resampled by no_resampling_hack and sco"),
    (f"{CONFIGURATION}/resampling_fn_data_kwargs/mode", "x", "resampling_fn_data_kwargs: mode: found 'x', extra input"),
    (
        f"{CONFIGURATION}/resampling_fn_data_kwargs/separate_z_anisotropy_threshold",
        5,
        "threshold 5 cannot be",
    ),
    (f"{CONFIGURATION}/preprocessor_name", "CTPreprocessor", "unknown preprocessor_name in .*: 'CTPreprocessor'"),
    (
        f"{CONFIGURATION}/architecture/network_class_name",
        "my.Net",
        "network class my.Net cannot be imported",
    ),
    (
        f"{CONFIGURATION}/patch_size",
        "16",
        r"plans\.json: 3d_fullres: patch_size: found '16', input should be a",
    ),
    (f"{CONFIGURATION}/patch_size", [8, 8], "3d_fullres has a network of 3 dimensions, patch_size"),
    (f"{CONFIGURATION}/spacing", ..., "3d_fullres: spacing: it is missing, field required"),
    (
        f"{CONFIGURATION}/use_mask_for_norm",
        [False, True],
        "1 normalization_schemes and 2 use_mask_for_norm for 1",
    ),
    (
        f"{CONFIGURATION}/inherits_from",
        "3d_lowres",
        r"configurations inherit in a circle \(3d_fullres -> 3d_lowres",
    ),
    (f"{CONFIGURATION}/inherits_from", "3d_x", "unknown configuration in .*: '3d_x'"),
    (f"{CONFIGURATION}/previous_stage", "3d_lowres", "second stage of a cascade, which takes the labels of 3d_lowres"),
    (f"{ARGUMENTS}/n_conv_per_stage", [10**9, 1], "holds the number 1e[+]09, which no network or patch has"),
    (f"{ARGUMENTS}/n_conv_per_stage", [2000, 1], "a network of 2002 convolutions or blocks, expected up to 1000"),
    (f"{ARGUMENTS}/n_conv_per_stage", [10**4000, 1], "holds the number of more than 300 digits, which no network"),
    (f"{ARGUMENTS}/n_conv_per_stage", [float("nan"), 1], "holds the number nan, which no network or patch has"),
    (f"{ARGUMENTS}/n_stages", 17, "n_stages of PlainConvUNet cannot be read: .* less than or equal to 16, found 17"),
    (f"{ARGUMENTS}/kernel_sizes", [3, 4097], "kernel_sizes are numbers up to 64, found 4097"),
    (f"{ARGUMENTS}/features_per_stage", [2, 5], "weights do not fit the plans: .* has the shape"),
    (f"{ARGUMENTS}/conv_bias", False, "checkpoint_final.pth: weights do not fit the plans: "),
    ("image_reader_writer", "Tiff3DIO", "unknown image_reader_writer in .*: 'Tiff3DIO'"),
    ("label_manager", "MyLabels", "unknown label_manager in .*: 'MyLabels'"),
    ("transpose_forward", [0, 0, 1], "transpose_forward is an order of 0, 1 and 2"),
    ("configurations", {}, "unknown configuration in .*: '3d_fullres'"),
    (
        "foreground_intensity_properties_per_channel/0/std",
        "x",
        "intensities of channel 0: std: found 'x', input",
    ),
    (
        "foreground_intensity_properties_per_channel",
        {},
        "intensities of channel 0: the whole: found 'None'",
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nnunet(tmp_path_factory.mktemp("nnunet") / "nnUNetTrainer__nnUNetPlans__3d_fullres")


@pytest.mark.parametrize(("path", "value", "message"), WRONG_PLANS)
def test_plans_that_are_refused(tmp_path: Path, folder: Path, path: str, value: Any, message: str) -> None:
    root = Path(shutil.copytree(folder, tmp_path / "m"))
    (root / "plans.json").write_text(json.dumps(changed(PLANS, path, value)))
    with pytest.raises(UsageError, match=message) as caught:
        list(convert(root).networks)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("labels", {"organ": 1}, 'labels must name values, with {"background": 0'),
        ("labels", {"background": 1, "organ": 2}, "background must be 0, found 1"),
        ("labels", {"background": 0, "organ": 1, "vessel": 3}, "labels must be 0, 1, 2, ... without a gap"),
        ("labels", {"background": 0, "organ": "x"}, "label 'organ' must be a number from 0 on or a list"),
        ("labels", {"background": 0}, "there is no label but background"),
        ("labels", {"background": 0, "a": [1, 2], "b": 2}, "regions_class_order must hold one label value for each of"),
        ("labels", {"background": 0, "a": 1, "ignore": [2]}, "the label ignore must be a number"),
        ("labels", {"background": 0, "a": 1}, "weights do not fit the plans: decoder.seg_layers.0.* has the shape"),
        ("channel_names", {"1": "CT"}, "channel_names must number the channels"),
        ("channel_names", ..., "channel_names must number the channels, .*; found None"),
    ],
)
def test_data_sets_that_are_refused(tmp_path: Path, folder: Path, path: str, value: Any, message: str) -> None:
    root = Path(shutil.copytree(folder, tmp_path / "m"))
    (root / "dataset.json").write_text(json.dumps(changed(DATASET, path, value)))
    with pytest.raises(UsageError, match=message):
        list(convert(root).networks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer_name": None}, "does not say by which trainer and configuration it was made"),
        ({"init_args": {}}, "does not say by which trainer and configuration it was made"),
        ({"inference_allowed_mirroring_axes": (0, 7)}, r"inference_allowed_mirroring_axes are \[0, 7\], expected axes"),
        ({"network_weights": {"a": torch.tensor([float("nan")])}}, "the weights of a are not finite"),
        ({"network_weights": {"a": torch.tensor([1e300], dtype=torch.double)}}, "the weights of a are not finite"),
        (
            {"network_weights": {"a": torch.ones(1, dtype=torch.cfloat)}},
            "hold torch.complex64 under 'a', expected floa",
        ),
        ({"network_weights": {"a": torch.ones(1, dtype=torch.int32)}}, "hold torch.int32 under 'a', expected floating"),
        (
            {"network_weights": {"a": torch.ones(1)}, "trainer_name": "nnUNetTrainerUMamba"},
            r"weights do not fit the plans: .* \(has trainer nnUNetTrainerUMamba a network of its own\?\)",
        ),
    ],
)
def test_checkpoints_that_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    root = write_nnunet(tmp_path / "m", **changes)
    with pytest.raises(UsageError, match=message):
        list(convert(root).networks)


def test_a_network_larger_than_its_weights_takes_no_memory(tmp_path: Path) -> None:
    """Its second level alone would have 464 GB."""
    plans = changed(PLANS, f"{ARGUMENTS}/features_per_stage", [65536, 65536])
    root = write_nnunet(tmp_path / "m", network_weights={"a": torch.ones(1)})
    (root / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(UsageError, match=r"weights do not fit the plans: they lack encoder.stages.0.0.convs.0.conv.we"):
        list(convert(root).networks)


@pytest.mark.parametrize(
    ("trainer", "known"),
    [
        ("nnUNetTrainer", True),
        ("nnUNetTrainer_250epochs_NoMirroring", True),
        ("nnUNetTrainerVanillaAdam1en3", True),
        ("nnUNetTrainerDA5Segord0", True),
        ("nnUNetTrainerNoDeepSupervision", True),
        ("nnUNetTrainer_probabilisticOversampling_033", True),
        ("nnUNetTrainerMine", False),
        ("MyTrainer", False),
        ("nnUNetTrainer" + "0001ep" * 30 + "!", False),
    ],
)
def test_trainers_of_nnunet_are_known_by_their_words(trainer: str, known: bool) -> None:
    """In a time that does not grow with the ways to split a name, of which there are 2 ** 30 in the last."""
    signal.alarm(20)
    try:
        assert is_known(trainer) is known
    finally:
        signal.alarm(0)


def test_folds_are_of_one_training(tmp_path: Path) -> None:
    root = write_nnunet(tmp_path / "m", folds=("0", "1"))
    write_nnunet(root, folds=("1",), inference_allowed_mirroring_axes=None)
    with pytest.raises(UsageError, match=r"was trained otherwise than fold 0: .* import its fold alone with --fold 1"):
        list(convert(root).networks)
    assert convert(root, folds=("1",)).plan.mirror_axes == []


def test_images_may_be_turned_first(folder: Path) -> None:
    found = convert(folder, orientation="RAS")
    assert found.plan.orientation == "RAS"
    assert "images are turned to RAS first, as asked for; SimpleITKIO would not" in found.report.differs
    with pytest.raises(UsageError, match="orientation must name each axis once, as RAS or LPS do, found 'RAX'"):
        convert(folder, orientation="RAX")


def test_which_folds(tmp_path: Path) -> None:
    """Numbered ones by default; fold_all and best checkpoints when they are asked for."""
    root = write_nnunet(tmp_path / "m", folds=("0", "10", "2", "all"))
    write_nnunet(root, folds=("3",), name="checkpoint_best.pth")
    found = convert(root)
    assert [fold for fold, _ in found.networks] == ["0", "2", "10"]
    assert "fold(s) all: not asked for" in found.report.ignored
    assert [fold for fold, _ in convert(root, folds=("all",)).networks] == ["all"]
    assert [fold for fold, _ in convert(root, checkpoint="best").networks] == ["3"]
    with pytest.raises(UsageError, match=r"has no fold_4 with checkpoint_final.pth \(there are: 0, 2, 10, all\)"):
        convert(root, folds=("0", "4"))
    with pytest.raises(UsageError, match=r"has no checkpoint_final.pth .*; it has checkpoint_best.pth: take it with "):
        convert(root, folds=("3",))
    with pytest.raises(UsageError, match="unknown --checkpoint 'latest'"):
        convert(root, checkpoint="latest")


def test_folders_that_are_refused(tmp_path: Path, folder: Path) -> None:
    def refuse(root: Path, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            convert(root)

    refuse(tmp_path / "no", "no does not exist; give the folder with plans.json")
    refuse(folder / "plans.json", "plans.json is a file; unpack it where it is an archive")
    refuse(tmp_path, "is no folder of nnU-Net: there is no plans.json in it")
    refuse(folder.parent, "holds several trained folders .*: nnUNetTrainer__nnUNetPlans__3d_fullres$")
    refuse(folder / "fold_0", "is one fold; give the folder above it, and --fold 0")
    assert is_nnunet(folder)
    assert is_nnunet(folder.parent)
    assert not is_nnunet(tmp_path)
    old = tmp_path / "v1"
    old.mkdir()
    (old / "plans.pkl").write_bytes(b"")
    refuse(old, r"is a folder of nnU-Net v1 \(plans.pkl\); only v2 can be imported")
    root = Path(shutil.copytree(folder, tmp_path / "m"))
    (root / "plans.json").write_text("{")
    refuse(root, r"plans.json cannot be read as JSON \(Expecting property name")
    (root / "plans.json").write_text("[" * 100_000)
    refuse(root, r"plans.json cannot be read as JSON \(nested too deep\)")
    (root / "plans.json").write_text("[]")
    refuse(root, "plans.json: found list, expected an object")
    (root / "fold_0").rename(root / "fold_all")
    refuse(root, "has no numbered fold, but fold_all; take it with --fold all")
    shutil.rmtree(root / "fold_all")
    refuse(root, "holds no folds; give the folder")
    (root / "fold_0").mkdir()
    refuse(root, "no fold has checkpoint_final.pth; copy the whole folder")
    (root / "dataset.json").unlink()
    refuse(root, "has no dataset.json, which names the labels")


def test_report_names_what_is_not_known(tmp_path: Path) -> None:
    plans = changed(PLANS, "foreground_intensity_properties_per_channel/0/median", 1400.0)
    root = write_nnunet(tmp_path / "nnUNetTrainerMine__nnUNetPlans__2d", plans=plans, trainer_name="nnUNetTrainerMine")
    report = convert(root).report
    assert report.differs[0].endswith("__2d, but its checkpoints are of configuration 3d_fullres")
    assert "configuration 3d_fullres, fold 0" in report.taken
    assert "patch 4 x 16 x 8 (X, Y, Z), overlap 0.5, Gaussian weights" in report.taken
    assert any("3 x 0.5 x 0.8 mm, splines of order 3, a coarse axis apart" in line for line in report.taken)
    assert any(line.startswith("trainer nnUNetTrainerMine is not one of") for line in report.differs)
    assert any(line.startswith("a channel is called CT, but not all is Hounsfield") for line in report.differs)
    assert any("2d, 3d_lowres, 3d_cascade_fullres of the same plans" in line for line in report.ignored)
