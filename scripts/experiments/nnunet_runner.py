"""nnU-Net's side of `nnunet_import.py`: the one file that runs in nnU-Net's own environment.

    PYTHON nnunet_runner.py JOBS.json

A job is a dictionary with `do` (plan, train, untrained, predict) and the arguments of that function; jobs run one after
another, so that the libraries are loaded once. nnU-Net's own folders come from its variables (nnUNet_raw, ...).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.utilities.dataset_name_id_conversion import convert_id_to_dataset_name
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

CPU = torch.device("cpu")
LOADERS = "nnUNet_n_proc_DA"


class FloatSums(nnUNetPredictor):
    """nnU-Net with sums in float32 in place of half, and its Gaussian in `gaussian`."""

    gaussian = torch.float32

    @torch.inference_mode()
    def _internal_predict_sliding_window_return_logits(
        self, data: torch.Tensor, slicers: list[tuple[Any, ...]], do_on_device: bool = True
    ) -> torch.Tensor:
        patch = tuple(self.configuration_manager.patch_size)
        weights = compute_gaussian(patch, 1 / 8, value_scaling_factor=10, dtype=self.gaussian, device=CPU).float()
        sums = torch.zeros((self.label_manager.num_segmentation_heads, *data.shape[1:]))
        total = torch.zeros(data.shape[1:])
        for window in slicers:
            scores = self._internal_maybe_mirror_and_predict(data[window][None].contiguous())[0]
            sums[window] += scores * weights
            total[window[1:]] += weights
        return sums / total


class HalfGaussian(FloatSums):
    """Sums in float32, the Gaussian in half."""

    gaussian = torch.float16


PREDICTORS: dict[str, type[nnUNetPredictor]] = {
    "as shipped": nnUNetPredictor,
    "float32 sums": FloatSums,
    "half Gaussian": HalfGaussian,
}


def plan(dataset: int, planner: str, plans: str, configurations: list[str], *, features: int, patch: int) -> None:
    """Fingerprint, plan, make the plan small, preprocess.

    Args:
        dataset: its number.
        planner: class of nnU-Net.
        plans: name under which the planner keeps them.
        configurations: that are preprocessed.
        features: of the first stage; they double up to four times as many.
        patch: voxels of a side, at most (at least twice the network's stride).
    """
    os.environ[LOADERS] = "1"  # planning takes no 0
    folder = Path(nnUNet_preprocessed, convert_id_to_dataset_name(dataset))
    if not (folder / "dataset_fingerprint.json").is_file():
        extract_fingerprints([dataset], num_processes=1, check_dataset_integrity=True)
    plan_experiments([dataset], planner)
    file = folder / f"{plans}.json"
    planned = json.loads(file.read_text())
    for name in configurations:
        if name in planned["configurations"]:
            shrink(planned["configurations"][name], features, patch)
    file.write_text(json.dumps(planned, indent=1))
    preprocess([dataset], plans, configurations, [1] * len(configurations), show_progress_bar=False)


def shrink(configuration: dict[str, Any], features: int, patch: int) -> None:
    """Fewer features and blocks, a smaller patch and batch; depth, kernels and strides stay as planned."""
    if "architecture" not in configuration:  # 3d_cascade_fullres takes what it does not say from 3d_fullres
        return
    options = configuration["architecture"]["arch_kwargs"]
    options["features_per_stage"] = [min(features * 2**at, features * 4) for at in range(options["n_stages"])]
    if "n_blocks_per_stage" in options:
        options["n_blocks_per_stage"] = [min(count, 2) for count in options["n_blocks_per_stage"]]
    stride = np.prod(options["strides"], axis=0)
    sides = zip(configuration["patch_size"], stride.tolist(), strict=True)
    configuration["patch_size"] = [min(side, max(2 * step, patch // step * step)) for side, step in sides]
    configuration["batch_size"] = 2 if len(stride) == 3 else 6


def train(dataset: int, configuration: str, plans: str, fold: int, *, epochs: int, iterations: int) -> None:
    """nnU-Net's trainer with few iterations; nothing where its last checkpoint is there."""
    trainer = get_trainer_from_args(str(dataset), configuration, fold, "nnUNetTrainer", plans, device=CPU)
    if Path(trainer.output_folder, "checkpoint_final.pth").is_file():
        return
    os.environ[LOADERS] = "0"  # in this process
    torch.manual_seed(fold)
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = epochs, iterations, 1
    trainer.plot_network_architecture = lambda: None
    trainer.run_training()


def untrained(model: str, plans: dict[str, Any], described: dict[str, Any], mirror: list[int] | None) -> None:
    """A folder as the trainer leaves it (3d_fullres, fold 0), with random weights that give blobs, as organs are.

    Skip connections count little and a transposed convolution repeats its input: with plain random weights nearly every
    voxel would lie at the border of two labels.

    Args:
        model: folder to write.
        plans: of one configuration, 3d_fullres.
        described: dataset.json.
        mirror: axes that trained ones would have kept for prediction.
    """
    folder = Path(model)
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(plans, indent=1))
    (folder / "dataset.json").write_text(json.dumps(described, indent=1))
    built = plans["configurations"]["3d_fullres"]["architecture"]
    name, options, lookup = (built[key] for key in ("network_class_name", "arch_kwargs", "_kw_requires_import"))
    torch.manual_seed(0)
    classes = len(described["labels"])
    network = get_network_from_plans(name, options, lookup, 1, classes, deep_supervision=True)
    with torch.no_grad():
        for up, stage in zip(network.decoder.transpconvs, network.decoder.stages, strict=True):
            up.weight[:] = up.weight.mean(dim=(2, 3, 4), keepdim=True)
            stage.convs[0].conv.weight[:, up.out_channels :] *= 0.05
    checkpoint = {
        "network_weights": network.state_dict(),
        "optimizer_state": {},
        "grad_scaler_state": None,
        "logging": {},
        "_best_ema": None,
        "current_epoch": 1,
        "init_args": {"plans": plans, "configuration": "3d_fullres", "fold": 0, "dataset_json": described},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": mirror,
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")


def predict(model: str, images: str, out: str, folds: list[int], *, mirror: bool, sums: str) -> None:
    """Label maps of a folder of images.

    Args:
        model: folder with plans.json.
        images: folder.
        out: folder.
        folds: whose mean is taken.
        mirror: as nnU-Net does it by default.
        sums: which of `PREDICTORS`.
    """
    Path(out).mkdir(parents=True, exist_ok=True)
    predictor = PREDICTORS[sums](use_mirroring=mirror, device=CPU, perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(model, tuple(folds))
    predictor.predict_from_files_sequential(images, out, overwrite=False)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    verbs: dict[str, Callable[..., None]] = {"plan": plan, "train": train, "untrained": untrained, "predict": predict}
    for job in json.loads(Path(sys.argv[1]).read_text()):
        verbs[job.pop("do")](**job)
