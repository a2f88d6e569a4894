"""Frames one by one, as fast as the network: of an ultrasound machine, a camera, a film that is shown.

A frame that fits into one window of the plan, and that the plan neither resamples nor crops, is neither blended nor
brought back to another grid: its scores are looked at where they are. Any other one goes the way of a volume. The
labels are those of `predict_volume` either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...errors import UsageError
from ...transforms.boxes import BlockwiseImage
from ...transforms.cells import decided
from ...transforms.volume import Geometry, Volume
from ..devices import keep_heap, one_thread
from .label_files import to_values
from .loading import Model, loaded
from .modes import PLAIN
from .predictor import Predictor
from .segmentation import Prepared
from .stitch import padded_window, padding_before, scores_of


class FrameSegmenter:
    """A 2D model on frames that come one after the other; not for several threads at once.

    The first frame takes longer: an engine converts the network for it, and is checked against torch.

    Args:
        model: model folder, or a loaded `Predictor`.
        spacing_mm: distance of pixels along X and Y, where the plan resamples to a spacing of its own.
        options: of `load_predictor`: device, precision, engine, fold, overlap, tta.

    Raises:
        UsageError: a model of volumes; what `load_predictor` refuses.
    """

    def __init__(self, model: Model, *, spacing_mm: Sequence[float] = (1.0, 1.0), **options: Any) -> None:
        if len(spacing_mm) != 2 or min(spacing_mm) <= 0:
            raise ValueError(f"a frame has two spacings above 0, got spacing_mm={tuple(spacing_mm)}")
        keep_heap()
        self.predictor: Predictor = loaded(model, **options)
        patch = self.predictor.patch
        if self.predictor.model.network.spatial_dims != 2 or patch[2] != 1:
            raise UsageError(
                f"{self.predictor.model.folder} is a model of volumes (windows of {patch}); frames need a 2D model"
            )
        self.affine = np.diag([*map(float, spacing_mm), 1.0, 1.0])
        self._scorer = self.predictor.scorer

    @property
    def channels(self) -> int:
        """That a frame has."""
        return self.predictor.model.network.in_channels

    @torch.inference_mode()
    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """Label values (X, Y) of a frame.

        Args:
            frame: (X, Y) or (C, X, Y), of numbers; X runs along a row of the picture, as everywhere here.

        Raises:
            ValueError: an array of other dimensions or kind.
            CaseError: other channels than the model takes; voxels or scores that are not finite.
        """
        volume = self._volume(frame)
        with one_thread():
            image = self.predictor.prepare(volume)
        if isinstance(image, Prepared) and self._is_plain(image):
            return self._labels(image)
        return self.predictor.segment(image).labels

    def _volume(self, frame: np.ndarray) -> Volume:
        array = np.asarray(frame)
        if array.ndim not in (2, 3) or array.dtype.kind not in "iufb":
            raise ValueError(f"a frame is (X, Y) or (C, X, Y), of numbers; got an array {array.shape} of {array.dtype}")
        array = array[np.newaxis] if array.ndim == 2 else array
        if array.dtype.kind == "b" or array.dtype in (np.float16, np.longdouble, np.uint64):
            array = array.astype(np.float32)
        geometry = Geometry(array.shape[1:], self.affine, has_world=False)
        return Volume(array, geometry, self.predictor.model.plan.get("modality", ""))

    def _is_plain(self, prepared: Prepared) -> bool:
        """Whether one window holds a frame whose grid is that of its labels, and labels are all that is asked for."""
        predictor, image = self.predictor, prepared.image
        plain = predictor.modes == PLAIN and predictor.halo is None and predictor.slices == 1
        same = isinstance(image, BlockwiseImage) and not image.resampled
        whole = same and prepared.shape == (*prepared.volume.geometry.shape, 1)[:3]
        here = np.array_equal(prepared.affine, prepared.volume.geometry.affine)
        fits = all(side <= room for side, room in zip(prepared.shape, predictor.patch, strict=True))
        return plain and whole and here and fits

    def _labels(self, prepared: Prepared) -> np.ndarray:
        shape, patch = prepared.shape, self.predictor.patch
        before = padding_before(shape, patch)
        inside = (slice(None), *(slice(first, first + side) for first, side in zip(before, shape, strict=True)))
        with one_thread():
            window = padded_window(prepared.image, [slice(0, side) for side in patch], before)
        found = self._scorer(window.unsqueeze(0))[0]
        with one_thread():
            classes = decided(scores_of(self._scorer, found[inside]), regions=self.predictor.has_regions)
            labels = to_values(classes.cpu().numpy(), self.predictor.values)
        return labels.reshape(prepared.volume.geometry.shape)
