"""Frames one by one: the labels of `predict_volume`, whatever the plan does, and clear words for what is no frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from voxelwise.errors import CaseError, UsageError
from voxelwise.networks.registry import build_network
from voxelwise.pipeline.inference.frames import FrameSegmenter
from voxelwise.pipeline.inference.in_memory import predict_volume
from voxelwise.pipeline.inference.loading import load_predictor
from voxelwise.pipeline.inference.modes import Modes
from voxelwise.pipeline.inference.predictor import Predictor
from voxelwise.pipeline.model_folder import write_model_folder
from voxelwise.transforms.volume import Geometry, Volume

OPTIONS: dict[str, Any] = {"widths": [4, 8]}
RESCALE = {"kind": "rescale", "low": 0, "high": 255}


def make_model(folder: Path, *, values: tuple[int, ...] = (0, 1, 2), channels: int = 1, **changes: Any) -> Path:
    plan: dict[str, Any] = {
        "dims": 2,
        "channels": [f"channel {number}" for number in range(channels)],
        "modality": "US",
        "labels": [{"value": value, "name": f"part {value}"} for value in values],
        "spacing_mm": None,
        "orientation": None,
        "crop": "none",
        "bias_field": False,
        "normalisation": [RESCALE] * channels,
        "patch": [24, 16, 1],
        "network": {"name": "unet", "options": OPTIONS},
        "mirror_axes": [0],
        "overlap": 0.5,
        "tta": False,
        **changes,
    }
    torch.manual_seed(0)
    dims = plan["dims"]
    write_model_folder(folder, build_network("unet", dims, channels, len(values), **OPTIONS), OPTIONS, plan)
    return folder


def frame(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize(
    ("shape", "plan", "given", "plain"),
    [
        ((24, 16), {}, {}, True),
        ((24, 16), {"values": (0, 3)}, {}, True),
        ((24, 16), {"values": tuple(range(0, 600, 2))}, {}, True),  # features are looked at, and two bytes are needed
        ((24, 16), {"normalisation": [{"kind": "zscore"}]}, {"tta": True}, True),
        ((3, 24, 16), {"channels": 3}, {}, True),
        ((15, 11), {}, {}, True),  # smaller than a window
        ((40, 37), {}, {}, False),  # several windows
        ((30, 10), {"crop": "nonzero"}, {}, False),
        ((20, 13), {"spacing_mm": [1.5, 1.5, 1.0]}, {}, False),
    ],
)
def test_labels_are_those_of_the_frame_as_a_volume(
    tmp_path: Path, monkeypatch, shape: tuple[int, ...], plan: dict[str, Any], given: dict[str, Any], plain: bool
) -> None:
    array = frame(*shape)
    if plan.get("crop"):
        array[:4] = 0
    folder = make_model(tmp_path / "model", **plan)
    predictor = load_predictor(folder, device="cpu", precision="float32", **given)
    expected = predict_volume(predictor, (array.reshape(*array.shape, 1), np.eye(4)))[..., 0]
    ways: list[str] = []
    monkeypatch.setattr(Predictor, "segment", spied(Predictor.segment, ways))
    found = FrameSegmenter(predictor)(array)
    assert found.shape == shape[-2:]
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found)) > 1
    assert ways == ([] if plain else ["volume"])


def spied(call: Any, calls: list[str]) -> Any:
    def segment(*arguments: Any) -> Any:
        calls.append("volume")
        return call(*arguments)

    return segment


def test_a_film_has_the_labels_of_its_frames(tmp_path: Path) -> None:
    predictor = load_predictor(make_model(tmp_path / "model"), device="cpu", precision="float32")
    film = frame(24, 16, 5)
    geometry = Geometry((24, 16, 5), np.diag([1.0, 1.0, 0.04, 1.0]), has_world=False, film=True)
    found = predictor.labels(Volume(film[None], geometry, "US"))
    segmenter = FrameSegmenter(predictor)
    for time in range(5):
        np.testing.assert_array_equal(found[:, :, time], segmenter(film[:, :, time]))


def test_a_plan_with_a_spacing_is_told_that_of_the_frames(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", spacing_mm=[0.5, 0.5, 1.0])
    predictor = load_predictor(folder, device="cpu", precision="float32")
    array = frame(24, 16)
    expected = predict_volume(predictor, (array[..., None], np.diag([0.5, 0.5, 1.0, 1.0])))[..., 0]
    np.testing.assert_array_equal(FrameSegmenter(predictor, spacing_mm=(0.5, 0.5))(array), expected)


def test_what_else_was_asked_of_a_predictor_is_done(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    predictor = load_predictor(folder, device="cpu", precision="float32", modes=Modes(classes="part 1"))
    array = frame(24, 16)
    found = FrameSegmenter(predictor)(array)
    assert set(np.unique(found)) == {0, 1}
    np.testing.assert_array_equal(found, predict_volume(predictor, (array[..., None], np.eye(4)))[..., 0])


def test_what_is_no_frame_is_refused(tmp_path: Path) -> None:
    segmenter = FrameSegmenter(make_model(tmp_path / "model", channels=2), device="cpu", precision="float32")
    with pytest.raises(CaseError, match=r"the image has 1 channels, expected 2"):
        segmenter(frame(24, 16))
    with pytest.raises(
        ValueError, match=r"a frame is \(X, Y\) or \(C, X, Y\), of numbers; got an array \(1, 2, 24, 16\)"
    ):
        segmenter(frame(1, 2, 24, 16))
    with pytest.raises(ValueError, match=r"of numbers; got an array \(2, 24, 16\) of <U1"):
        segmenter(frame(2, 24, 16).astype("U1"))
    holes = frame(2, 24, 16).astype(np.float32)
    holes[1, 3, 4] = np.nan
    with pytest.raises(CaseError, match=r"1 voxels are NaN or infinite"):
        segmenter(holes)
    with pytest.raises(ValueError, match=r"two spacings above 0, got spacing_mm=\(1\.0,\)"):
        FrameSegmenter(segmenter.predictor, spacing_mm=(1.0,))


def test_a_model_of_volumes_is_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", dims=3, patch=[8, 8, 8])
    with pytest.raises(UsageError, match=r"is a model of volumes \(windows of \(8, 8, 8\)\); frames need a 2D model"):
        FrameSegmenter(folder, device="cpu")
