"""`StreamingInferer`: our stitching in the place of MONAI's `SlidingWindowInferer`, in a chain of one's own.

Windows and weights are MONAI's, so that the logits are the same; they are not those of `predict`, which spaces its
windows evenly and does not clamp its Gaussian. With `labels=True` finished planes become labels at once, and nothing
of size classes x volume exists; of a network that declares its head, with fewer features than classes, the features
are stitched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type, ensure_tuple_rep, fall_back_tuple
from torch import Tensor
from torch.nn import functional

from ...errors import unknown
from ...networks.base import SegmentationNetwork
from ...transforms.cells import decided
from .scorer import NetworkScorer, Scorer
from .stitch import blend, finished, scored_windows, stream_axis
from .windows import WindowGrid

MODES = ("constant", "gaussian", "centre")
Device = torch.device | str


class StreamingInferer(Inferer):
    """Windows over images of any size, stitched plane by plane.

    Args:
        roi_size: of a window; components that are None or not above zero are the image's own.
        sw_batch_size: windows at a time, of one image.
        overlap: part of a window that its neighbour covers too, of all axes or of each.
        mode: "constant" or "gaussian", as in MONAI; "centre": each voxel from the window whose centre is nearest.
        sigma_scale: width of the Gaussian in windows, of all axes or of each.
        padding_mode: of images smaller than a window, as in `torch.nn.functional.pad`.
        cval: value of "constant" padding.
        sw_device: of the windows, where the network is; that of the image when left out.
        device: of the sums and the result; that of the image when left out.
        labels: give label maps instead of logits.
        regions: of labels: channels are regions that may overlap, and a voxel's label is the number from 1 of the last
            one whose logit is above 0, 0 where there is none.

    Raises:
        ValueError: an overlap outside [0, 1), an unknown mode.
    """

    def __init__(
        self,
        roi_size: Sequence[int] | int,
        sw_batch_size: int = 1,
        overlap: Sequence[float] | float = 0.25,
        mode: str = "constant",
        sigma_scale: Sequence[float] | float = 0.125,
        padding_mode: str = "constant",
        cval: float = 0.0,
        sw_device: Device | None = None,
        device: Device | None = None,
        *,
        labels: bool = False,
        regions: bool = False,
    ) -> None:
        super().__init__()
        if str(mode) not in MODES:
            raise unknown("mode", str(mode), MODES)
        parts = [overlap] if isinstance(overlap, (int, float)) else list(overlap)
        if any(not 0 <= part < 1 for part in parts):
            raise ValueError(f"overlap is the shared part of a window, from 0 to below 1; got {overlap}")
        self.roi_size, self.sw_batch_size, self.overlap = roi_size, sw_batch_size, overlap
        self.mode, self.sigma_scale = str(mode), sigma_scale
        self.padding_mode, self.cval = padding_mode, cval
        self.sw_device, self.device, self.labels, self.regions = sw_device, device, labels, regions

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Stitch what a network makes of the windows of images.

        Args:
            inputs: (N, C, *S), two or three axes; a MetaTensor's result is one too.
            network: windows (n, C, *roi_size) to logits (n, K, *roi_size); any callable, or a `Scorer`.
            args: for the network, behind the windows.
            kwargs: for the network.

        Returns:
            Logits (N, K, *S) of the images' dtype, summed in float32; or labels (N, 1, *S), uint8, int16 with more
            than 256 classes, the lower class at a tie.

        Raises:
            ValueError: windows that become anything but one tensor of logits of their own size.
            CaseError: a scorer, or a network whose head is taken off, gave NaN or inf (`non-finite`).

        Memory: the result, the padded image where it is smaller than a window, the sums of a slab as deep as one.
        """
        images = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        size = tuple(int(side) for side in images.shape[2:])
        roi = tuple(int(side) for side in fall_back_tuple(self.roi_size, size))
        missing = [max(0, side - whole) for side, whole in zip(roi, size, strict=True)]
        if any(missing):
            widths = [width for gap in reversed(missing) for width in (gap // 2, gap - gap // 2)]
            images = functional.pad(images, widths, mode=self.padding_mode, value=self.cval)
        inside = tuple(slice(gap // 2, gap // 2 + whole) for gap, whole in zip(missing, size, strict=True))
        device = torch.device(self.device) if self.device is not None else images.device
        calls = _Calls(network, args, kwargs, torch.device(self.sw_device or images.device), roi)
        scorer = calls if args or kwargs else _headed(network, calls)
        result: Tensor | None = None
        for number, image in enumerate(images):
            for where, logits in self._planes(image, scorer, roi, device):
                found = decided(logits, regions=self.regions)[None] if self.labels else logits
                if result is None:
                    wide = torch.int16 if len(logits) + self.regions > 256 else torch.uint8
                    dtype = wide if self.labels else images.dtype
                    result = torch.empty((len(images), len(found), *images.shape[2:]), dtype=dtype, device=device)
                part = (slice(None), *where)
                result[number][part] = found.to(result.dtype)
        if result is None:
            raise ValueError(f"there are no images in a batch of shape {tuple(inputs.shape)}")
        cut = (slice(None), slice(None), *inside)
        restored: Tensor = convert_to_dst_type(result[cut], inputs, dtype=result.dtype, device=device)[0]
        return restored

    def _planes(
        self, image: Tensor, scorer: _Calls | Scorer, roi: Sequence[int], device: torch.device
    ) -> Iterator[tuple[tuple[slice, ...], Tensor]]:
        """Finished logits (K, *part) of an image, and which part of it they are."""
        shape = tuple(int(side) for side in image.shape[1:])
        grid = self._grid(shape, roi, device)
        axis = stream_axis(shape, roi)
        whole = [slice(0, side) for side in shape]
        windows = scored_windows(scorer, image, grid, self.sw_batch_size, axis, whole)
        for planes, sums in blend(windows, grid, axis, device=device):
            if isinstance(grid, ImportanceGrid):
                sums /= grid.total((*whole[:axis], planes, *whole[axis + 1 :])).movedim(axis, 0)
            ready = finished(scorer, sums, planes.start) if isinstance(scorer, Scorer) else [(planes, sums)]
            for part, logits in ready:
                yield (*whole[:axis], part, *whole[axis + 1 :]), logits.movedim(1, axis + 1)

    def _grid(self, shape: Sequence[int], roi: Sequence[int], device: torch.device) -> WindowGrid:
        overlaps = ensure_tuple_rep(self.overlap, len(shape))
        starts = [monai_starts(*axis) for axis in zip(shape, roi, overlaps, strict=True)]
        plain = WindowGrid.at(shape, roi, starts, "centre" if self.mode == "centre" else "constant")
        if self.mode != "gaussian":
            return plain
        importance = compute_importance_map(tuple(roi), self.mode, self.sigma_scale, device, torch.float32)
        return ImportanceGrid(plain.shape, plain.patch, plain.starts, plain.shares, importance)


@dataclass(frozen=True, eq=False)
class ImportanceGrid(WindowGrid):
    """Windows whose weights are no product of one curve per axis, and must be divided by their sum.

    Args:
        importance: of a window (*patch).
    """

    importance: Tensor

    def weights(self, index: Sequence[int], part: Sequence[slice] | None = None) -> Tensor:
        """Weights of a window, or of a part of it."""
        return self.importance if part is None else self.importance[tuple(part)]

    def total(self, box: Sequence[slice]) -> Tensor:
        """Sum of the weights of all windows at the voxels of a box."""
        found = self.importance.new_zeros([part.stop - part.start for part in box])
        for index in product(*(self.touching(axis, part) for axis, part in enumerate(box))):
            ours, theirs = [], []
            for window, part in zip(self.where(index), box, strict=True):
                low, high = max(window.start, part.start), min(window.stop, part.stop)
                ours.append(slice(low - part.start, high - part.start))
                theirs.append(slice(low - window.start, high - window.start))
            found[tuple(ours)] += self.importance[tuple(theirs)]
        return found


@dataclass(frozen=True)
class _Calls:
    """A network and what it is called with, as the stitcher calls a scorer."""

    network: Callable[..., Any]
    args: tuple[Any, ...]
    options: dict[str, Any]
    device: torch.device
    roi: tuple[int, ...]

    def __call__(self, windows: Tensor) -> Tensor:
        logits = self.network(windows.to(self.device), *self.args, **self.options)
        if not isinstance(logits, Tensor) or logits.ndim != windows.ndim or tuple(logits.shape[2:]) != self.roi:
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"StreamingInferer takes a network that gives one tensor (n, K, {', '.join(map(str, self.roi))}) for "
                f"windows of that size, got {found}; MONAI's SlidingWindowInferer takes others"
            )
        return logits.as_tensor() if isinstance(logits, MetaTensor) else logits


def _headed(network: Callable[..., Any], calls: _Calls) -> _Calls | Scorer:
    """A scorer as it is, and one in the place of a network whose features are fewer than its classes."""
    if isinstance(network, Scorer):
        return network
    if isinstance(network, SegmentationNetwork) and not network.training:
        scorer = NetworkScorer([network], device=calls.device)
        return calls if scorer.head is None else scorer
    return calls


def monai_starts(length: int, patch: int, overlap: float) -> list[int]:
    """First voxels of MONAI's windows along one axis: a fixed step, and the last window drawn back to the end."""
    step = max(1, int(patch * (1 - overlap)))
    count = max(1, math.ceil((length - patch) / step) + 1)
    return [min(number * step, length - patch) for number in range(count)]
