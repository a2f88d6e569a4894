"""MONAI bundles that the tests write, as the model zoo has them, and MONAI's own run of them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.networks import nets

UNET = {"_target_": "UNet", "channels": [4, 8], "strides": [2], "num_res_units": 2, "norm": "batch"}
SEGRESNET = {
    "_target_": "monai.networks.nets.SegResNet",
    "init_filters": 8,
    "blocks_down": [1, 1],
    "blocks_up": [1],
    "dropout_prob": 0.2,
}
WINDOW = {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -57, "a_max": 164, "b_min": 0, "b_max": 1}
SOFTMAX = {"_target_": "Activationsd", "keys": "pred", "softmax": True}
SIGMOID = {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}
BACK = {
    "_target_": "Invertd",
    "keys": "pred",
    "transform": "@preprocessing",
    "orig_keys": "@image_key",
    "nearest_interp": False,
}
ARGMAX = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
THRESHOLD = {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}
PAINT = "$lambda x: torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, torch.where(x[[1]] > 0, 2, 0)))"


def steps(*after: dict[str, Any], spacing: Sequence[float] | None = (1.5, 1.5, 2.0)) -> dict[str, Any]:
    """A preprocessing that turns to RAS and resamples."""
    resample = {"_target_": "Spacingd", "keys": "image", "pixdim": spacing, "mode": ["bilinear"]}
    before = [
        {"_target_": "LoadImaged", "keys": "@image_key", "reader": "NibabelReader"},
        {"_target_": "EnsureChannelFirstd", "keys": "@image_key"},
        {"_target_": "Orientationd", "keys": ["image"], "axcodes": "RAS"},
        *([resample] if spacing is not None else []),
    ]
    return compose(*before, *after, {"_target_": "EnsureTyped", "keys": "image"})


def compose(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"_target_": "Compose", "transforms": list(steps)}


def config(network: dict[str, Any] = UNET, *, outputs: int = 2, channels: int = 1, **changes: Any) -> dict[str, Any]:
    """The inference.json of a bundle like the zoo's."""
    dims = changes.pop("dims", 3)
    return {
        "imports": ["$import glob", "$import os"],
        "bundle_root": "/workspace/bundle",
        "image_key": "image",
        "output_dir": "$@bundle_root + '/eval'",
        "overlap": 0.5,
        "datalist": "$list(sorted(glob.glob(@dataset_dir + '/imagesTs/*.nii.gz')))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {**network, "spatial_dims": dims, "in_channels": channels, "out_channels": outputs},
        "network": "$@network_def.to(@device)",
        "preprocessing": steps({**WINDOW, "clip": True}),
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": [16, 16, 8],
            "sw_batch_size": 4,
            "overlap": "@overlap",
        },
        "postprocessing": compose(SOFTMAX, BACK, ARGMAX),
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "$@bundle_root + '/models/model.pt'",
                "load_dict": {"model": "@network"},
            }
        ],
        "evaluator": {"_target_": "SupervisedEvaluator", "amp": True},
        "run": ["$@evaluator.run()"],
        **changes,
    }


def metadata(outputs: Sequence[str], modality: str = "CT", channels: Sequence[str] = ("image",)) -> dict[str, Any]:
    """The metadata.json of a bundle like the zoo's."""
    named = {str(number): name for number, name in enumerate(outputs)}
    image = {"modality": modality, "format": "hounsfield" if modality == "CT" else "magnitude"}
    return {
        "name": "a bundle of a test",
        "version": "0.2.0",
        "network_data_format": {
            "inputs": {"image": {**image, "channel_def": {str(number): name for number, name in enumerate(channels)}}},
            "outputs": {"pred": {"channel_def": named}},
        },
    }


def write_bundle(root: Path, inference: dict[str, Any], described: dict[str, Any]) -> Path:
    """A bundle with weights that were drawn, whose outputs are spread around 0."""
    (root / "configs").mkdir(parents=True)
    (root / "models").mkdir()
    (root / "configs" / "inference.json").write_text(json.dumps(inference))
    (root / "configs" / "metadata.json").write_text(json.dumps(described))
    arguments = {key: value for key, value in inference["network_def"].items() if key != "_target_"}
    torch.manual_seed(0)
    network = getattr(nets, inference["network_def"]["_target_"].rpartition(".")[2])(**arguments)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)
    torch.save({"model": network.state_dict()}, root / "models" / "model.pt")
    return root


def quietly(run: Callable[..., Any]) -> Callable[..., Any]:
    """Without MONAI's warnings of what it will change."""

    @wraps(run)
    def silent(*arguments: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return run(*arguments)

    return silent


@quietly
def labels_of_monai(root: Path, image: str | list[str]) -> np.ndarray:
    """What MONAI's own transforms, inferer and network make of an image, step by step, as its evaluator does."""
    parser = ConfigParser()
    parser.read_config(str(root / "configs" / "inference.json"))
    parser.update({"bundle_root": str(root), "device": "$torch.device('cpu')", "imports": ["$import torch"]})
    network = parser.get_parsed_content("network_def").eval()
    weights = torch.load(root / "models" / "model.pt", weights_only=True)["model"]
    network.load_state_dict(weights)
    sample = parser.get_parsed_content("preprocessing")({"image": image})
    finish = parser.get_parsed_content("postprocessing")
    with torch.no_grad():
        logits = parser.get_parsed_content("inferer")(sample["image"][None], network)[0]
        found = finish({**sample, "pred": logits})["pred"]
    return np.asarray(found)[0].round().astype(np.uint8)
