"""G4, G8 and G9: prediction with a network that costs something: nnU-Net's plain U-Net, untrained, the same weights
for all.

G4's share of equal labels is measured on noise, where an untrained network's scores are near ties; no goal is set on
it for bf16. G9 is `predict` with a model that is loaded, from .nii.gz to .nii.gz, beside the forwards of its windows
alone, by the same engine and in the same precision.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from inference_rounds import KEPT, equal, race, ratio, show, verdict
from inference_stitching import monai, nnunet, ours
from inputs import ct
from torch import Tensor, nn
from voxelwise.networks.base import SegmentationNetwork
from voxelwise.networks.registry import build_network
from voxelwise.pipeline.inference.engines import choose_engine
from voxelwise.pipeline.inference.loading import load_predictor
from voxelwise.pipeline.inference.predict import predict
from voxelwise.pipeline.inference.scorer import NetworkScorer
from voxelwise.pipeline.inference.windows import axis_starts
from voxelwise.pipeline.model_folder import write_model_folder

PATCH, OVERLAP, NOISE = (96, 96, 96), 0.5, (192, 192, 96)
WIDTHS = (16, 32, 64)
# done and aim, to MONAI as shipped, and to MONAI with the same allocator setting
G4 = {
    ("float32", 2): ((0.45, 0.27), (0.7, 0.55)),
    ("bf16", 2): ((0.28, 0.15), (0.45, 0.3)),
    ("float32", 105): ((0.28, 0.18), (0.5, 0.35)),
    ("bf16", 105): ((0.18, 0.11), (0.37, 0.22)),
}
G9 = {2: (1.3, 1.1), 25: (1.2, 1.0), 105: (0.9, 0.65)}


class PlainUNet(SegmentationNetwork):
    """nnU-Net's own class behind our contract, its head taken off."""

    def __init__(self, classes: int) -> None:
        super().__init__(3, 1, classes, stride=(4, 4, 4), receptive_field=None)
        from dynamic_network_architectures.architectures.unet import PlainConvUNet

        torch.manual_seed(0)
        levels = len(WIDTHS)
        self.inner = PlainConvUNet(
            1,
            levels,
            list(WIDTHS),
            nn.Conv3d,
            3,
            [1] + [2] * (levels - 1),
            2,
            classes,
            2,
            conv_bias=True,
            norm_op=nn.InstanceNorm3d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
            deep_supervision=False,
        )
        self.head = self.inner.decoder.seg_layers[-1]
        self.inner.decoder.seg_layers[-1] = nn.Identity()
        del self.inner.decoder.encoder  # registered twice; the decoder never calls it

    def body(self, image: Tensor) -> Tensor:
        """Features in front of the head."""
        features: Tensor = self.inner(image)
        return features


def measure(goal: str, rounds: int, threads: int, classes: Sequence[int], *, bf16: bool) -> bool:
    """Print the tables of a goal; whether it was reached."""
    if goal == "G8":
        script = Path(__file__).with_name("exact.py")
        print("G8  goal: exact / MONAI <= 0.3 (aim 0.23), exact / whole forward <= 1.25 (aim 1.1)", flush=True)
        command = [sys.executable, str(script), "--rounds", str(rounds), "--threads", str(threads)]
        return all(subprocess.run([*command, *more], check=False).returncode == 0 for more in ([], ["--keep-heap"]))
    kinds = [("torch", "float32")]
    if util.find_spec("openvino") is not None:
        kinds.append(("openvino", "float32"))
    else:
        print("OpenVINO is not installed: no rows of it (pip install voxelwise[openvino])")
    kinds += [(engine, "bf16") for engine, _ in list(kinds) if bf16]
    ways = [f"{engine} {precision}{KEPT}" for engine, precision in kinds]
    return (_g4 if goal == "G4" else _g9)(ways, rounds, threads, classes)


def _g4(ways: Sequence[str], rounds: int, threads: int, classes: Sequence[int]) -> bool:
    kept = True
    for count in classes:
        print(f"G4  {count} classes, 192x192x96, windows 96^3, overlap 0.5", flush=True)
        mine = [f"ours, {way}" for way in ways]
        names = ["MONAI", "nnU-Net", "MONAI" + KEPT, "nnU-Net" + KEPT, "bare forward", "bare forward" + KEPT, *mine]
        found = race("inference_networks", "G4", count, names, rounds=rounds, threads=threads)
        show(found, found["MONAI"].labels)
        for precision in ("float32", "bf16"):
            goals = G4.get((precision, count))
            rows = [way for way in mine if precision in way and found[way].seconds]
            if not goals or not rows:
                continue
            best = min(rows, key=lambda way: sum(found[way].seconds))
            for (done, aim), heap in zip(goals, ("", KEPT), strict=True):
                middle, least, most = ratio(found[best].seconds, found["MONAI" + heap].seconds)
                spread = f"({least:.3f} to {most:.3f})"
                kept &= verdict(f"{best} / MONAI{heap}", middle, done, aim, spread)
            share = equal(found[best].labels, found["MONAI"].labels)
            if precision == "float32" and share is not None:
                print(
                    f"    gate: {share:.6f} of labels equal, wanted 0.9999: {'holds' if share >= 0.9999 else 'BROKEN'}"
                )
                kept &= share >= 0.9999
    return kept


def _g9(ways: Sequence[str], rounds: int, threads: int, classes: Sequence[int]) -> bool:
    kept = True
    for count in classes:
        print(f"G9  {count} classes, .nii.gz of 256x256x120 -> .nii.gz, network's grid 1.5 mm", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            os.environ["VOXELWISE_BENCHMARK"] = folder
            volume = np.ascontiguousarray(ct()[:, ::2, ::2].T)
            nib.save(nib.Nifti1Image(volume, np.diag([-0.8, -0.8, 2.5, 1.0])), Path(folder) / "case.nii.gz")
            names = [f"{what}, {way}" for way in ways for what in ("bare forward", "whole pipeline")]
            found = race("inference_networks", "G9", count, names, rounds=rounds, threads=threads)
        show(found, found[names[1]].labels)
        done, aim = G9.get(count, (1.3, 1.1))
        for way in ways:
            bare, whole = found[f"bare forward, {way}"], found[f"whole pipeline, {way}"]
            if bare.seconds and whole.seconds:
                middle, least, most = ratio(whole.seconds, bare.seconds)
                kept &= verdict(
                    f"whole pipeline / bare forward, {way}", middle, done, aim, f"({least:.3f} to {most:.3f})"
                )
    return kept


def build(goal: str, classes: int, way: str) -> Callable[[], Any]:
    """The call of a way."""
    return _on_noise(classes, way) if goal == "G4" else _pipeline(classes, way)


def _scorer(network: SegmentationNetwork, way: str) -> NetworkScorer:
    engine, precision = way.rsplit(" ", 2)[-2:]
    device = torch.device("cpu")
    chosen = choose_engine(engine, [network], device=device, precision=precision, patch=PATCH)
    network.to(memory_format=network.layout)  # type: ignore[call-overload]
    return NetworkScorer([network], precision=precision, engine=chosen)


def _on_noise(classes: int, way: str) -> Callable[[], Any]:
    network = PlainUNet(classes).eval()
    image = torch.randn(1, *NOISE, generator=torch.Generator().manual_seed(0))
    if way.startswith("ours"):
        return ours(_scorer(network, way), image, PATCH)
    if way == "bare forward":
        return lambda: _forwards(network, image)
    return monai(network, image, PATCH) if way == "MONAI" else nnunet(network, image, PATCH, classes)


def _forwards(call: Callable[[Tensor], Tensor], image: Tensor) -> int:
    """A call for each window and nothing else."""
    starts = [axis_starts(side, of, OVERLAP) for side, of in zip(image.shape[1:], PATCH, strict=True)]
    for start in itertools.product(*starts):
        x, y, z = (slice(at, at + side) for at, side in zip(start, PATCH, strict=True))
        call(image[None, :, x, y, z].contiguous())
    return 0


def _pipeline(classes: int, way: str) -> Callable[[], Any]:
    folder = Path(os.environ["VOXELWISE_BENCHMARK"])
    network = PlainUNet(classes).eval()
    if way.startswith("bare forward"):
        scorer = _scorer(network, way)
        image = torch.randn(
            1, *(round(side * mm / 1.5) for side, mm in zip((256, 256, 120), (0.8, 0.8, 2.5), strict=True))
        )
        return lambda: _forwards(scorer, image)
    engine, precision = way.rsplit(" ", 2)[-2:]
    made = tempfile.mkdtemp(dir=folder)
    write_model_folder(Path(made) / "model", *_model(classes), fold="0")
    predictor = load_predictor(Path(made) / "model", engine=engine, precision=precision, device="cpu")
    network.to(memory_format=network.layout)  # type: ignore[call-overload]
    predictor = replace(predictor, networks=(network,))
    target = Path(made) / "labels.nii.gz"

    def run() -> np.ndarray:
        predict(predictor, folder / "case.nii.gz", target, overwrite=True)
        return np.asanyarray(nib.load(target).dataobj)  # type: ignore[attr-defined]

    return run


def _model(classes: int) -> tuple[SegmentationNetwork, dict[str, Any], dict[str, Any]]:
    """A network of ours of the same layers, which is put aside, and a plan."""
    options = {"widths": list(WIDTHS)}
    labels = [{"value": 0, "name": "background"}]
    labels += [{"value": number, "name": f"organ {number}"} for number in range(1, classes)]
    plan = {
        "dims": 3,
        "channels": ["ct"],
        "modality": "CT",
        "labels": labels,
        "spacing_mm": [1.5, 1.5, 1.5],
        "orientation": "RAS",
        "crop": "none",
        "bias_field": False,
        "normalisation": [{"kind": "window", "low": -1000, "high": 1000, "mean": 0.0, "std": 400.0}],
        "patch": list(PATCH),
        "network": {"name": "unet", "options": options},
        "mirror_axes": [],
        "overlap": OVERLAP,
        "tta": False,
    }
    return build_network("unet", 3, 1, classes, **options), options, plan
