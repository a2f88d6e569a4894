"""Training patches: where to look, and one affine sampling of the volume there.

Mirroring, rotation and scaling are one matrix, and the patch is sampled with it straight from the stored volume:
only the
block that the warped patch touches is read, and every voxel is interpolated once. Without rotation and scaling the
patch is
a plain crop. Everything random is drawn from the transform's own state first and applied by plain functions.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform, Randomizable
from torch import Tensor
from torch.nn import functional

from .edges import stated


def draw_start(
    shape: Sequence[int], patch: Sequence[int], focus: np.ndarray | None, state: np.random.RandomState
) -> tuple[int, ...]:
    """First voxel of a patch: uniform, or with the voxel `focus` in its middle, as far as the border allows.

    An axis on which the volume is smaller than the patch is centred (the start is negative).
    """
    start = []
    for axis, (size, length) in enumerate(zip(shape, patch, strict=True)):
        room = size - length
        if room <= 0:
            start.append(room // 2)
        elif focus is None:
            start.append(int(state.randint(0, room + 1)))
        else:
            start.append(int(np.clip(int(focus[axis]) - length // 2, 0, room)))
    return tuple(start)


def rotation(angles: Sequence[float] | np.ndarray) -> np.ndarray:
    """Rotation matrix (3, 3): about x, then y, then z, angles in radians."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
        matrix = turn @ matrix
    return matrix


def sample_patch(
    image: Any, labels: Any, start: Sequence[int], patch: Sequence[int], matrix: np.ndarray
) -> tuple[Tensor, Tensor]:
    """Sample a patch whose axes are the columns of `matrix` (3, 3), in voxels, about the middle of the plain patch.

    Args:
        image: (C, X, Y, Z) float32, anything that slices to an array.
        labels: (X, Y, Z) integers, the same.
        start: first voxel of the unturned patch; may lie outside (zeros are read there).
        matrix: identity gives the plain crop, a diagonal of -1 a mirrored one.

    Shape:
        returns: (C, *patch) float32 by linear, (*patch) int64 by nearest-neighbour interpolation.
    """
    middle = np.asarray(start, float) + (np.asarray(patch, float) - 1) / 2
    half = (np.asarray(patch, float) - 1) / 2
    reach = np.abs(matrix) @ half
    shape = np.asarray(labels.shape)
    low = np.clip(np.floor(middle - reach).astype(int), 0, shape - 1)
    high = np.clip(np.ceil(middle + reach).astype(int) + 1, low + 1, shape)
    block = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    whole = (slice(None), *block)
    pixels = torch.from_numpy(np.ascontiguousarray(image[whole], np.float32))
    truth = torch.from_numpy(np.ascontiguousarray(labels[block]).astype(np.int64))
    if np.array_equal(np.abs(matrix), np.eye(3)):
        return _mirrored_crop(pixels, truth, np.asarray(start) - low, patch, np.diag(matrix) < 0)
    # index = middle + matrix @ offset, in the block's normalised coordinates (-1 at its first voxel, 1 at its last)
    single = (high - low) == 1
    if single.any():  # a block one voxel thick has no scale of its own: give it a second, empty plane
        growth = [value for is_single in reversed(single) for value in (0, int(is_single))]
        pixels, truth = functional.pad(pixels, growth), functional.pad(truth, growth)
    scale = 2 / (np.asarray(truth.shape, float) - 1)
    columns = [torch.from_numpy(scale * matrix[:, axis])[[2, 1, 0]].float() for axis in range(3)]
    origin = torch.from_numpy(scale * (middle - low) - 1)[[2, 1, 0]].float()  # grid_sample counts axes from the last
    x, y, z = (torch.arange(n, dtype=torch.float32)[:, None] - (n - 1) / 2 for n in (int(n) for n in patch))
    grid = (x * columns[0])[:, None, None] + (y * columns[1])[:, None] + (z * columns[2] + origin)
    grid = grid[None]
    warped = functional.grid_sample(pixels[None], grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    nearest = functional.grid_sample(
        truth[None, None].float(), grid, mode="nearest", padding_mode="zeros", align_corners=True
    )
    return warped[0], nearest[0, 0].long()


def _mirrored_crop(
    pixels: Tensor, truth: Tensor, offset: np.ndarray, patch: Sequence[int], mirrored: np.ndarray
) -> tuple[Tensor, Tensor]:
    padding: list[int] = []
    for axis in reversed(range(3)):
        before = int(max(-offset[axis], 0))
        padding += [before, int(patch[axis]) - before - truth.shape[axis]]
    axes = [axis for axis in range(3) if mirrored[axis]]
    pixels, truth = functional.pad(pixels, padding), functional.pad(truth, padding)
    return pixels.flip([axis + 1 for axis in axes]), truth.flip(axes)


class DrawPatch(Randomizable, MapTransform):
    """Draw one training patch from a case, warped by one random matrix.

    The sample holds `image` (C, X, Y, Z) and `labels` (X, Y, Z), anything that slices; `foreground`, voxels (n, 3) by
    class; and `force_foreground`, whether a class must be in the patch. Out come tensors of the patch's size.

    Args:
        patch: three sizes in voxels; a slice model has 1 along the slice axis.
        spacing_mm: of the grid, so that a rotation turns millimetres and not voxels.
        mirror_axes: each is flipped with probability 1/2.
        rotation_degrees: uniform in [-r, r] about each axis; only in the plane of the two long axes where the patch
            is flat.
        rotation_probability: of turning at all.
        scale: factor drawn log-uniformly from [1 / (1 + s), 1 + s].
        scale_probability: of scaling at all.
    """

    def __init__(
        self,
        patch: Sequence[int],
        *,
        spacing_mm: Sequence[float | None] | None = None,
        mirror_axes: Sequence[int] = (),
        rotation_degrees: float = 0.0,
        rotation_probability: float = 0.0,
        scale: float = 0.0,
        scale_probability: float = 0.0,
    ) -> None:
        MapTransform.__init__(self, ["image", "labels"])
        self.patch = tuple(int(n) for n in patch)
        self.spacing = np.asarray(stated(spacing_mm), float)
        self.mirror_axes = tuple(mirror_axes)
        self.rotation_degrees, self.rotation_probability = rotation_degrees, rotation_probability
        self.scale, self.scale_probability = scale, scale_probability

    def draw_matrix(self) -> np.ndarray:
        """One random matrix (3, 3), in voxels."""
        flips = np.array([-1.0 if axis in self.mirror_axes and self.R.rand() < 0.5 else 1.0 for axis in range(3)])
        angles = np.zeros(3)
        if self.R.rand() < self.rotation_probability:
            angles = np.radians(self.R.uniform(-1, 1, 3) * self.rotation_degrees)
            extent = np.asarray(self.patch) * self.spacing
            flat = extent.max() > 3 * extent.min()
            if flat:
                angles[[axis for axis in range(3) if axis != int(extent.argmin())]] = 0
        zoom = np.ones(3)
        if self.R.rand() < self.scale_probability:
            zoom[:] = math.exp(self.R.uniform(-1, 1) * math.log1p(self.scale))
            zoom[np.asarray(self.patch) == 1] = 1
        turned = rotation(angles)
        return (turned * (self.spacing[None, :] / self.spacing[:, None]) * (zoom * flips)[None, :]).round(12)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with `image` (C, *patch) float32 and `labels` (*patch) int64, and without `foreground`."""
        image, labels, foreground = data["image"], data["labels"], data["foreground"]
        focus = None
        present = [klass for klass in sorted(foreground) if len(foreground[klass])]
        pick_class, pick_voxel = self.R.rand(), self.R.rand()
        if data["force_foreground"] and present:
            voxels = foreground[present[int(pick_class * len(present))]]
            focus = voxels[int(pick_voxel * len(voxels))]
        start = draw_start(labels.shape, self.patch, focus, self.R)
        pixels, truth = sample_patch(image, labels, start, self.patch, self.draw_matrix())
        kept = {key: value for key, value in data.items() if key not in ("foreground", "force_foreground")}
        return {**kept, "image": pixels, "labels": truth}
