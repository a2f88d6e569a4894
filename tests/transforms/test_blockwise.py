"""A chain box by box gives what the chain gives, whatever is asked for and in whatever type the voxels are stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from voxelwise.errors import CaseError
from voxelwise.transforms.blockwise import blockwise
from voxelwise.transforms.chains import build_chain, preprocessing_steps, run_chain
from voxelwise.transforms.located import affine_of, plain
from voxelwise.transforms.volume import Geometry, Volume

AFFINE = np.array([[-0.7, 0, 0, 15.0], [0, -0.9, 0, 12.0], [0, 0, 2.5, -14.0], [0, 0, 0, 1]])
WINDOW = {"kind": "window", "low": -50, "high": 250, "mean": 40.0, "std": 70.0}
LABELS = [{"value": 0, "name": "background"}, {"value": 1, "name": "organ"}]


def chain_of(**changes: Any) -> Any:
    fields: dict[str, Any] = {
        "channels": ["image"],
        "labels": LABELS,
        "orientation": "RAS",
        "spacing_mm": None,
        "crop": "none",
        "bias_field": False,
        "normalisation": [WINDOW],
        **changes,
    }
    return build_chain([step for step in preprocessing_steps(**fields) if step["name"] != "ToClasses"])


def volume_of(array: np.ndarray, affine: np.ndarray = AFFINE) -> Volume:
    array = array if array.ndim == 4 else array[np.newaxis]
    return Volume(np.asfortranarray(array), Geometry(tuple(array.shape[1:]), affine))


def noise(shape: tuple[int, ...] = (14, 11, 9), dtype: Any = np.int16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 400, shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.uint16, np.uint32, np.float32, np.float64])
@pytest.mark.parametrize("normalisation", [WINDOW, {"kind": "rescale", "low": 0, "high": 300}, {"kind": "zscore"}])
@pytest.mark.parametrize("spacing", [None, (1.0, 0.5, 2.5), (1.1, 1.3, 1.7)])
def test_any_box_is_the_same_as_that_of_the_chain(dtype: Any, normalisation: Any, spacing: Any) -> None:
    volume = volume_of(noise(dtype=dtype))
    chain = chain_of(normalisation=[normalisation], spacing_mm=spacing, orientation="ASL")
    wanted = run_chain(chain, {"image": volume})["image"]
    image = blockwise(chain, volume)
    assert image is not None
    assert image.shape == tuple(wanted.shape)
    np.testing.assert_array_equal(image.affine, affine_of(wanted))
    torch.testing.assert_close(image.whole(), plain(wanted), rtol=0, atol=1e-5)
    for x, y, z in ((slice(0, 4), slice(2, 3), slice(1, 8)), (slice(3, 5), slice(0, 6), slice(3, 9))):
        torch.testing.assert_close(image[:, x, y, z], plain(wanted)[:, x, y, z], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(volume.array[0], noise(dtype=dtype))  # what is stored stays as it is


@pytest.mark.parametrize("kind", ["zscore", "zscore_nonzero", "rescale_nonzero"])
def test_cropped_images_and_several_channels(kind: str) -> None:
    array = np.zeros((2, 14, 11, 9), np.int16)
    array[0, 3:9, 2:8, 1:9] = noise((6, 6, 8))
    array[1, 5:10, 2:8, 1:9] = 7
    volume = volume_of(array)
    normalisation = [{"kind": kind, "low": -2, "high": 2}, {"kind": kind}]
    chain = chain_of(channels=["a", "b"], crop="nonzero", spacing_mm=(1, 1, 2), normalisation=normalisation)
    wanted = run_chain(chain, {"image": volume})["image"]
    image = blockwise(chain, volume)
    assert image is not None
    np.testing.assert_array_equal(image.affine, affine_of(wanted))
    torch.testing.assert_close(image.whole(), plain(wanted), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["zscore", "zscore_nonzero", "rescale_nonzero"])
@pytest.mark.parametrize("value", [0, 5])
def test_constant_images_become_zero(kind: str, value: int) -> None:
    image = blockwise(chain_of(crop="nonzero", normalisation=[{"kind": kind}]), volume_of(np.full((4, 5, 6), value)))
    assert image is not None
    assert image.shape == (1, 4, 5, 6)
    assert not image.whole().any()


@pytest.mark.parametrize("kind", ["window", "none", "rescale_own", "zscore", "zscore_mask"])
@pytest.mark.parametrize("separate", ["auto", "never"])
@pytest.mark.parametrize("orientation", [None, "SAL"])
def test_splines_of_normalised_voxels_box_by_box(kind: str, separate: str, orientation: str | None) -> None:
    array = np.zeros((2, 34, 27, 21), np.int16)
    array[:, 3:30, 2:25, 1:20] = noise((2, 27, 23, 19))
    array[:, 12:15, 9:14, 8:12] = 0
    volume = volume_of(array)
    chain = chain_of(
        channels=["a", "b"],
        crop="nonzero",
        orientation=orientation,
        spacing_mm=(1.1, None, 0.8) if orientation is None else (1.7, 1.1, None),
        normalisation=[WINDOW if kind == "window" else {"kind": kind}] * 2,
        resampling={"kind": "spline", "separate": separate},
    )
    wanted = run_chain(chain, {"image": volume})["image"]
    tolerance = 1e-4 * (400 if kind == "none" else 1)
    image = blockwise(chain, volume)
    assert image is not None
    assert image.resampled
    assert image.shape == tuple(wanted.shape)
    np.testing.assert_array_equal(image.affine, affine_of(wanted))
    torch.testing.assert_close(image.whole(), plain(wanted), rtol=0, atol=tolerance)
    for box in ((slice(0, 4), slice(2, 3), slice(1, 8)), (slice(5, 9), slice(0, 6), slice(3, 9))):
        made = blockwise(chain, volume)
        assert made is not None
        torch.testing.assert_close(
            made[(slice(None), *box)], plain(wanted)[(slice(None), *box)], rtol=0, atol=tolerance
        )
    assert image[:, 3:3, :, :].shape[1] == 0


def test_the_spacing_stays_where_splines_change_nothing() -> None:
    volume = volume_of(noise())
    chain = chain_of(resampling={"kind": "spline"}, spacing_mm=(0.7, 0.9, 2.5), normalisation=[{"kind": "rescale_own"}])
    image = blockwise(chain, volume)
    assert image is not None
    assert not image.resampled
    torch.testing.assert_close(image.whole(), plain(run_chain(chain, {"image": volume})["image"]), rtol=0, atol=1e-6)


def test_grey_pictures_for_colour_models() -> None:
    volume = Volume(noise((1, 8, 6), np.uint8), Geometry((8, 6), np.eye(4)))
    chain = chain_of(channels=list("rgb"), orientation=None, normalisation=[WINDOW] * 3)
    image = blockwise(chain, volume)
    assert image is not None
    torch.testing.assert_close(image.whole(), plain(run_chain(chain, {"image": volume})["image"]))


def test_what_needs_the_whole_image_is_left_to_the_chain() -> None:
    sheared = AFFINE.copy()
    sheared[0, 2] = 0.5
    assert blockwise(chain_of(), volume_of(noise(), sheared)) is None
    assert blockwise(chain_of(bias_field=True), volume_of(noise())) is None


def test_what_the_chain_refuses_is_refused() -> None:
    with pytest.raises(CaseError, match="has 2 channels, expected 1"):
        blockwise(chain_of(), volume_of(noise((2, 4, 4, 4))))
    array = noise(dtype=np.float32)
    array[1, 2, 3] = np.nan
    with pytest.raises(CaseError, match="1 voxels are NaN or infinite"):
        blockwise(chain_of(), volume_of(array))
