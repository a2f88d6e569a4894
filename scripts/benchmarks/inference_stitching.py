"""G1, G2 and G3: what comes after the network. Scores are made beforehand, and a network gives what is stored.

MONAI and nnU-Net multiply what a network gives in place, so theirs gives a copy each time. The time of these copies
alone ("copies") is measured too and taken off theirs. Ours does not write into what it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from inputs import organ_logits
from torch import Tensor, nn
from torch.nn import functional
from voxelwise.pipeline.inference.inferer import StreamingInferer
from voxelwise.pipeline.inference.windows import axis_starts
from voxelwise.transforms.restore import restore_labels

SMALL, LARGE = (64, 112, 112), (96, 192, 192)  # G1
PATCH, OVERLAP, FEATURES, HEAD_FROM = (64, 64, 64), 0.5, 32, 105
SHAPES = {"G2": (384, 160, 160), "G2 short": (128, 160, 160), "G3": (192, 192, 96)}


def build(goal: str, classes: int, way: str) -> Callable[[], Any]:
    """The call of a way."""
    return _restoring(classes, way) if goal == "G1" else _stitching(SHAPES[goal], classes, way)


def _restoring(classes: int, way: str) -> Callable[[], Any]:
    logits = organ_logits(classes)
    factors = [new / old for new, old in zip(LARGE, SMALL, strict=True)]
    affine = np.diag([*factors, 1.0])
    affine[:3, 3] = [(factor - 1) / 2 for factor in factors]  # the edges of the two grids agree, as nnU-Net has it
    if way == "ours":
        scores = torch.from_numpy(logits)
        slabs = [(slice(at, at + 32), scores[:, at : at + 32]) for at in range(0, SMALL[0], 32)]
        return lambda: restore_labels(slabs, SMALL, affine, LARGE, np.eye(4))
    if way == "full trilinear + argmax":
        whole = torch.from_numpy(logits)[None]
        return lambda: functional.interpolate(whole, size=LARGE, mode="trilinear")[0].argmax(0).numpy()
    if way == "MONAI":
        from monai.data import MetaTensor
        from monai.transforms import AsDiscrete, SpatialResample

        image = MetaTensor(torch.from_numpy(logits), affine=torch.from_numpy(affine))
        resample, discrete = SpatialResample(mode="bilinear"), AsDiscrete(argmax=True)
        source = torch.eye(4, dtype=torch.float64)
        return lambda: discrete(resample(image, dst_affine=source, spatial_size=LARGE))[0].numpy()
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    half, spacing = logits.astype(np.float16), (tuple(factors), (1.0, 1.0, 1.0))
    del logits

    def resampled(data: np.ndarray, *where: Any) -> np.ndarray:
        found: np.ndarray = resample_data_or_seg_to_shape(data, *where, order=1, order_z=0)
        return found

    if way == "nnU-Net":
        return lambda: resampled(half, LARGE, *spacing).argmax(0)
    from totalsegmentator.nnunet_runtime_patches import _convert_logits_to_segmentation_with_cropped_resampling

    labels = SimpleNamespace(foreground_labels=list(range(1, classes)), has_regions=False)
    return lambda: _convert_logits_to_segmentation_with_cropped_resampling(half, labels, LARGE, *spacing, resampled)


class Stored:
    """A network that costs nothing, as our stitcher calls it: features and their head, or logits."""

    def __init__(self, found: Tensor, head: nn.Conv3d | None) -> None:
        self.found, self.device = found, torch.device("cpu")
        self.head = head
        self.channels = found.shape[1]
        self.classes = self.channels if head is None else head.out_channels

    def __call__(self, windows: Tensor) -> Tensor:
        """What is stored, whatever the windows are."""
        return self.found


def stored(classes: int) -> tuple[Tensor, nn.Conv3d, Tensor]:
    """Features of a window, a head, and the logits that they make."""
    torch.manual_seed(0)
    features = torch.randn(1, FEATURES, *PATCH)
    head = nn.Conv3d(FEATURES, classes, 1).requires_grad_(False)
    with torch.inference_mode():
        return features, head, head(features)


def _stitching(shape: tuple[int, ...], classes: int, way: str) -> Callable[[], Any]:
    features, head, logits = stored(classes)
    image = torch.zeros(1, *shape)
    if way == "ours":
        headed = classes >= HEAD_FROM
        return ours(Stored(features, head) if headed else Stored(logits, None), image, PATCH)
    del features
    if way == "ours, without a head":
        return ours(Stored(logits, None), image, PATCH)

    def network(windows: Tensor) -> Tensor:
        return logits.clone()

    if way == "copies":
        windows = int(np.prod([len(axis_starts(side, of, OVERLAP)) for side, of in zip(shape, PATCH, strict=True)]))
        return lambda: _copies(network, image, windows)
    if way == "MONAI":
        return monai(network, image, PATCH)
    return nnunet(network, image, PATCH, classes)


def _copies(network: Callable[[Tensor], Tensor], image: Tensor, windows: int) -> int:
    for _ in range(windows):
        network(image)
    return 0


def ours(scorer: Any, image: Tensor, patch: tuple[int, ...]) -> Callable[[], np.ndarray]:
    """Labels by our stitcher, with MONAI's windows and weights, so that labels can be compared."""
    stitch = StreamingInferer(patch, overlap=OVERLAP, mode="gaussian", labels=True)
    return lambda: stitch(image[None], scorer)[0, 0].numpy()


def monai(network: Callable[..., Tensor], image: Tensor, patch: tuple[int, ...]) -> Callable[[], np.ndarray]:
    """Labels by MONAI's sliding windows and argmax, settings as shipped but for the Gaussian."""
    from monai.inferers import sliding_window_inference

    def run() -> np.ndarray:
        found = sliding_window_inference(image[None], patch, 1, network, overlap=OVERLAP, mode="gaussian")
        assert isinstance(found, Tensor)
        return found[0].argmax(0).numpy()

    return run


def nnunet(
    network: Callable[..., Tensor], image: Tensor, patch: tuple[int, ...], classes: int
) -> Callable[[], np.ndarray]:
    """Labels by nnU-Net's window loop and argmax, as its label manager takes it, settings as shipped but mirroring."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.configuration_manager = SimpleNamespace(patch_size=patch)
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=classes)
    predictor.network = network if isinstance(network, nn.Module) else _Called(network)
    return lambda: predictor.predict_sliding_window_return_logits(image).numpy().argmax(0)


class _Called(nn.Module):
    def __init__(self, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, windows: Tensor) -> Tensor:
        """What the function gives."""
        return self.call(windows)
