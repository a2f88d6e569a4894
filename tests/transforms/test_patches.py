"""Patches: what is read, where it lies, and that turning it is one exact matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from voxelwise.transforms.patches import DrawPatch, draw_start, rotation, sample_patch


def blob(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    state = np.random.RandomState(0)
    image = ndimage.gaussian_filter(state.rand(*shape), 1.5).astype(np.float32)[None]
    return image, (image[0] > image.mean()).astype(np.uint8)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    patch=st.tuples(*[st.integers(1, 12)] * 3),
    seed=st.integers(0, 100),
)
def test_a_plain_patch_is_the_padded_crop(shape, patch, seed) -> None:
    """Every voxel of the patch is the image's voxel at that place, zero outside."""
    image, labels = blob(shape)
    start = draw_start(shape, patch, None, np.random.RandomState(seed))
    pixels, truth = sample_patch(image, labels, start, patch, np.eye(3))
    padded = np.pad(image, [(0, 0), *[(13, 13)] * 3])
    want = padded[(slice(None), *(slice(s + 13, s + 13 + p) for s, p in zip(start, patch, strict=True)))]
    np.testing.assert_array_equal(pixels.numpy(), want)
    assert truth.shape == patch
    for size, side, at in zip(shape, patch, start, strict=True):
        assert (0 <= at <= size - side) if size >= side else at == (size - side) // 2


@pytest.mark.parametrize("axes", [(0,), (1, 2), (0, 1, 2)])
def test_mirroring_is_an_exact_flip(axes) -> None:
    image, labels = blob((9, 7, 8))
    matrix = np.diag([-1.0 if axis in axes else 1.0 for axis in range(3)])
    plain, plain_labels = sample_patch(image, labels, (-1, 2, 0), (8, 8, 6), np.eye(3))
    flipped, flipped_labels = sample_patch(image, labels, (-1, 2, 0), (8, 8, 6), matrix)
    torch.testing.assert_close(flipped, plain.flip([axis + 1 for axis in axes]), rtol=0, atol=0)
    assert torch.equal(flipped_labels, plain_labels.flip(axes))


@pytest.mark.parametrize("patch", [(10, 12, 8), (12, 12, 1)])
def test_a_turned_patch_is_what_scipy_samples(patch) -> None:
    """Rotation and scaling about the middle, linear, zero outside."""
    image, labels = blob((16, 18, 9))
    matrix = rotation([0.0, 0.0, 0.4]) * 1.2 if 1 in patch else rotation([0.3, -0.2, 0.4]) * 0.8
    if 1 in patch:
        matrix[2, 2] = 1
    start = (2, 3, 4 if 1 in patch else 0)
    pixels, truth = sample_patch(image, labels, start, patch, matrix)
    middle = np.asarray(start) + (np.asarray(patch) - 1) / 2
    index = np.stack(np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in patch], indexing="ij")).reshape(3, -1)
    where = (matrix @ index + middle[:, None]).reshape(3, *patch)
    inside = np.all([(w >= 0) & (w <= n - 1) for w, n in zip(where, labels.shape, strict=True)], axis=0)
    want = ndimage.map_coordinates(image[0], where, order=1)
    assert inside.mean() > 0.5
    np.testing.assert_allclose(pixels[0].numpy()[inside], want[inside], atol=1e-4)
    nearest = ndimage.map_coordinates(labels, where, order=0)
    assert (truth.numpy()[inside] == nearest[inside]).mean() > 0.999


def test_a_rotation_turns_millimetres_not_voxels() -> None:
    """On 1 x 1 x 4 mm voxels a quarter turn maps one z voxel to four y voxels, and back."""
    draw = DrawPatch((8, 8, 8), spacing_mm=(1, 1, 4), rotation_degrees=10, rotation_probability=1)
    draw.set_random_state(seed=3)
    matrix = draw.draw_matrix()
    spacing = np.diag([1.0, 1.0, 4.0])
    turn = spacing @ matrix @ np.linalg.inv(spacing)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-6)


def test_a_flat_patch_turns_in_its_plane_only() -> None:
    draw = DrawPatch((64, 64, 1), rotation_degrees=30, rotation_probability=1, scale=0.3, scale_probability=1)
    draw.set_random_state(seed=1)
    matrix = draw.draw_matrix()
    assert matrix[2, 2] == pytest.approx(1)
    assert np.abs(matrix[2, :2]).max() < 1e-9
    assert abs(matrix[0, 1]) > 1e-3


def test_the_same_seed_draws_the_same_patch_and_foreground_is_in_it() -> None:
    image, labels = np.random.RandomState(0).rand(1, 30, 30, 30).astype(np.float32), np.zeros((30, 30, 30), np.uint8)
    labels[25, 3, 14] = 1
    sample = {
        "image": image,
        "labels": labels,
        "foreground": {1: np.argwhere(labels == 1), 2: np.empty((0, 3), int)},
        "force_foreground": True,
        "case": "a",
    }
    draw = DrawPatch((8, 8, 8), mirror_axes=[0, 1, 2])
    results = []
    for _ in range(2):
        draw.set_random_state(seed=7)
        results.append(draw(sample))
    assert torch.equal(results[0]["image"], results[1]["image"])
    assert results[0]["labels"].sum() == 1
    assert set(results[0]) == {"image", "labels", "case"}
