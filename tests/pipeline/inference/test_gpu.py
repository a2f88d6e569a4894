"""Amounts of memory on an accelerator, held as they are on the CPU; everything here needs a CUDA device."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from voxelwise.errors import CaseError
from voxelwise.networks.registry import build_network
from voxelwise.pipeline.inference.budget import Limits
from voxelwise.pipeline.inference.footprint import CONTEXT_BYTES
from voxelwise.pipeline.inference.loading import load_predictor
from voxelwise.pipeline.inference.predictor import Predictor
from voxelwise.pipeline.model_folder import write_model_folder
from voxelwise.transforms.volume import Geometry, Volume

pytestmark = pytest.mark.gpu

CLASSES = 60
OPTIONS: dict[str, Any] = {"widths": [8, 16, 32]}
PLAN: dict[str, Any] = {
    "dims": 3,
    "channels": ["image"],
    "modality": "MR",
    "labels": [{"value": at, "name": f"organ {at}"} for at in range(CLASSES)],
    "spacing_mm": [1.5, 1.5, 1.5],
    "orientation": "RAS",
    "crop": "none",
    "bias_field": False,
    "normalisation": [{"kind": "zscore"}],
    "patch": [96, 96, 96],
    "network": {"name": "unet", "options": OPTIONS},
    "mirror_axes": [],
    "overlap": 0.5,
    "tta": False,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu") / "model"
    torch.manual_seed(0)
    write_model_folder(folder, build_network("unet", 3, 1, CLASSES, **OPTIONS), OPTIONS, PLAN, fold="0")
    return folder


@pytest.fixture(scope="module")
def volume() -> Volume:
    array = np.random.default_rng(0).normal(size=(1, 320, 300, 280)).astype(np.float32)
    return Volume(array, Geometry((320, 300, 280), np.diag([-1.0, -1.0, 1.2, 1.0])))


@pytest.fixture(scope="module")
def predictor(model: Path) -> Predictor:
    return load_predictor(model, device="cuda:0", precision="float32")


@pytest.fixture(scope="module")
def wanted(predictor: Predictor, volume: Volume) -> np.ndarray:
    return predictor.labels(volume)


@pytest.mark.parametrize("gigabytes", [1.5, 2.0, 3.0, 12.0])
def test_each_amount_of_gpu_memory_is_held(
    predictor: Predictor, volume: Volume, wanted: np.ndarray, gigabytes: float
) -> None:
    limited = predictor.with_limits(Limits(gpu=round(gigabytes * 1e9)))
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    found = limited.segment(volume)
    assert torch.cuda.max_memory_reserved() + CONTEXT_BYTES <= gigabytes * 1e9
    assert (found.labels == wanted).mean() >= 0.99999


@pytest.mark.parametrize("gigabytes", [0.6, 0.72])
def test_too_little_gpu_memory_is_refused_before_the_network(
    predictor: Predictor, volume: Volume, gigabytes: float
) -> None:
    limited = predictor.with_limits(Limits(gpu=round(gigabytes * 1e9)))
    with pytest.raises(CaseError, match="--gpu-memory") as stop:
        limited.segment(volume)
    assert stop.value.code == "memory"


def test_sums_are_on_the_device_where_they_fit_and_off_it_where_not(predictor: Predictor, volume: Volume) -> None:
    large = predictor.with_limits(Limits(gpu=24 * 10**9)).segment(volume)
    assert large.plan.sums_on_gpu
    least = sum(large.plan.gpu.values()) - large.plan.gpu["sums"]
    small = replace(predictor, window_batch=large.plan.window_batch).with_limits(Limits(gpu=round(least * 1.01)))
    found = small.segment(volume)
    assert not found.plan.sums_on_gpu
    assert (found.labels == large.labels).mean() >= 0.99999
