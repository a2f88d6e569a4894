"""What an exported network has to be fed with and what it gives, for programs (model.json) and for people (README)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..model_folder import ModelFolder

NORMALISATIONS = {
    "window": "clip to [{low:g}, {high:g}], subtract {mean:g}, divide by {std:g}",
    "rescale": "clip to [{low:g}, {high:g}], then [{low:g}, {high:g}] becomes [0, 1]",
    "zscore": "subtract the mean of the image, divide by its standard deviation{clip}",
    "zscore_nonzero": "the same over its voxels that are not 0, which stay 0: subtract their mean, divide by their "
    "standard deviation{clip}",
    "zscore_mask": "within the mask of where some channel is not 0, holes filled, subtract the mean and divide by the "
    "standard deviation of it; beyond it values stay",
    "rescale_own": "the least and the greatest value of the image become 0 and 1; then subtract {mean:g}, divide by "
    "{std:g}",
    "rescale_nonzero": "the least and the greatest of its values that are not 0 become 0 and 1, zeros what their mean "
    "becomes; then subtract {mean:g}, divide by {std:g}",
    "none": "as stored",
}
WEIGHTS = {
    "gaussian": "gaussian, sigma an eighth of the patch",
    "gaussian_voxel": "gaussian, sigma an eighth of the patch, centre at the voxel of number patch // 2",
    "constant": "the same everywhere",
}
# fields of a plan that a model is predicted with; what it was trained with stays at home
PREDICTING = (
    *("dims", "channels", "modality", "labels", "regions", "spacing_mm", "resampling", "orientation", "crop"),
    *("bias_field", "normalisation", "patch", "slices", "mirror_axes", "overlap", "blending", "windows", "tta"),
)
LAST_REGION = "the `writes` of the last of `regions` whose logit is above 0; 0 where there is none"


@dataclass(frozen=True, eq=False)
class Card:
    """A network on its way out.

    Args:
        model: folder that it comes from.
        fold: of its weights.
        format: that it is written in.
        file: its name.
        any_number: whether it takes any number of windows.
        difference: the largest one of a logit from the network's own.
    """

    model: ModelFolder
    fold: str
    format: str
    file: str
    any_number: bool
    difference: float

    @property
    def patch(self) -> tuple[int, ...]:
        """Size of a window as the network takes it: two sides for a network of slices."""
        return window_size(self.model)

    @property
    def axis(self) -> int | None:
        """The axis along which a network of slices goes through a volume; None for one of volumes."""
        return slice_axis(self.model)

    @property
    def entries(self) -> dict[str, Any]:
        """All of it, as plain values."""
        plan, network = self.model.plan, self.model.network
        batch: str | int = "any" if self.any_number else 1
        slices = int(plan.get("slices", 1))
        return {
            "format": self.format,
            "file": self.file,
            "fold": self.fold,
            "network": {"name": network.name, "spatial_dims": network.spatial_dims},
            "weights_sha256": self.model.sha256(self.fold),
            "input": {
                "name": "image",
                "dtype": "float32",
                "shape": [batch, network.in_channels, *self.patch],
                "channels": list(plan.get("channels", ())),
                "modality": plan.get("modality", ""),
                **({} if self.axis is None else {"slices_along_axis": self.axis, "neighbouring_slices": slices}),
            },
            "output": {
                "name": "logits",
                "dtype": "float32",
                "shape": [batch, network.out_channels, *self.patch],
                "label_of_a_voxel": LAST_REGION if self.model.regions else "labels[argmax over axis 1].value",
            },
            "preprocessing": [dict(step) for step in self.model.preprocessing],
            "windows": {
                "patch": list(plan["patch"]),
                "overlap": plan.get("overlap", 0.5),
                "weights": WEIGHTS[str(plan.get("blending", "gaussian"))],
                "mirror_axes": list(plan.get("mirror_axes", ())) if plan.get("tta", True) else [],
            },
            **({"regions": [one.model_dump() for one in self.model.regions]} if self.model.regions else {}),
            "labels": [label.model_dump() for label in self.model.labels],
            "plan": self._plan,
            "check": {"max_abs_difference": self.difference},
        }

    def readme(self, reader: str) -> str:
        """The same in words.

        Args:
            reader: what opens the file.
        """
        network, plan = self.model.network, self.model.plan
        sides = " x ".join(map(str, self.patch))
        many = "any number of windows at a time" if self.any_number else "one window at a time"
        flat = "" if self.axis is None else f" It takes slices: a volume goes through it along axis {self.axis}."
        steps = "\n".join(f"{number}. {text}" for number, text in enumerate(self.steps, start=1))
        mirrored = list(plan.get("mirror_axes", ())) if plan.get("tta", True) else []
        tta = f", and averaged with the image mirrored along the axes {mirrored}" if mirrored else ""
        return (
            f"# {network.name}, fold {self.fold}\n\n"
            f"Exported by voxelwise; read with `{reader}`. Its logits differ from the original's by at most "
            f"{self.difference:.2g} on sample windows.{flat}\n\n"
            f"Input: float32 (N, {network.in_channels}, {sides}), {many}; channels: "
            f"{', '.join(map(str, plan.get('channels', ())))}; modality: {plan.get('modality') or 'not stated'}.\n"
            f"Output: float32 logits (N, {network.out_channels}, {sides}); {self._decision}.\n\n"
            f"## Preprocessing, in this order\n\n{steps}\n\n"
            "## Windows\n\n"
            f"{' x '.join(map(str, plan['patch']))} voxels, neighbours share {float(plan.get('overlap', 0.5)):.0%}, "
            f"logits blended with weights ({WEIGHTS[str(plan.get('blending', 'gaussian'))]}){tta}. Volumes smaller "
            "than a window are padded.\n\n"
            f"{self._tables}"
        )

    @property
    def _plan(self) -> dict[str, Any]:
        """What `import-model` makes a model folder of again."""
        network = {"name": self.model.network.name, "options": dict(self.model.network.options)}
        return {**{key: self.model.plan[key] for key in PREDICTING if key in self.model.plan}, "network": network}

    @property
    def _decision(self) -> str:
        if self.model.regions:
            return "each is a region, and in this order regions write their values where their logits are above 0"
        return "the label of a voxel is that of the class with the largest one"

    @property
    def _tables(self) -> str:
        if not self.model.regions:
            rows = "\n".join(f"| {at} | {label.value} | {label.name} |" for at, label in enumerate(self.model.labels))
            return f"## Labels\n\n| class | value | name |\n| --- | --- | --- |\n{rows}\n"
        outputs = "\n".join(
            f"| {at} | {region.name} | {', '.join(map(str, region.values))} | {region.writes} |"
            for at, region in enumerate(self.model.regions)
        )
        rows = "\n".join(f"| {label.value} | {label.name} |" for label in self.model.labels)
        return (
            f"## Regions\n\n| output | name | label values | writes |\n| --- | --- | --- | --- |\n{outputs}\n\n"
            f"## Labels\n\n| value | name |\n| --- | --- |\n{rows}\n"
        )

    @property
    def steps(self) -> list[str]:
        """The preprocessing in sentences."""
        return [text for step in self.model.preprocessing if (text := sentence(step["name"], step["args"]))]


def sentence(name: str, arguments: Mapping[str, Any]) -> str:
    """What a step of the chain does; nothing for those that only check or concern label maps."""
    if name == "Orient":
        return f"Turn to {arguments['orientation']} (axis 0 rises towards {_towards(arguments['orientation'])})."
    if name == "Resample":
        return _resampled(arguments, "linearly; the first voxel centres agree")
    if name == "SplineResample":
        return _resampled(arguments, f"by splines of order {arguments.get('order', 3)}; the edges of the grids agree")
    if name == "CropNonzero":
        return "Crop to the box of voxels that are not 0."
    if name == "CorrectBiasField":
        return "Correct the bias field (N4, as SimpleITK does it)."
    if name == "Normalise":
        texts = [_normalised(dict(channel)) for channel in arguments["channels"]]
        if len(set(texts)) == 1:
            return f"Each channel: {texts[0]}."
        return "; ".join(f"channel {at}: {text}" for at, text in enumerate(texts)) + "."
    return ""


def _resampled(arguments: Mapping[str, Any], how: str) -> str:
    spacing = arguments.get("spacing_mm")
    if spacing is None:
        return "Keep the spacing."
    sides = " x ".join("its own" if side is None else f"{side:g}" for side in spacing)
    return f"Resample to {sides} mm, {how}."


def window_size(model: ModelFolder) -> tuple[int, ...]:
    """Of what the network takes."""
    patch, axis = tuple(int(side) for side in model.plan["patch"]), slice_axis(model)
    return patch if axis is None else tuple(side for at, side in enumerate(patch) if at != axis)


def slice_axis(model: ModelFolder) -> int | None:
    """The axis that slices are stacked along, as prediction takes it."""
    if model.network.spatial_dims == 3:
        return None
    patch: Sequence[int] = list(model.plan["patch"])
    return patch.index(1) if 1 in patch else 2


def _normalised(values: dict[str, Any]) -> str:
    low, high = values.get("low"), values.get("high")
    clip = f", clip to [{low:g}, {high:g}]" if low is not None and high is not None else ""
    numbers = {"mean": values.get("mean") or 0.0, "std": values.get("std") or 1.0}
    bounds = {"low": -math.inf if low is None else low, "high": math.inf if high is None else high}
    return NORMALISATIONS[str(values["kind"])].format(clip=clip, **numbers, **bounds)


def _towards(codes: str) -> str:
    names = {"R": "the right", "L": "the left", "A": "the front", "P": "the back", "S": "the head", "I": "the feet"}
    return names[codes[0]]
