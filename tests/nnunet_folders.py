"""Folders as nnU-Net v2 leaves them, tiny and with random weights, made without nnU-Net."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from voxelwise.networks.blocks import ConvNormAct
from voxelwise.networks.nnunet import unet_from_nnunet
from voxelwise.networks.nnunet_weights import nnunet_name
from voxelwise.pipeline.importing.checkpoint import Checkpoint, CheckpointReader, opened, refused
from voxelwise.pipeline.importing.checkpoint_child import answer, in_words

SPLINE = "resample_data_or_seg_to_shape"
ARCHITECTURE: dict[str, Any] = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 2,
        "features_per_stage": [2, 4],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[1, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2]],
        "n_conv_per_stage": [1, 1],
        "n_conv_per_stage_decoder": [1],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}
FULL: dict[str, Any] = {
    "data_identifier": "nnUNetPlans_3d_fullres",
    "preprocessor_name": "DefaultPreprocessor",
    "batch_size": 3,
    "patch_size": [4, 8, 16],
    "spacing": [3.0, 0.8, 0.5],
    "normalization_schemes": ["CTNormalization"],
    "use_mask_for_norm": [False],
    "resampling_fn_data": SPLINE,
    "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
    "resampling_fn_probabilities": SPLINE,
    "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
    "architecture": ARCHITECTURE,
}
FLAT: dict[str, Any] = {
    **FULL,
    "patch_size": [8, 16],
    "spacing": [0.8, 0.5],
    "architecture": {
        **ARCHITECTURE,
        "arch_kwargs": {
            **ARCHITECTURE["arch_kwargs"],
            "conv_op": "torch.nn.modules.conv.Conv2d",
            "kernel_sizes": [[3, 3], [3, 3]],
            "strides": [[1, 1], [1, 2]],
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
        },
    },
}
INTENSITIES = {"mean": 50.0, "std": 20.0, "median": 48.0, "percentile_00_5": -10.0, "percentile_99_5": 120.0}
PLANS: dict[str, Any] = {
    "dataset_name": "Dataset999_Tiny",
    "plans_name": "nnUNetPlans",
    "transpose_forward": [2, 0, 1],
    "transpose_backward": [1, 2, 0],
    "image_reader_writer": "SimpleITKIO",
    "label_manager": "LabelManager",
    "foreground_intensity_properties_per_channel": {"0": INTENSITIES},
    "configurations": {
        "2d": FLAT,
        "3d_fullres": FULL,
        "3d_lowres": {"inherits_from": "3d_fullres", "spacing": [6.0, 1.6, 1.0]},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    },
}
DATASET: dict[str, Any] = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "organ": 1, "vessel": 2},
    "file_ending": ".nii.gz",
}


@cache
def weights_of(
    configuration: str, transpose_forward: tuple[int, ...], channels: int, outputs: int, seed: int
) -> dict[str, Tensor]:
    """Random weights under nnU-Net's names, some of them under two, as its networks have them.

    Args:
        configuration: as JSON.
        transpose_forward: of the plans.
        channels: of the image.
        outputs: of the network.
        seed: of the weights.
    """
    found = unet_from_nnunet(json.loads(configuration), transpose_forward)
    with torch.device("meta"):
        network = found.build(channels, outputs)
    draw = torch.Generator().manual_seed(seed)
    order = [0, 1, *(2 + found.axes.index(axis) for axis in range(found.spatial_dims))]
    weights: dict[str, Tensor] = {}
    for name, layer in network.named_modules():
        within = layer.conv if isinstance(layer, ConvNormAct) else layer
        alone = name.partition(".")[0] in ("up", "head", "coarse_heads") and layer._parameters
        if not (alone or isinstance(layer, ConvNormAct)):
            continue
        theirs = nnunet_name(name, network)
        kernel = torch.randn([within.weight.shape[axis] for axis in order], generator=draw)
        width = within.weight.shape[0]
        bias = torch.randn(width if not name.startswith("up") else within.weight.shape[1], generator=draw)
        if alone:
            weights |= {f"{theirs}.weight": kernel, f"{theirs}.bias": 0.1 * bias}
            continue
        for inner in ("conv", "all_modules.0"):
            weights |= {f"{theirs}.{inner}.weight": kernel, f"{theirs}.{inner}.bias": bias}
        weights |= {f"{theirs}.norm.weight": torch.ones(width), f"{theirs}.norm.bias": torch.zeros(width)}
    twice = {f"decoder.{name}": value for name, value in weights.items() if name.startswith("encoder.")}
    return {**weights, **twice}


def checkpoint_of(weights: Mapping[str, Tensor], **changes: Any) -> dict[str, Any]:
    """What nnU-Net 2.8.1 puts into a file beside the weights, numpy scalars and a device among it."""
    content: dict[str, Any] = {
        "network_weights": dict(weights),
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5), np.float32(0.25)], "epoch_start_timestamps": [1.5]},
        "_best_ema": np.float64(0.7),
        "current_epoch": 5,
        "init_args": {"configuration": "3d_fullres", "fold": 0, "device": torch.device("cuda"), "plans": dict(PLANS)},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1),
    }
    return {**content, **changes}


def write_nnunet(
    root: Path,
    *,
    plans: Mapping[str, Any] = PLANS,
    dataset: Mapping[str, Any] = DATASET,
    configuration: str = "3d_fullres",
    folds: Sequence[str] = ("0",),
    name: str = "checkpoint_final.pth",
    outputs: int = 3,
    **changes: Any,
) -> Path:
    """A trained folder; `changes` are of its checkpoints."""
    values = dict(plans["configurations"].get(configuration, FULL))
    if "inherits_from" in values:
        values = {**plans["configurations"][values["inherits_from"]], **values}
    root.mkdir(parents=True, exist_ok=True)
    (root / "plans.json").write_text(json.dumps(plans))
    (root / "dataset.json").write_text(json.dumps(dataset))
    channels = len(dataset.get("channel_names", dataset.get("modality", "0")))
    for seed, fold in enumerate(folds):
        (root / f"fold_{fold}").mkdir(exist_ok=True)
        weights = weights_of(json.dumps(values), tuple(plans["transpose_forward"]), channels, outputs, seed)
        given = {"init_args": {"configuration": configuration, "device": torch.device("cpu")}, **changes}
        torch.save(checkpoint_of(weights, **given), root / f"fold_{fold}" / name)
    return root


def read_here(reader: CheckpointReader, path: Path, keys: Sequence[str] = ("",)) -> Checkpoint:
    """What `CheckpointReader.read` returns, without the child that reads."""
    try:
        header, data = answer(path, keys)
    except Exception as error:
        raise refused(path, in_words(error)) from error
    return opened(path, data, header)
