"""All scores on the source grid, and the file of probabilities: equal to doing it on the whole volume at once."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import blosc2
import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor
from voxelwise.errors import NoRoomError, UsageError
from voxelwise.transforms.dense import DenseRestoration, working_bytes
from voxelwise.transforms.match import margins, match_grids
from voxelwise.transforms.probabilities import Classes, ProbabilityFile, chunk_of, read_probabilities
from voxelwise.transforms.restore import restore_labels

SHAPE, CLASSES = (7, 9, 8), 4
TILT = np.array([[1, 0, 0, 0], [0, np.cos(0.3), -np.sin(0.3), 0], [0, np.sin(0.3), np.cos(0.3), 0], [0, 0, 0, 1.0]])


class Kept:
    """A receiver that keeps everything."""

    def __init__(self, shape: Sequence[int], classes: int) -> None:
        self.scores = np.full((classes, *shape), np.nan, np.float32)
        self.count = np.zeros(shape, int)

    def take(self, where: tuple[slice, ...], scores: Tensor, inside: Tensor | None) -> None:
        mask = np.ones(scores.shape[1:], bool) if inside is None else inside.numpy()
        self.count[where] += mask
        np.copyto(self.scores[(slice(None), *where)], scores.numpy(), where=mask)


def at_once(scores: np.ndarray, affine: np.ndarray, shape: Sequence[int], source: np.ndarray) -> np.ndarray:
    """The same by scipy on the whole volume, NaN outside."""
    match = match_grids(scores.shape[1:], affine, shape, source)
    voxels = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"))
    places = np.einsum("ij,jxyz->ixyz", match.matrix[:, :3], voxels) + match.matrix[:, 3].reshape(3, 1, 1, 1)
    inside = np.ones(shape, bool)
    for row, place, size in zip(match.matrix, places, scores.shape[1:], strict=True):
        below, above = margins(row) if match.axes is None else (0, 0)
        inside &= (place >= -below) & (place <= size - 1 + above)
    found = np.stack([map_coordinates(one.astype(np.float64), places, order=1, mode="nearest") for one in scores])
    return np.where(inside, found, np.nan)


def grids() -> dict[str, tuple[np.ndarray, tuple[int, ...], np.ndarray]]:
    base = np.diag([2.0, 1.5, 1.2, 1.0])
    turned = np.array([[0, 0, -1.2, 8.4], [2.0, 0, 0, 0], [0, 1.5, 0, 0], [0, 0, 0, 1]])  # axes permuted, one flipped
    finer = np.diag([0.9, 1.0, 1.7, 1.0])
    across = turned.copy()
    across[:3, :3] *= 0.8
    return {
        "same": (base, SHAPE, base),
        "permuted": (base, (9, 8, 7), np.array([[0, 0, 2.0, 0], [1.5, 0, 0, 0], [0, -1.2, 0, 8.4], [0, 0, 0, 1]])),
        "cropped": (np.array([[2.0, 0, 0, 2], [0, 1.5, 0, 3], [0, 0, 1.2, 1.2], [0, 0, 0, 1]]), (10, 12, 10), base),
        "finer": (base, (14, 13, 6), finer),
        "coarser": (base, (4, 5, 3), np.diag([3.7, 3.1, 3.3, 1.0])),
        "permuted and finer": (turned, (11, 14, 9), np.diag([1.0, 1.1, 1.2, 1.0])),
        "tilted": (base, (10, 12, 9), TILT @ np.diag([1.3, 1.1, 1.0, 1.0])),
        "one plane": (base, (14, 13, 1), finer),
    }


def planes_of(scores: Tensor, depth: int) -> list[tuple[slice, Tensor]]:
    starts = range(0, scores.shape[1], depth)
    return [(slice(at, min(at + depth, scores.shape[1])), scores[:, at : at + depth]) for at in starts]


@pytest.mark.parametrize("grid", grids())
@pytest.mark.parametrize(("depth", "numbers"), [(7, 1 << 20), (2, 1 << 20), (3, 300)])
def test_scores_are_those_of_the_whole_volume(grid: str, depth: int, numbers: int) -> None:
    affine, shape, source = grids()[grid]
    scores = torch.randn(CLASSES, *SHAPE, generator=torch.Generator().manual_seed(0)) * 3
    kept = Kept(shape, CLASSES)
    sink = DenseRestoration(SHAPE, affine, shape, source, receivers=[kept], numbers=numbers)
    parts = [(slice(0, 9), slice(0, 8))] if depth != 2 else [(slice(0, 5), slice(0, 8)), (slice(4, 9), slice(0, 8))]
    if sink.match.axes is not None and depth == 2:
        parts[1] = (slice(5, 9), slice(0, 8))  # nothing is shared where nothing is interpolated
    for part in parts:
        for where, values in planes_of(scores[(slice(None), slice(None), *part)], depth):
            sink.add(where, values, part)
    wanted = at_once(scores.numpy(), affine, shape, source)
    assert set(np.unique(kept.count)) <= {0, 1}
    np.testing.assert_array_equal(kept.count == 1, ~np.isnan(wanted[0]))
    np.testing.assert_allclose(kept.scores, wanted, atol=2e-5)
    labels = restore_labels(planes_of(scores, depth), SHAPE, affine, shape, source)
    np.testing.assert_array_equal(np.nan_to_num(kept.scores).argmax(0), labels)


def test_a_head_is_applied_behind_the_interpolation() -> None:
    affine, shape, source = grids()["finer"]
    features = torch.randn(3, *SHAPE)
    head = torch.randn(20, 3)
    kept = Kept(shape, 20)
    sink = DenseRestoration(
        SHAPE, affine, shape, source, receivers=[kept], scores_of=lambda f: torch.einsum("kf,fxyz->kxyz", head, f)
    )
    for where, values in planes_of(features, 2):
        sink.add(where, values)
    wanted = np.einsum("kf,fxyz->kxyz", head.numpy(), at_once(features.numpy(), affine, shape, source))
    np.testing.assert_allclose(kept.scores, wanted, atol=2e-4)
    assert working_bytes(20, 3) < 100e6


def written(path: Path, scores: Tensor, grid: str, **options: int) -> np.ndarray:
    """Probabilities of scores as a file keeps them."""
    affine, shape, source = grids()[grid]
    classes = Classes(("background", "b", "c", "d"), (0, 1, 5, 7), (0, 1, 2, 3), 0)
    file = ProbabilityFile(path, shape, source, classes, **options)
    sink = DenseRestoration(SHAPE, affine, shape, source, receivers=[file], numbers=500)
    for where, values in planes_of(scores, 2):
        sink.add(where, values)
    file.close()
    return read_probabilities(path).scores


@pytest.mark.parametrize("grid", grids())
def test_the_file_holds_the_softmax_within_its_steps(tmp_path: Path, grid: str) -> None:
    affine, shape, source = grids()[grid]
    scores = torch.randn(CLASSES, *SHAPE, generator=torch.Generator().manual_seed(1)) * 3
    found = written(tmp_path / "p.b2nd", scores, grid)
    wanted = torch.from_numpy(at_once(scores.numpy(), affine, shape, source)).softmax(0).numpy()
    outside = np.isnan(wanted[0])
    wanted[:, outside] = np.array([1, 0, 0, 0])[:, None]
    assert found.shape == (CLASSES, *shape)
    assert np.abs(found - wanted).max() <= 1 / 510 + 1e-4
    # a buffer that holds one chunk alone: chunks that go are read again
    again = written(tmp_path / "q.b2nd", scores, grid, buffer_bytes=1, axis=1)
    np.testing.assert_array_equal(again, found)


def test_a_part_of_a_file_is_read_by_class_and_box(tmp_path: Path) -> None:
    scores = torch.randn(CLASSES, *SHAPE)
    whole = written(tmp_path / "p.b2nd", scores, "finer")
    part = read_probabilities(
        tmp_path / "p.b2nd", classes=["d", "b"], where=(slice(2, 5), slice(None), slice(-2, None))
    )
    np.testing.assert_array_equal(part.scores, whole[[3, 1], 2:5, :, -2:])
    assert (part.names, part.values) == (("d", "b"), (7, 1))
    np.testing.assert_allclose(part.affine[:3, 3], [2 * 0.9, 0, 4 * 1.7])
    with pytest.raises(UsageError, match="unknown class 'e'"):
        read_probabilities(tmp_path / "p.b2nd", classes=["e"])
    with pytest.raises(UsageError, match="is not there; give a file that"):
        read_probabilities(tmp_path / "no.b2nd")
    (tmp_path / "other.b2nd").write_bytes(b"something else")
    with pytest.raises(UsageError, match="holds no probabilities of voxelwise"):
        read_probabilities(tmp_path / "other.b2nd")
    with pytest.raises(ValueError, match="one slice without a step"):
        read_probabilities(tmp_path / "p.b2nd", where=(slice(None, None, 2),) * 3)


@pytest.mark.parametrize("facts", [{"classes": 3}, {"classes": []}, {"affine": [1]}, {"format": 9}])
def test_a_file_whose_facts_are_not_its_own_is_refused(tmp_path: Path, facts: dict[str, Any]) -> None:
    written(tmp_path / "p.b2nd", torch.randn(CLASSES, *SHAPE), "finer")
    array = blosc2.open(str(tmp_path / "p.b2nd"), mode="a")
    array.schunk.vlmeta["voxelwise"] = json.dumps({**json.loads(array.schunk.vlmeta["voxelwise"]), **facts})
    del array
    with pytest.raises(UsageError, match="holds no probabilities of voxelwise"):
        read_probabilities(tmp_path / "p.b2nd")


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    """blosc2 keeps functions of Python in its files, and runs them where it is let."""
    source = f"def harm(inputs, output, offset):\n    open({str(tmp_path / 'run')!r}, 'w').close()\n    output[:] = 1\n"
    names: dict[str, Any] = {}
    (tmp_path / "code.py").write_text(source)
    exec(compile(source, str(tmp_path / "code.py"), "exec"), names)  # blosc2 looks the source of it up
    operand = blosc2.asarray(np.zeros((2, 4, 4, 4)), urlpath=str(tmp_path / "operand.b2nd"), mode="w")
    lazy = blosc2.lazyudf(names["harm"], (operand,), dtype=np.uint8, shape=operand.shape)
    lazy.save(urlpath=str(tmp_path / "p.b2nd"))
    with pytest.raises(UsageError, match="holds no probabilities of voxelwise"):
        read_probabilities(tmp_path / "p.b2nd")
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes = Classes(("background", "b"), (0, 1), (0, 1), 0)
    file = ProbabilityFile(tmp_path / "p.b2nd", (4, 4, 4), np.eye(4), classes)

    class Full:
        def __getitem__(self, where: object) -> np.ndarray:
            return np.zeros((2, 4, 4, 4), np.uint8)

        def __setitem__(self, where: object, value: object) -> None:
            raise RuntimeError("Error while setting the slice")

    monkeypatch.setattr(file, "_array", Full())
    with pytest.raises(RuntimeError, match="setting the slice"):
        file.take((slice(0, 4),) * 3, torch.zeros(2, 4, 4, 4))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(NoRoomError, match="no space left on its disk"):
        file.take((slice(0, 4),) * 3, torch.zeros(2, 4, 4, 4))


def test_chunks_are_as_deep_as_a_buffer_allows() -> None:
    for classes, axis in itertools.product((2, 25, 105, 1000), range(3)):
        chunk = chunk_of((512, 512, 800), classes, axis)
        layer = classes * 512 * 512 * 800 // (512, 512, 800)[axis] * chunk[axis]
        assert chunk[axis] == 1 or layer <= 32 << 20
