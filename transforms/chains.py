"""The preprocessing chain: plain values of a plan -> names and arguments -> a MONAI `Compose`.

Train and predict build the same chain from the same stored steps. The crop is decided by the image alone, labels are
optional, and every step keeps the affine right, so that a label map can be put back by its place in the world.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import Compose, MapTransform

from ..errors import CaseError, VoxelwiseError, unknown
from .bias_field import CorrectBiasField
from .crop import CropNonzero
from .labels import ToClasses
from .loading import LoadVolume
from .located import affine_of, located, plain
from .reorient import Orient
from .resample import Resample
from .spline_resample import SplineResample
from .window import Normalise


class CheckImage(MapTransform):
    """Refuse images that the network cannot take: other channels than planned, NaN or infinite voxels.

    A grey picture is repeated where a colour picture (3 channels) is expected.
    """

    def __init__(self, keys: Sequence[str], channels: int) -> None:
        super().__init__(keys)
        self.channels = channels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with the right number of channels.

        Raises:
            CaseError: too few or too many channels; voxels that are not finite.
        """
        sample = dict(data)
        for key in self.keys:
            image, voxels = data[key], plain(data[key])
            if len(voxels) == 1 and self.channels == 3 and voxels.shape[-1] == 1:
                voxels = voxels.expand(3, *voxels.shape[1:])
                sample[key] = located(voxels, affine_of(image), image)
            if len(voxels) != self.channels:
                raise CaseError(
                    f"the image has {len(voxels)} channels, expected {self.channels}; give the same channels as "
                    "in training",
                    "channels",
                )
            if voxels.is_floating_point() and not torch.isfinite(voxels.sum()):
                wrong = ~torch.isfinite(voxels)
                if wrong.any():
                    first = tuple(wrong.nonzero()[0, 1:].tolist())
                    raise CaseError(
                        f"{int(wrong.sum())} voxels are NaN or infinite (the first at {first}); "
                        "fill them (predict has --fill-nan min), or leave the case out",
                        "not-finite",
                    )
        return sample


# which of the keys a step works on: the images, the label maps or both
IMAGES: dict[str, type[MapTransform]] = {
    "CheckImage": CheckImage,
    "CorrectBiasField": CorrectBiasField,
    "Normalise": Normalise,
}
LABELS: dict[str, type[MapTransform]] = {"ToClasses": ToClasses}
BOTH: dict[str, type[MapTransform]] = {
    "LoadVolume": LoadVolume,
    "Orient": Orient,
    "CropNonzero": CropNonzero,
    "Resample": Resample,
    "SplineResample": SplineResample,
}


def preprocessing_steps(
    *,
    channels: Sequence[str],
    labels: Sequence[Mapping[str, Any]],
    orientation: str | None,
    spacing_mm: Sequence[float | None] | None,
    crop: str,
    bias_field: bool,
    normalisation: Sequence[Mapping[str, Any]],
    resampling: Mapping[str, Any] | None = None,
    **_rest: Any,
) -> list[dict[str, Any]]:
    """The preprocessing chain of a plan as names and arguments; takes all fields of a plan (`**plan.model_dump()`)."""
    steps: list[dict[str, Any]] = [{"name": "LoadVolume", "args": {"channels": len(channels) > 1}}]
    steps.append({"name": "CheckImage", "args": {"channels": len(channels)}})
    steps.append({"name": "ToClasses", "args": {"values": [int(label["value"]) for label in labels]}})
    if bias_field:
        steps.append({"name": "CorrectBiasField", "args": {}})
    if orientation is not None:
        steps.append({"name": "Orient", "args": {"orientation": orientation}})
    if crop == "nonzero":
        steps.append({"name": "CropNonzero", "args": {}})
    spacing = None if spacing_mm is None else list(spacing_mm)
    normalise = {"name": "Normalise", "args": {"channels": [dict(values) for values in normalisation]}}
    if resampling is not None and resampling.get("kind") == "spline":
        arguments = {name: resampling[name] for name in ("separate", "order", "order_separate") if name in resampling}
        return [*steps, normalise, {"name": "SplineResample", "args": {"spacing_mm": spacing, **arguments}}]
    span = {"span": True} if resampling is not None and resampling.get("kind") == "span" else {}
    return [*steps, {"name": "Resample", "args": {"spacing_mm": spacing, **span}}, normalise]


def build_chain(
    steps: Sequence[Mapping[str, Any]],
    keys: Sequence[str] = ("image",),
    *,
    label_keys: Sequence[str] = ("label", "labels"),
) -> Compose:
    """The MONAI chain that `preprocessing_steps` describes.

    `chain({"image": path, "label": path})` reads and prepares a case; `chain(sample, start=1)` takes MetaTensors
    (C, X, Y, Z) with an affine that are already in memory.

    Args:
        steps: names and arguments.
        keys: of the sample; leave the label map out for prediction.
        label_keys: those of `keys` that hold label maps.
    """
    labels = [key for key in keys if key in label_keys]
    images = [key for key in keys if key not in label_keys]
    chain = []
    for step in steps:
        name, arguments = step["name"], dict(step["args"])
        if name in IMAGES:
            chain.append(IMAGES[name](images, **arguments))
        elif name in LABELS:
            chain += [LABELS[name](labels, **arguments)] if labels else []
        elif name in ("Resample", "SplineResample"):
            chain.append(BOTH[name]([*images, *labels], **{"label_keys": labels, **arguments}))
        elif name == "LoadVolume":
            chain.append(LoadVolume([*images, *labels], label_keys=labels, **arguments))
        elif name == "CropNonzero":
            chain.append(CropNonzero([*images, *labels], decided_by=images[0], **arguments))
        elif name in BOTH:
            chain.append(BOTH[name]([*images, *labels], **arguments))
        else:
            raise unknown("step of a preprocessing chain", name, [*IMAGES, *LABELS, *BOTH])
    return Compose(chain)


def run_chain(
    chain: Compose, sample: Mapping[Hashable, Any], *, start: int = 0, end: int | None = None
) -> dict[Hashable, Any]:
    """The chain, or its steps from `start` to before `end`, on a sample; our own errors come out as they are.

    MONAI wraps whatever a transform raises; a case that is refused must stay a `CaseError`.
    """
    try:
        return chain(sample, start=start, end=end)
    except RuntimeError as error:
        if isinstance(error.__cause__, VoxelwiseError):
            raise error.__cause__ from None
        raise
