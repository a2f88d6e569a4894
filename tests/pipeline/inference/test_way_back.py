"""Models whose plan resamples by splines: their labels are those of resizing all logits to the box they came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from voxelwise.networks.registry import build_network
from voxelwise.pipeline.inference import engines
from voxelwise.pipeline.inference.in_memory import predict_volume
from voxelwise.pipeline.inference.loading import load_predictor
from voxelwise.pipeline.inference.segmentation import Prepared
from voxelwise.pipeline.model_folder import write_model_folder
from voxelwise.transforms.boxes import BlockwiseImage
from voxelwise.transforms.volume import Geometry, Volume

AFFINE = np.array([[-0.7, 0, 0, 15.0], [0, -0.9, 0, 12.0], [0, 0, 2.5, -14.0], [0, 0, 0, 1]])
SHAPE = (21, 17, 12)
BOX = (slice(2, 21), slice(0, 15), slice(1, 11))
OPTIONS: dict[str, Any] = {"widths": [4, 8]}


def make_model(folder: Path, spacing_mm: list[float | None], **resampling: Any) -> Path:
    plan = {
        "dims": 3,
        "channels": ["image"],
        "modality": "MR",
        "labels": [{"value": value, "name": f"label {value}"} for value in range(4)],
        "spacing_mm": spacing_mm,
        "resampling": {"kind": "spline", **resampling},
        "orientation": None,
        "crop": "nonzero",
        "bias_field": False,
        "normalisation": [{"kind": "zscore"}],
        "patch": [24, 20, 20],
        "network": {"name": "unet", "options": OPTIONS},
        "tta": False,
    }
    torch.manual_seed(1)
    network = build_network("unet", 3, 1, 4, **OPTIONS)
    with torch.no_grad():
        assert network.head is not None
        for weight in network.head.parameters():
            weight.mul_(6)
    write_model_folder(folder, network, OPTIONS, plan)
    return folder


@pytest.mark.parametrize(
    ("spacing_mm", "resampling", "nearest"),
    [
        ([1.1, 1.2, 1.9], {}, 2),
        ([0.7, 0.9, 4.1], {}, 2),
        ([0.7, 0.9, 4.1], {"scores_order_separate": 1}, None),
        ([4.0, None, 1.3], {}, 0),
        ([4.0, None, 1.3], {"scores_separate": "never"}, None),
    ],
)
def test_labels_are_those_of_all_logits_resized(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spacing_mm: list[float | None],
    resampling: dict[str, Any],
    nearest: int | None,
) -> None:
    monkeypatch.setattr(engines, "_suits", lambda *_: False)
    model = make_model(tmp_path / "model", spacing_mm, **resampling)
    image = np.zeros(SHAPE, np.float32)
    image[BOX] = np.random.default_rng(0).normal(100, 20, [part.stop - part.start for part in BOX])
    predictor = load_predictor(model)
    prepared = predictor.prepare(Volume(image[None], Geometry(SHAPE, AFFINE)))
    assert isinstance(prepared, Prepared)
    assert (prepared.convention, prepared.nearest) == ("edges", nearest)
    seen = prepared.image.whole() if isinstance(prepared.image, BlockwiseImage) else prepared.image
    missing = [side - have for side, have in zip(predictor.patch, seen.shape[1:], strict=True)]
    assert min(missing) >= 0
    widths = [width for gap in reversed(missing) for width in (gap // 2, gap - gap // 2)]
    padded = torch.nn.functional.pad(torch.as_tensor(seen[:]), widths)
    with torch.inference_mode():
        logits = predictor.networks[0](padded[None])[0]
    inside = tuple(slice(gap // 2, gap // 2 + side) for gap, side in zip(missing, seen.shape[1:], strict=True))
    logits = logits[(slice(None), *inside)]
    sides = [part.stop - part.start for part in BOX]
    places = [old / new * (np.arange(new) + 0.5) - 0.5 for old, new in zip(logits.shape[1:], sides, strict=True)]
    if nearest is not None:
        places[nearest] = np.floor(places[nearest] + 0.5 + 1e-9)
    at = np.array(np.meshgrid(*places, indexing="ij"))
    found = np.stack([map_coordinates(one.double().numpy(), at, order=1, mode="nearest") for one in logits])
    labels = predict_volume(predictor, (image, AFFINE))
    best = np.sort(found, axis=0)
    clear = best[-1] - best[-2] > 1e-3
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(labels[BOX][clear], found.argmax(0)[clear])
    labels[BOX] = 0
    assert not labels.any()
