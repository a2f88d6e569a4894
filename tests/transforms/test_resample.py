"""Resampling against SimpleITK and scipy, and where the world must stay."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.data.utils import compute_shape_offset
from scipy.ndimage import map_coordinates
from voxelwise.errors import CaseError
from voxelwise.transforms.geometry import apply_affine
from voxelwise.transforms.match import margins
from voxelwise.transforms.resample import Resample, resample, resampled_shape, straighten

SPACINGS = st.tuples(*(st.floats(0.3, 4.0) for _ in range(3)))
SHAPES = st.tuples(*(st.integers(1, 17) for _ in range(3)))


def by_simpleitk(
    image: np.ndarray, old: tuple[float, ...], new: tuple[float, ...], shape: tuple[int, ...]
) -> np.ndarray:
    source = sitk.GetImageFromArray(image.T.astype(np.float64))
    source.SetSpacing(old)
    done = sitk.Resample(source, [int(n) for n in shape], sitk.Transform(), sitk.sitkLinear, (0.0,) * 3, new)
    return sitk.GetArrayFromImage(done).T


def test_equals_simpleitk_where_it_has_voxels() -> None:
    image = np.random.default_rng(0).normal(0, 300, (21, 17, 13)).astype(np.float32)
    old, new = (0.8, 1.1, 3.0), (1.3, 0.7, 1.9)
    done = resample(torch.from_numpy(image)[None], old, new)[0].numpy()
    reference = by_simpleitk(image, old, new, done.shape)
    inside = tuple(slice(0, int((size - 1) * a / b) + 1) for size, a, b in zip(image.shape, old, new, strict=True))
    np.testing.assert_allclose(done[inside], reference[inside], atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, old=SPACINGS, new=SPACINGS, seed=st.integers(0, 9))
def test_equals_scipy_everywhere(
    shape: tuple[int, ...], old: tuple[float, ...], new: tuple[float, ...], seed: int
) -> None:
    """Any ratio, any thin axis; beyond the last centre its value goes on."""
    image = np.random.default_rng(seed).normal(0, 100, shape).astype(np.float32)
    done = resample(torch.from_numpy(image)[None], old, new)[0].numpy()
    assert done.shape == resampled_shape(shape, old, new)
    steps = [1 if abs(a / b - 1) < 1e-3 else b / a for a, b in zip(old, new, strict=True)]
    grid = np.meshgrid(*(np.arange(n) * step for n, step in zip(done.shape, steps, strict=True)), indexing="ij")
    np.testing.assert_allclose(done, map_coordinates(image, grid, order=1, mode="nearest"), atol=1e-3)


@pytest.mark.parametrize("noise", [-6e-8, 0.0, 6e-8])
def test_a_rounded_spacing_gives_the_same_grid(noise: float) -> None:
    """Half voxels are common: 280 of 0.6875 mm are 192.5 of 1 mm, and float32 headers lie on either side."""
    old = (0.6875 + noise, 0.5 + noise, 0.7)
    assert resampled_shape((280, 43, 10), old, (1.0, 1.0, 1.0)) == (192, 21, 7)


@settings(max_examples=25, deadline=None)
@given(shape=SHAPES, old=SPACINGS, new=SPACINGS)
def test_labels_keep_their_values(shape: tuple[int, ...], old: tuple[float, ...], new: tuple[float, ...]) -> None:
    labels = np.random.default_rng(1).integers(0, 200, shape).astype(np.uint8)
    done = resample(torch.from_numpy(labels)[None], old, new, nearest=True)
    assert done.dtype == torch.uint8
    assert set(np.unique(done)) <= set(np.unique(labels))


def test_same_spacing_is_the_same_tensor() -> None:
    image = torch.randn(1, 4, 5, 6)
    assert resample(image, (1, 1, 1), (1, 1, 1.0005)) is image


def test_constant_stays_constant_in_every_channel() -> None:
    image = torch.full((2, 9, 8, 7), 5.0)
    torch.testing.assert_close(resample(image, (1, 1, 1), (0.6, 2.1, 1.3)), torch.full((2, 15, 4, 5), 5.0))


def test_step_moves_no_voxel_in_the_world() -> None:
    """A ramp in world coordinates is the same ramp afterwards: affine and voxels agree."""
    affine = np.array([[0, -1.5, 0, 10], [0.8, 0, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1]], float)
    points = apply_affine(affine, np.stack(np.meshgrid(*map(np.arange, (12, 10, 8)), indexing="ij"), axis=-1))
    image = torch.from_numpy(np.moveaxis(points, -1, 0).astype(np.float32))
    done = Resample(["image"], [1.0, 1.0, 2.0])({"image": MetaTensor(image, affine=torch.from_numpy(affine))})["image"]
    new = done.affine.numpy()
    there = apply_affine(new, np.stack(np.meshgrid(*map(np.arange, done.shape[1:]), indexing="ij"), axis=-1))
    inside = tuple(slice(0, n - 2) for n in done.shape[1:])
    np.testing.assert_allclose(np.moveaxis(done.as_tensor().numpy(), 0, -1)[inside], there[inside], atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(new[:3, :3], axis=0), [1, 1, 2])


def test_sheared_grid_is_straightened_in_place() -> None:
    """A tilted gantry: the ramp of world coordinates survives wherever the old grid was."""
    affine = np.array([[1, 0, 0, 3], [0, 1, 0.8, -4], [0, 0, 2, 1], [0, 0, 0, 1]], float)
    points = apply_affine(affine, np.stack(np.meshgrid(*map(np.arange, (9, 16, 7)), indexing="ij"), axis=-1))
    image = torch.from_numpy(np.moveaxis(points, -1, 0).astype(np.float32))
    steps = Resample(["image", "label"], None, label_keys=["label"])
    label = MetaTensor(torch.ones(1, 9, 16, 7, dtype=torch.uint8), affine=torch.from_numpy(affine))
    done = steps({"image": MetaTensor(image, affine=torch.from_numpy(affine)), "label": label})
    straight, new = done["image"].as_tensor().numpy(), done["image"].affine.numpy()
    unit = new[:3, :3] / np.linalg.norm(new[:3, :3], axis=0)
    np.testing.assert_allclose(unit.T @ unit, np.eye(3), atol=1e-12)
    assert np.linalg.det(new[:3, :3]) > 0
    there = apply_affine(new, np.stack(np.meshgrid(*map(np.arange, straight.shape[1:]), indexing="ij"), axis=-1))
    voxels = apply_affine(np.linalg.inv(affine), there)
    covered = ((voxels >= 0) & (voxels <= np.array([8, 15, 6]))).all(-1)
    assert covered.sum() > 9 * 16 * 5
    np.testing.assert_allclose(np.moveaxis(straight, 0, -1)[covered], there[covered], atol=1e-3)
    assert (done["label"].as_tensor().numpy()[0][covered] == 1).all()
    assert done["label"].dtype == torch.uint8


def test_straighten_fills_with_the_lowest_value() -> None:
    affine = np.array([[1, 0, 0.5, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], float)
    done, _ = straighten(torch.full((1, 5, 5, 5), -1000.0), affine, (1, 1, 1))
    torch.testing.assert_close(done, torch.full_like(done, -1000.0))


def test_explosion_is_refused_before_it_happens() -> None:
    sample = {"image": MetaTensor(torch.zeros(1, 10, 10, 10), affine=torch.diag(torch.tensor([20.0, 20, 20, 1])))}
    with pytest.raises(CaseError, match=r"2000 x 2000 x 2000 = 8,000,000,000 voxels.*coarser spacing_mm"):
        Resample(["image"], [0.1, 0.1, 0.1])(sample)


@given(shape=SHAPES, old=SPACINGS, new=SPACINGS)
@settings(max_examples=50, deadline=None)
def test_the_span_between_centres_is_monais(
    shape: tuple[int, ...], old: tuple[float, ...], new: tuple[float, ...]
) -> None:
    """And all voxels of the source belong to the grid, on the way back."""
    found = resampled_shape(shape, old, new, span=True)
    wanted, _ = compute_shape_offset(shape, np.diag([*old, 1.0]), np.diag([*new, 1.0]))
    for axis, (size, a, b) in enumerate(zip(shape, old, new, strict=True)):
        kept = abs(a / b - 1) < 1e-3
        assert found[axis] == (size if kept else wanted[axis])
        row = np.zeros(4)
        row[axis] = 1.0 if kept else a / b
        assert (size - 1) * row[axis] <= found[axis] - 1 + margins(row)[1]
