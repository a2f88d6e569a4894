"""Resampling beside MONAI, SimpleITK and nnU-Net: time and equality.

    python scripts/benchmarks/resample.py                 256 x 256 x 120 of 0.8 x 0.8 x 2.5 mm to 1.5 mm, the goal (G6)
    python scripts/benchmarks/resample.py --rounds 9

Linear beside MONAI's `Spacing` and SimpleITK, the centres of the first voxels agreeing; order 3 beside nnU-Net's
`resample_data_or_seg_to_shape`, the edges agreeing, in three dimensions and with the coarse axis on its own. All ways
of a kind run in turn, round after round, and the order turns with the round; the first round is not counted. Nobody's
result is put into another order of its axes. Goal: linear at most 0.05 of MONAI's time and 0.6 of SimpleITK's, within
1e-3 HU of it; order 3 at most 0.05 of nnU-Net's, within 0.01 HU. Needs nnunetv2 (`voxelwise[bench]`) for order 3.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import SimpleITK as sitk
import torch
from inputs import PIXEL_MM, SLICE_MM, ct
from monai.data import MetaTensor
from monai.transforms import Spacing
from voxelwise.transforms.edges import edges_shape, separate_axis
from voxelwise.transforms.resample import resample
from voxelwise.transforms.spline import apply_spline, spline

OLD, NEW = (PIXEL_MM, PIXEL_MM, SLICE_MM), (1.5, 1.5, 1.5)
Ways = dict[str, Callable[[], np.ndarray]]


def linear(volume: np.ndarray) -> Ways:
    """The ways to resample (X, Y, Z) linearly; each gives (X, Y, Z)."""
    tensor = torch.from_numpy(np.ascontiguousarray(volume))[None]
    located = MetaTensor(tensor.clone(), affine=torch.diag(torch.tensor([*OLD, 1.0], dtype=torch.float64)))
    spacing = Spacing(pixdim=NEW, mode="bilinear")
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.T))
    image.SetSpacing(OLD)

    def by_simpleitk() -> np.ndarray:
        size = [round(side * old / new) for side, old, new in zip(volume.shape, OLD, NEW, strict=True)]
        done = sitk.Resample(
            image, size, sitk.Transform(), sitk.sitkLinear, (0.0,) * 3, NEW, (1, 0, 0, 0, 1, 0, 0, 0, 1)
        )
        return sitk.GetArrayViewFromImage(done).T

    return {
        "voxelwise": lambda: resample(tensor, OLD, NEW)[0].numpy(),
        "MONAI Spacing": lambda: spacing(located)[0].numpy(),
        "SimpleITK": by_simpleitk,
    }


def cubic(volume: np.ndarray, separate: str) -> Ways:
    """The ways to resample (X, Y, Z) by splines of order 3; each gives (X, Y, Z)."""
    shape, axis = edges_shape(volume.shape, OLD, NEW), separate_axis(separate, OLD, NEW)
    stored = np.ascontiguousarray(volume.T)[None]  # as nnU-Net keeps it, for both

    def ours() -> np.ndarray:
        way = spline(volume.shape, shape, separate=axis)
        return apply_spline(way, torch.from_numpy(stored[0].T)).numpy()

    try:
        from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
    except ImportError:
        return {"voxelwise": ours}

    def by_nnunet() -> np.ndarray:
        steps = (list(OLD[::-1]), list(NEW[::-1]))
        forced = None if separate == "auto" else False
        done = resample_data_or_seg_to_shape(stored, shape[::-1], *steps, order=3, order_z=0, force_separate_z=forced)
        return np.asarray(done)[0].T

    return {"voxelwise": ours, "nnU-Net": by_nnunet}


def race(ways: Ways, rounds: int) -> tuple[dict[str, list[float]], dict[str, np.ndarray]]:
    """Seconds of each way in each round, and what it gave."""
    names = list(ways)
    given = {name: np.array(ways[name]()) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.perf_counter()
            ways[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds, given


def report(title: str, seconds: dict[str, list[float]], given: dict[str, np.ndarray]) -> None:
    """One line a way: median and range of its time, ours as a part of it, the largest difference to ours."""
    print(title)
    ours, mine = given["voxelwise"], seconds["voxelwise"]
    for name, times in seconds.items():
        low, middle, high = 1e3 * min(times), 1e3 * statistics.median(times), 1e3 * max(times)
        line = f"  {name:<14} {middle:8.1f} ms ({low:.1f} to {high:.1f})"
        if name != "voxelwise":
            ratios = statistics.median(own / other for own, other in zip(mine, times, strict=True))
            line += f"   ours / it {ratios:.3f}   {_difference(ours, given[name])}"
        print(line, flush=True)


def _difference(ours: np.ndarray, other: np.ndarray) -> str:
    shared = tuple(slice(1, min(sides) - 1) for sides in zip(ours.shape, other.shape, strict=True))
    inside = np.abs(ours[shared].astype(np.float64) - other[shared]).max()
    if ours.shape != other.shape:
        return f"shapes differ, at most {inside:.2g} HU apart where both are"
    whole = np.abs(ours.astype(np.float64) - other).max()
    return f"at most {inside:.2g} HU apart inside, {whole:.2g} with the outermost voxels"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="that count (default 5)")
    parser.add_argument("--threads", type=int, default=2, help="of torch and SimpleITK (default 2)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(options.threads)
    volume = ct()[:, ::2, ::2].T.astype(np.float32)
    print(f"{' x '.join(map(str, volume.shape))} voxels of {OLD} mm to {NEW} mm, {options.threads} threads, float32")
    report("linear", *race(linear(volume), options.rounds))
    report("order 3", *race(cubic(volume, "never"), options.rounds))
    report("order 3, the coarse axis on its own", *race(cubic(volume, "auto"), options.rounds))


if __name__ == "__main__":
    main()
