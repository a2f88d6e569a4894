"""Splines against scipy, which scikit-image and nnU-Net resample with: any shape, order, memory layout, any box."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from scipy.ndimage import map_coordinates, zoom
from voxelwise.errors import CaseError
from voxelwise.transforms.geometry import apply_affine
from voxelwise.transforms.spline import apply_spline, ranges_of, spline, spline_operator
from voxelwise.transforms.spline_resample import SplineResample

SHAPES = st.tuples(*(st.integers(1, 40) for _ in range(3)))


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 300, shape).astype(np.float32)


def resized(image: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    """What scikit-image's `resize(mode="edge", anti_aliasing=False)` does."""
    ratios = [new / old for new, old in zip(shape, image.shape, strict=True)]
    done = zoom(image.astype(np.float64), ratios, order=order, mode="nearest", grid_mode=True)
    return np.clip(done, image.min(), image.max())


def resized_apart(image: np.ndarray, shape: tuple[int, ...], axis: int, order: int, along: int) -> np.ndarray:
    """Each slice across an axis on its own, then lines along it, as nnU-Net does it."""
    plane = tuple(side for at, side in enumerate(shape) if at != axis)
    planes = [resized(slab, plane, order) for slab in np.moveaxis(image, axis, 0)]
    at = (len(planes) / shape[axis]) * (np.arange(shape[axis]) + 0.5) - 0.5
    grid = np.meshgrid(at, *map(np.arange, plane), indexing="ij")
    return np.moveaxis(map_coordinates(np.stack(planes), grid, order=along, mode="nearest"), 0, axis)


@settings(max_examples=20, deadline=None)
@given(shape=SHAPES, new_shape=SHAPES, order=st.integers(0, 3), seed=st.integers(0, 9))
def test_equals_scipy(shape: tuple[int, ...], new_shape: tuple[int, ...], order: int, seed: int) -> None:
    image = noise(shape, seed)
    done = apply_spline(spline(shape, new_shape, order=order), torch.from_numpy(image))
    np.testing.assert_allclose(done.numpy(), resized(image, new_shape, order), atol=5e-3)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("along", [0, 1, 3])
@pytest.mark.parametrize("new_shape", [(31, 12, 9), (11, 40, 33), (22, 19, 8), (35, 19, 15)])
def test_a_separate_axis_comes_after_its_slices(axis: int, along: int, new_shape: tuple[int, ...]) -> None:
    image = noise((22, 19, 15))
    done = apply_spline(spline(image.shape, new_shape, separate=axis, along=along), torch.from_numpy(image))
    np.testing.assert_allclose(done.numpy(), resized_apart(image, new_shape, axis, 3, along), atol=5e-3)


def test_memory_layout_and_type_do_not_matter() -> None:
    image = noise((18, 21, 12)).round()
    way = spline(image.shape, (25, 13, 17), separate=2)
    wanted = apply_spline(way, torch.from_numpy(image))
    turned = torch.from_numpy(np.asfortranarray(image).astype(np.int16))
    torch.testing.assert_close(apply_spline(way, turned), wanted, rtol=0, atol=2e-3)


@pytest.mark.parametrize("separate", [None, 0, 2])
def test_a_box_needs_the_voxels_around_it_alone(separate: int | None) -> None:
    image = torch.from_numpy(noise((90, 70, 60)))
    way = spline(image.shape, (61, 91, 40), separate=separate)
    old, part = way.part((slice(20, 25), slice(30, 31), slice(0, 12)))
    assert all(side.stop - side.start < 60 for side in old)
    ranges = ranges_of(image, separate)
    if separate is not None:
        ranges = ranges[0][old[separate]], ranges[1][old[separate]]
    wanted = apply_spline(way, image)[20:25, 30:31, :12]
    torch.testing.assert_close(apply_spline(part, image[old], ranges), wanted, rtol=0, atol=1e-3)


def test_constants_stay_and_reach_is_short() -> None:
    operator = spline_operator(512, 300, 3)
    torch.testing.assert_close(operator.weights.sum(dim=1), torch.ones(300))
    assert int((operator.last - operator.first).max()) < 26


@settings(max_examples=15, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 99))
def test_the_extent_stays(shape: tuple[int, ...], seed: int) -> None:
    """Edges agree, to whatever whole number of voxels the new spacing is rounded."""
    draw = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = np.linalg.qr(draw.normal(size=(3, 3)))[0] * draw.uniform(0.5, 3, 3), 7
    sample = {"image": MetaTensor(torch.zeros(1, *shape), affine=torch.from_numpy(affine))}
    done = SplineResample(["image"], (0.9, None, 2.0))(sample)["image"]
    ends = np.array([[-0.5] * 3, np.array(shape) - 0.5])
    new_ends = np.array([[-0.5] * 3, np.array(done.shape[1:]) - 0.5])
    np.testing.assert_allclose(apply_affine(done.affine.numpy(), new_ends), apply_affine(affine, ends), atol=1e-6)
    assert done.shape[2] == shape[1]


def test_labels_are_those_of_the_voxel_that_a_centre_lies_in() -> None:
    labels = torch.arange(6, dtype=torch.uint8).view(1, 6, 1, 1).expand(1, 6, 2, 2)
    affine = torch.diag(torch.tensor([1.0, 1, 1, 1], dtype=torch.float64))
    sample = {name: MetaTensor(labels.clone(), affine=affine) for name in ("image", "label")}
    done = SplineResample(["image", "label"], (1.5, 1, 1), label_keys=["label"])(sample)
    assert done["label"].dtype == torch.uint8
    assert done["label"][0, :, 0, 0].tolist() == [0, 2, 3, 5]
    assert done["image"].shape == done["label"].shape


def test_too_many_voxels_are_refused() -> None:
    sample = {"image": MetaTensor(torch.zeros(1, 9, 9, 9), affine=torch.eye(4))}
    with pytest.raises(CaseError, match="90 x 90 x 90 = 729,000 voxels"):
        SplineResample(["image"], (0.1, 0.1, 0.1), max_voxels=1000)(sample)
