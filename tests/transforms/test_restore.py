"""Labels come back to the source grid: exact copies where grids match, interpolated scores elsewhere, slab by slab."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor
from voxelwise.transforms.geometry import ALL_AXIS_CODES, reorient_to
from voxelwise.transforms.match import match_grids
from voxelwise.transforms.resample import resample
from voxelwise.transforms.restore import restore_labels

SHAPE = (9, 8, 7)
OBLIQUE = np.array([[0.68, -0.1, 0.2, 15.0], [0.12, 0.88, -0.3, 12.0], [-0.1, 0.2, 2.4, -14.0], [0, 0, 0, 1]])


def one_hot(labels: np.ndarray, classes: int) -> Tensor:
    return torch.from_numpy(np.eye(classes, dtype=np.float32)[labels]).movedim(-1, 0)


def slabs(scores: Tensor, depth: int) -> list[tuple[slice, Tensor]]:
    return [
        (slice(at, min(at + depth, scores.shape[1])), scores[:, at : at + depth])
        for at in range(0, scores.shape[1], depth)
    ]


def smooth_scores(shape: tuple[int, ...], classes: int, seed: int = 0) -> Tensor:
    """Scores with blobs several voxels wide."""
    torch.manual_seed(seed)
    coarse = torch.randn(1, classes, *(max(2, size // 3) for size in shape))
    return torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear", align_corners=True)[0]


def at_once(scores: Tensor, affine: np.ndarray, shape: tuple[int, ...], source_affine: np.ndarray) -> np.ndarray:
    """The definition: interpolate every class at every voxel, take the largest; half a voxel outside is background."""
    matrix = np.linalg.inv(affine) @ source_affine
    index = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"), axis=0).reshape(3, -1)
    at = matrix[:3, :3] @ index + matrix[:3, 3:]
    sizes = np.array(scores.shape[1:])[:, None]
    inside = ((at > -0.5) & (at < sizes - 0.5)).all(0)
    at = at.clip(0, sizes - 1)
    values = np.stack([map_coordinates(score.numpy().astype(np.float64), at, order=1) for score in scores])
    return np.where(inside, values.argmax(0), 0).reshape(shape)


@pytest.mark.parametrize("codes", ALL_AXIS_CODES)
@pytest.mark.parametrize("depth", [1, 4, 20])
def test_all_orientations_come_back_voxel_by_voxel(codes: str, depth: int) -> None:
    labels = np.random.default_rng(0).integers(0, 5, SHAPE)
    turned, affine = reorient_to(labels[None], OBLIQUE, codes)
    scores = one_hot(np.ascontiguousarray(turned[0]), 5)
    restored = restore_labels(slabs(scores, depth), scores.shape[1:], affine, SHAPE, OBLIQUE)
    assert restored.dtype == np.uint8
    np.testing.assert_array_equal(restored, labels)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAR", "IPL"])
def test_a_crop_comes_back_with_background_around(codes: str) -> None:
    labels = np.random.default_rng(1).integers(1, 4, SHAPE)
    turned, affine = reorient_to(labels[None], OBLIQUE, codes)
    box = (slice(2, 5), slice(1, 6), slice(0, 4))
    cropped = affine.copy()
    cropped[:3, 3] += affine[:3, :3] @ [2, 1, 0]
    scores = one_hot(np.ascontiguousarray(turned[0][box]), 4)
    restored = restore_labels(slabs(scores, 2), scores.shape[1:], cropped, SHAPE, OBLIQUE)
    wanted = np.zeros_like(turned[0])
    wanted[box] = turned[0][box]
    np.testing.assert_array_equal(reorient_to(restored[None], OBLIQUE, codes)[0][0], wanted)


def test_a_larger_network_grid_is_cut() -> None:
    labels = np.random.default_rng(2).integers(0, 3, (11, 12, 9))
    affine = OBLIQUE.copy()
    affine[:3, 3] -= OBLIQUE[:3, :3] @ [1, 2, 0]
    restored = restore_labels(slabs(one_hot(labels, 3), 3), labels.shape, affine, SHAPE, OBLIQUE)
    np.testing.assert_array_equal(restored, labels[1:10, 2:10, 0:7])


def test_grids_that_do_not_touch_give_background() -> None:
    affine = OBLIQUE.copy()
    affine[:3, 3] += OBLIQUE[:3, :3] @ [50, 0, 0]
    restored = restore_labels(slabs(one_hot(np.ones(SHAPE, int), 2), 3), SHAPE, affine, SHAPE, OBLIQUE)
    assert not restored.any()


def test_exactness_is_judged_in_voxels() -> None:
    """A shift of 0.005 voxels is rounding, 0.05 is not; both whatever a voxel measures."""
    for scale in (0.01, 1.0, 1000.0):
        affine = np.diag([scale, scale, scale, 1.0])
        near, far = affine.copy(), affine.copy()
        near[0, 3], far[0, 3] = 0.005 * scale, 0.05 * scale
        assert match_grids(SHAPE, near, SHAPE, affine).axes == ((0, 1), (1, 1), (2, 1))
        assert match_grids(SHAPE, far, SHAPE, affine).axes is None
    slow = np.diag([1.001, 1.0, 1.0, 1.0])
    assert match_grids((5, 5, 5), slow, (5, 5, 5), np.eye(4)).axes is not None
    assert match_grids((512, 5, 5), slow, (512, 5, 5), np.eye(4)).axes is None  # half a voxel at the far end


@pytest.mark.parametrize("depth", [1, 3, 7, 100])
@pytest.mark.parametrize("kind", ["coarse", "fine", "turned", "oblique", "sheared"])
def test_slab_by_slab_equals_at_once(kind: str, depth: int) -> None:
    """Any affine: scores interpolated linearly, then the largest; the depth of the slabs does not matter."""
    scores = smooth_scores((15, 14, 13), 4)
    source_shape, source_affine = (20, 17, 16), np.diag([1.0, 1.1, 1.2, 1.0])
    rotation = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])
    affine = {
        "coarse": np.diag([1.4, 1.4, 1.5, 1.0]),
        "fine": np.diag([0.6, 0.7, 0.8, 1.0]),
        "turned": np.array([[0, 0, 1.3, 0], [-1.3, 0, 0, 18], [0, 1.4, 0, 0.2], [0, 0, 0, 1.0]]),
        "oblique": np.block([[rotation * 1.4, np.array([[3.0], [-3.0], [0.4]])], [np.zeros((1, 3)), np.ones((1, 1))]]),
        "sheared": np.array([[1.4, 0, 0, -1], [0, 1.4, 0.4, -2], [0, 0, 1.5, 0], [0, 0, 0, 1.0]]),
    }[kind]
    restored = restore_labels(slabs(scores, depth), scores.shape[1:], affine, source_shape, source_affine)
    np.testing.assert_array_equal(
        restored, restore_labels(slabs(scores, 1000), scores.shape[1:], affine, source_shape, source_affine)
    )
    wanted = at_once(scores, affine, source_shape, source_affine)
    matrix = np.linalg.inv(affine) @ source_affine
    index = np.stack(np.meshgrid(*(np.arange(size) for size in source_shape), indexing="ij"), axis=0).reshape(3, -1)
    at = (matrix[:3, :3] @ index + matrix[:3, 3:]).reshape(3, *source_shape)
    within = ((at >= 0) & (at <= np.array(scores.shape[1:]).reshape(3, 1, 1, 1) - 1)).all(0)
    assert within.mean() > 0.1
    assert (restored == wanted)[within].mean() > 0.9999  # ties apart
    assert len(np.unique(restored)) == 4


@pytest.mark.parametrize("spacing", [(2.3, 1.7, 0.6), (0.4, 3.9, 1.0)])
@pytest.mark.parametrize("shape", [(10, 9, 8), (13, 6, 5)])
def test_what_the_chain_resampled_is_covered_to_the_last_voxel(
    shape: tuple[int, ...], spacing: tuple[float, ...]
) -> None:
    """A volume of one class comes back as that class everywhere, though resampling rounds the number of voxels."""
    source = np.eye(4)
    resampled = resample(torch.ones(1, *shape), (1.0, 1.0, 1.0), spacing)
    scores = torch.cat([torch.zeros_like(resampled), resampled])
    affine = np.diag([*spacing, 1.0])
    restored = restore_labels(slabs(scores, 2), scores.shape[1:], affine, shape, source)
    assert (restored == 1).all()


def test_before_a_resampled_crop_is_background() -> None:
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = 4
    scores = torch.stack([torch.zeros(3, 3, 3), torch.ones(3, 3, 3)])
    restored = restore_labels(slabs(scores, 1), (3, 3, 3), affine, (20, 20, 20), np.eye(4))
    assert not restored[:4].any()
    assert restored[4:10, 4:10, 4:10].all()
    assert not restored[12:].any()


@pytest.mark.parametrize("shape", [(1, 6, 5), (6, 1, 5), (6, 5, 1), (1, 1, 1)])
def test_grids_one_voxel_thin(shape: tuple[int, ...]) -> None:
    scores = smooth_scores(shape, 3)
    double = tuple(size * 2 if size > 1 else 1 for size in shape)
    for source_shape, scale in ((shape, 1.0), (double, 2.0)):
        affine = np.diag([scale, scale, scale, 1.0])
        restored = restore_labels(slabs(scores, 2), shape, affine, source_shape, np.eye(4))
        assert restored.shape == source_shape
        step = tuple(slice(None, None, 2) if size > 1 and scale == 2 else slice(None) for size in shape)
        np.testing.assert_array_equal(restored[step], scores.argmax(0).numpy())


def test_many_classes_are_uint16() -> None:
    labels = np.full((2, 2, 2), 299)
    restored = restore_labels(slabs(one_hot(labels, 300), 1), (2, 2, 2), np.eye(4), (2, 2, 2), np.eye(4))
    assert restored.dtype == np.uint16
    np.testing.assert_array_equal(restored, labels)


def test_wrong_use_is_named() -> None:
    with pytest.raises(ValueError, match="the affine of the network's grid cannot be inverted"):
        restore_labels([], SHAPE, np.zeros((4, 4)), SHAPE, np.eye(4))
    with pytest.raises(ValueError, match="there are no planes of scores"):
        restore_labels([], SHAPE, np.eye(4), SHAPE, np.eye(4))
