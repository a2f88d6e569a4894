"""Frames a second: one by one and as a film, beside the bare forward pass, for each engine of this machine.

    python scripts/benchmarks/frames.py                           both networks, all engines that are installed
    python scripts/benchmarks/frames.py --engines torch openvino --frames 20 --rounds 7
    python scripts/benchmarks/frames.py --own-time --threads 1    processor time, where other programs take turns

Frames are 512 x 512 of 8 bits, two classes, fresh weights. "bare" is the engine's own call on a window that is ready,
in the same process and with the same allocator; "frame" is `FrameSegmenter` from the stored frame to label values;
"film" is `Predictor` on all frames of a round at once (X, Y, T). The ways take turns round after round, the order turns
with the round, and the first round is not counted. A frame of "frame" must give the labels of the same frame in "film".
Goal: ours at most 1.1 times the bare forward.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from voxelwise.errors import UsageError
from voxelwise.networks.registry import build_network
from voxelwise.pipeline.devices import resolve_device
from voxelwise.pipeline.inference.engines import ENGINES, available_engines
from voxelwise.pipeline.inference.frames import FrameSegmenter
from voxelwise.pipeline.inference.loading import load_predictor
from voxelwise.pipeline.inference.predictor import Predictor
from voxelwise.pipeline.model_folder import write_model_folder
from voxelwise.transforms.volume import Geometry, Volume

SIDE = 512
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet34_unet": ("resnet34_unet", {}),
    "small unet": ("unet", {"widths": [16, 32, 64, 128]}),
}


def make_model(folder: Path, name: str, options: dict[str, Any]) -> Path:
    """A model folder whose windows are whole frames."""
    plan = {
        "dims": 2,
        "channels": ["image"],
        "modality": "US",
        "labels": [{"value": 0, "name": "background"}, {"value": 1, "name": "vessel"}],
        "spacing_mm": None,
        "orientation": None,
        "crop": "none",
        "bias_field": False,
        "normalisation": [{"kind": "rescale", "low": 0, "high": 255}],
        "patch": [SIDE, SIDE, 1],
        "network": {"name": name, "options": options},
        "mirror_axes": [],
        "overlap": 0.5,
        "tta": False,
    }
    torch.manual_seed(0)
    write_model_folder(folder, build_network(name, 2, 1, 2, **options), options, plan)
    return folder


def ways_of(predictor: Predictor, frames: np.ndarray) -> dict[str, Callable[[], list[Any]]]:
    """The ways from frames (T, X, Y) to labels; each gives one thing a frame or one for all."""
    segmenter = FrameSegmenter(predictor)
    network, engine = predictor.networks[0], predictor.scorer.engine
    ready = [torch.from_numpy(frame).float()[None, None, :, :, None].to(predictor.device) / 255 for frame in frames]
    geometry = Geometry((*frames.shape[1:], len(frames)), np.eye(4), has_world=False, film=True)
    film = Volume(np.ascontiguousarray(np.moveaxis(frames, 0, -1))[None], geometry, "US")

    @torch.inference_mode()
    def bare(window: torch.Tensor) -> None:
        engine(network, window, features=False)
        if predictor.device.type == "cuda":
            torch.cuda.synchronize()

    clock = CLOCKS["now"]
    return {
        "bare": lambda: [timed(bare, window, clock) for window in ready],
        "frame": lambda: [timed(segmenter, frame, clock) for frame in frames],
        "film": lambda: [timed(predictor.labels, film, clock) / len(frames)],
    }


CLOCKS: dict[str, Callable[[], float]] = {"now": time.perf_counter}


def timed(call: Callable[[Any], object], given: Any, clock: Callable[[], float]) -> float:
    """Seconds of a call."""
    started = clock()
    call(given)
    return clock() - started


def check_equal(predictor: Predictor, frames: np.ndarray) -> None:
    """Stop where a frame alone has other labels than in a film."""
    geometry = Geometry((*frames.shape[1:], 2), np.eye(4), has_world=False, film=True)
    film = predictor.labels(Volume(np.ascontiguousarray(np.moveaxis(frames[:2], 0, -1))[None], geometry, "US"))
    assert np.array_equal(FrameSegmenter(predictor)(frames[1]), film[:, :, 1])


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--engines", nargs="+", choices=ENGINES[1:], help="those that are installed, without compile")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--frames", type=int, default=10, help="a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--own-time", action="store_true", help="time of this process' threads alone")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.own_time:
        CLOCKS["now"] = time.process_time
    device = resolve_device(options.device)
    there = [name for name, version in available_engines().items() if version is not None and name != "compile"]
    engines = options.engines or [name for name in there if name != "openvino" or device.type == "cpu"]
    frames = np.random.default_rng(0).integers(0, 256, (options.frames, SIDE, SIDE)).astype(np.uint8)
    print(f"{SIDE} x {SIDE}, {device}, {options.precision}, {options.threads} threads; ms a frame, and ours / bare")
    head = f"{'network':14} {'engine':9} {'way':6} {'frames/s':>9} {'median':>8} {'95 %':>8}   ratio (range)"
    print(head)
    for title in options.networks:
        name, arguments = NETWORKS[title]
        with tempfile.TemporaryDirectory() as folder:
            model = make_model(Path(folder), name, arguments)
            for engine in engines:
                try:
                    predictor = load_predictor(model, engine=engine, device=str(device), precision=options.precision)
                    check_equal(predictor, frames)
                except UsageError as error:
                    print(f"{title:14} {engine:9} {error}")
                    continue
                report(title, engine, measured(ways_of(predictor, frames), options.rounds))


def measured(ways: dict[str, Callable[[], list[float]]], rounds: int) -> dict[str, list[list[float]]]:
    """Seconds a frame of each way, one list a round."""
    seconds: dict[str, list[list[float]]] = {way: [] for way in ways}
    names = list(ways)
    for turn in range(rounds + 1):
        for way in names[turn % len(names) :] + names[: turn % len(names)]:
            found = ways[way]()
            if turn:
                seconds[way].append(found)
    return seconds


def report(title: str, engine: str, seconds: dict[str, list[list[float]]]) -> None:
    """One line a way."""
    bare = [statistics.median(one) for one in seconds["bare"]]
    for way, rounds in seconds.items():
        every = sorted(one for found in rounds for one in found)
        middle, late = statistics.median(every), every[min(len(every) - 1, int(0.95 * len(every)))]
        ratios = [statistics.median(found) / one for found, one in zip(rounds, bare, strict=True)]
        last = "-" if way == "film" else f"{1e3 * late:8.1f}"
        print(
            f"{title:14} {engine:9} {way:6} {1 / middle:9.1f} {1e3 * middle:8.1f} {last:>8}   "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
