"""plans.json and dataset.json of nnU-Net as a plan of ours.

nnU-Net reads volumes as (Z, Y, X) and transposes them by `transpose_forward`; all that it says of axes is in that
order, without the first one for networks of slices. Ours is the order of the affine, (X, Y, Z): see `in_our_order`.

Preprocessing is nnU-Net's: crop to what is not zero, normalise, resample with splines whose grids agree at their edges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ...errors import UsageError, unknown
from ...networks.nnunet import NnUNetNetwork, volume_axes
from ..dataset.choices import modality_in
from ..dataset.plan import AUGMENTATION, Plan, plan_from
from .nnunet_labels import Labels
from .nnunet_plans import ANISOTROPY, Configuration, Intensities, Plans, ResampleArguments, checked

PREPROCESSOR, LABEL_MANAGER = "DefaultPreprocessor", "LabelManager"
ORIENTATIONS = {  # by the class that reads images; None keeps the order of the file
    "SimpleITKIO": None,
    "NibabelIO": None,
    "NibabelIOWithReorient": "RAS",
    "SimpleITKIOWithReorient": "RAS",
    "NaturalImage2DIO": None,
}
PICTURES = "NaturalImage2DIO"
NORMALISATIONS = {
    "CTNormalization": "window",
    "ZScoreNormalization": "zscore",
    "NoNormalization": "none",
    "RescaleTo01Normalization": "rescale_own",
    "RGBTo01Normalization": "rescale",
}
SPLINE, KEPT = "resample_data_or_seg_to_shape", "no_resampling_hack"
SEPARATE = {None: "auto", True: "always", False: "never"}
HOUNSFIELD = (-1100.0, 500.0)  # between them lies the median of what a CT shows
SMALLEST_STD = 1e-8
Value = TypeVar("Value")


@dataclass(frozen=True)
class Understood:
    """What the files say, checked.

    Args:
        plans: of all configurations.
        configuration: that the checkpoint was trained with.
        name: of it.
        channels: names of dataset.json.
        labels: and regions.
        network: as one of ours.
        mirror_axes: that the trainer allows, in nnU-Net's order.
    """

    plans: Plans
    configuration: Configuration
    name: str
    channels: tuple[str, ...]
    labels: Labels
    network: NnUNetNetwork
    mirror_axes: tuple[int, ...]


def in_our_order(values: Sequence[Value], transpose_forward: Sequence[int], slices: Value) -> list[Value]:
    """One value for each axis, in the order X, Y, Z.

    Args:
        values: in nnU-Net's order, two or three.
        transpose_forward: of the plans.
        slices: value of the axis along which slices follow each other, where there are two.
    """
    full = [slices, *values] if len(values) == 2 else list(values)
    return [full[axis] for axis in volume_axes(transpose_forward)]


def our_axes(axes: Sequence[int], transpose_forward: Sequence[int], dims: int) -> list[int]:
    """Spatial axes of nnU-Net's network as ours."""
    return sorted(2 - transpose_forward[axis + 3 - dims] for axis in axes)


def plan_of(found: Understood, where: str, *, orientation: str | None = None) -> Plan:
    """The plan.

    Args:
        found: what the files say.
        where: plans.json, for messages.
        orientation: instead of that of nnU-Net's reader.

    Raises:
        UsageError: a reader, preprocessor, normalisation or resampling that is not known here, or values that do not
            go together.
    """
    plans, configuration = found.plans, found.configuration
    order, dims = plans.transpose_forward, found.network.spatial_dims
    if len(configuration.patch_size) != dims or len(configuration.spacing) != dims:
        raise UsageError(
            f"{where}: {found.name} has a network of {dims} dimensions, patch_size {configuration.patch_size} and "
            f"spacing {configuration.spacing}; get the folder again"
        )
    _known("preprocessor_name", configuration.preprocessor_name, [PREPROCESSOR], where)
    _known("label_manager", plans.label_manager, [LABEL_MANAGER], where)
    _known("image_reader_writer", plans.image_reader_writer, ORIENTATIONS, where)
    resampling = _resampling(configuration, where)
    spacing = in_our_order([*map(float, configuration.spacing)], order, None) if resampling is not None else None
    values: dict[str, Any] = {
        "dataset": plans.dataset_name,
        "dims": dims,
        "channels": list(found.channels),
        "modality": modality_of(found),
        "labels": found.labels.labels,
        "spacing_mm": spacing,
        "orientation": orientation or ORIENTATIONS[plans.image_reader_writer],
        "crop": "nonzero",
        "normalisation": [_normalisation(found, channel, where) for channel in range(len(found.channels))],
        "patch": in_our_order(configuration.patch_size, order, 1),
        "batch": configuration.batch_size,
        "network": {"name": "unet", "options": dict(found.network.options)},
        "mirror_axes": our_axes(found.mirror_axes, order, dims),
        "augmentation": dict(AUGMENTATION),
        "overlap": 0.5,
        "blending": "gaussian_voxel",
        "tta": bool(found.mirror_axes),
    }
    if resampling is not None:
        values["resampling"] = resampling
    if found.labels.regions:
        values["regions"] = found.labels.regions
    return plan_from(values, where=where)


def modality_of(found: Understood) -> str:
    """CT, MR, PT or picture, where all channels are called so; else other, which is held against nothing.

    Some call a channel CT for its normalisation alone: where the foreground was no Hounsfield units, it is none.
    """
    if found.plans.image_reader_writer == PICTURES:
        return "picture"
    named = {modality_in(name) for name in found.channels}
    modality = named.pop() if len(named) == 1 else None
    if modality == "CT":
        medians = [found.plans.intensities.get(str(at), {}).get("median") for at in range(len(found.channels))]
        low, high = HOUNSFIELD
        if any(isinstance(median, int | float) and not low <= median <= high for median in medians):
            return "other"
    return modality or "other"


def _normalisation(found: Understood, channel: int, where: str) -> dict[str, Any]:
    schemes, masks = found.configuration.normalization_schemes, found.configuration.use_mask_for_norm
    if len(schemes) != len(found.channels) or len(masks) != len(found.channels):
        raise UsageError(
            f"{where}: {found.name} has {len(schemes)} normalization_schemes and {len(masks)} use_mask_for_norm for "
            f"{len(found.channels)} channels ({', '.join(found.channels)}); get the folder again"
        )
    scheme = schemes[channel]
    _known("normalisation", scheme, NORMALISATIONS, where)
    kind = NORMALISATIONS[scheme]
    if kind == "window":
        here = f"{where}: foreground intensities of channel {channel}"
        values = checked(Intensities, found.plans.intensities.get(str(channel)), here)
        low, high = values.percentile_00_5, values.percentile_99_5
        return {"kind": kind, "low": low, "high": high, "mean": values.mean, "std": max(values.std, SMALLEST_STD)}
    if kind == "rescale":
        return {"kind": kind, "low": 0.0, "high": 255.0}
    if kind == "zscore" and masks[channel]:
        return {"kind": "zscore_mask"}
    return {"kind": kind}


def _resampling(configuration: Configuration, where: str) -> dict[str, Any] | None:
    """How images and scores are resampled; None where neither is."""
    names = (configuration.resampling_fn_data, configuration.resampling_fn_probabilities)
    for name in names:
        _known("resampling function", name, [SPLINE, KEPT], where)
    if names == (KEPT, KEPT):
        return None
    if KEPT in names:
        raise UsageError(f"{where}: images are resampled by {names[0]} and scores by {names[1]}; expected one for both")
    image, scores = (
        checked(ResampleArguments, given, f"{where}: {field}")
        for field, given in (
            ("resampling_fn_data_kwargs", configuration.resampling_fn_data_kwargs),
            ("resampling_fn_probabilities_kwargs", configuration.resampling_fn_probabilities_kwargs),
        )
    )
    for one in (image, scores):
        if one.is_seg or one.separate_z_anisotropy_threshold != ANISOTROPY:
            raise UsageError(
                f"{where}: resampling with is_seg {one.is_seg} and separate_z_anisotropy_threshold "
                f"{one.separate_z_anisotropy_threshold:g} cannot be imported, only False and {ANISOTROPY:g} can"
            )
    return {
        "kind": "spline",
        "separate": SEPARATE[image.force_separate_z],
        "order": image.order,
        "order_separate": image.order_z,
        "scores_separate": SEPARATE[scores.force_separate_z],
        "scores_order": scores.order,
        "scores_order_separate": scores.order_z,
    }


def _known(what: str, name: str, known: Sequence[str] | Mapping[str, Any], where: str) -> None:
    if name not in known:
        raise unknown(f"{what} in {where}:", name, known)
