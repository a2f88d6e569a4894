"""The configs of a MONAI bundle: what MONAI's own transforms and inferers make of a model of ours.

    configs/metadata.json     what the network takes and gives
    configs/inference.json    preprocessing, network, inferer, postprocessing, evaluator, run
    models/model.ts           TorchScript; the file that the workflow loads
    models/model.safetensors  the weights alone, by name
    docs/README.md

Nothing of voxelwise is needed to run it, and no pickle is in it. MONAI lays windows and rounds grids by rules of its
own, so labels agree with those of `predict` but for voxels whose classes are nearly tied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from ...errors import NothingDoneError
from ...transforms.window import OWN_RANGE
from ..inference.classes import output_names
from ..versions import versions
from .card import Card
from .formats import silent

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
WINDOWS_AT_A_TIME = 4
IMAGE, LABELS = "image", "pred"
# the number from 1 of the last region with a logit above 0, and 0 where there is none
LAST_REGION = (
    "$lambda x: ((x > 0) * torch.arange(1, len(x) + 1).reshape(-1, 1, 1, 1).to(x.device)).amax(0, keepdim=True)"
)


def inference_config(card: Card) -> dict[str, Any]:
    """The content of configs/inference.json.

    Raises:
        NothingDoneError: the model does what no transform or inferer of MONAI does.
    """
    return {
        "imports": ["$import glob", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/labels'",
        "datalist": "$[{'image': path} for path in sorted(glob.glob(@dataset_dir + '/*.nii.gz'))]",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {
            "_target_": "torch.jit.load",
            "f": "$@bundle_root + '/models/model.ts'",
            "map_location": "@device",
        },
        "network": "$@network_def.eval()",
        "preprocessing": {"_target_": "Compose", "transforms": preprocessing(card.model.preprocessing)},
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": inferer(card),
        "postprocessing": {"_target_": "Compose", "transforms": postprocessing(card)},
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "run": ["$@evaluator.run()"],
    }


def preprocessing(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The chain of a model in MONAI's transforms."""
    made: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", "keys": IMAGE, "reader": "NibabelReader", "ensure_channel_first": True}
    ]
    for step in steps:
        name, arguments = step["name"], step["args"]
        if name == "Orient":
            codes = {"axcodes": arguments["orientation"], "labels": [["L", "R"], ["P", "A"], ["I", "S"]]}
            made.append({"_target_": "Orientationd", "keys": IMAGE, **codes})
        elif name == "CropNonzero":
            made.append(
                {"_target_": "CropForegroundd", "keys": IMAGE, "source_key": IMAGE, "select_fn": "$lambda x: x != 0"}
            )
        elif name == "Resample" and arguments.get("spacing_mm") is not None:
            own = -1.0  # not a spacing: MONAI keeps the image's
            pixdim = [own if step is None else step for step in arguments["spacing_mm"]]
            spacing = {"pixdim": pixdim, "mode": "bilinear", "padding_mode": "border"}
            made.append({"_target_": "Spacingd", "keys": IMAGE, **spacing})
        elif name == "SplineResample":
            raise _impossible("resamples by splines, edges of the grids agreeing, and MONAI has no transform for that")
        elif name == "Normalise":
            made += _normalisation([dict(one) for one in arguments["channels"]])
        elif name == "CorrectBiasField":
            raise _impossible("corrects the bias field, and MONAI has no transform for that")
    return [*made, {"_target_": "EnsureTyped", "keys": IMAGE, "dtype": "$torch.float32"}]


def _normalisation(channels: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if any(one != channels[0] for one in channels):
        raise _impossible("normalises its channels in different ways, and a chain of MONAI's has one way for all")
    values = channels[0]
    kind, low, high = values["kind"], values.get("low"), values.get("high")
    if kind == "none":
        return []
    if kind in OWN_RANGE:
        mean, std = float(values.get("mean") or 0.0), float(values.get("std") or 1.0)
        first = {"_target_": "NormalizeIntensityd", "keys": IMAGE, "nonzero": True, "channel_wise": True}
        scaled = {"_target_": "ScaleIntensityd", "keys": IMAGE, "minv": -mean / std, "maxv": (1 - mean) / std}
        return [*([first] if kind == "rescale_nonzero" else []), {**scaled, "channel_wise": True}]
    if kind == "zscore_mask":
        raise _impossible("normalises within a mask whose holes are filled, and MONAI has no transform for that")
    clip = [
        {"_target_": "ThresholdIntensityd", "keys": IMAGE, "threshold": bound, "above": above, "cval": bound}
        for bound, above in ((low, True), (high, False))
        if bound is not None
    ]
    if kind == "rescale":
        bounds = {"a_min": low, "a_max": high, "b_min": 0.0, "b_max": 1.0, "clip": True}
        return [{"_target_": "ScaleIntensityRanged", "keys": IMAGE, **bounds}]
    scale: dict[str, Any] = {"_target_": "NormalizeIntensityd", "keys": IMAGE}
    if kind == "window":
        return [*clip, {**scale, "subtrahend": values.get("mean") or 0.0, "divisor": values.get("std") or 1.0}]
    return [{**scale, "nonzero": kind == "zscore_nonzero", "channel_wise": True}, *clip]


def inferer(card: Card) -> dict[str, Any]:
    """Sliding windows, as near to ours as MONAI's are."""
    plan = card.model.plan
    if int(plan.get("slices", 1)) > 1:
        raise _impossible("sees neighbouring slices as channels, and MONAI has no inferer for that")
    if plan.get("modality") == "picture" or plan.get("orientation") is None:
        raise _impossible("is for pictures, and the workflow is one of volumes")
    shared = {
        "roi_size": list(card.patch),
        "sw_batch_size": WINDOWS_AT_A_TIME if card.any_number else 1,
        "overlap": float(plan.get("overlap", 0.5)),
        "mode": str(plan.get("blending", "gaussian")).removesuffix("_voxel"),
        "sigma_scale": 0.125,
        "padding_mode": "constant",
    }
    if card.axis is None:
        return {"_target_": "SlidingWindowInferer", **shared}
    return {"_target_": "SliceInferer", "spatial_dim": card.axis, **shared}


def postprocessing(card: Card) -> list[dict[str, Any]]:
    """Logits back on the grid of the image, labels, values, file."""
    regions = card.model.regions
    values = [0, *(one.writes for one in regions)] if regions else [label.value for label in card.model.labels]
    back = {"transform": "@preprocessing", "orig_keys": IMAGE, "nearest_interp": False, "to_tensor": True}
    made: list[dict[str, Any]] = [
        {"_target_": "Invertd", "keys": LABELS, **back},
        {"_target_": "Lambdad", "keys": LABELS, "func": LAST_REGION}
        if regions
        else {"_target_": "AsDiscreted", "keys": LABELS, "argmax": True},
    ]
    if values != list(range(len(values))):
        table = {"orig_labels": list(range(len(values))), "target_labels": values}
        made.append({"_target_": "MapLabelValued", "keys": LABELS, **table})
    dtype = "$__import__('numpy').uint8" if max(values) < 256 else "$__import__('numpy').uint16"
    written = {"output_dir": "@output_dir", "output_postfix": "", "separate_folder": False, "resample": False}
    return [*made, {"_target_": "SaveImaged", "keys": LABELS, "output_dtype": dtype, **written}]


def metadata(card: Card) -> dict[str, Any]:
    """The content of configs/metadata.json."""
    network, plan, found = card.model.network, card.model.plan, versions()
    sides = list(card.patch)
    names = [str(name) for name in plan.get("channels", ())]
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": "exported by voxelwise"},
        "monai_version": found.get("monai", ""),
        "pytorch_version": found.get("torch", ""),
        "numpy_version": found.get("numpy", ""),
        "required_packages_version": {"nibabel": found.get("nibabel", ""), "pytorch-ignite": "0.4.11"},
        "name": network.name,
        "task": "segmentation",
        "description": f"{network.name}, fold {card.fold} of a model folder of voxelwise",
        "authors": "",
        "copyright": "",
        "network_data_format": {
            "inputs": {
                IMAGE: {
                    "type": "image",
                    "format": "hounsfield" if plan.get("modality") == "CT" else "magnitude",
                    "modality": plan.get("modality", ""),
                    "num_channels": network.in_channels,
                    "spatial_shape": sides,
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": True,
                    "channel_def": {str(at): name for at, name in enumerate(names)},
                }
            },
            "outputs": {
                LABELS: {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": network.out_channels,
                    "spatial_shape": sides,
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": True,
                    "channel_def": {str(at): name for at, name in enumerate(output_names(card.model))},
                }
            },
        },
        "voxelwise": card.entries,
    }


def check_bundle(root: Path, card: Card) -> None:
    """Let MONAI read the bundle and run a window through what it finds there.

    Raises:
        NothingDoneError: it cannot.
    """
    try:
        with silent():
            shape = _run_window(root, card)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise NothingDoneError(f"MONAI cannot run the bundle ({reason}): nothing was kept") from error
    wanted = (1, card.model.network.out_channels, *(int(side) for side in card.model.plan["patch"]))
    if shape != wanted:
        raise NothingDoneError(f"MONAI's workflow gives {shape}, expected {wanted}: nothing was kept")


def _run_window(root: Path, card: Card) -> tuple[int, ...]:
    """The shape of what the workflow's inferer makes of one window."""
    parser = ConfigParser()
    parser.read_config(str(root / "configs" / "inference.json"))
    parser.read_meta(str(root / "configs" / "metadata.json"))
    parser["bundle_root"] = str(root)
    parser["device"] = "$torch.device('cpu')"
    for name in ("preprocessing", "postprocessing"):
        parser.get_parsed_content(name)
    found, network = parser.get_parsed_content("inferer"), parser.get_parsed_content("network")
    window = torch.zeros(1, card.model.network.in_channels, *card.model.plan["patch"])
    with torch.inference_mode():
        return tuple(found(window, network).shape)


def _impossible(why: str) -> NothingDoneError:
    return NothingDoneError(f"no MONAI bundle can be made of this model: it {why}; export it as torch or onnx")
