"""Between voxel centres: the class is that of all scores interpolated, whichever shortcut found it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from voxelwise.transforms.cells import Cells, top_class
from voxelwise.transforms.restore import Restoration, working_bytes


def in_full(scores: Tensor, at: Tensor) -> Tensor:
    """Scores (P, K) at coordinates (P, 3), in float64."""
    low = at.floor().long()
    for axis, size in enumerate(scores.shape[1:]):
        low[:, axis].clamp_(max=max(size - 2, 0))
    share = at - low
    total = torch.zeros(len(at), len(scores), dtype=torch.float64)
    for ends in itertools.product((0, 1), repeat=3):
        weight, where = torch.ones(len(at), dtype=torch.float64), []
        for axis, end in enumerate(ends):
            weight = weight * (share[:, axis] if end else 1 - share[:, axis])
            where.append((low[:, axis] + end).clamp(max=scores.shape[axis + 1] - 1))
        total += weight[:, None] * scores[:, where[0], where[1], where[2]].T.double()
    return total


def found_by_cells(scores: Tensor, at: Tensor) -> Tensor:
    cells = Cells(scores)
    low = [at[:, axis].floor().long().clamp(max=max(size - 2, 0)) for axis, size in enumerate(scores.shape[1:])]
    codes = cells.codes[low[0], low[1], low[2]].long()
    shares = [(at[:, axis] - low[axis]).float() for axis in range(3)]
    mixed = codes < 0
    if bool(mixed.any()):
        codes[mixed] = cells.classes(-1 - codes[mixed], [share[mixed] for share in shares])
    return codes


@pytest.mark.parametrize("classes", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("shape", [(9, 8, 7), (1, 6, 5), (6, 5, 1)])
@pytest.mark.parametrize("kind", ["noise", "smooth", "few at a time"])
def test_the_class_is_that_of_the_largest_interpolated_score(kind: str, shape: tuple[int, ...], classes: int) -> None:
    torch.manual_seed(classes)
    scores = torch.randn(classes, *shape)
    if kind == "smooth":
        coarse = torch.randn(1, classes, *(max(1, size // 3) for size in shape))
        scores = torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear", align_corners=True)[0]
    if kind == "few at a time":  # two classes far above the others almost everywhere
        scores = scores * 0.5
        scores[: min(2, classes)] += 2
    at = torch.rand(3000, 3, dtype=torch.float64) * (torch.tensor(shape) - 1)
    total = in_full(scores, at)
    best = total.topk(min(2, classes), dim=1).values
    clear = torch.ones(len(at), dtype=torch.bool) if classes == 1 else best[:, 0] - best[:, 1] > 1e-5
    found = found_by_cells(scores, at)
    assert clear.float().mean() > 0.99
    assert torch.equal(found[clear], total.max(dim=1).indices[clear])


def test_a_third_class_wins_between_two() -> None:
    """Nowhere the largest at a corner, and yet the largest in the middle."""
    scores = torch.tensor([[5.0, 0.0], [0.0, 5.0], [4.0, 4.0]]).reshape(3, 2, 1, 1)
    at = torch.tensor([[0.1, 0.0, 0.0], [0.5, 0.0, 0.0], [0.9, 0.0, 0.0]], dtype=torch.float64)
    assert found_by_cells(scores, at).tolist() == [0, 2, 1]


def test_the_lower_class_has_ties() -> None:
    scores = torch.zeros(4, 3, 3, 3)
    assert not Cells(scores).codes.any()
    scores[1:, 0] = 1
    at = torch.tensor([[0.5, 1.0, 1.0], [1.5, 0.3, 0.2]], dtype=torch.float64)
    assert found_by_cells(scores, at).tolist() == [1, 0]
    assert top_class(torch.ones(3, 2)).tolist() == [0, 0]


def test_a_part_of_a_larger_tensor_is_looked_at_as_it_is() -> None:
    whole = torch.randn(5, 9, 10, 11)
    part = whole.movedim(2, 1)[:, 2:7, 1:8, 3:9]
    at = torch.rand(500, 3, dtype=torch.float64) * torch.tensor([4.0, 6.0, 5.0])
    assert torch.equal(found_by_cells(part, at), found_by_cells(part.contiguous(), at))


@pytest.mark.parametrize("turned", [False, True])
def test_the_size_of_a_chunk_does_not_change_labels(turned: bool) -> None:
    """Also where an axis of the source runs along none of the network's grid."""
    scores = torch.randn(4, 9, 8, 7)
    affine = np.diag([1.7, -1.3, 2.1, 1.0])
    affine[1, 3] = 10
    if turned:
        affine[0, 1] = 0.4
    found = []
    for chunk in (1 << 23, 6000, 1500):
        restoration = Restoration((9, 8, 7), affine, (14, 11, 15), np.eye(4), chunk_numbers=chunk)
        restoration.add(slice(0, 5), scores[:, :5])
        restoration.add(slice(5, 9), scores[:, 5:])
        found.append(restoration.labels)
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])
    assert working_bytes(4, 4, 1500) < working_bytes(4, 4, 6000)
